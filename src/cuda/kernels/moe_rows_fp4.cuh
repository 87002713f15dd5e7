// The kernels around the GEMMs of the FP4 formats: token rows to expert order with their columns where FP4
// weights meet them, and the scales of weights in the order in which the GEMM's threads read them.
#pragma once

#ifndef FLEXACT_EMULATED
#include <cuda_bf16.h>

#include "dependent_launch.cuh"
#endif

#include "fp4_layout.hpp"
#include "token_rows.cuh"

namespace flexact::cuda {

// A token's row goes to each of its experts; what fills it up to whole blocks is zero.
template <typename Rows>
__device__ inline void gather(const Fp4GatherArguments& f, Rows rows_of_slots, int token) {
  __shared__ SlotRows slots;
  const GatherArguments& g = f.gather;
  const int piece = piece_of_thread();
  const bool inside = piece < f.width / 8;
  const auto* from = static_cast<const std::uint16_t*>(g.hidden) + token * g.hidden_stride;
  const int block = piece * 8 / kFp4Block * kFp4Block;
  std::uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t element[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = block + fp4_column(piece * 8 % kFp4Block + i * 2 + j);
      element[j] = inside && column < g.width ? from[column] : 0;
    }
    word[i] = element[1] << 16 | element[0];
  }
  find_rows(g, slots, rows_of_slots, token, 1);
  if (!inside) return;
  auto* rows = static_cast<std::uint16_t*>(g.rows);
  for (int i = 0; i < g.top_k; ++i) {
    const std::int64_t row = slots.row[i];
    if (row >= 0) reinterpret_cast<uint4*>(rows + row * f.width)[piece] = {word[0], word[1], word[2], word[3]};
  }
}

// mxfp4_fp8: the largest scale of a weight row, a thread for each. NaNs have no part in it.
__device__ inline void find_largest_scales(const Fp4ScaleArguments& s) {
  const int parts = s.gated != 0 ? 2 : 1;
  const std::int64_t row = std::int64_t{blockIdx.y} * s.columns + blockIdx.x * blockDim.x + threadIdx.x;
  if (row == 0) *s.outside = 0;
  if (row >= std::int64_t{blockIdx.y + 1} * s.columns) return;
  const int expert = static_cast<int>(blockIdx.y) / parts;
  const int part = static_cast<int>(blockIdx.y) % parts;
  const std::uint8_t* scales = s.scales + expert * s.expert_step + (s.gated != 0 ? s.offset[part] : 0) +
                               row % s.columns * s.row_step;
  std::uint8_t largest = 0;
  for (int group = 0; group < s.groups; ++group) {
    const std::uint8_t scale = scales[group * s.group_step];
    if (scale != 255 && scale > largest) largest = scale;
  }
  s.largest[row] = largest;
}

// A block of threads has a tile of an expert's weight rows, a thread what a thread of the GEMM reads.
__device__ inline void order_scales(const Fp4ScaleArguments& s) {
  const int expert = static_cast<int>(blockIdx.x) / s.column_tiles;
  const int tile = static_cast<int>(blockIdx.x) % s.column_tiles;
  const int thread = static_cast<int>(threadIdx.x);
  const bool gated = s.gated != 0;
  const int bytes = fp4_scale_bytes(s.of_row);
  std::uint8_t* to = s.output + std::int64_t{blockIdx.x} * s.steps * bytes + thread * 4 * s.of_row;
  for (int step = 0; step < s.steps; ++step, to += bytes) {
    for (int i = 0; i < 4; ++i) {
      const int part = i / 2;
      const int row = tile * (gated ? 128 : 256) + (gated ? 0 : part * 128) +
                      (s.e4m3 != 0 ? mxfp4_fp8_row(thread, i % 2, s.permuted != 0)
                                   : fp4_row(thread, i % 2, s.permuted != 0, gated));
      const std::uint8_t* of_expert = s.scales + expert * s.expert_step + (gated ? s.offset[part] : 0);
      for (int j = 0; j < s.of_row; ++j) {
        const int group = (step * 4 + thread % 4) * s.of_row + j;
        const bool inside = row < s.columns && group < s.groups;
        // What lies beyond the weights is zeros times one.
        std::uint8_t scale = s.of_row == 1 ? 127 : 0x38;
        if (inside) scale = of_expert[row * s.row_step + group * s.group_step];
        if (s.e4m3 != 0) {
          const std::int64_t of_row = gated ? expert * 2 + part : expert;
          scale = inside ? mxfp4_fp8_stored(scale, s.largest[of_row * s.columns + row])
                         : std::uint8_t{kMxfp4Fp8Nothing};
          if (scale > kMxfp4Fp8Exact && scale != kMxfp4Fp8Nan && inside) atomicAdd(s.outside, 1u);
          to[i] = scale;
        } else {
          to[i * s.of_row + j] = s.of_row == 1 ? mxfp4_stored(scale) : scale;
        }
      }
    }
  }
}

}  // namespace flexact::cuda

#ifndef FLEXACT_EMULATED
FLEXACT_GATHER_KERNELS(flexact_fp4_gather, Fp4GatherArguments, gather.slot_row, gather)

extern "C" __global__ void __launch_bounds__(flexact::cuda::kFp4ScaleThreads)
    flexact_fp4_largest_scales(const __grid_constant__ flexact::cuda::Fp4ScaleArguments arguments) {
  flexact::cuda::find_largest_scales(arguments);
}

extern "C" __global__ void __launch_bounds__(flexact::cuda::kFp4ScaleThreads)
    flexact_fp4_order_scales(const __grid_constant__ flexact::cuda::Fp4ScaleArguments arguments) {
  flexact::cuda::order_scales(arguments);
}
#endif
