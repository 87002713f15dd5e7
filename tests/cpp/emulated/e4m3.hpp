// Rounding to E4M3 in C++, for the gathers that round.
#pragma once

#include "block.hpp"
#include "moe/small_floats.hpp"

namespace flexact::cuda {

inline std::uint16_t to_e4m3(float first, float second) {
  return static_cast<std::uint16_t>(moe::encode_e4m3(second) << 8 | moe::encode_e4m3(first));
}
inline std::uint32_t magnitude_bits(float value) {
  return __float_as_uint(value) & 0x7fffffffu;
}
inline float fp8_scale(float largest) {
  return (largest < 1e-10f ? 1e-10f : largest) / 448.0f;
}
inline float reciprocal(float scale) {
  return 1.0f / scale;
}
inline void raise(std::uint32_t* at, std::uint32_t bits) {
  *at = std::max(*at, bits);
}

}  // namespace flexact::cuda
