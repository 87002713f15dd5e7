// The grouped GEMM of a MoE layer on sm_100a in E4M3: codes of rows times codes of weights, brought to scale in
// fp32, with the activation linked in afterwards and its result rounded to E4M3 again. Arguments, scales and
// numerics are those of sm_90a (sm90_fp8_gemm.cuh).
//
// A thread of the epilogue has a row of the tile and half of its sums. With scales by blocks it takes those of each
// 128 values of K from tensor memory and adds them, brought to scale, in 128 registers, while the tensor cores work
// on the next ones. Otherwise it takes those of all of K, 32 outputs at a time.
#pragma once

#ifndef FLEXACT_EMULATED
#include "e4m3.cuh"
#endif
#include "fp8_scaling.hpp"
#include "sm100_tiles.cuh"

namespace flexact::cuda {
namespace sm100 {

// Half of a tile's sums of a row, in blocks of 32: gates, then their ups, or outputs.
inline constexpr int kSumBlocks = kTileColumns / 2 / kLoadedSums;
using SumBlock = float[kLoadedSums];

// What a thread of the epilogue has of a tile.
template <Epilogue kEpilogue>
struct Part {
  static constexpr bool kGated = kEpilogue == Epilogue::Gated;
  static constexpr int kBlocks = kOutputColumns<kEpilogue> / 2 / kLoadedSums;  // of outputs
  int4 tile;
  int part, rows;      // which half of the outputs; rows of the warp, or none
  int row;             // the thread's, or the last one
  int column;          // the first output
  std::uint32_t sums;  // in tensor memory, but for the place

  __device__ Part(const int4& tile_, std::uint32_t sums_, int warp, int lane) : tile(tile_), part(warp / 4) {
    const int first_row = warp % 4 * 32;
    const int first = part * kBlocks * kLoadedSums;
    rows = tile.z - first_row;
    row = tile.y + min(first_row + lane, tile.z - 1);
    column = tile.w * kOutputColumns<kEpilogue> + first;
    sums = sums_ + (first_row << 16) + first;
  }
  __device__ std::uint32_t address(const Ring<kSumTiles>& place, int block) const {
    const bool up = kGated && block >= kBlocks;
    return sums + place.slot * kTileColumns +
           (up ? kTileColumns / 2 + (block - kBlocks) * kLoadedSums : block * kLoadedSums);
  }
};

// sum = Σ over groups of 128: the tensor cores' sum, times the scales, added in fp32.
template <Epilogue kEpilogue, typename Storage>
__device__ __forceinline__ void add_blocks(SumBlock (&sum)[kSumBlocks], Storage& shared, Ring<kSumTiles>& place,
                                           const Fp8GemmArguments& arguments, const Part<kEpilogue>& part,
                                           int lane) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  const bool halves = !kGated || arguments.gemm.interleaved != 0;
  const int block = halves ? 2 * part.tile.w + part.part : part.tile.w;
  const float* weights = arguments.weights.at + part.tile.x * arguments.expert_step +
                         min(block, arguments.last_block) * arguments.weights.row_step;
  const float* input = arguments.input.at + part.row * arguments.input.row_step;
  CUTE_UNROLL
  for (SumBlock& each : sum) {
    for (float& number : each) number = 0;
  }
  float next[3] = {*input, *weights, kGated ? weights[arguments.up_step] : 0.0f};
  const int steps = (arguments.gemm.depth + kGroup - 1) / kGroup;
  CUTE_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    const float scale[2] = {next[0] * next[1], next[0] * next[2]};
    // On their way while the products are waited for.
    if (step + 1 < steps) {
      input += arguments.input.group_step;
      weights += arguments.weights.group_step;
      next[0] = *input;
      next[1] = *weights;
      if constexpr (kGated) next[2] = weights[arguments.up_step];
    }
    await_sums(shared, place);
    if (part.rows > 0) {
      CUTE_UNROLL
      for (int i = 0; i < kSumBlocks * kLoadedSums; i += kFewLoadedSums) {
        float products[kFewLoadedSums];
        const int of_sums = i / kLoadedSums;
        load_sums(part.address(place, of_sums) + i % kLoadedSums, products);
        wait_for_sums();
        take_sums(products);
        CUTE_UNROLL
        for (int j = 0; j < kFewLoadedSums; ++j) {
          sum[of_sums][i % kLoadedSums + j] +=
              products[j] * scale[kGated && of_sums >= Part<kEpilogue>::kBlocks ? 1 : 0];
        }
      }
    }
    return_sums(shared, place, lane);
  }
}

// What a thread needs for the results of its row.
template <Scaling kScaling, Epilogue kEpilogue>
struct Row {
  const Fp8GemmArguments& arguments;
  int expert;
  float factor, input;
  float parameters[kMaxParameters];

