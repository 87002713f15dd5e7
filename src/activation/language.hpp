// The words of the expression language and its limits.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "activation/graph.hpp"

namespace flexact::activation {

inline constexpr std::size_t kMaxTextBytes = 4096;
inline constexpr int kMaxDepth = 64;
inline constexpr std::size_t kMaxNodes = 256;
inline constexpr std::size_t kMaxParameters = 16;
inline constexpr int kMaxExponent = 16;

// The function that `name` calls, "where" included.
std::optional<Op> find_function(std::string_view name) noexcept;
// Names of all functions.
std::span<const std::string_view> function_names() noexcept;
// True for words that neither a parameter nor a definition may be called.
bool is_reserved(std::string_view name) noexcept;
// [A-Za-z_][A-Za-z0-9_]*, at most 64 characters.
bool is_identifier(std::string_view name) noexcept;

// The candidate that `name` was probably meant to be: equal but for letter case, or within two
// edits. Empty: none is close.
std::string closest(std::string_view name, std::span<const std::string> candidates);

// "a, b, c"
std::string join(std::span<const std::string> parts);

// The shortest decimal text that reads back as `value`: "0.5", "1e-06", "inf", "nan".
std::string number_text(double value);

}  // namespace flexact::activation
