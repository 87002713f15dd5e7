// The skeleton of sm_100a's grouped GEMMs. Which tiles there are, who takes them and how they come to shared memory
// is as on sm_90a. What differs is who multiplies: one thread issues the products of a whole tile, and their sums
// lie in tensor memory, 128 lanes (rows) × 256 columns. There is room for two of them, so that what follows runs
// while the tensor cores go on.
//
//   warp 0  copies        warp 1  products        warp 2  has tensor memory        warps 4 to 11  epilogue
//
// It has not run on hardware.
#pragma once

#ifndef FLEXACT_EMULATED
#include <cutlass/arch/reg_reconfig.h>

#include "dependent_launch.cuh"
#include "sm100_instructions.cuh"
#endif
#include "sm100_descriptors.hpp"
#include "sm90_epilogue.cuh"
#include "sm90_stages.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda::sm100 {

using sm90::EmptyBarrier;
using sm90::FullBarrier;
using sm90::kWorkSlots;
using sm90::Ring;

inline constexpr int kCopyWarp = 0;
inline constexpr int kProductWarp = 1;
inline constexpr int kMemoryWarp = 2;
inline constexpr int kFirstEpilogueWarp = 4;
inline constexpr int kEpilogueWarps = kGemmThreads / 32 - kFirstEpilogueWarp;
static_assert(kEpilogueWarps == 8);
// Where the epilogue adds up stages in registers, the other warps give it theirs.
inline constexpr int kOtherRegisters = 56;
inline constexpr int kEpilogueRegisters = 224;

// The product instruction of an element.
template <typename Element>
struct Products;
template <>
struct Products<__nv_bfloat16> {
  static constexpr std::uint32_t kInstruction = instruction_of(Operand::BFloat16);
};
template <>
struct Products<__half> {
  static constexpr std::uint32_t kInstruction = instruction_of(Operand::Float16);
};
template <>
struct Products<std::uint8_t> {
  static constexpr std::uint32_t kInstruction = instruction_of(Operand::E4M3);
};

template <typename Type>
struct SharedStorage {
  using Element = Type;
  static constexpr int kDepth = sm90::kDepthOf<Element>;
  static constexpr int kExtra = 0;  // rows beyond 128
  alignas(1024) Element a[kStages][kTileRows * kDepth];
  alignas(1024) Element b[kStages][kTileColumns * kDepth];
  alignas(128) std::uint8_t lines[kEpilogueWarps][32 * kLineBytes];
  float largest[2][2][kTileRows];  // of halves of a group of results, of tiles in turns
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  EmptyBarrier summed[kSumTiles];   // products are complete …
  EmptyBarrier drained[kSumTiles];  // … and were read
  sm90::WorkQueue queue;
  std::uint32_t sums;
};
static_assert(sizeof(SharedStorage<__nv_bfloat16>) <= kGemmSharedBytes);
static_assert(sizeof(SharedStorage<std::uint8_t>) <= kFp8SharedBytes);

template <typename Storage>
__device__ __forceinline__ void init_barriers(Storage& shared) {
  for (int stage = 0; stage < kStages; ++stage) {
    shared.full[stage].init(1);
    shared.empty[stage].init(1);
  }
  for (int place = 0; place < kSumTiles; ++place) {
    shared.summed[place].init(1);
    shared.drained[place].init(kEpilogueWarps);
  }
  shared.queue.init(1 + kEpilogueWarps);
  cutlass::arch::fence_barrier_init();
}

// Where tensor memory is; read where it is needed, it takes no register elsewhere.
template <typename Storage>
__device__ __forceinline__ std::uint32_t sums_of(Storage& shared) {
  return *static_cast<volatile std::uint32_t*>(&shared.sums);
}

// The warp that multiplies; all of it waits, and one thread issues. `kOfStage`: each stage's sums are read by
// themselves, else those of all of K.
template <bool kOfStage, typename Storage>
__device__ __forceinline__ void multiply_tiles(Storage& shared, const GemmArguments& arguments, int lane) {
  using Element = typename Storage::Element;
  const std::uint32_t sums = sums_of(shared);
  const std::uint64_t first_a = tile_descriptor(shared_address(&shared.a[0][0]));
  const std::uint64_t first_b = tile_descriptor(shared_address(&shared.b[0][0]));
  const int steps = (arguments.depth + Storage::kDepth - 1) / Storage::kDepth;
  Ring<kStages> ring;
  Ring<kSumTiles> place;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = sm90::next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;
    // Written out four times it would take more registers than these warps have.
    CUTE_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      const bool first = kOfStage || step == 0;
      const bool last = kOfStage || step == steps - 1;
      if (first) {
        shared.drained[place.slot].wait(place.phase ^ 1);
        fence_after_meeting();
      }
      shared.full[ring.slot].wait(ring.phase);
      fence_after_meeting();
      if (is_elected()) {
        const std::uint64_t a = first_a + ring.slot * (sizeof(shared.a[0]) / 16);
        const std::uint64_t b = first_b + ring.slot * (sizeof(shared.b[0]) / 16);
        CUTE_UNROLL
        for (int bytes = 0; bytes < 128; bytes += 32) {
          multiply<Element>(sums + place.slot * kTileColumns, a + bytes / 16, b + bytes / 16,
                            Products<Element>::kInstruction, !first || bytes > 0);
        }
        arrive_after_products(&shared.empty[ring.slot]);
        if (last) arrive_after_products(&shared.summed[place.slot]);
      }
      __syncwarp();
      ring.advance();
      if (last) place.advance();
    }
  }
}

