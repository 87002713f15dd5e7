// The rows of a tile beyond its 128: an expert that has a few rows more than whole tiles takes them along in its
// last tile, whose weights are there anyhow. wgmma takes no fewer than 64 rows as its first operand, but 8, 16 or
// 32 as its second, so here operands are exchanged: sums are weight rows × token rows. Of the tile's weight rows
// a warpgroup has 64 of each half (of a gated layer gates and their ups), and all of the extra rows. A thread has
// weight rows `row` and `row + 8` of a half, and of every eight token rows the two from `column`, with Place's
// row and column.
#pragma once

#include "sm90_stages.cuh"

namespace flexact::cuda::sm90 {

template <int kRows>
using ExtraSums = float[2][64 * kRows / 128];  // of the halves

// A tile's descriptor, `bytes` further on: only the lower half differs between tiles.
__device__ __forceinline__ std::uint64_t further(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor >> 32 << 32 | (static_cast<std::uint32_t>(descriptor) + bytes / 16);
}

// As multiply_stages(), and where there are extra rows sums[half] = weights · extra rows^T. `any` must be uniform in the
// assembler's eyes, or it serialises products. One loop for both kinds of tiles, and no first stage taken out of it:
// each copy is a third of a link's time, and what follows two loops would have to be there twice.
template <typename Product, typename Storage>
__device__ __forceinline__ void multiply_stages_and_extra(Accumulators& acc, ExtraSums<Storage::kExtra>& sums, bool any,
                                                          Storage& shared, Ring<kStages>& ring, int steps,
                                                          int warpgroup, int lane) {
  constexpr int kDepth = kDepthOf<typename Storage::Element>;
  constexpr int kHalfBytes = kTileColumns / 2 * 128;
  const std::uint64_t first_a = tile_descriptor(&shared.a[0][warpgroup * 64 * kDepth]);
  const std::uint64_t first_b = tile_descriptor(&shared.b[0][0]);
  const std::uint64_t first_rows = tile_descriptor(&shared.a[0][kTileRows * kDepth]);
  const std::uint64_t first_weights = tile_descriptor(&shared.b[0][warpgroup * 64 * kDepth]);
  auto scale = gmma::ScaleOut::Zero;
  int previous = 0;
  CUTE_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    shared.full[ring.slot].wait(ring.phase);
    fence(acc);
    fence(sums[0]);
    fence(sums[1]);
    if (any) {
      const std::uint64_t rows = further(first_rows, ring.slot * sizeof(shared.a[0]));
      const std::uint64_t weights = further(first_weights, ring.slot * sizeof(shared.b[0]));
      cute::warpgroup_arrive();
      CUTE_UNROLL
      for (int bytes = 0; bytes < 128; bytes += 32) {
        CUTE_UNROLL
        for (int half = 0; half < 2; ++half) {
          multiply<typename Product::Extra>(
              sums[half], further(weights, half * kHalfBytes + bytes), further(rows, bytes),
              bytes == 0 ? scale : gmma::ScaleOut::One, std::make_index_sequence<Storage::kExtra / 2>{});
        }
      }
    }
    const std::uint64_t a = further(first_a, ring.slot * sizeof(shared.a[0]));
    const std::uint64_t b = further(first_b, ring.slot * sizeof(shared.b[0]));
    cute::warpgroup_arrive();
    CUTE_UNROLL
    for (int bytes = 0; bytes < 128; bytes += 32) {
      multiply<typename Product::Mma>(acc, further(a, bytes), further(b, bytes),
                                      bytes == 0 ? scale : gmma::ScaleOut::One,
                                      std::make_index_sequence<kTileColumns / 2>{});
    }
    cute::warpgroup_commit_batch();
    scale = gmma::ScaleOut::One;
    cute::warpgroup_wait<1>();
    fence(acc);
    fence(sums[0]);
    fence(sums[1]);
    if (step > 0) release(shared, previous, lane);
    previous = ring.slot;
    ring.advance();
  }
  cute::warpgroup_wait<0>();
  fence(acc);
  fence(sums[0]);
  fence(sums[1]);
  release(shared, previous, lane);
}

