// The grouped GEMM of a MoE layer on sm_90a in E4M3: codes of rows times codes of weights, brought to
// scale in fp32, with the activation linked in afterwards and its result rounded to E4M3 again.
//
//   output[r, :] = epilogue(Σ_groups (input[r, group] · weights[expert of r, :, group]^T) · scales)
//
// The skeleton is the BF16 kernel's (sm90_bf16_gemm.cuh). What differs:
//
// - Scales by blocks: a product of 128 values of K is added up in the tensor core, then in fp32 with its
//   scales. A warpgroup's 64 × 256 sums take half of its registers, so its products come in two waves of
//   128 columns, gates and ups, through one set of 64. While one warpgroup brings its wave to scale, the
//   tensor core works on the other's.
// - A second producer warp fetches the scales of each stage.
// - The results of one row and 128 columns, one group of the next GEMM's inputs, are held by four
//   neighbouring threads. Their largest magnitude takes two shuffles, and the group leaves as codes.
//
// docs/cuda.md is the design note.
#pragma once

#include <cute/arch/copy_sm80.hpp>
#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/numeric_types.h>

#include "dependent_launch.cuh"
#include "e4m3.cuh"
#include "fp8_scaling.hpp"
#include "sm90_epilogue.cuh"
#include "sm90_stages.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda {

namespace sm90 {

inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;

using WaveMma = gmma::MMA_64x128x32_F32E4M3E4M3_SS_TN<>;
using WholeMma = gmma::MMA_64x256x32_F32E4M3E4M3_SS_TN<>;

struct Fp8Storage {
  using Element = cutlass::float_e4m3_t;
  static constexpr int kExtra = 0;  // rows of a tile beyond kTileRows
  alignas(1024) Element a[kStages][kTileRows * kGroup];
  alignas(1024) Element b[kStages][kTileColumns * kGroup];
  alignas(128) char staging[kConsumers * 4][kFp8WarpStagingBytes];
  float input_scales[kStages][kTileRows];
  float4 weight_scales[kStages];  // of wave 0, its first and last 64 columns, then of wave 1
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  WorkQueue queue;
};
static_assert(sizeof(Fp8Storage) <= kFp8SharedBytes);

// The second producer warp: the scales of each stage, copied while the codes are.
template <Epilogue kEpilogue>
__device__ __forceinline__ void fetch_scales(Fp8Storage& shared, const Fp8GemmArguments& arguments) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const GemmArguments& gemm = arguments.gemm;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;

    const float* input[kTileRows / 32];
    CUTE_UNROLL
    for (int i = 0; i < kTileRows / 32; ++i) {
      const int row = tile.y + min(lane + i * 32, tile.z - 1);
      input[i] = arguments.input.at + row * arguments.input.row_step;
    }
    // Lanes 0 to 3: which 128 × 128 blocks the two halves of the two waves lie in.
    const int wave = lane / 2;
    int block = tile.w;
    if (kEpilogue != Epilogue::Gated) {
      block = 2 * tile.w + wave;
    } else if (gemm.interleaved != 0) {
      block = 2 * tile.w + lane % 2;
    }
    const float* weights = arguments.weights.at + tile.x * arguments.expert_step +
                           min(block, arguments.last_block) * arguments.weights.row_step +
                           (kEpilogue == Epilogue::Gated ? wave * arguments.up_step : 0);

    // Not unrolled: this warp has few registers.
    CUTE_NO_UNROLL
    for (int k = 0; k < gemm.depth; k += kGroup) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      CUTE_UNROLL
      for (int i = 0; i < kTileRows / 32; ++i) {
        cute::SM80_CP_ASYNC_CACHEALWAYS<float>::copy(*input[i], shared.input_scales[ring.slot][lane + i * 32]);
        input[i] += arguments.input.group_step;
      }
      if (lane < 4) {
        cute::SM80_CP_ASYNC_CACHEALWAYS<float>::copy(
            *weights, reinterpret_cast<float*>(&shared.weight_scales[ring.slot])[lane]);
        weights += arguments.weights.group_step;
      }
      cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]));
      ring.advance();
    }
  }
  cute::cp_async_wait<0>();
}

