// The operands of the GEMMs on sm_90a: rings of tiles in shared memory, filled by the copy engine. A stage
// holds 128 bytes of each row and each weight row, one swizzled line, whatever the element.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>

#include "sm90_epilogue.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda {

using cute::Int;
using cute::Shape;

namespace sm90 {

// How a ring lies in shared memory: kStages tiles of rows and of weight rows.
template <typename Element>
inline constexpr int kDepthOf = 128 / static_cast<int>(sizeof(Element));
template <typename Element, int kRows>
using RingLayout = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                                Shape<Int<kRows>, Int<kDepthOf<Element>>, Int<kStages>>{}));

// By one thread. A kernel's Storage has the rings `a` and `b`, their barriers `full` and `empty`, and the
// `queue`. `arrivals`: what completes a stage beside the copy engine's bytes; `readers`: warps that read the
// queue.
template <typename Storage>
__device__ __forceinline__ void init_barriers(Storage& shared, int arrivals, int readers) {
  for (int stage = 0; stage < kStages; ++stage) {
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

}  // namespace sm90
}  // namespace flexact::cuda
