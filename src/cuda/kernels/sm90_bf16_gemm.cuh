// The grouped GEMM of a MoE layer on sm_90a in bf16: rows of experts times their weights, with the
// activation linked in afterwards.
//
//   output[r, :] = epilogue(input[r, :] · weights[expert of r]^T)
//
// One persistent CTA on each SM. A producer warp keeps kStages tiles of input and weights in flight
// with TMA; two consumer warpgroups multiply them with wgmma, 64 rows each, and apply the epilogue
// to their own accumulators: nothing of the 2I-wide product is ever written. Which tiles there are is
// read from device memory, so no launch depends on how tokens were routed.
//
// docs/cuda.md is the design note.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>
#include <cutlass/arch/reg_reconfig.h>

#include "sm90_epilogue.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda {

using cute::Int;
using cute::Shape;

namespace sm90 {

inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;

using Element = cute::bfloat16_t;

using SmemAtom = cute::GMMA::Layout_K_SW128_Atom<Element>;
using SmemLayoutA = decltype(cute::tile_to_shape(
    SmemAtom{}, Shape<Int<kTileRows>, Int<kTileDepth>, Int<kStages>>{}));
using SmemLayoutB = decltype(cute::tile_to_shape(
    SmemAtom{}, Shape<Int<kTileColumns>, Int<kTileDepth>, Int<kStages>>{}));
using TiledMma = decltype(cute::make_tiled_mma(
    cute::SM90_64x256x16_F32BF16BF16_SS<cute::GMMA::Major::K, cute::GMMA::Major::K>{},
    cute::Layout<Shape<Int<kConsumers>, Int<1>, Int<1>>>{}));

struct SharedStorage {
  alignas(1024) Element a[kStages][kTileRows * kTileDepth];
  alignas(1024) Element b[kStages][kTileColumns * kTileDepth];
  alignas(128) Element staging[kStagingBytes / 2];
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  WorkQueue queue;
};
static_assert(sizeof(SharedStorage) <= kGemmSharedBytes);

// Writes a warp's rows, 128 columns at a time.
template <Epilogue kEpilogue, typename Accumulators>
__device__ __forceinline__ void store(Accumulators& acc, Element* staging, const GemmArguments& arguments,
                                      const RowTile& tile, int first_column, const Place& place,
                                      const float* parameters) {
  const int warp_row = place.row - place.lane / 4;
  const Staging<128> rows(staging, place.lane);
  CUTE_UNROLL
  for (int pass = 0; pass < kOutputColumns<kEpilogue> / 128; ++pass) {
    CUTE_UNROLL
    for (int pair = 0; pair < 8; ++pair) {
      // Beside sparing work at the edge, the branch keeps the assembler from evaluating all pairs at
      // once, for which there are not registers enough.
      if (first_column + pass * 128 + pair * 16 >= arguments.columns) break;
      std::uint32_t word[4];  // two blocks of eight columns × two halves of eight rows
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float2 y = result<kEpilogue>(acc, pass * 16 + pair * 2 + i / 2, i & 1, parameters);
        word[i] = pack(y.x, y.y);
      }
      rows.put(pair, word);
    }
    rows.drain(arguments.output, tile.first_row + warp_row, tile.rows - warp_row, first_column + pass * 128,
               arguments.columns);
  }
}

// The producer: one thread takes tiles and issues every copy.
template <Epilogue kEpilogue>
__device__ __forceinline__ void produce(SharedStorage& shared, const CUtensorMap* map_a,
                                        const CUtensorMap* map_b, const GemmArguments& arguments) {
  constexpr int kHalfBytes = 64 * kTileDepth * 2;
  constexpr int kColumnBytes = kTileColumns * kTileDepth * 2;
  constexpr auto kHint = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  Ring<kStages> ring;
  take_tiles(shared.queue, arguments, [&](const int4& tile) {
    const int first_column = tile.w * kOutputColumns<kEpilogue>;
    const int halves = tile.z > 64 ? 2 : 1;
    for (int k = 0; k < arguments.depth; k += kTileDepth) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      auto* full = reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]);
      shared.full[ring.slot].arrive_and_expect_tx(halves * kHalfBytes + kColumnBytes);
      for (int half = 0; half < halves; ++half) {
        cute::SM90_TMA_LOAD_2D::copy(map_a, full, kHint,
                                     &shared.a[ring.slot][half * 64 * kTileDepth], k, tile.y + half * 64);
      }
      // Two boxes of 128 weight rows: gates and their ups, wherever the checkpoint has them.
      CUTE_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int row = first_column + (kEpilogue == Epilogue::Gated ? 0 : part * 128);
        const int pair = kEpilogue == Epilogue::Gated ? part ^ arguments.gate_pair : 0;
        cute::SM90_TMA_LOAD_4D::copy(map_b, full, kHint,
                                     &shared.b[ring.slot][part * 128 * kTileDepth], k,
                                     arguments.interleaved != 0 ? pair : row,
                                     arguments.interleaved != 0 ? row : pair, tile.x);
      }
      ring.advance();
    }
  });
}

