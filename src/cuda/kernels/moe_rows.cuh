// The kernels around the two GEMMs: token rows to expert order and back. None of them knows an
// architecture, and none reads an id twice that is outside 0 … E-1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "arguments.hpp"
#include "dependent_launch.cuh"

namespace flexact::cuda {

__device__ inline std::int64_t id_at(const RouteArguments& r, int slot) {
  const std::int64_t at = slot / r.top_k * r.id_stride + slot % r.top_k * r.id_step;
  return r.wide_ids != 0 ? static_cast<const std::int64_t*>(r.ids)[at]
                         : static_cast<const std::int32_t*>(r.ids)[at];
}

__device__ inline bool is_ours(const RouteArguments& r, std::int64_t id) {
  return id >= 0 && id < r.experts;
}

// The sum of `value` over the threads before this one, and over all threads.
__device__ inline unsigned long long sum_before(unsigned long long value, unsigned long long& total) {
  __shared__ unsigned long long of_warp[kRouteThreads / 32];
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
  for (int i = 0; i < kRouteThreads / 32; ++i) {
    if (i == warp) before = total;
    total += of_warp[i];
  }
  __syncthreads();
  return before + inclusive - value;
}

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in another block's shared memory.
__device__ inline int read_remote(const int* local, unsigned rank) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(local));
  unsigned remote;
  int value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(value) : "r"(remote) : "memory");
  return value;
}

// Calls visit(slot, expert) for this block's slots of ours; several ids are on their way at once.
template <typename Visit>
__device__ inline void for_each_slot(const RouteArguments& r, Visit visit) {
  constexpr int kAhead = 8;
  const int slots = r.tokens * r.top_k;
  const int each = (slots + static_cast<int>(cluster_size()) - 1) / static_cast<int>(cluster_size());
  const int first = static_cast<int>(cluster_rank()) * each;
  const int end = min(slots, first + each);
  for (int base = first + static_cast<int>(threadIdx.x); base < end; base += kAhead * kRouteThreads) {
    std::int64_t id[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int slot = base + i * kRouteThreads;
      id[i] = slot < end ? id_at(r, slot) : -1;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int slot = base + i * kRouteThreads;
      if (slot < end) visit(slot, is_ours(r, id[i]) ? static_cast<int>(id[i]) : -1);
    }
  }
}

// One cluster of blocks: counts the slots of each expert, gives each expert its rows and tiles, and each
// slot its row. Rows of one expert come in no particular order; no result depends on it.
__device__ inline void route(const RouteArguments& r) {
  extern __shared__ int memory[];
  int* const count = memory;               // [experts] of this block
  int* const next_row = memory + r.experts;  // [experts] that this block's slots take
  const unsigned rank = cluster_rank();
  wait_for_predecessors();
  let_successor_start();
  for (int e = static_cast<int>(threadIdx.x); e < r.experts; e += kRouteThreads) count[e] = 0;
  __syncthreads();
  for_each_slot(r, [&](int, int expert) {
    if (expert >= 0) atomicAdd(&count[expert], 1);
  });
  cluster_sync();

  int rows_before = 0;
  int tiles_before = 0;
  for (int base = 0; base < r.experts; base += kRouteThreads) {
    const int e = base + static_cast<int>(threadIdx.x);
    int rows = 0;
    int of_earlier_blocks = 0;
    for (unsigned block = 0; block < cluster_size() && e < r.experts; ++block) {
      if (block == rank) of_earlier_blocks = rows;
      rows += read_remote(count + e, block);
    }
    const int tiles = (rows + kTileRows - 1) / kTileRows;
    unsigned long long total;
    const unsigned long long before =
        sum_before(static_cast<unsigned long long>(tiles) << 32 | static_cast<unsigned>(rows), total);
    const int first_row = rows_before + static_cast<int>(before & 0xffffffffu);
    const int first_tile = tiles_before + static_cast<int>(before >> 32);
    if (e < r.experts) next_row[e] = first_row + of_earlier_blocks;
    for (int i = 0; i < tiles && rank == 0; ++i) {
      const int before_this = i * kTileRows;
      r.tiles[first_tile + i] = {e, first_row + before_this, min(kTileRows, rows - before_this), 0};
    }
    rows_before += static_cast<int>(total & 0xffffffffu);
    tiles_before += static_cast<int>(total >> 32);
  }
  if (rank == 0 && threadIdx.x == 0) {
    *r.tile_count = tiles_before;
    for (int i = 0; i < r.counters; ++i) r.taken[i] = 0;
  }
  __syncthreads();

  for_each_slot(r, [&](int slot, int expert) {
    r.slot_row[slot] = expert >= 0 ? atomicAdd(&next_row[expert], 1) : -1;
  });
  // No block leaves while another may read its counts.
  cluster_sync();
}

__device__ inline bool aligned16(const void* address, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(address) % 16 == 0) && stride_bytes % 16 == 0;
}

// The eight elements of a row that this thread works on: blocks of x share a token, blocks of y a row.
__device__ inline int piece_of_thread() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
}

