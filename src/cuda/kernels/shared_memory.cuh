// Shared memory by its own 32-bit addresses, one register each. The compiler moves none of these across a
// barrier, which tells it nothing of memory.
#pragma once

#include <cstdint>

#include <cute/arch/util.hpp>

namespace flexact::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* at) {
  return cute::cast_smem_ptr_to_uint(at);
}

__device__ __forceinline__ float load_shared(const float* at) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(shared_address(at)) : "memory");
  return value;
}
__device__ __forceinline__ float2 load_shared(const float2* at) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(shared_address(at))
               : "memory");
  return value;
}
__device__ __forceinline__ float4 load_shared(const float4* at) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(shared_address(at))
               : "memory");
  return value;
}
__device__ __forceinline__ uint4 load_shared16(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}

__device__ __forceinline__ void store_shared(float* at, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared_address(at)), "f"(value) : "memory");
}
__device__ __forceinline__ void store_shared(float2* at, float2 value) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared_address(at)), "f"(value.x), "f"(value.y)
               : "memory");
}
__device__ __forceinline__ void store_shared(std::uint32_t address, std::uint16_t value) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}

__device__ __forceinline__ void store_shared16(std::uint32_t address, const std::uint32_t (&word)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(word[0]), "r"(word[1]), "r"(word[2]),
               "r"(word[3])
               : "memory");
}

// Four 8 × 8 matrices of 16-bit elements, for which each lane names the start of one row.
__device__ __forceinline__ void store_matrices(std::uint32_t row, const std::uint32_t (&word)[4]) {
  asm volatile("stmatrix.sync.aligned.x4.m8n8.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(word[0]),
               "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

// The same of transposed matrices: a lane's two elements become neighbouring rows.
__device__ __forceinline__ void store_matrices_turned(std::uint32_t row, const std::uint32_t (&word)[4]) {
  asm volatile("stmatrix.sync.aligned.x4.trans.m8n8.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
               : "memory");
}

}  // namespace flexact::cuda
