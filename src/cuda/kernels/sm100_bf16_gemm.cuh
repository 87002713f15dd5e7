// The grouped GEMM of a MoE layer on sm_100a in bf16 or fp16, with the activation linked in afterwards:
//
//   output[r, :] = epilogue(input[r, :] · weights[expert of r]^T)
//
// A thread of the epilogue has a row and takes 32 gates and their 32 ups from tensor memory at a time.
#pragma once

#include "sm100_tiles.cuh"

namespace flexact::cuda {
namespace sm100 {

// A warp of the epilogue has 32 rows of a tile and half of its outputs.
template <Epilogue kEpilogue, typename Storage>
__device__ __forceinline__ void finish_tiles(Storage& shared, const GemmArguments& arguments,
                                             int warp, int lane) {
  using Element = typename Storage::Element;
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  constexpr int kOutputs = kOutputColumns<kEpilogue> / 2;
  const int first_row = warp % 4 * 32;
  const int first = warp / 4 * kOutputs;
  const Lines lines(shared.lines[warp], lane);
  const std::uint32_t sums = sums_of(shared);
  Ring<kSumTiles> place;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = sm90::next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;
    float parameters[kMaxParameters];
    sm90::load_parameters<kEpilogue>(arguments, tile.x, parameters);
    const int rows = tile.z - first_row;
    const float factor = arguments.row_scale == nullptr
                             ? 1.0f
                             : arguments.row_scale[tile.y + min(first_row + lane, tile.z - 1)];
    await_sums(shared, place);
    const std::uint32_t of_rows = sums + place.slot * kTileColumns + (first_row << 16) + first;
    CUTE_NO_UNROLL
    for (int block = 0; block < kOutputs; block += kLoadedSums) {
      const int column = tile.w * kOutputColumns<kEpilogue> + first + block;
      if (rows <= 0 || column >= arguments.columns) break;
      float left[kLoadedSums], right[kLoadedSums];
      load_sums(of_rows + block, left);
      if constexpr (kGated) load_sums(of_rows + kTileColumns / 2 + block, right);
      wait_for_sums();
      take_sums(left);
      if constexpr (kGated) take_sums(right);
      CUTE_UNROLL
      for (int piece = 0; piece < kLoadedSums; piece += 8) {
        // Columns are whole pieces.
        if (column + piece >= arguments.columns) break;
        std::uint32_t word[4];
        CUTE_UNROLL
        for (int i = piece; i < piece + 8; i += 2) {
          const float* bias = arguments.bias;
          if (bias != nullptr) {
            bias += std::int64_t{tile.x} * arguments.columns * (kGated ? 2 : 1) + column + i;
          }
          float x[2] = {left[i], left[i + 1]}, up[2] = {};
          scale_and_add(x, factor, bias);
          if constexpr (kGated) {
            up[0] = right[i];
            up[1] = right[i + 1];
            scale_and_add(up, factor, bias == nullptr ? nullptr : bias + arguments.columns);
          }
          const float2 y = sm90::activated<kEpilogue>(x, up, parameters);
          word[(i - piece) / 2] = rounded_pair<Element>(y.x, y.y);
        }
        lines.put(piece / 8, word);
      }
      lines.drain(arguments.output, tile.y + first_row, rows, column * 2, std::int64_t{arguments.columns} * 2);
    }
    return_sums(shared, place, lane);
  }
}

}  // namespace sm100
}  // namespace flexact::cuda

#define FLEXACT_SM100_GEMM_KERNEL(name, epilogue, element)                                               \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                           \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,         \
           const __grid_constant__ flexact::cuda::GemmArguments arguments) {                             \
    using namespace flexact::cuda;                                                                       \
    sm100::grouped_gemm<Epilogue::epilogue, false, element>(                                             \
        &map_a, &map_b, arguments, [&](auto& shared, int warp, int lane) {                               \
          sm100::finish_tiles<Epilogue::epilogue>(shared, arguments, warp, lane);                        \
        });                                                                                              \
  }