// A token's row goes to each of its experts.
__device__ inline void gather(const GatherArguments& g) {
  const int token = static_cast<int>(blockIdx.x);
  const std::int32_t* slot_row = g.slot_row + std::int64_t{token} * g.top_k;
  const auto* from = static_cast<const __nv_bfloat16*>(g.hidden) + token * g.hidden_stride;
  auto* rows = static_cast<__nv_bfloat16*>(g.rows);
  const int slot = static_cast<int>(threadIdx.x);
  wait_for_predecessors();
  let_successor_start();
  if (g.weights != nullptr && blockIdx.y == 0 && slot < g.top_k && slot_row[slot] >= 0) {
    g.row_scale[slot_row[slot]] = g.weights[token * g.weight_stride + slot * g.weight_step];
  }
  const int piece = piece_of_thread();
  if (piece >= g.width / 8) return;
  uint4 data;
  if (aligned16(g.hidden, g.hidden_stride * 2)) {
    data = reinterpret_cast<const uint4*>(from)[piece];
  } else {
    auto* element = reinterpret_cast<__nv_bfloat16*>(&data);
    for (int i = 0; i < 8; ++i) element[i] = from[piece * 8 + i];
  }
  for (int i = 0; i < g.top_k; ++i) {
    const int row = slot_row[i];
    if (row >= 0) reinterpret_cast<uint4*>(rows + std::int64_t{row} * g.width)[piece] = data;
  }
}

__device__ inline void store8(__nv_bfloat16* to, const float* values, bool vectors) {
  uint4 data;
  auto* element = reinterpret_cast<__nv_bfloat16*>(&data);
#pragma unroll
  for (int i = 0; i < 8; ++i) element[i] = __float2bfloat16_rn(values[i]);
  if (vectors) {
    *reinterpret_cast<uint4*>(to) = data;
  } else {
    for (int i = 0; i < 8; ++i) to[i] = element[i];
  }
}

// Without a list of rows every slot has its own, where its expert is ours.
__device__ inline int row_of_slot(const CombineArguments& c, int slot) {
  if (c.slot_row != nullptr) return c.slot_row[slot];
  const std::int64_t at = slot / c.top_k * c.routed.stride + slot % c.top_k * c.routed.step;
  const std::int64_t id = c.routed.wide != 0 ? static_cast<const std::int64_t*>(c.routed.ids)[at]
                                             : static_cast<const std::int32_t*>(c.routed.ids)[at];
  return id >= 0 && id < c.routed.experts ? slot : -1;
}

// The weighted sum of a token's rows in the order of its slots, in fp32; several rows are on their way at
// once.
__device__ inline void combine(const CombineArguments& c) {
  constexpr int kAhead = 4;
  const int token = static_cast<int>(blockIdx.x);
  const int piece = piece_of_thread();
  if (piece >= c.width / 8) return;
  wait_for_predecessors();
  let_successor_start();
  const auto* rows = static_cast<const __nv_bfloat16*>(c.rows);
  auto* output = static_cast<__nv_bfloat16*>(c.output);
  const bool vectors = aligned16(c.output, 0);
  float sum[8] = {};
  for (int base = 0; base < c.top_k; base += kAhead) {
    uint4 data[kAhead] = {};
    float weight[kAhead] = {};
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int slot = base + ahead;
      const int row = slot < c.top_k ? row_of_slot(c, token * c.top_k + slot) : -1;
      if (row < 0) continue;
      data[ahead] = reinterpret_cast<const uint4*>(rows + std::int64_t{row} * c.width)[piece];
      weight[ahead] =
          c.weights == nullptr ? 1.0f : c.weights[token * c.weight_stride + slot * c.weight_step];
    }
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const auto* element = reinterpret_cast<const __nv_bfloat16*>(&data[ahead]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float value = weight[ahead] * __bfloat162float(element[i]);
        sum[i] = c.combine != 0 ? sum[i] + value : value;
      }
      const int slot = base + ahead;
      if (c.combine == 0 && slot < c.top_k) {
        store8(output + (std::int64_t{token} * c.top_k + slot) * c.width + piece * 8, sum, vectors);
      }
    }
  }
  if (c.combine != 0) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] *= c.scale;
    store8(output + std::int64_t{token} * c.width + piece * 8, sum, vectors);
  }
}

// One block an expert: its bias as fp32, gates before ups.
__device__ inline void order_bias(const BiasArguments& b) {
  const std::int64_t expert = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < b.width; i += static_cast<int>(blockDim.x)) {
    const std::int64_t at = expert * b.stride + i * b.step;
    float value;
    if (b.type == 0) {
      value = static_cast<const float*>(b.bias)[at];
    } else if (b.type == 1) {
      value = __bfloat162float(static_cast<const __nv_bfloat16*>(b.bias)[at]);
    } else {
      value = __half2float(static_cast<const __half*>(b.bias)[at]);
    }
    int to = i;
    if (b.interleaved != 0) to = i % 2 * (b.width / 2) + i / 2;
    if (b.up_first != 0) to = i < b.width / 2 ? i + b.width / 2 : i - b.width / 2;
    b.output[expert * b.width + to] = value;
  }
}

}  // namespace flexact::cuda

extern "C" __global__ void __launch_bounds__(flexact::cuda::kRouteThreads, 1)
    flexact_route(const __grid_constant__ flexact::cuda::RouteArguments arguments) {
  flexact::cuda::route(arguments);
}

extern "C" __global__ void __launch_bounds__(flexact::cuda::kRowThreads)
    flexact_gather(const __grid_constant__ flexact::cuda::GatherArguments arguments) {
  flexact::cuda::gather(arguments);
}

extern "C" __global__ void __launch_bounds__(flexact::cuda::kRowThreads)
    flexact_combine(const __grid_constant__ flexact::cuda::CombineArguments arguments) {
  flexact::cuda::combine(arguments);
}

extern "C" __global__ void __launch_bounds__(256)
    flexact_order_bias(const __grid_constant__ flexact::cuda::BiasArguments arguments) {
  flexact::cuda::order_bias(arguments);
}
