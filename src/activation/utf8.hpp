// The strict form of UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace flexact::activation {

// Bytes of the character that starts at `i`; 0 where no valid one does.
std::size_t utf8_length(std::string_view text, std::size_t i) noexcept;

}  // namespace flexact::activation