// Calls visit(half, i, token row of the extra ones, output column) for each of a thread's results: i is its index
// among a half's sums. Without a gate the halves are outputs of their own.
template <Epilogue kEpilogue, int kCount, typename Visit>
__device__ __forceinline__ void for_each_extra(int first_column, const Place& place, Visit visit) {
  CUTE_UNROLL
  for (int half = 0; half < (kEpilogue == Epilogue::Gated ? 1 : 2); ++half) {
    CUTE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      visit(half, i, i / 4 * 8 + place.column + i % 2, first_column + half * 128 + place.row + i / 2 % 2 * 8);
    }
  }
}

// What apply_scale_and_bias() and result() do with a tile's other rows, by the same operations in the same order.
// Results take the place of sums; those of rows and columns that are not there mean nothing.
template <Epilogue kEpilogue, int kCount>
__device__ __forceinline__ void finish_extra(float (&sums)[2][kCount], const GemmArguments& arguments,
                                             const RowTile& tile, int first_column, const Place& place,
                                             const float* parameters) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  if (arguments.row_scale != nullptr) {
    CUTE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (i / 2 % 2 != 0) continue;
      const int row = min(kTileRows + i / 4 * 8 + place.column + i % 2, tile.rows - 1);
      const float scale = arguments.row_scale[tile.first_row + row];
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        sums[half][i] *= scale;
        sums[half][i + 2] *= scale;
      }
    }
  }
  if (arguments.bias != nullptr) {
    const std::int64_t columns = arguments.columns;
    const float* bias = arguments.bias + tile.expert * columns * (kGated ? 2 : 1);
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      CUTE_UNROLL
      for (int low = 0; low < 2; ++low) {
        const int column = first_column + (kGated ? 0 : half * 128) + place.row + low * 8;
        const float each = __ldg(bias + min(column, arguments.columns - 1) + (kGated ? half * columns : 0));
        CUTE_UNROLL
        for (int i = 0; i < kCount; ++i) {
          if (i / 2 % 2 == low) sums[half][i] += each;
        }
      }
    }
  }
  if constexpr (kEpilogue != Epilogue::Plain) {
    CUTE_UNROLL
    for (int half = 0; half < (kGated ? 1 : 2); ++half) {
      CUTE_UNROLL
      for (int i = 0; i < kCount; i += 2) {
        // One block of eight rows after the other: there are not registers for all of them.
        if (kTileRows + i / 4 * 8 >= tile.rows) break;
        float y[2];
        if constexpr (kGated) {
          const float gate[2] = {sums[0][i], sums[0][i + 1]}, up[2] = {sums[1][i], sums[1][i + 1]};
          flexact_act2(gate, up, parameters, y);
        } else {
          const float x[2] = {sums[half][i], sums[half][i + 1]};
          flexact_act2_unary(x, parameters, y);
        }
        sums[half][i] = y[0];
        sums[half][i + 1] = y[1];
      }
    }
  }
}

// Writes results, rounded to Element; see(row of the extra ones, result as written) of each.
template <Epilogue kEpilogue, typename Element, int kCount, typename See>
__device__ __forceinline__ void store_extra(const float (&results)[2][kCount], const GemmArguments& arguments,
                                            const RowTile& tile, int first_column, const Place& place, See see) {
  auto* const to = static_cast<Element*>(arguments.output) +
                   std::int64_t{tile.first_row + kTileRows} * arguments.columns;
  for_each_extra<kEpilogue, kCount>(first_column, place, [&](int half, int i, int row, int column) {
    if (kTileRows + row >= tile.rows || column >= arguments.columns) return;
    const Element each = Rounding<Element>::one(results[half][i]);
    to[std::int64_t{row} * arguments.columns + column] = each;
    see(i, each);
  });
}

}  // namespace flexact::cuda::sm90
