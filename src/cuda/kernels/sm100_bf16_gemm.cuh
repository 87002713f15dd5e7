// The grouped GEMM of a MoE layer on sm_100a in bf16 or fp16, with the activation linked in afterwards:
//
//   output[r, :] = epilogue(input[r, :] · weights[expert of r]^T)
//
// Which tiles there are, who takes them and how they come to shared memory is as on sm_90a
// (sm90_bf16_gemm.cuh). What differs is who multiplies: one thread issues the products of a whole tile, and their
// sums lie in tensor memory, 128 lanes (rows) × 256 columns. There is room for two tiles of them, so the epilogue
// of one runs while the next one is multiplied.
//
//   warp 0  copies        warp 1  products        warp 2  has tensor memory        warps 4 to 11  epilogue
//
// It has not run on hardware.
#pragma once

#ifndef FLEXACT_EMULATED
#include "dependent_launch.cuh"
#include "sm100_instructions.cuh"
#endif
#include "sm100_descriptors.hpp"
#include "sm90_epilogue.cuh"
#include "sm90_stages.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda {
namespace sm100 {

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

template <typename Element>
inline constexpr Operand kOperand = Operand::BFloat16;
template <>
inline constexpr Operand kOperand<__half> = Operand::Float16;

template <typename Type>
struct SharedStorage {
  using Element = Type;
  alignas(1024) Element a[kStages][kTileRows * kTileDepth];
  alignas(1024) Element b[kStages][kTileColumns * kTileDepth];
  alignas(128) Element staging[kStagingBytes / 2];
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  EmptyBarrier summed[kSumTiles];   // a tile's products are complete …
  EmptyBarrier drained[kSumTiles];  // … and were read
  sm90::WorkQueue queue;
  std::uint32_t sums;
};
static_assert(sizeof(SharedStorage<__nv_bfloat16>) <= kGemmSharedBytes);

template <typename Storage>
__device__ __forceinline__ void init_barriers(Storage& shared) {
  for (int stage = 0; stage < kStages; ++stage) {
    shared.full[stage].init(1);
    shared.empty[stage].init(1);
  }
  for (int tile = 0; tile < kSumTiles; ++tile) {
    shared.summed[tile].init(1);
    shared.drained[tile].init(kEpilogueWarps);
  }
  shared.queue.init(1 + kEpilogueWarps);
  cutlass::arch::fence_barrier_init();
}

// The warp that multiplies; all of it waits, and one thread issues.
template <typename Storage>
__device__ __forceinline__ void multiply_tiles(Storage& shared, const GemmArguments& arguments,
                                               std::uint32_t sums, int lane) {
  constexpr std::uint32_t kInstruction = instruction_of(kOperand<typename Storage::Element>);
  const std::uint64_t first_a = tile_descriptor(shared_address(&shared.a[0][0]));
  const std::uint64_t first_b = tile_descriptor(shared_address(&shared.b[0][0]));
  const int steps = (arguments.depth + kTileDepth - 1) / kTileDepth;
  Ring<kStages> ring;
  Ring<kSumTiles> place;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = sm90::next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;
    shared.drained[place.slot].wait(place.phase ^ 1);
    fence_after_meeting();
    for (int step = 0; step < steps; ++step) {
      shared.full[ring.slot].wait(ring.phase);
      fence_after_meeting();
      if (is_elected()) {
        const std::uint64_t a = first_a + ring.slot * (sizeof(shared.a[0]) / 16);
        const std::uint64_t b = first_b + ring.slot * (sizeof(shared.b[0]) / 16);
        CUTE_UNROLL
        for (int bytes = 0; bytes < 128; bytes += 32) {
          multiply_f16(sums + place.slot * kTileColumns, a + bytes / 16, b + bytes / 16, kInstruction,
                       step > 0 || bytes > 0);
        }
        arrive_after_products(&shared.empty[ring.slot]);
        if (step == steps - 1) arrive_after_products(&shared.summed[place.slot]);
      }
      __syncwarp();
      ring.advance();
    }
    place.advance();
  }
}

__device__ __forceinline__ void add(float (&two)[2], const float* bias) {
  const float2 pair = __ldg(reinterpret_cast<const float2*>(bias));
  two[0] += pair.x;
  two[1] += pair.y;
}

