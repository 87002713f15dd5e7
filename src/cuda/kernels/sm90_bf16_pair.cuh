// The grouped GEMM of sm90_bf16_gemm.cuh by clusters of two CTAs that share an operand: each fetches half of
// it and the copy engine writes that half into both shared memories, so that L2 is read less for each product.
//
//   Share::Weights   two tiles of rows of one expert, the same columns: a tile of the list is 256 rows
//   Share::Rows      two neighbouring tiles of columns, the same rows
//
// The two go through tiles and stages in step. Rank 0 takes a tile from the counter and tells both. A stage is
// free when the consumers of both have read it, since either's copies write into both; so consumers give a
// stage back to both producers. Nobody leaves before both are done.
#pragma once

#include "sm90_bf16_gemm.cuh"

namespace flexact::cuda::sm90 {

enum class Share {
  Weights,
  Rows,
};

__device__ __forceinline__ std::uint32_t rank_in_pair() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of both CTAs meet, and see what the others wrote before.
__device__ __forceinline__ void pair_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// The same place in the shared memory of CTA `rank`.
__device__ __forceinline__ std::uint32_t place_at(const void* local, std::uint32_t rank) {
  std::uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote)
               : "r"(cute::cast_smem_ptr_to_uint(local)), "r"(rank));
  return remote;
}
// Arrival after which whoever waits with acquire at cluster scope sees this thread's writes to its memory.
__device__ __forceinline__ void arrive_at(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for_writes(const void* barrier, std::uint32_t phase) {
  asm volatile(
      "{\n.reg .pred p;\nwait:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra wait;\ndone:\n}"
      ::"r"(cute::cast_smem_ptr_to_uint(barrier)), "r"(phase)
      : "memory");
}

// Readers of rank 0's queue: consumer warps of both, and rank 1's producer.
inline constexpr int kPairReaders = 2 * kConsumers * 4 + 1;

// The next tile as rank 0 sent it, for a whole warp; rank 0 is told that it was read.
__device__ __forceinline__ int4 next_of_pair(WorkQueue& queue, Ring<kWorkSlots>& work, int lane) {
  wait_for_writes(&queue.full[work.slot], work.phase);
  const int4 tile = queue.tile[work.slot];
  __syncwarp();
  if (lane == 0) arrive_at(place_at(&queue.empty[work.slot], 0));
  work.advance();
  return tile;
}

// A tile of the list as one of the two sees it.
template <Share kShare>
__device__ __forceinline__ int4 part_of(int4 tile, int rank) {
  if (tile.w < 0) return tile;
  if constexpr (kShare == Share::Weights) {
    tile.y += rank * kTileRows;
    tile.z = min(tile.z - rank * kTileRows, kTileRows);  // 0 or less: nothing for this one
  } else {
    tile.w = tile.w * 2 + rank;
  }
  return tile;
}

template <Share kShare>
struct PairStorage : SharedStorage {};

template <Share kShare>
__device__ __forceinline__ int4 next_of(PairStorage<kShare>& shared, Ring<kWorkSlots>& work, int lane) {
  return part_of<kShare>(next_of_pair(shared.queue, work, lane), static_cast<int>(rank_in_pair()));
}
template <Share kShare>
__device__ __forceinline__ void release(PairStorage<kShare>& shared, int stage, int lane) {
  shared.empty[stage].arrive(static_cast<std::uint32_t>(lane), lane < 2 ? 1u : 0u);
}

// The copies of a tile's stages. Both CTAs expect their own part and both halves of what is shared.
template <Epilogue kEpilogue, Share kShare>
__device__ __forceinline__ void copy_tile(PairStorage<kShare>& shared, const CUtensorMap* map_a,
                                          const CUtensorMap* map_b, const GemmArguments& arguments,
                                          const int4& tile, int rank, Ring<kStages>& ring) {
  constexpr std::uint16_t kBoth = 3;
  constexpr auto kHint = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  const int first_column = tile.w * kOutputColumns<kEpilogue>;
  const int halves = tile.z > 64 ? 2 : tile.z > 0 ? 1 : 0;
  for (int k = 0; k < arguments.depth; k += kTileDepth) {
    shared.empty[ring.slot].wait(ring.phase ^ 1);
    auto* full = reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]);
    shared.full[ring.slot].arrive_and_expect_tx((halves * 64 + kTileColumns) * 128);
    for (int half = 0; half < halves; ++half) {
      auto* to = &shared.a[ring.slot][half * 64 * kTileDepth];
      const int row = tile.y + half * 64;
      if constexpr (kShare == Share::Weights) {
        cute::SM90_TMA_LOAD_2D::copy(map_a, full, kHint, to, k, row);
      } else if (half == rank) {
        cute::SM90_TMA_LOAD_MULTICAST_2D::copy(map_a, full, kBoth, kHint, to, k, row);
      }
    }
    CUTE_UNROLL
    for (int part = 0; part < 2; ++part) {
      auto* to = &shared.b[ring.slot][part * 128 * kTileDepth];
      const int row = first_column + (kEpilogue == Epilogue::Gated ? 0 : part * 128);
      const int pair = kEpilogue == Epilogue::Gated ? part ^ arguments.gate_pair : 0;
      const int second = arguments.interleaved != 0 ? pair : row;
      const int third = arguments.interleaved != 0 ? row : pair;
      if constexpr (kShare == Share::Rows) {
        cute::SM90_TMA_LOAD_4D::copy(map_b, full, kHint, to, k, second, third, tile.x);
      } else if (part == rank) {
        cute::SM90_TMA_LOAD_MULTICAST_4D::copy(map_b, full, kBoth, kHint, to, k, second, third, tile.x);
      }
    }
    ring.advance();
  }
}