  __device__ Row(const Fp8GemmArguments& arguments_, const Part<kEpilogue>& part)
      : arguments(arguments_), expert(part.tile.x) {
    const GemmArguments& gemm = arguments.gemm;
    sm90::load_parameters<kEpilogue>(gemm, expert, parameters);
    factor = gemm.row_scale == nullptr ? 1.0f : gemm.row_scale[part.row];
    input = kScaling == Scaling::Whole ? arguments.input.at[part.row * arguments.input.row_step] : 1.0f;
  }

  // Scale, router weight and bias of two neighbours from `column` on; `half` 1: ups.
  __device__ __forceinline__ void bring_to_scale(float (&two)[2], int column, int half) const {
    constexpr int kHalves = kEpilogue == Epilogue::Gated ? 2 : 1;
    if constexpr (kScaling == Scaling::Whole) {
      const float* const scale = arguments.weights.at + expert * arguments.expert_step + half * arguments.up_step +
                                 column * arguments.weights.row_step;
      two[0] *= input * __ldg(scale);
      two[1] *= input * __ldg(scale + arguments.weights.row_step);
    }
    const float* bias = arguments.gemm.bias;
    if (bias != nullptr) bias += (std::int64_t{expert} * kHalves + half) * arguments.gemm.columns + column;
    scale_and_add(two, factor, bias);
  }

  // A block of outputs from `column` on: results take the place of what they were made from. Returns the largest
  // of their magnitudes; what lies beyond the last column is not seen.
  __device__ __forceinline__ std::uint32_t apply(SumBlock& sum, const SumBlock& up, int column) const {
    std::uint32_t largest = 0;
    CUTE_UNROLL
    for (int piece = 0; piece < kLoadedSums; piece += 8) {
      if (column + piece >= arguments.gemm.columns) break;
      CUTE_UNROLL
      for (int i = piece; i < piece + 8; i += 2) {
        float x[2] = {sum[i], sum[i + 1]}, second[2] = {};
        bring_to_scale(x, column + i, 0);
        if constexpr (kEpilogue == Epilogue::Gated) {
          second[0] = up[i];
          second[1] = up[i + 1];
          bring_to_scale(second, column + i, 1);
        }
        const float2 y = sm90::activated<kEpilogue>(x, second, parameters);
        sum[i] = y.x;
        sum[i + 1] = y.y;
        largest = max(largest, max(magnitude_bits(y.x), magnitude_bits(y.y)));
      }
    }
    return largest;
  }
};

// A block of results as codes to its half of a line.
__device__ __forceinline__ void put_codes(const Lines& lines, int block, const SumBlock& y, float inverse) {
  CUTE_UNROLL
  for (int piece = 0; piece < 2; ++piece) {
    std::uint32_t word[4];
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int at = piece * 16 + i * 4;
      const std::uint32_t low = to_e4m3(y[at] * inverse, y[at + 1] * inverse);
      const std::uint32_t high = to_e4m3(y[at + 2] * inverse, y[at + 3] * inverse);
      word[i] = low | high << 16;
    }
    lines.put(block % 2 * 2 + piece, word);
  }
}

// As bf16 to a line. Returns the largest magnitude of them, rounded.
__device__ __forceinline__ std::uint32_t put_rows(const Lines& lines, const SumBlock& y, int columns) {
  std::uint32_t largest = 0;
  CUTE_UNROLL
  for (int piece = 0; piece < kLoadedSums; piece += 8) {
    std::uint32_t word[4];
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      word[i] = rounded_pair<__nv_bfloat16>(y[piece + 2 * i], y[piece + 2 * i + 1]);
      if (piece < columns) {
        largest = max(largest, max(word[i] << 16 & 0x7fffffffu, word[i] & 0x7fff0000u));
      }
    }
    lines.put(piece / 8, word);
  }
  return largest;
}

// The scale of a group's codes, from the largest magnitude that this thread has of it. Of a gated layer the group's
// other half is another warp's; halves meet in shared memory, in two places in turns.
template <Epilogue kEpilogue>
__device__ __forceinline__ float scale_of_group(float (&of_halves)[2][kTileRows], const Part<kEpilogue>& part,
                                                std::uint32_t largest, int warp, int lane) {
  if constexpr (kEpilogue == Epilogue::Gated) {
    const int row = warp % 4 * 32 + lane;
    store_shared(&of_halves[part.part][row], __uint_as_float(largest));
    meet_pair(warp % 4);
    largest = max(largest, __float_as_uint(load_shared(&of_halves[part.part ^ 1][row])));
  }
  return fp8_scale(__uint_as_float(largest));
}

