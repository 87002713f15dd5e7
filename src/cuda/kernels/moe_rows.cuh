// The kernels around the two GEMMs: routing, token rows to expert order and back. None of them knows an
// architecture, and none reads an id twice that is outside 0 … E-1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "arguments.hpp"
#include "dependent_launch.cuh"
#include "token_rows.cuh"

namespace flexact::cuda {

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

  int of_earlier_blocks = 0;
  const auto rows_of = [&](int e) {
    int rows = 0;
    for (unsigned block = 0; block < cluster_size(); ++block) {
      if (block == rank) of_earlier_blocks = rows;
      rows += read_remote(count + e, block);
    }
    return rows;
  };
  list_tiles<kRouteThreads>(r, rank == 0, rows_of,
                            [&](int e, int first_row) { next_row[e] = first_row + of_earlier_blocks; });
  __syncthreads();

  for_each_slot(r, [&](int slot, int expert) {
    r.slot_row[slot] = expert >= 0 ? atomicAdd(&next_row[expert], 1) : -1;
  });
  // No block leaves while another may read its counts.
  cluster_sync();
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

FLEXACT_GATHER_KERNELS(flexact_gather, GatherArguments, slot_row, gather)

// Left alone, the assembler takes 64 registers for sm_100a, and spills one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FLEXACT_COMBINE_BOUNDS __launch_bounds__(flexact::cuda::kRowThreads, 7)
#else
#define FLEXACT_COMBINE_BOUNDS __launch_bounds__(flexact::cuda::kRowThreads)
#endif

extern "C" __global__ void FLEXACT_COMBINE_BOUNDS
    flexact_combine(const __grid_constant__ flexact::cuda::CombineArguments arguments) {
  flexact::cuda::combine<__nv_bfloat16>(arguments);
}

extern "C" __global__ void FLEXACT_COMBINE_BOUNDS
    flexact_combine_fp16(const __grid_constant__ flexact::cuda::CombineArguments arguments) {
  flexact::cuda::combine<__half>(arguments);
}

extern "C" __global__ void __launch_bounds__(256)
    flexact_order_bias(const __grid_constant__ flexact::cuda::BiasArguments arguments) {
  flexact::cuda::order_bias(arguments);
}