// Where both warpgroups multiply, the second starts a stage behind the first: side by side both would bring
// their sums to scale, and at the end of a tile be in their epilogues, at the same time, while the tensor core
// had nothing to do. Both answer alike for a tile. With fewer steps than stages the first could come twice
// before the second has come once.
__device__ __forceinline__ bool is_staggered(const RowTile& tile, int steps) {
  return tile.rows > kTileRows / 2 && steps >= kStages;
}

// acc = Σ over groups of 128: the tensor core's sum, times the scales, added in fp32.
__device__ __forceinline__ void multiply_blocks(Accumulators& acc, Fp8Storage& shared, Ring<kStages>& ring,
                                                int steps, int warpgroup, const Place& place,
                                                bool staggered) {
  constexpr int kCount = kTileColumns / 4;  // numbers of a thread in a wave
  const std::uint64_t first_a = tile_descriptor(&shared.a[0][warpgroup * 64 * kGroup]);
  const std::uint64_t first_b = tile_descriptor(&shared.b[0][0]);
  CUTE_UNROLL
  for (float& each : acc) each = 0;
  if (staggered && warpgroup != 0) asm volatile("bar.sync 1, 256;" ::: "memory");
  for (int step = 0; step < steps; ++step) {
    shared.full[ring.slot].wait(ring.phase);
    const float* const of_rows = &shared.input_scales[ring.slot][place.row];
    const float input[2] = {load_shared(of_rows), load_shared(of_rows + 8)};
    const float4 weights = load_shared(&shared.weight_scales[ring.slot]);
    const float of_half[2][2] = {{weights.x, weights.y}, {weights.z, weights.w}};
    CUTE_UNROLL
    for (int wave = 0; wave < 2; ++wave) {
      float products[kCount];
      fence(products);
      cute::warpgroup_arrive();
      multiply_stage<WaveMma>(
          products, first_a + ring.slot * (sizeof(shared.a[0]) / 16),
          first_b + ring.slot * (sizeof(shared.b[0]) / 16) + wave * (sizeof(shared.b[0]) / 32),
          gmma::ScaleOut::Zero);
      cute::warpgroup_wait<0>();
      fence(products);
      if (wave == 1 && place.lane == 0) shared.empty[ring.slot].arrive();
      CUTE_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const float scale = input[(i >> 1) & 1] * of_half[wave][i / (kCount / 2)];
        acc[wave * kCount + i] += products[i] * scale;
      }
    }
    if (staggered && warpgroup == 0 && step == 0) asm volatile("bar.arrive 1, 256;" ::: "memory");
    ring.advance();
  }
}

// One scale a row and one a column. A warp collects its columns' in shared memory: loads with steps between
// them would have registers for their addresses and wait one after the other.
template <Epilogue kEpilogue>
__device__ __forceinline__ void apply_whole_scales(Accumulators& acc, char* staging,
                                                   const Fp8GemmArguments& arguments, const RowTile& tile,
                                                   int first_column, const Place& place) {
  static_assert(kTileColumns * sizeof(float) <= kFp8WarpStagingBytes);
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  auto* const scales = reinterpret_cast<float*>(staging);
  const float* weights = arguments.weights.at + tile.expert * arguments.expert_step;
  CUTE_UNROLL
  for (int i = 0; i < kTileColumns / 32; ++i) {
    const bool up = kGated && i >= kTileColumns / 64;
    const int column = first_column + place.lane + (up ? i * 32 - kTileColumns / 2 : i * 32);
    const float* at = weights + (up ? arguments.up_step : 0) +
                      min(column, arguments.gemm.columns - 1) * arguments.weights.row_step;
    store_shared(scales + place.lane + i * 32, __ldg(at));
  }
  float input[2];
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = tile.first_row + min(place.row + half * 8, tile.rows - 1);
    input[half] = arguments.input.at[row * arguments.input.row_step];
  }
  __syncwarp();
  CUTE_UNROLL
  for (int block = 0; block < kTileColumns / 8; ++block) {
    const float2 scale = load_shared(reinterpret_cast<const float2*>(scales + block * 8 + place.column));
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      value(acc, block, half, 0) *= input[half] * scale.x;
      value(acc, block, half, 1) *= input[half] * scale.y;
    }
  }
  __syncwarp();
}