// By a warp of the epilogue: sums that the tensor cores have finished, and that they may write again.
template <typename Storage>
__device__ __forceinline__ void await_sums(Storage& shared, const Ring<kSumTiles>& place) {
  shared.summed[place.slot].wait(place.phase);
  fence_after_meeting();
}
template <typename Storage>
__device__ __forceinline__ void return_sums(Storage& shared, Ring<kSumTiles>& place, int lane) {
  fence_before_meeting();
  __syncwarp();
  if (lane == 0) shared.drained[place.slot].arrive();
  place.advance();
}

// A warp's rows of results on their way to memory, 64 bytes of each: a thread writes its own row's pieces of 16
// bytes, then four threads together a row's. Eight neighbouring rows lie in two lines of shared memory's banks and
// meet none twice.
class Lines {
 public:
  __device__ Lines(void* memory, int lane) : memory_(shared_address(memory)), lane_(lane) {}

  __device__ __forceinline__ void put(int piece, const std::uint32_t (&word)[4]) const {
    store_shared16(memory_ + place(lane_, piece), word);
  }

  // The first `rows` rows to `output` [.., row_bytes], from byte `from` of each on.
  __device__ __forceinline__ void drain(void* output, std::int64_t first_row, int rows, int from,
                                        std::int64_t row_bytes) const {
    __syncwarp();
    from += lane_ % 4 * 16;
    auto* const to = static_cast<char*>(output) + first_row * row_bytes + from;
    CUTE_UNROLL
    for (int i = 0; i < 32; i += 8) {
      const int row = i + lane_ / 4;
      const uint4 data = load_shared16(memory_ + place(row, lane_ % 4));
      if (row < rows && from < row_bytes) *reinterpret_cast<uint4*>(to + row * row_bytes) = data;
    }
    __syncwarp();
  }

 private:
  __device__ static std::uint32_t place(int row, int piece) {
    return static_cast<std::uint32_t>(row * kLineBytes + (piece ^ row / 2 % 4) * 16);
  }
  std::uint32_t memory_;
  int lane_;
};

// Two neighbouring sums of a row: its factor, and the bias, where there is one.
__device__ __forceinline__ void scale_and_add(float (&two)[2], float factor, const float* bias) {
  two[0] *= factor;
  two[1] *= factor;
  if (bias == nullptr) return;
  const float2 pair = __ldg(reinterpret_cast<const float2*>(bias));
  two[0] += pair.x;
  two[1] += pair.y;
}

// finish(shared, warp of the epilogue, lane) is what follows the products.
template <Epilogue kEpilogue, bool kOfStage, typename Element, typename Finish>
__device__ __forceinline__ void grouped_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                             const GemmArguments& arguments, Finish finish) {
  auto& shared = *reinterpret_cast<SharedStorage<Element>*>(
      (reinterpret_cast<std::uintptr_t>(dynamic_shared()) + 1023) / 1024 * 1024);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;

  if (threadIdx.x == 0) init_barriers(shared);
  if (warp == kMemoryWarp) allocate_sums(&shared.sums);
  fence_before_meeting();
  __syncthreads();
  fence_after_meeting();
  sm90::begin(arguments);

  if (warp < kFirstEpilogueWarp) {
    if constexpr (kOfStage) cutlass::arch::warpgroup_reg_dealloc<kOtherRegisters>();
    if (warp == kCopyWarp && lane == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      sm90::produce<kEpilogue>(shared, map_a, map_b, map_a, arguments);
    }
    __syncwarp();
    if (warp == kProductWarp) multiply_tiles<kOfStage>(shared, arguments, lane);
  } else {
    if constexpr (kOfStage) cutlass::arch::warpgroup_reg_alloc<kEpilogueRegisters>();
    finish(shared, warp - kFirstEpilogueWarp, lane);
  }

  // Tensor memory is given back when nobody reads it any more.
  fence_before_meeting();
  __syncthreads();
  fence_after_meeting();
  if (threadIdx.x / 32 == kMemoryWarp) release_sums(sums_of(shared));
}

}  // namespace flexact::cuda::sm100
