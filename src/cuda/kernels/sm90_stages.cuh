// The operands of the GEMMs on sm_90a: rings of tiles in shared memory, filled by the copy engine and read
// by wgmma. A stage holds 128 bytes of each row and each weight row, one swizzled line, whatever the
// element.
#pragma once

#include <cstdint>
#include <utility>

#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>

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

// The producer: one thread takes tiles and issues the copies of their shared.
template <Epilogue kEpilogue, typename Storage>
__device__ __forceinline__ void produce(Storage& shared, const CUtensorMap* map_a, const CUtensorMap* map_b,
                                        const GemmArguments& arguments) {
  constexpr int kDepth = kDepthOf<typename Storage::Element>;
  constexpr auto kHint = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  Ring<kStages> ring;
  take_tiles(shared.queue, arguments, [&](const int4& tile) {
    const int first_column = tile.w * kOutputColumns<kEpilogue>;
    const int halves = tile.z > 64 ? 2 : 1;
    for (int k = 0; k < arguments.depth; k += kDepth) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      auto* full = reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]);
      shared.full[ring.slot].arrive_and_expect_tx((halves * 64 + kTileColumns) * 128);
      for (int half = 0; half < halves; ++half) {
        cute::SM90_TMA_LOAD_2D::copy(map_a, full, kHint, &shared.a[ring.slot][half * 64 * kDepth], k,
                                     tile.y + half * 64);
      }
      // Two boxes of 128 weight rows: gates and their ups, wherever the checkpoint has them.
      CUTE_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int row = first_column + (kEpilogue == Epilogue::Gated ? 0 : part * 128);
        const int pair = kEpilogue == Epilogue::Gated ? part ^ arguments.gate_pair : 0;
        cute::SM90_TMA_LOAD_4D::copy(map_b, full, kHint, &shared.b[ring.slot][part * 128 * kDepth], k,
                                     arguments.interleaved != 0 ? pair : row,
                                     arguments.interleaved != 0 ? row : pair, tile.x);
      }
      ring.advance();
    }
  });
}

}  // namespace flexact::cuda::sm90