// Writes a warp's rows as codes, 128 columns at a time.
template <Epilogue kEpilogue, Output kOutput>
__device__ __forceinline__ void store_codes(Accumulators& acc, char* staging,
                                            const Fp8GemmArguments& arguments, const RowTile& tile,
                                            int first_column, const Place& place, const float* parameters) {
  const int columns = arguments.gemm.columns;
  const int lane = place.lane;
  const int warp_row = place.row - lane / 4;
  CUTE_UNROLL
  for (int pass = 0; pass < kOutputColumns<kEpilogue> / kGroup; ++pass) {
    const int from = first_column + pass * kGroup;
    if (from >= columns) break;
    // Results take the place of what they were made from. What lies beyond the last column is not seen.
    std::uint32_t largest[2] = {};
    CUTE_UNROLL
    for (int pair = 0; pair < kGroup / 16; ++pair) {
      if (from + pair * 16 >= columns) break;
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int block = pass * (kGroup / 8) + pair * 2 + i / 2;
        const float2 y = result<kEpilogue>(acc, block, i & 1, parameters);
        value(acc, block, i & 1, 0) = y.x;
        value(acc, block, i & 1, 1) = y.y;
        largest[i & 1] = max(largest[i & 1], max(magnitude_bits(y.x), magnitude_bits(y.y)));
      }
    }
    float inverse[2];
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      if constexpr (kOutput == Output::Groups) {
        // The row's other columns are in the three neighbours.
        std::uint32_t bits = largest[half];
        bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, 1));
        bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, 2));
        const float scale = fp8_scale(__uint_as_float(bits));
        const int row = place.row + half * 8;
        if (lane % 4 == 0 && row < tile.rows) {
          arguments.group_scales[from / kGroup * arguments.group_step + tile.first_row + row] = scale;
        }
        inverse[half] = reciprocal(scale);
      } else {
        inverse[half] = reciprocal(__ldg(arguments.given_scale));
      }
    }
    const std::uint32_t written = shared_address(staging) + lane / 4 * kCodeRowBytes + place.column;
    CUTE_UNROLL
    for (int block = 0; block < kGroup / 8; ++block) {
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int of_tile = pass * (kGroup / 8) + block;
        const std::uint16_t codes =
            to_e4m3(value(acc, of_tile, half, 0) * inverse[half], value(acc, of_tile, half, 1) * inverse[half]);
        store_shared(written + half * 8 * kCodeRowBytes + block * 8, codes);
      }
    }
    __syncwarp();
    const int row = lane / 8;
    const int column = from + lane % 8 * 16;
    const std::uint32_t read = shared_address(staging) + row * kCodeRowBytes + lane % 8 * 16;
    auto* to = static_cast<char*>(arguments.gemm.output) + column +
               std::int64_t{tile.first_row + warp_row + row} * columns;
    CUTE_UNROLL
    for (int i = 0; i < 16; i += 4) {
      const uint4 data = load_shared16(read + i * kCodeRowBytes);
      if (warp_row + i + row < tile.rows && column < columns) {
        *reinterpret_cast<uint4*>(to + std::int64_t{i} * columns) = data;
      }
    }
    __syncwarp();
  }
}

// The bits of the largest magnitude of eight bf16, as a float's.
__device__ __forceinline__ std::uint32_t magnitude_bits(const uint4& results) {
  constexpr std::uint32_t kMagnitudes = 0x7fff7fffu;
  const std::uint32_t pair = __vmaxu2(__vmaxu2(results.x & kMagnitudes, results.y & kMagnitudes),
                                      __vmaxu2(results.z & kMagnitudes, results.w & kMagnitudes));
  return max(pair << 16, pair & 0xffff0000u);
}