// A warp's 32 rows of 64 outputs from `column` on, which begin at column `first` of the tile's sums: function and
// rounding, into its staging. A thread has a row.
template <Epilogue kEpilogue, typename Element>
__device__ __forceinline__ void apply(std::uint32_t sums, int first, int column, const GemmArguments& arguments,
                                      int expert, float factor, const float* parameters,
                                      std::uint32_t staging, int lane) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  using Rows = sm90::Staging<64>;
  CUTE_UNROLL
  for (int block = 0; block < 64; block += kLoadedSums) {
    if (column + block >= arguments.columns) break;
    float left[kLoadedSums], right[kLoadedSums];
    load_sums(sums + first + block, left);
    if constexpr (kGated) load_sums(sums + kTileColumns / 2 + first + block, right);
    wait_for_sums();
    take_sums(left);
    if constexpr (kGated) take_sums(right);
    CUTE_UNROLL
    for (int piece = 0; piece < kLoadedSums; piece += 8) {
      const int at = column + block + piece;
      // Columns are whole pieces.
      if (at >= arguments.columns) break;
      std::uint32_t word[4];
      CUTE_UNROLL
      for (int i = 0; i < 8; i += 2) {
        float gate[2] = {left[piece + i] * factor, left[piece + i + 1] * factor};
        float up[2] = {};
        if constexpr (kGated) {
          up[0] = right[piece + i] * factor;
          up[1] = right[piece + i + 1] * factor;
        }
        if (arguments.bias != nullptr) {
          const float* bias =
              arguments.bias + std::int64_t{expert} * arguments.columns * (kGated ? 2 : 1) + at + i;
          add(gate, bias);
          if constexpr (kGated) add(up, bias + arguments.columns);
        }
        const float2 y = sm90::activated<kEpilogue>(gate, up, parameters);
        word[i / 2] = rounded_pair<Element>(y.x, y.y);
      }
      store_shared16(staging + lane / 16 * Rows::kBytes + Rows::place(lane % 16, (block + piece) / 8), word);
    }
  }
}

// The warps of the epilogue: each has 32 rows of a tile and half of its outputs.
template <Epilogue kEpilogue, typename Storage>
__device__ __forceinline__ void finish_tiles(Storage& shared, const GemmArguments& arguments,
                                             std::uint32_t sums, int warp, int lane) {
  using Element = typename Storage::Element;
  constexpr int kOutputs = kOutputColumns<kEpilogue>;
  const int first_row = warp % 4 * 32;
  const int first = warp / 4 * (kOutputs / 2);
  Element* const staging = shared.staging + warp * 32 * 64;
  Ring<kSumTiles> place;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = sm90::next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;
    shared.summed[place.slot].wait(place.phase);
    fence_after_meeting();
    const int rows = tile.z - first_row;
    if (rows > 0) {
      float parameters[kMaxParameters];
      sm90::load_parameters<kEpilogue>(arguments, tile.x, parameters);
      float factor = 1;
      if (arguments.row_scale != nullptr) {
        factor = arguments.row_scale[tile.y + first_row + min(lane, rows - 1)];
      }
      const std::uint32_t of_rows = sums + place.slot * kTileColumns + (first_row << 16);
      for (int pass = 0; pass < kOutputs / 2; pass += 64) {
        const int column = tile.w * kOutputs + first + pass;
        if (column >= arguments.columns) break;
        apply<kEpilogue, Element>(of_rows, first + pass, column, arguments, tile.x, factor, parameters,
                                  shared_address(staging), lane);
        for (int half = 0; half < 2; ++half) {
          const sm90::Staging<64> rows_of_half(staging + half * 16 * 64, lane);
          rows_of_half.drain(arguments.output, tile.y + first_row + half * 16, rows - half * 16, column,
                             arguments.columns, [](int, const uint4&) {});
        }
      }
    }
    fence_before_meeting();
    __syncwarp();
    if (lane == 0) shared.drained[place.slot].arrive();
    place.advance();
  }
}

template <Epilogue kEpilogue, typename Element>
__device__ __forceinline__ void grouped_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                             const GemmArguments& arguments) {
  auto& shared = *reinterpret_cast<SharedStorage<Element>*>(
      (reinterpret_cast<std::uintptr_t>(dynamic_shared()) + 1023) / 1024 * 1024);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;

  if (threadIdx.x == 0) init_barriers(shared);
  if (warp == kMemoryWarp) allocate_sums(&shared.sums);
  fence_before_meeting();
  __syncthreads();
  fence_after_meeting();
  const std::uint32_t sums = *static_cast<volatile std::uint32_t*>(&shared.sums);
  wait_for_predecessors();
  let_successor_start();

  if (warp == kCopyWarp) {
    if (lane == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      sm90::produce<kEpilogue>(shared, map_a, map_b, arguments);
    }
    __syncwarp();
  } else if (warp == kProductWarp) {
    multiply_tiles(shared, arguments, sums, lane);
  } else if (warp >= kFirstEpilogueWarp) {
    finish_tiles<kEpilogue>(shared, arguments, sums, warp - kFirstEpilogueWarp, lane);
  }

  // Tensor memory is given back when nobody reads it any more.
  fence_before_meeting();
  __syncthreads();
  fence_after_meeting();
  if (warp == kMemoryWarp) release_sums(sums);
}

}  // namespace sm100
}  // namespace flexact::cuda

#define FLEXACT_SM100_GEMM_KERNEL(name, epilogue, element)                                                  \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                              \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,            \
           const __grid_constant__ flexact::cuda::GemmArguments arguments) {                                \
    flexact::cuda::sm100::grouped_gemm<flexact::cuda::Epilogue::epilogue, element>(&map_a, &map_b, arguments); \
  }
