// The operands of the GEMMs on sm_90a: rings of tiles in shared memory, filled by the copy engine and read
// by wgmma. A stage holds 128 bytes of each row and each weight row, one swizzled line, whatever the
// element.
#pragma once

#include <cstdint>
#include <utility>

#ifndef FLEXACT_EMULATED
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>

#include "dependent_launch.cuh"
#endif
#include "sm90_epilogue.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda::sm90 {

namespace gmma = cute::SM90::GMMA;

template <typename Element>
inline constexpr int kDepthOf = 128 / static_cast<int>(sizeof(Element));

// What wgmma must know of a tile: rows of 128 bytes, swizzled in groups of eight. The lowest 14 bits are its
// address in units of 16 bytes. CuTe's tensors of such tiles say the same, and take compiler and linker a
// second to see through.
__device__ __forceinline__ std::uint64_t tile_descriptor(const void* tile) {
  constexpr std::uint64_t kGroupBytes = 1024;
  constexpr std::uint64_t kSwizzle128 = 1;
  const std::uint64_t address = cute::cast_smem_ptr_to_uint(tile);
  return kSwizzle128 << 62 | (kGroupBytes >> 4) << 32 | std::uint64_t{1} << 16 | (address & 0x3ffffu) >> 4;
}

template <typename Mma, int kCount, std::size_t... kIndex>
__device__ __forceinline__ void multiply(float (&acc)[kCount], std::uint64_t a, std::uint64_t b,
                                         gmma::ScaleOut scale, std::index_sequence<kIndex...>) {
  Mma::fma(a, b, acc[kIndex]..., scale);
}

// acc += rows · weights^T over one stage (`scale` One), or acc = that (Zero). `a` and `b`: descriptors of the stage.
template <typename Mma, int kCount>
__device__ __forceinline__ void multiply_stage(float (&acc)[kCount], std::uint64_t a, std::uint64_t b,
                                               gmma::ScaleOut scale) {
  CUTE_UNROLL
  for (int bytes = 0; bytes < 128; bytes += 32) {
    multiply<Mma>(acc, a + bytes / 16, b + bytes / 16, scale, std::make_index_sequence<kCount>{});
    scale = gmma::ScaleOut::One;
  }
  cute::warpgroup_commit_batch();
}

// Nothing that the compiler does with accumulators crosses this.
template <int kCount>
__device__ __forceinline__ void fence(float (&acc)[kCount]) {
  CUTE_UNROLL
  for (float& each : acc) cute::warpgroup_fence_operand(each);
}

// By a warp that has read a stage. Storage of CTAs that share stages has a version of its own of this and of
// next_of.
template <typename Storage>
__device__ __forceinline__ void release(Storage& shared, int stage, int lane) {
  if (lane == 0) shared.empty[stage].arrive();
}
template <typename Storage>
__device__ __forceinline__ int4 next_of(Storage& shared, Ring<kWorkSlots>& work, int lane) {
  return next_tile(shared.queue, work, lane);
}

// acc = rows · weights^T over `steps` stages, for one warpgroup. One product stays in flight: a stage is given
// back when the next one's has been issued.
template <typename Mma, typename Storage, int kCount>
__device__ __forceinline__ void multiply_stages(float (&acc)[kCount], Storage& shared, Ring<kStages>& ring,
                                                int steps, int warpgroup, int lane) {
  constexpr int kDepth = kDepthOf<typename Storage::Element>;
  const std::uint64_t first_a = tile_descriptor(&shared.a[0][warpgroup * 64 * kDepth]);
  const std::uint64_t first_b = tile_descriptor(&shared.b[0][0]);
  auto scale = gmma::ScaleOut::Zero;
  int previous = 0;
  for (int step = 0; step < steps; ++step) {
    shared.full[ring.slot].wait(ring.phase);
    fence(acc);
    cute::warpgroup_arrive();
    multiply_stage<Mma>(acc, first_a + ring.slot * (sizeof(shared.a[0]) / 16),
                        first_b + ring.slot * (sizeof(shared.b[0]) / 16), scale);
    scale = gmma::ScaleOut::One;
    cute::warpgroup_wait<1>();
    fence(acc);
    if (step > 0) release(shared, previous, lane);
    previous = ring.slot;
    ring.advance();
  }
  cute::warpgroup_wait<0>();
  fence(acc);
  release(shared, previous, lane);
}

