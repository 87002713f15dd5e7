// Which rows of the sorted order slots have. Experts follow each other, each with its tiles of rows. Where a
// call has few slots, every block reads all ids and counts the rows of its own slots for itself: then no
// launch comes before the one that gathers.
#pragma once

#ifndef FLEXACT_EMULATED
#include "dependent_launch.cuh"
#endif

#include "arguments.hpp"

namespace flexact::cuda {

__device__ inline std::int64_t id_at(const RouteArguments& r, int slot) {
  const std::int64_t at = r.id_stride == r.top_k * r.id_step
                              ? slot * r.id_step
                              : slot / r.top_k * r.id_stride + slot % r.top_k * r.id_step;
  return r.wide_ids != 0 ? static_cast<const std::int64_t*>(r.ids)[at]
                         : static_cast<const std::int32_t*>(r.ids)[at];
}

// The expert of a slot; -1: of none here.
__device__ __forceinline__ int expert_of(const RoutedIds& r, int slot) {
  const std::int64_t at = slot / r.top_k * r.stride + slot % r.top_k * r.step;
  const std::int64_t id = r.wide != 0 ? static_cast<const std::int64_t*>(r.ids)[at]
                                      : static_cast<const std::int32_t*>(r.ids)[at];
  return id >= 0 && id < r.experts ? static_cast<int>(id) : -1;
}

__device__ inline bool is_ours(const RouteArguments& r, std::int64_t id) {
  return id >= 0 && id < r.experts;
}

// The sum of `value` over the threads before this one, and over all kThreads threads.
template <int kThreads>
__device__ inline unsigned long long sum_before(unsigned long long value, unsigned long long& total) {
  __shared__ unsigned long long of_warp[kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  unsigned long long inclusive = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned long long below = __shfl_up_sync(0xffffffffu, inclusive, distance);
    if (lane >= distance) inclusive += below;
  }
  if (lane == 31) of_warp[warp] = inclusive;
  __syncthreads();
  unsigned long long before = 0;
  total = 0;
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i == warp) before = total;
    total += of_warp[i];
  }
  __syncthreads();
  return before + inclusive - value;
}

// Gives experts their rows, and by a block that `writes` lists their tiles and clears the counters.
// rows_of(expert) is asked once for each, and visit(expert, first row) told.
template <int kThreads, typename RowsOf, typename Visit>
__device__ inline void list_tiles(const RouteArguments& r, bool writes, RowsOf rows_of, Visit visit) {
  int rows_before = 0;
  int tiles_before = 0;
  for (int base = 0; base < r.experts; base += kThreads) {
    const int e = base + static_cast<int>(threadIdx.x);
    const int rows = e < r.experts ? rows_of(e) : 0;
    const int tiles =
        rows > 0 ? max(1, (rows - r.extra_rows + r.tile_rows - 1) / r.tile_rows) : 0;
    unsigned long long total;
    const unsigned long long before = sum_before<kThreads>(
        static_cast<unsigned long long>(tiles) << 32 | static_cast<unsigned>(rows), total);
    const int first_row = rows_before + static_cast<int>(before & 0xffffffffu);
    const int first_tile = tiles_before + static_cast<int>(before >> 32);
    if (e < r.experts) visit(e, first_row);
    for (int i = 0; i < tiles && writes; ++i) {
      const int before_this = i * r.tile_rows;
      r.tiles[first_tile + i] = {e, first_row + before_this,
                                 i + 1 < tiles ? r.tile_rows : rows - before_this, tile_run(i, tiles)};
    }
    rows_before += static_cast<int>(total & 0xffffffffu);
    tiles_before += static_cast<int>(total >> 32);
  }
  if (writes && threadIdx.x == 0) {
    *r.tile_count = tiles_before;
    for (int i = 0; i < r.counters; ++i) r.taken[i] = 0;
  }
}

// The same by one block of kRowThreads that counts ids itself, of few experts and slots.
__device__ inline void list_tiles_of_few(const RouteArguments& r) {
  __shared__ int count[kCountedExperts];
  for (int e = static_cast<int>(threadIdx.x); e < r.experts; e += kRowThreads) count[e] = 0;
  __syncthreads();
  for (int slot = static_cast<int>(threadIdx.x); slot < r.tokens * r.top_k; slot += kRowThreads) {
    const std::int64_t id = id_at(r, slot);
    if (is_ours(r, id)) atomicAdd(&count[id], 1);
  }
  __syncthreads();
  list_tiles<kRowThreads>(r, true, [&](int e) { return count[e]; }, [](int, int) {});
}

