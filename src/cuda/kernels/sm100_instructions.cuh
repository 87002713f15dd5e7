// The instructions of sm_100a's tensor cores: products of whole tiles, whose sums lie in tensor memory. Its
// addresses have a lane (a row of the tile) in the upper 16 bits and a column of 32 bits in the lower ones.
#pragma once

#include <cstdint>

#include "shared_memory.cuh"
#include "sm100_descriptors.hpp"

namespace flexact::cuda::sm100 {

// What a launch asked for beside the block's own.
__device__ __forceinline__ std::uint8_t* dynamic_shared() {
  extern __shared__ std::uint8_t memory[];
  return memory;
}

// By a whole warp, which also gives it back: all columns of the multiprocessor. Their address is written to shared
// memory.
__device__ __forceinline__ void allocate_sums(std::uint32_t* address) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(shared_address(address)),
               "n"(kSumColumns)
               : "memory");
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
}
__device__ __forceinline__ void release_sums(std::uint32_t address) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(address), "n"(kSumColumns));
}

// Around a meeting of threads: what is in tensor memory, or on its way there, is ordered with what others do
// after the meeting.
__device__ __forceinline__ void fence_before_meeting() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
__device__ __forceinline__ void fence_after_meeting() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

// Two warps of the epilogue, of four such pairs.
__device__ __forceinline__ void meet_pair(int pair) {
  asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
}

__device__ __forceinline__ int this_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// True in one thread of a warp that is together, always the same one.
__device__ __forceinline__ bool is_elected() {
  std::uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

// sums = rows · weights^T over 32 bytes of each row, or sums += that. Returns at once.
template <typename Element>
__device__ __forceinline__ void multiply(std::uint32_t sums, std::uint64_t rows, std::uint64_t weights,
                                         std::uint32_t instruction, bool adds) {
#define FLEXACT_MULTIPLY(kind)                                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"                                             \
               "tcgen05.mma.cta_group::1.kind::" kind " [%0], %1, %2, %3, p;\n}" ::"r"(sums),           \
               "l"(rows), "l"(weights), "r"(instruction), "r"(static_cast<std::uint32_t>(adds))         \
               : "memory")
  if constexpr (sizeof(Element) == 1) {
    FLEXACT_MULTIPLY("f8f6f4");
  } else {
    FLEXACT_MULTIPLY("f16");
  }
#undef FLEXACT_MULTIPLY
}

// Arrives at a barrier when all products that this thread issued are complete. What they read may be written
// then.
__device__ __forceinline__ void arrive_after_products(void* barrier) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                   shared_address(barrier))
               : "memory");
}

// So many columns of a lane a thread, by a whole warp, which sees the 32 lanes of its rank among four. The
// numbers are there after wait_for_sums().
__device__ __forceinline__ void load_sums(std::uint32_t address, float (&value)[kLoadedSums]) {
  static_assert(kLoadedSums == 32);
  asm volatile(
      "tcgen05.ld.sync.aligned.32x32b.x32.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, [%32];"
      : "=f"(value[0]), "=f"(value[1]), "=f"(value[2]), "=f"(value[3]), "=f"(value[4]), "=f"(value[5]),
        "=f"(value[6]), "=f"(value[7]), "=f"(value[8]), "=f"(value[9]), "=f"(value[10]), "=f"(value[11]),
        "=f"(value[12]), "=f"(value[13]), "=f"(value[14]), "=f"(value[15]), "=f"(value[16]), "=f"(value[17]),
        "=f"(value[18]), "=f"(value[19]), "=f"(value[20]), "=f"(value[21]), "=f"(value[22]), "=f"(value[23]),
        "=f"(value[24]), "=f"(value[25]), "=f"(value[26]), "=f"(value[27]), "=f"(value[28]), "=f"(value[29]),
        "=f"(value[30]), "=f"(value[31])
      : "r"(address)
      : "memory");
}
__device__ __forceinline__ void load_sums(std::uint32_t address, float (&value)[kFewLoadedSums]) {
  static_assert(kFewLoadedSums == 16);
  asm volatile(
      "tcgen05.ld.sync.aligned.32x32b.x16.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "[%16];"
      : "=f"(value[0]), "=f"(value[1]), "=f"(value[2]), "=f"(value[3]), "=f"(value[4]), "=f"(value[5]),
        "=f"(value[6]), "=f"(value[7]), "=f"(value[8]), "=f"(value[9]), "=f"(value[10]), "=f"(value[11]),
        "=f"(value[12]), "=f"(value[13]), "=f"(value[14]), "=f"(value[15])
      : "r"(address)
      : "memory");
}
__device__ __forceinline__ void wait_for_sums() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}
// After that: the compiler knows nothing of the wait, and takes the numbers from here.
template <int kCount>
__device__ __forceinline__ void take_sums(float (&value)[kCount]) {
  for (float& each : value) asm volatile("" : "+f"(each));
}

}  // namespace flexact::cuda::sm100
