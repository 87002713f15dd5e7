// Which tiles a persistent GEMM on sm_90a computes and in which order, and how its producer warp hands
// them to the warps that need to know. Nothing here knows what is multiplied.
#pragma once

#ifndef FLEXACT_EMULATED
#include <cutlass/arch/barrier.h>
#endif

#include "arguments.hpp"
#include "tile_order.hpp"

namespace flexact::cuda::sm90 {

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kWorkSlots = 2;

using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

// The rows and the column of a place in the order; none of the rows where it is the lower half of a short
// tile.
__device__ inline int4 tile_at(const GemmArguments& arguments, const TilePlace& place) {
  int4 tile = __ldg(reinterpret_cast<const int4*>(arguments.tiles + place.row_tile));
  tile.w = place.column_tile;
  if (place.half >= 0) {
    constexpr int kHalf = kTileRows / 2;
    tile.y += place.half * kHalf;
    tile.z = place.half == 0 ? min(tile.z, kHalf) : tile.z - kHalf;
  }
  return tile;
}

// A position in a ring of kLength slots; `phase` flips with each round.
template <int kLength>
struct Ring {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ void advance() {
    if (++slot == kLength) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// Barriers are assembly that tells the compiler nothing of memory: what they guard must not move across.
__device__ __forceinline__ void keep_order() {
  asm volatile("" ::: "memory");
}

// Tiles on their way from the producer to its readers, one ahead of the products.
struct WorkQueue {
  int4 tile[kWorkSlots];  // expert, first row, rows, column tile; -1 as the column: nothing more
  EmptyBarrier full[kWorkSlots];
  EmptyBarrier empty[kWorkSlots];

  // By one thread. `readers`: warps that call next_tile().
  __device__ void init(int readers) {
    for (int slot = 0; slot < kWorkSlots; ++slot) {
      full[slot].init(1);
      empty[slot].init(readers);
    }
  }
};

// The producer's tiles, one after the other, until there are none: visit(tile) issues the copies of each.
// Tiles are taken from a counter, so that all CTAs stay close together in the order however unequal tiles
// are; the next one is asked for while the copies of this one are issued.
template <typename Visit>
__device__ __forceinline__ void take_tiles(WorkQueue& queue, const GemmArguments& arguments, Visit visit) {
  const TileOrder order(*arguments.tile_count, arguments.column_tiles, arguments.group_rows,
                        arguments.split_last != 0, static_cast<int>(gridDim.x));
  const auto run_of = [&](int row_tile) { return __ldg(&arguments.tiles[row_tile].run); };
  int position = static_cast<int>(blockIdx.x);
  Ring<kWorkSlots> work;
  while (true) {
    const bool any = position < order.positions();
    const int next = any ? static_cast<int>(gridDim.x + atomicAdd(arguments.taken, 1u)) : 0;
    const int4 tile = any ? tile_at(arguments, order.at(position, run_of)) : make_int4(0, 0, 0, -1);
    if (any && tile.z <= 0) {
      position = next;
      continue;
    }
    queue.empty[work.slot].wait(work.phase ^ 1);
    queue.tile[work.slot] = tile;
    keep_order();
    queue.full[work.slot].arrive();
    work.advance();
    if (!any) break;
    visit(tile);
    position = next;
  }

  // The last CTA leaves the counters as it found them.
  if (atomicAdd(arguments.taken + 1, 1u) == gridDim.x - 1) {
    arguments.taken[0] = 0;
    arguments.taken[1] = 0;
  }
}

// The next tile, for a whole warp; its column is -1 where there is none.
__device__ __forceinline__ int4 next_tile(WorkQueue& queue, Ring<kWorkSlots>& work, int lane) {
  queue.full[work.slot].wait(work.phase);
  keep_order();
  const int4 tile = queue.tile[work.slot];
  __syncwarp();
  if (lane == 0) queue.empty[work.slot].arrive();
  work.advance();
  return tile;
}

}  // namespace flexact::cuda::sm90