// A consumer warpgroup.
template <Epilogue kEpilogue>
__device__ __forceinline__ void consume(SharedStorage& shared, const GemmArguments& arguments) {
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;

  TiledMma mma;
  auto of_warpgroup = mma.get_slice(warpgroup * 128);
  auto a = of_warpgroup.make_fragment_A(of_warpgroup.partition_A(
      cute::make_tensor(cute::make_smem_ptr(&shared.a[0][0]), SmemLayoutA{})));
  auto b = of_warpgroup.make_fragment_B(of_warpgroup.partition_B(
      cute::make_tensor(cute::make_smem_ptr(&shared.b[0][0]), SmemLayoutB{})));
  auto acc = cute::partition_fragment_C(mma, Shape<Int<kTileRows>, Int<kTileColumns>>{});

  const int steps = (arguments.depth + kTileDepth - 1) / kTileDepth;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;

    // The second warpgroup has nothing to do in a short tile.
    if (warpgroup * 64 >= tile.z) {
      for (int step = 0; step < steps; ++step) {
        shared.full[ring.slot].wait(ring.phase);
        if (lane == 0) shared.empty[ring.slot].arrive();
        ring.advance();
      }
      continue;
    }

    // One product stays in flight: a stage is given back when the next one's has been issued.
    mma.accumulate_ = cute::GMMA::ScaleOut::Zero;
    int previous = 0;
    for (int step = 0; step < steps; ++step) {
      shared.full[ring.slot].wait(ring.phase);
      cute::warpgroup_fence_operand(acc);
      cute::warpgroup_arrive();
      CUTE_UNROLL
      for (int k = 0; k < kTileDepth / 16; ++k) {
        cute::gemm(mma, a(cute::_, cute::_, k, ring.slot), b(cute::_, cute::_, k, ring.slot), acc);
        mma.accumulate_ = cute::GMMA::ScaleOut::One;
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<1>();
      cute::warpgroup_fence_operand(acc);
      if (step > 0 && lane == 0) shared.empty[previous].arrive();
      previous = ring.slot;
      ring.advance();
    }
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(acc);
    if (lane == 0) shared.empty[previous].arrive();

    const Place place = Place::of_consumer();
    float parameters[kMaxParameters];
    load_parameters<kEpilogue>(arguments, tile.x, parameters);
    const RowTile rows = {tile.x, tile.y, tile.z, 0};
    apply_scale_and_bias<kEpilogue>(acc, arguments, rows, tile.w * kOutputColumns<kEpilogue>, place);
    store<kEpilogue>(acc, shared.staging + place.warp * 16 * 128, arguments, rows, tile.w * kOutputColumns<kEpilogue>, place,
                     parameters);
  }
}

template <Epilogue kEpilogue>
__device__ __forceinline__ void grouped_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                             const GemmArguments& arguments) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<SharedStorage*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(kConsumers * 4);
    }
    shared.queue.init(kConsumers * 4);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      produce<kEpilogue>(shared, map_a, map_b, arguments);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<kEpilogue>(shared, arguments);
  }
}

}  // namespace sm90
}  // namespace flexact::cuda

#define FLEXACT_GEMM_KERNEL(name, epilogue)                                                      \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                   \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, \
           const __grid_constant__ flexact::cuda::GemmArguments arguments) {                     \
    flexact::cuda::sm90::grouped_gemm<flexact::cuda::Epilogue::epilogue>(&map_a, &map_b, arguments); \
  }
