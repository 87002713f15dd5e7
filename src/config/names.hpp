// What a name means: transformers' names, another stack's on request, a family's own reading.
#pragma once

#include <string>
#include <string_view>

#include "config/family.hpp"
#include "config/section.hpp"
#include "flexact/activation.hpp"

namespace flexact::config {

// The function that `name` means in the catalogue. Errors carry `where`.
Function catalogue_function(std::string_view name, const std::string& where);
// The function that a config key's `name` means: the family's own meaning, transformers'
// (from_stack empty) or another stack's.
Function named_function(std::string_view name, const Family& family, const std::string& from_stack,
                        const std::string& where, Warnings& warnings);
// The function of an expression given in a config.
Function expression_function(std::string_view text, const std::string& where);

// A name that some stack knows, in any letter case.
bool looks_like_activation(std::string_view name);

// Whether two functions without bound parameters compute the same, as unary functions or both
// gated: transformers' swish is its silu.
bool same_function(const Function& a, const Function& b);

// f(min(g, limit)) * clamp(u, -limit, limit) of a unary f, with f's parameters and `limit`.
Function limited_before(const Function& f);
// The same as an expression text, for a message: numbers filled in for the limit.
std::string limited_text(const Function& f, LimitForm form, double limit);

}  // namespace flexact::config