// The warps of the epilogue: each has 32 rows of a tile and half of its outputs.
template <Scaling kScaling, Epilogue kEpilogue, Output kOutput, typename Storage>
__device__ __forceinline__ void finish_codes(Storage& shared, const Fp8GemmArguments& arguments,
                                             int warp, int lane) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  constexpr bool kCodes = kOutput == Output::Groups || kOutput == Output::Given;
  constexpr int kBlocks = Part<kEpilogue>::kBlocks;
  const GemmArguments& gemm = arguments.gemm;
  const std::int64_t row_bytes = std::int64_t{gemm.columns} * (kCodes ? 1 : 2);
  Ring<kSumTiles> place;
  Ring<kWorkSlots> work;
  int turn = 0;
  while (true) {
    const int4 tile = sm90::next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;
    SumBlock added[kScaling == Scaling::Blocks ? kSumBlocks : 1];
    if constexpr (kScaling == Scaling::Blocks) {
      add_blocks(added, shared, place, arguments, Part<kEpilogue>(tile, sums_of(shared), warp, lane), lane);
      // Read anew: nothing derived from it is worth a register during the products.
      const int thread = this_thread();
      warp = thread / 32 - kFirstEpilogueWarp;
      lane = thread % 32;
    }
    const Part<kEpilogue> part(tile, sums_of(shared), warp, lane);
    const Lines lines(shared.lines[warp], lane);
    const int first_row = tile.y + warp % 4 * 32;
    float inverse = 1;
    if constexpr (kOutput == Output::Given) inverse = reciprocal(__ldg(arguments.given_scale));
    std::uint32_t largest = 0;
    // Writes a block of results; lines of codes hold two.
    const auto store = [&](int block, const SumBlock& y) {
      const int column = part.column + block * kLoadedSums;
      if constexpr (kCodes) {
        put_codes(lines, block, y, inverse);
        if (block % 2 == 1 || column + kLoadedSums >= gemm.columns) {
          lines.drain(gemm.output, first_row, part.rows, column - block % 2 * kLoadedSums, row_bytes);
        }
      } else {
        largest = max(largest, put_rows(lines, y, gemm.columns - column));
        lines.drain(gemm.output, first_row, part.rows, column * 2, row_bytes);
      }
    };

    if constexpr (kScaling == Scaling::Blocks) {
      if (part.rows <= 0) continue;
      {
        const Row<kScaling, kEpilogue> row(arguments, part);
        CUTE_UNROLL
        for (int block = 0; block < kBlocks; ++block) {
          largest = max(largest, row.apply(added[block], added[kGated ? kBlocks + block : block],
                                           part.column + block * kLoadedSums));
        }
      }
      if constexpr (kOutput == Output::Groups) {
        const float scale = scale_of_group(shared.largest[turn], part, largest, warp, lane);
        turn ^= 1;
        inverse = reciprocal(scale);
        if (lane < part.rows && (!kGated || part.part == 0) && part.column < gemm.columns) {
          arguments.group_scales[part.column / kGroup * arguments.group_step + part.row] = scale;
        }
      }
      CUTE_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        if (part.column + block * kLoadedSums >= gemm.columns) break;
        store(block, added[block]);
      }
    } else {
      const Row<kScaling, kEpilogue> row(arguments, part);
      await_sums(shared, place);
      CUTE_NO_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const int column = part.column + block * kLoadedSums;
        if (part.rows <= 0 || column >= gemm.columns) break;
        SumBlock sum, up;
        load_sums(part.address(place, block), sum);
        if constexpr (kGated) load_sums(part.address(place, kBlocks + block), up);
        wait_for_sums();
        take_sums(sum);
        if constexpr (kGated) take_sums(up);
        row.apply(sum, up, column);
        store(block, sum);
      }
      return_sums(shared, place, lane);
      if constexpr (kOutput == Output::Largest) {
        if (lane >= part.rows) largest = 0;
        if (arguments.largest_step != 0) {
          if (largest != 0) raise(arguments.largest + part.row, largest);
        } else {
          largest = __reduce_max_sync(0xffffffffu, largest);
          if (lane == 0) raise(arguments.largest, largest);
        }
      }
    }
  }
}

}  // namespace sm100
}  // namespace flexact::cuda

#define FLEXACT_SM100_FP8_GEMM_KERNEL(name, scaling, epilogue, output)                                          \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                                  \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,                \
           const __grid_constant__ flexact::cuda::Fp8GemmArguments arguments) {                                 \
    using namespace flexact::cuda;                                                                              \
    sm100::grouped_gemm<Epilogue::epilogue, Scaling::scaling == Scaling::Blocks, std::uint8_t>(                 \
        &map_a, &map_b, arguments.gemm, [&](auto& shared, int warp, int lane) {                                 \
          sm100::finish_codes<Scaling::scaling, Epilogue::epilogue, Output::output>(shared, arguments, warp,    \
                                                                                    lane);                      \
        });                                                                                                     \
  }
