// Rounding to E4M3 and its scales, exactly as src/moe/quantised.hpp states them.
#pragma once

#include <cstdint>

namespace flexact::cuda {

// Two codes, `first` in the lower byte: to nearest even, saturating; NaN stays NaN.
__device__ __forceinline__ std::uint16_t to_e4m3(float first, float second) {
  std::uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %2, %1;" : "=h"(codes) : "f"(first), "f"(second));
  return codes;
}

// As integers magnitudes keep their order, with NaN above infinity.
__device__ __forceinline__ std::uint32_t magnitude_bits(float value) {
  return __float_as_uint(value) & 0x7fffffffu;
}

// The scale of codes by the largest magnitude. NaN stays NaN.
__device__ __forceinline__ float fp8_scale(float largest) {
  return __fdiv_rn(largest < 1e-10f ? 1e-10f : largest, 448.0f);
}

// What values are multiplied by.
__device__ __forceinline__ float reciprocal(float scale) { return __frcp_rn(scale); }

// Raises a number that many threads raise; most find it high enough.
__device__ __forceinline__ void raise(std::uint32_t* at, std::uint32_t bits) {
  if (bits > *static_cast<volatile std::uint32_t*>(at)) atomicMax(at, bits);
}

}  // namespace flexact::cuda