// Rows of slots, in the block's shared memory.
struct SlotRows {
  int row[kBlockSlots];  // -1: of no expert here
  float weight[kBlockSlots];
};

// How a block learns the rows of its `count` slots from `first` on: from the list that route made.
struct ListedRows {
  const std::int32_t* slot_row;

  __device__ void find(SlotRows& slots, std::int64_t first, int count) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kRowThreads) {
      slots.row[i] = slot_row[first + i];
    }
    __syncthreads();
  }
};

// Or by counting: before a slot's row lie those of smaller experts, and of its own those of earlier slots.
struct CountedRows {
  const RouteArguments& r;

  __device__ void find(SlotRows& slots, std::int64_t first, int count) const {
    constexpr std::uint32_t kNowhere = 0xffffffffu;
    constexpr int kAhead = 8;
    __shared__ std::uint32_t own[kBlockSlots];
    const int thread = static_cast<int>(threadIdx.x);
    const int slots_of_call = r.tokens * r.top_k;
    // Keys are in the order of the rows.
    const auto key_of = [&](int slot) {
      const std::int64_t id = slot < slots_of_call ? id_at(r, slot) : -1;
      return is_ours(r, id) ? static_cast<std::uint32_t>(id) * kCountedSlots + static_cast<std::uint32_t>(slot)
                            : kNowhere;
    };
    for (int i = thread; i < count; i += kRowThreads) {
      own[i] = key_of(static_cast<int>(first) + i);
      slots.row[i] = own[i] == kNowhere ? -1 : 0;
    }
    for (int base = 0; base < slots_of_call; base += kAhead * kRowThreads) {
      std::uint32_t key[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) key[i] = key_of(base + i * kRowThreads + thread);
      if (base == 0) __syncthreads();
      for (int slot = 0; slot < count; ++slot) {
        const std::uint32_t bound = own[slot];
        if (bound == kNowhere) continue;
        int before = 0;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) before += key[i] < bound ? 1 : 0;
        before = __reduce_add_sync(0xffffffffu, before);
        if (thread % 32 == 0 && before != 0) atomicAdd(&slots.row[slot], before);
      }
    }
    __syncthreads();
    if (blockIdx.y != 0) return;
    for (int i = thread; i < count; i += kRowThreads) r.slot_row[first + i] = slots.row[i];
  }
};

// The two kinds of gather: gather(rows, block) is one whose blocks learn their rows from `rows`.
template <typename Gather>
__device__ inline void gather_listed(const std::int32_t* slot_row, Gather gather) {
  wait_for_predecessors();
  let_successor_start();
  gather(ListedRows{slot_row}, static_cast<int>(blockIdx.x));
}
// The first block lists the tiles.
template <typename Gather>
__device__ inline void gather_counted(const RouteArguments& r, Gather gather) {
  wait_for_predecessors();
  let_successor_start();
  if (blockIdx.x != 0) {
    gather(CountedRows{r}, static_cast<int>(blockIdx.x) - 1);
  } else if (blockIdx.y == 0) {
    list_tiles_of_few(r);
  }
}

}  // namespace flexact::cuda

// Both kernels of a gather: NAME, and NAME_counted, which needs no route.
#ifndef FLEXACT_EMULATED
#define FLEXACT_GATHER_KERNELS(name, Arguments, slot_row, gather)                              \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kRowThreads)                     \
      name(const __grid_constant__ flexact::cuda::Arguments arguments) {                       \
    flexact::cuda::gather_listed(arguments.slot_row, [&](auto rows, int block) {               \
      flexact::cuda::gather(arguments, rows, block);                                           \
    });                                                                                        \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kRowThreads)                     \
      name##_counted(const __grid_constant__ flexact::cuda::Arguments arguments,               \
                     const __grid_constant__ flexact::cuda::RouteArguments route) {            \
    flexact::cuda::gather_counted(route, [&](auto rows, int block) {                           \
      flexact::cuda::gather(arguments, rows, block);                                           \
    });                                                                                        \
  }
#endif
