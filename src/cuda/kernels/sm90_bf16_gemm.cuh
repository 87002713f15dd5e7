// The grouped GEMM of a MoE layer on sm_90a in bf16 or fp16: rows of experts times their weights, with
// the activation linked in afterwards.
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

#include <cutlass/arch/reg_reconfig.h>

#include "dependent_launch.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_extra_rows.cuh"
#include "sm90_stages.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda {
namespace sm90 {

inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;

template <typename Element>
struct ProductOf;
template <>
struct ProductOf<__nv_bfloat16> {
  using Mma = gmma::MMA_64x256x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>;
  using Extra = gmma::MMA_64x32x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K>;
};
template <>
struct ProductOf<__half> {
  using Mma = gmma::MMA_64x256x16_F32F16F16_SS<gmma::Major::K, gmma::Major::K>;
  using Extra = gmma::MMA_64x32x16_F32F16F16_SS<gmma::Major::K, gmma::Major::K>;
};

template <typename Operand>
struct SharedStorage {
  using Element = Operand;
  static constexpr int kExtra = kExtraRows;
  alignas(1024) Element a[kStages][(kTileRows + kExtraRows) * kTileDepth];
  alignas(1024) Element b[kStages][kTileColumns * kTileDepth];
  alignas(128) Element staging[kStagingBytes / 2];
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  WorkQueue queue;
};
static_assert(sizeof(SharedStorage<__nv_bfloat16>) <= kGemmSharedBytes);

// A consumer warpgroup.
template <Epilogue kEpilogue, typename Storage>
__device__ __forceinline__ void consume(Storage& shared, const GemmArguments& arguments) {
  using Element = typename Storage::Element;
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;

  const int steps = (arguments.depth + kTileDepth - 1) / kTileDepth;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = next_of(shared, work, lane);
    if (tile.w < 0) break;

    // The second warpgroup has nothing to do in a short tile.
    if (warpgroup * 64 >= tile.z) {
      skip_stages(shared, ring, steps, lane);
      continue;
    }

    const RowTile rows = {tile.x, tile.y, tile.z, 0};
    const int first_column = tile.w * kOutputColumns<kEpilogue>;
    Accumulators acc;
    // Shuffled, so that the assembler knows it for uniform.
    const bool any_extra = __shfl_sync(0xffffffffu, tile.z, 0) > kTileRows;
    ExtraSums<Storage::kExtra> extra;
    multiply_stages_and_extra<ProductOf<Element>>(acc, extra, any_extra, shared, ring, steps, warpgroup, lane);

    float parameters[kMaxParameters];
    load_parameters<kEpilogue>(arguments, tile.x, parameters);
    const Place place = Place::of_consumer();
    if (any_extra) {
      finish_extra<kEpilogue>(extra, arguments, rows, first_column, place, parameters);
      store_extra<kEpilogue, Element>(extra, arguments, rows, first_column, place, [](int, Element) {});
    }
    apply_scale_and_bias<kEpilogue>(acc, arguments, rows, first_column, place);
    store<kEpilogue, 64, Element>(acc, shared.staging + place.warp * 16 * 64, arguments, rows, first_column, place,
                                  parameters, [](int, const uint4&) {});
  }
}

template <Epilogue kEpilogue, typename Element>
__device__ __forceinline__ void grouped_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                             const GemmArguments& arguments, const CUtensorMap* map_extra) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<SharedStorage<Element>*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  if (threadIdx.x == 0) {
    init_barriers(shared, 1, kConsumers * 4);
  }
  __syncthreads();
  begin(arguments);

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      produce<kEpilogue>(shared, map_a, map_b, map_extra, arguments);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<kEpilogue>(shared, arguments);
  }
}

}  // namespace sm90
}  // namespace flexact::cuda

#define FLEXACT_GEMM_KERNEL(name, epilogue, element)                                             \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                   \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, \
           const __grid_constant__ flexact::cuda::GemmArguments arguments,                       \
           const __grid_constant__ CUtensorMap map_extra) {                                       \
    flexact::cuda::sm90::grouped_gemm<flexact::cuda::Epilogue::epilogue, element>(               \
        &map_a, &map_b, arguments, &map_extra);                                                   \
  }