// Raises the largest magnitude of a row, or of all, by that of 64 of its columns, which eight lanes have.
__device__ __forceinline__ void raise_largest(const Fp8GemmArguments& arguments, int row, int lane,
                                              std::uint32_t bits) {
  if (arguments.largest_step == 0) {
    bits = __reduce_max_sync(0xffffffffu, bits);
    if (lane == 0) raise(arguments.largest, bits);
    return;
  }
  for (int distance = 1; distance < 8; distance *= 2) {
    bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, distance));
  }
  if (lane % 8 == 0 && bits != 0) raise(arguments.largest + row, bits);
}

// A consumer warpgroup.
template <Scaling kScaling, Epilogue kEpilogue, Output kOutput>
__device__ __forceinline__ void consume(Fp8Storage& shared, const Fp8GemmArguments& arguments) {
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Accumulators acc;

  const int steps = (arguments.gemm.depth + kGroup - 1) / kGroup;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;

    // The second warpgroup has nothing to do in a short tile.
    if (warpgroup * 64 >= tile.z) {
      skip_stages(shared, ring, steps, lane);
      continue;
    }

    const RowTile rows = {tile.x, tile.y, tile.z, 0};
    if constexpr (kScaling == Scaling::Blocks) {
      multiply_blocks(acc, shared, ring, steps, warpgroup, Place::of_consumer(), is_staggered(rows, steps));
    } else {
      multiply_stages<WholeMma>(acc, shared, ring, steps, warpgroup, lane);
    }

    const Place place = Place::of_consumer();
    const int first_column = tile.w * kOutputColumns<kEpilogue>;
    float parameters[kMaxParameters];
    load_parameters<kEpilogue>(arguments.gemm, tile.x, parameters);
    char* const staging = shared.staging[place.warp];
    if constexpr (kScaling == Scaling::Whole) {
      apply_whole_scales<kEpilogue>(acc, staging, arguments, rows, first_column, place);
    }
    apply_scale_and_bias<kEpilogue>(acc, arguments.gemm, rows, first_column, place);
    if constexpr (kOutput == Output::Groups || kOutput == Output::Given) {
      store_codes<kEpilogue, kOutput>(acc, staging, arguments, rows, first_column, place, parameters);
    } else {
      const int warp_row = tile.y + place.row - place.lane / 4;
      store<kEpilogue, 64, __nv_bfloat16>(acc, staging, arguments.gemm, rows, first_column, place, parameters,
                           [&](int row, const uint4& results) {
                             if constexpr (kOutput == Output::Largest) {
                               raise_largest(arguments, warp_row + row, place.lane, magnitude_bits(results));
                             }
                           });
    }
  }
}

template <Scaling kScaling, Epilogue kEpilogue, Output kOutput>
__device__ __forceinline__ void fp8_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                         const Fp8GemmArguments& arguments) {
  constexpr bool kBlocks = kScaling == Scaling::Blocks;
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<Fp8Storage*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  // A stage is whole when the copy engine's bytes and, with blocks, 32 lanes' scales are there.
  if (threadIdx.x == 0) init_barriers(shared, kBlocks ? 1 + 32 : 1, kConsumers * 4 + (kBlocks ? 1 : 0));
  __syncthreads();
  begin(arguments.gemm);

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      produce<kEpilogue>(shared, map_a, map_b, nullptr, arguments.gemm);
    } else if (kBlocks && threadIdx.x / 32 == 1) {
      fetch_scales<kEpilogue>(shared, arguments);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<kScaling, kEpilogue, kOutput>(shared, arguments);
  }
}

}  // namespace sm90
}  // namespace flexact::cuda

#define FLEXACT_FP8_GEMM_KERNEL(name, scaling, epilogue, output)                                     \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                       \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,     \
           const __grid_constant__ flexact::cuda::Fp8GemmArguments arguments) {                      \
    using namespace flexact::cuda;                                                                   \
    sm90::fp8_gemm<Scaling::scaling, Epilogue::epilogue, Output::output>(&map_a, &map_b, arguments); \
  }
