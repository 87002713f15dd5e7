// The instructions of the stream kernels that C++ has no words for.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "dependent_launch.cuh"
#include "e4m3.cuh"

namespace flexact::cuda::stream {

// Sixteen bytes by `load`, or zeros where `there` is false.
#define FLEXACT_LOAD_WHERE(there, load, address)                                                                 \
  uint4 v;                                                                                                       \
  asm volatile(                                                                                                  \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n" \
      "@p " load ".v4.b32 {%0, %1, %2, %3}, [%4];\n}"                                                             \
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)                                                               \
      : "l"(address), "r"(static_cast<int>(there)));                                                             \
  return v

// Weights pass by the first-level cache: nobody reads them again.
__device__ __forceinline__ uint4 load_weights(const void* address, bool there) {
  FLEXACT_LOAD_WHERE(there, "ld.global.nc.L1::no_allocate.L2::256B", address);
}
// The predecessor may have written these, so the load is not `nc`.
__device__ __forceinline__ uint4 load_input(const void* address, bool there) {
  FLEXACT_LOAD_WHERE(there, "ld.global", address);
}
#undef FLEXACT_LOAD_WHERE

// Scales: eight bytes, four or two. Other warps may read what lies beside them.
__device__ __forceinline__ void load_words(const void* address, bool there, std::uint32_t& first,
                                           std::uint32_t& second) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\n"
      "@p ld.global.nc.v2.b32 {%0, %1}, [%2];\n}"
      : "=r"(first), "=r"(second)
      : "l"(address), "r"(static_cast<int>(there)));
}
__device__ __forceinline__ std::uint32_t load_word(const void* address, bool there) {
  std::uint32_t word;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.nc.b32 %0, [%1];\n}"
      : "=r"(word)
      : "l"(address), "r"(static_cast<int>(there)));
  return word;
}
__device__ __forceinline__ std::uint32_t load_half(const void* address, bool there) {
  std::uint32_t word;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.nc.u16 %0, [%1];\n}"
      : "=r"(word)
      : "l"(address), "r"(static_cast<int>(there)));
  return word;
}

// Two E4M3 codes as f16, which holds them exactly.
__device__ __forceinline__ std::uint32_t e4m3_to_f16(std::uint32_t two) {
  std::uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<std::uint16_t>(two)));
  return halves;
}
__device__ __forceinline__ float e4m3_value(std::uint32_t code) {
  const std::uint32_t halves = e4m3_to_f16(code);
  return __low2float(reinterpret_cast<const __half2&>(halves));
}

__device__ __forceinline__ std::uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float float_of(std::uint32_t bits) { return __uint_as_float(bits); }

// What a launch asked for beside the block's own.
__device__ __forceinline__ std::uint8_t* dynamic_shared() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<std::uint8_t*>(memory);
}

// The compiler sees a word here and not before: it would decode many at once, for which there are not
// registers enough.
__device__ __forceinline__ std::uint32_t only_now(std::uint32_t word) {
  asm volatile("" : "+r"(word)::"memory");
  return word;
}

// Of two bf16 each.
__device__ __forceinline__ std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// multiply_bf16 and multiply_f16: acc (16 outputs × 8 slots) += 16 values of K; `low` and `high` hold two pairs
// each of this thread's two rows, `x` the same two pairs of its column.
#define FLEXACT_MULTIPLY(type)                                                                                  \
  __device__ __forceinline__ void multiply_##type(float (&acc)[4], std::uint32_t low0, std::uint32_t high0,     \
                                                  std::uint32_t low1, std::uint32_t high1, std::uint32_t x0,    \
                                                  std::uint32_t x1) {                                           \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type                                       \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                         \
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                                       \
                 : "r"(low0), "r"(high0), "r"(low1), "r"(high1), "r"(x0), "r"(x1));                             \
  }
FLEXACT_MULTIPLY(bf16)
FLEXACT_MULTIPLY(f16)
#undef FLEXACT_MULTIPLY

}  // namespace flexact::cuda::stream
