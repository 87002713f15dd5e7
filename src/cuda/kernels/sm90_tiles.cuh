// Which tiles a persistent GEMM on sm_90a computes and in which order, and how its producer warp hands
// them to the warps that need to know. Nothing here knows what is multiplied.
#pragma once

#include <cutlass/arch/barrier.h>

#include "arguments.hpp"

namespace flexact::cuda::sm90 {

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kWorkSlots = 2;

using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

// The tile at a position of the order in which tiles are taken. Groups of row tiles are swept column by
// column: the CTAs at work then share few weights and few rows, and L2 serves most reads.
__device__ inline int4 tile_at(const GemmArguments& arguments, int position, int row_tiles) {
  const int group_tiles = arguments.group_rows * arguments.column_tiles;
  const int group = position / group_tiles;
  const int inside = position - group * group_tiles;
  const int first = group * arguments.group_rows;
  const int height = min(arguments.group_rows, row_tiles - first);
  const int column = inside / height;
  const auto* at = arguments.tiles + first + inside - column * height;
  int4 tile = __ldg(reinterpret_cast<const int4*>(at));
  tile.w = column;
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
  const int row_tiles = *arguments.tile_count;
  const int tiles = row_tiles * arguments.column_tiles;
  int position = static_cast<int>(blockIdx.x);
  Ring<kWorkSlots> work;
  while (true) {
    const bool any = position < tiles;
    const int next = any ? static_cast<int>(gridDim.x + atomicAdd(arguments.taken, 1u)) : 0;
    const int4 tile = any ? tile_at(arguments, position, row_tiles) : make_int4(0, 0, 0, -1);
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
