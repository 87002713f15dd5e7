// SHA-256, for names of things that must be the same on every machine: fingerprints, cache files.
#pragma once

#include <string>
#include <string_view>

namespace flexact::activation {

// The digest of `bytes` as 64 hexadecimal digits.
std::string sha256_hex(std::string_view bytes);

}  // namespace flexact::activation