// One thread of rank 0: takes tiles, tells both, and copies.
template <Epilogue kEpilogue, Share kShare>
__device__ __forceinline__ void lead(PairStorage<kShare>& shared, const CUtensorMap* map_a, const CUtensorMap* map_b,
                                     const GemmArguments& arguments) {
  const int row_tiles = *arguments.tile_count;
  const int tiles = row_tiles * arguments.column_tiles;
  const int pairs = static_cast<int>(gridDim.x) / 2;
  int position = static_cast<int>(blockIdx.x) / 2;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const bool any = position < tiles;
    const int next = any ? pairs + static_cast<int>(atomicAdd(arguments.taken, 1u)) : 0;
    const int4 tile = any ? tile_at(arguments, position, row_tiles) : make_int4(0, 0, 0, -1);
    shared.queue.empty[work.slot].wait(work.phase ^ 1);
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      asm volatile("st.shared::cluster.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(
                       place_at(&shared.queue.tile[work.slot], rank)),
                   "r"(tile.x), "r"(tile.y), "r"(tile.z), "r"(tile.w)
                   : "memory");
      arrive_at(place_at(&shared.queue.full[work.slot], rank));
    }
    work.advance();
    if (!any) break;
    copy_tile<kEpilogue, kShare>(shared, map_a, map_b, arguments, part_of<kShare>(tile, 0), 0, ring);
    position = next;
  }

  // The last pair leaves the counters as it found them.
  if (atomicAdd(arguments.taken + 1, 1u) == static_cast<unsigned>(pairs) - 1) {
    arguments.taken[0] = 0;
    arguments.taken[1] = 0;
  }
}

// One thread of rank 1.
template <Epilogue kEpilogue, Share kShare>
__device__ __forceinline__ void follow(PairStorage<kShare>& shared, const CUtensorMap* map_a,
                                       const CUtensorMap* map_b, const GemmArguments& arguments) {
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    wait_for_writes(&shared.queue.full[work.slot], work.phase);
    const int4 tile = shared.queue.tile[work.slot];
    arrive_at(place_at(&shared.queue.empty[work.slot], 0));
    work.advance();
    if (tile.w < 0) break;
    copy_tile<kEpilogue, kShare>(shared, map_a, map_b, arguments, part_of<kShare>(tile, 1), 1, ring);
  }
}

template <Epilogue kEpilogue, Share kShare>
__device__ __forceinline__ void paired_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                            const GemmArguments& arguments) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<PairStorage<kShare>*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  const int rank = static_cast<int>(rank_in_pair());

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(2 * kConsumers * 4);
    }
    shared.queue.init(kPairReaders);
    cutlass::arch::fence_barrier_init();
  }
  // Barriers are there before the other CTA uses them.
  pair_sync();
  wait_for_predecessors();
  let_successor_start();

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      if (rank == 0) {
        lead<kEpilogue, kShare>(shared, map_a, map_b, arguments);
      } else {
        follow<kEpilogue, kShare>(shared, map_a, map_b, arguments);
      }
    }
    __syncwarp();
    pair_sync();
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<kEpilogue>(shared, arguments);
    pair_sync();
  }
}

}  // namespace flexact::cuda::sm90

#define FLEXACT_PAIR_KERNEL(name, epilogue, share)                                                   \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                       \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,     \
           const __grid_constant__ flexact::cuda::GemmArguments arguments) {                         \
    using flexact::cuda::sm90::Share;                                                                \
    flexact::cuda::sm90::paired_gemm<flexact::cuda::Epilogue::epilogue, Share::share>(&map_a, &map_b, \
                                                                                      arguments);    \
  }
