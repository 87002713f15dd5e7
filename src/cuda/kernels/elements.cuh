// The types that elements of activations have in memory, and the fp32 that is computed with. Rounding is to
// nearest even; what lies beyond fp16's largest number, 65504, becomes an infinity.
#pragma once

#include <cstdint>

// A test runs kernels on the CPU with types of its own: tests/cpp/emulated.
#ifndef FLEXACT_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace flexact::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <typename Element>
struct Rounding;
template <>
struct Rounding<float> {
  static __device__ __forceinline__ float one(float value) { return value; }
};
template <>
struct Rounding<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 one(float value) { return __float2bfloat16_rn(value); }
  static __device__ __forceinline__ __nv_bfloat162 two(float low, float high) {
    return __floats2bfloat162_rn(low, high);
  }
};
template <>
struct Rounding<__half> {
  static __device__ __forceinline__ __half one(float value) { return __float2half_rn(value); }
  static __device__ __forceinline__ __half2 two(float low, float high) { return __floats2half2_rn(low, high); }
};

// Two neighbours of a 16-bit type in one word, the first in its lower half.
template <typename Element>
__device__ __forceinline__ std::uint32_t rounded_pair(float low, float high) {
  const auto pair = Rounding<Element>::two(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

}  // namespace flexact::cuda