// Takes part in the stages of a tile without multiplying.
template <typename Storage>
__device__ __forceinline__ void skip_stages(Storage& shared, Ring<kStages>& ring, int steps, int lane) {
  for (int step = 0; step < steps; ++step) {
    shared.full[ring.slot].wait(ring.phase);
    release(shared, ring.slot, lane);
    ring.advance();
  }
}

// By one thread. A kernel's Storage has the rings `a` and `b`, their barriers `full` and `empty`, and the
// `queue`. `arrivals`: what completes a stage beside the copy engine's bytes; `readers`: warps that read the
// queue.
template <typename Storage>
__device__ __forceinline__ void init_barriers(Storage& shared, int arrivals, int readers) {
  for (int stage = 0; stage < static_cast<int>(sizeof(shared.full) / sizeof(FullBarrier)); ++stage) {
    shared.full[stage].init(arrivals);
    shared.empty[stage].init(kConsumers * 4);
  }
  shared.queue.init(readers);
  cutlass::arch::fence_barrier_init();
}

// The producer: one thread takes tiles and issues the copies of their stages: rows in boxes of 64, and one of extra
// rows.
template <Epilogue kEpilogue, typename Storage>
__device__ __forceinline__ void produce(Storage& shared, const CUtensorMap* map_a, const CUtensorMap* map_b,
                                        const CUtensorMap* map_extra, const GemmArguments& arguments) {
  constexpr int kDepth = kDepthOf<typename Storage::Element>;
  constexpr auto kHint = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  Ring<kStages> ring;
  bool early = arguments.early_weights != 0;
  take_tiles(shared.queue, arguments, [&](const int4& tile) {
    const int first_column = tile.w * kOutputColumns<kEpilogue>;
    const int boxes = tile.z > 64 ? 2 : 1;
    const bool extra = tile.z > kTileRows;
    const auto full_of = [&](int slot) { return reinterpret_cast<std::uint64_t*>(&shared.full[slot]); };
    const auto copy_rows = [&](int slot, int k) {
      for (int box = 0; box < boxes; ++box) {
        cute::SM90_TMA_LOAD_2D::copy(map_a, full_of(slot), kHint, &shared.a[slot][box * 64 * kDepth], k,
                                     tile.y + box * 64);
      }
      if (extra) {
        cute::SM90_TMA_LOAD_2D::copy(map_extra, full_of(slot), kHint, &shared.a[slot][kTileRows * kDepth], k,
                                     tile.y + kTileRows);
      }
    };
    // Two boxes of 128 weight rows: gates and their ups, wherever the checkpoint has them.
    const auto copy_weights = [&](int slot, int k) {
      shared.full[slot].arrive_and_expect_tx((boxes * 64 + (extra ? Storage::kExtra : 0) + kTileColumns) * 128);
      CUTE_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int row = first_column + (kEpilogue == Epilogue::Gated ? 0 : part * 128);
        const int pair = kEpilogue == Epilogue::Gated ? part ^ arguments.gate_pair : 0;
        cute::SM90_TMA_LOAD_4D::copy(map_b, full_of(slot), kHint, &shared.b[slot][part * 128 * kDepth], k,
                                     arguments.interleaved != 0 ? pair : row,
                                     arguments.interleaved != 0 ? row : pair, tile.x);
      }
    };
    int k = 0;
    if (early) {
      // The predecessor writes rows, not weights: those of as many stages as there are come before its end.
      early = false;
      for (int ahead = 0; ahead < kStages && ahead * kDepth < arguments.depth; ++ahead) {
        copy_weights(ahead, ahead * kDepth);
      }
      wait_for_predecessors();
      for (; ring.phase == 0 && k < arguments.depth; k += kDepth) {
        copy_rows(ring.slot, k);
        ring.advance();
      }
    }
    for (; k < arguments.depth; k += kDepth) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      copy_weights(ring.slot, k);
      copy_rows(ring.slot, k);
      ring.advance();
    }
  });
}

// At the beginning of a kernel. Where weights are read early the producer's warp waits by itself.
__device__ __forceinline__ void begin(const GemmArguments& arguments) {
  if (threadIdx.x < 32 && arguments.early_weights != 0) return;
  wait_for_predecessors();
  let_successor_start();
}

}  // namespace flexact::cuda::sm90
