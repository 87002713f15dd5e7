// What the GEMMs of sm_90a do with finished accumulators: router weight, bias, the linked function, and the
// way of results through shared memory. The formats differ in what stands before and after.
#pragma once

// A test runs this on the CPU with instructions of its own: tests/cpp/emulated.
#ifndef FLEXACT_EMULATED
#include <cuda_bf16.h>

#include "shared_memory.cuh"
#endif
#include "arguments.hpp"
#include "elements.cuh"

// The linked function: see activation/printers.hpp. Two elements at a time, so that packed arithmetic
// is possible; after linking it is inlined and its array arguments are registers.
extern "C" __device__ void flexact_act2(const float g[2], const float u[2],
                                        const float* parameters, float y[2]);
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]);

namespace flexact::cuda {

// What becomes of the accumulators.
enum class Epilogue {
  Gated,  // the first half of a tile's columns are gates, the second half their ups
  Unary,
  Plain,  // rounded as they are
};

// Columns of the output that a tile of kTileColumns weight rows makes.
template <Epilogue kEpilogue>
inline constexpr int kOutputColumns = kEpilogue == Epilogue::Gated ? kTileColumns / 2 : kTileColumns;

namespace sm90 {

__device__ inline std::uint32_t pack(float low, float high) {
  return rounded_pair<__nv_bfloat16>(low, high);
}

// What a thread of a consumer warp must know of its place in the tile: it holds rows `row` and
// `row + 8`, and of every eight columns the two from `column`.
struct Place {
  int warp, lane, row, column;

  // Read anew for each tile: nothing derived from it is worth a register during the products.
  __device__ static Place of_consumer() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    thread -= 128;
    const int warp = thread / 32;
    const int lane = thread % 32;
    return {warp, lane, warp * 16 + lane / 4, lane % 4 * 2};
  }
};

// The sums of a thread: 64 rows of a warpgroup × kTileColumns.
using Accumulators = float[64 * kTileColumns / 128];

// One of them: value(column block of 8, 0 or 1 for row + 8, 0 or 1).
__device__ __forceinline__ float& value(Accumulators& acc, int block, int half, int element) {
  return acc[block * 4 + half * 2 + element];
}

// The router weight of the input row and the bias, where there are any: x·w of a scaled row is the
// scaled product, so nothing is rounded in between.
template <Epilogue kEpilogue>
__device__ __forceinline__ void apply_scale_and_bias(Accumulators& acc, const GemmArguments& arguments,
                                                     const RowTile& tile, int first_column,
                                                     const Place& place) {
  constexpr int kBlocks = kTileColumns / 8;
  if (arguments.row_scale != nullptr) {
    float scale[2];
    for (int half = 0; half < 2; ++half) {
      const int row = min(place.row + half * 8, tile.rows - 1);
      scale[half] = arguments.row_scale[tile.first_row + row];
    }
    CUTE_UNROLL
    for (int i = 0; i < kBlocks * 4; ++i) acc[i] *= scale[(i >> 1) & 1];
  }
  if (arguments.bias != nullptr) {
    const std::int64_t columns = arguments.columns;
    const float* bias = arguments.bias + tile.expert * columns * (kEpilogue == Epilogue::Gated ? 2 : 1);
    // One address and 32-bit steps from it: there are no registers for one of each block.
    asm volatile("" : "+l"(bias));
    CUTE_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      const bool second = kEpilogue == Epilogue::Gated && block >= kBlocks / 2;
      const int of_output = (second ? block - kBlocks / 2 : block) * 8;
      const int column = min(first_column + of_output + place.column, arguments.columns - 2);
      const float* at = bias + (column + (second ? arguments.columns : 0));
      const float2 pair = __ldg(reinterpret_cast<const float2*>(at));
      for (int half = 0; half < 2; ++half) {
        value(acc, block, half, 0) += pair.x;
        value(acc, block, half, 1) += pair.y;
      }
    }
  }
}

// What follows the products in a function's place, of two neighbouring results. `up` is not read where there is no
// gate.
template <Epilogue kEpilogue>
__device__ __forceinline__ float2 activated(const float (&x)[2], const float (&up)[2], const float* parameters) {
  if constexpr (kEpilogue == Epilogue::Plain) {
    return {x[0], x[1]};
  } else {
    float y[2];
    if constexpr (kEpilogue == Epilogue::Gated) flexact_act2(x, up, parameters, y);
    if constexpr (kEpilogue == Epilogue::Unary) flexact_act2_unary(x, parameters, y);
    return {y[0], y[1]};
  }
}

// The same of output block `block` (eight columns) in one of the thread's two rows.
template <Epilogue kEpilogue>
__device__ __forceinline__ float2 result(Accumulators& acc, int block, int half, const float* parameters) {
  const int partner = kEpilogue == Epilogue::Gated ? block + kTileColumns / 16 : block;
  const float x[2] = {value(acc, block, half, 0), value(acc, block, half, 1)};
  const float up[2] = {value(acc, partner, half, 0), value(acc, partner, half, 1)};
  return activated<kEpilogue>(x, up, parameters);
}

// The expert's parameter values, a copy in registers: the compiler could not know that stores leave the
// table alone.
template <Epilogue kEpilogue>
__device__ __forceinline__ void load_parameters(const GemmArguments& arguments, int expert,
                                                float (&parameters)[kMaxParameters]) {
  if constexpr (kEpilogue != Epilogue::Plain) {
    CUTE_UNROLL
    for (int i = 0; i < kMaxParameters; ++i) {
      parameters[i] = i < arguments.value_columns
                          ? __ldg(arguments.values + expert * arguments.value_stride + i)
                          : 0.0f;
    }
  }
}

// A warp's 16 rows of results, kColumns of 16 bits at a time: turned around in the warp's own shared memory, so
// that they are written in whole 16-byte pieces. Piece c of row r lies at c ^ (r % 8), so that neither
// stmatrix nor the reads meet a bank twice.
template <int kColumns>
class Staging {
 public:
  static constexpr int kRowBytes = kColumns * 2;
  static constexpr int kBytes = 16 * kRowBytes;

  __device__ Staging(void* memory, int lane)
      : lane_(lane),
        written_(shared_address(memory) + lane % 16 * kRowBytes + ((lane / 16) ^ (lane % 8)) * 16),
        read_(shared_address(memory) + lane / kPieces * kRowBytes +
              ((lane % kPieces) ^ (lane / kPieces)) * 16) {}

  // Sixteen columns: two blocks of eight × two halves of eight rows, as the products lie in registers.
  __device__ __forceinline__ void put(int pair, const std::uint32_t (&word)[4]) const {
    store_matrices((written_ ^ pair % 4 * 32) + pair / 4 * 128, word);
  }

  // The first `rows` of the 16 rows to `output` [.., columns], from `column` on. All lanes call
  // see(row, eight results) together; those that are not written are zeros.
  template <typename See>
  __device__ __forceinline__ void drain(void* output, std::int64_t first_row, int rows, int column,
                                        int columns, See see) const {
    __syncwarp();
    column += lane_ % kPieces * 8;
    const int row = lane_ / kPieces;
    auto* to = static_cast<std::uint16_t*>(output) + column + (first_row + row) * columns;
    CUTE_UNROLL
    for (int i = 0; i < 16; i += kRowsAtOnce) {
      const uint4 data = load_shared16((read_ ^ i % 8 * 16) + i * kRowBytes);
      const bool inside = i + row < rows && column < columns;
      if (inside) *reinterpret_cast<uint4*>(to + std::int64_t{i} * columns) = data;
      see(i + row, inside ? data : uint4{});
    }
    __syncwarp();
  }

 private:
  static constexpr int kPieces = kColumns / 8;
  static constexpr int kRowsAtOnce = 32 / kPieces;
  int lane_;
  std::uint32_t written_, read_;
};

// Writes a warp's rows as `Element`, kPass columns at a time; see(row of the warp, eight results) as Staging does.
template <Epilogue kEpilogue, int kPass, typename Element, typename See>
__device__ __forceinline__ void store(Accumulators& acc, void* staging, const GemmArguments& arguments,
                                      const RowTile& tile, int first_column, const Place& place,
                                      const float* parameters, See see) {
  const int warp_row = place.row - place.lane / 4;
  const Staging<kPass> rows(staging, place.lane);
  CUTE_UNROLL
  for (int pass = 0; pass < kOutputColumns<kEpilogue> / kPass; ++pass) {
    CUTE_UNROLL
    for (int pair = 0; pair < kPass / 16; ++pair) {
      // Beside sparing work at the edge, the branch keeps the assembler from evaluating all pairs at
      // once, for which there are not registers enough.
      if (first_column + pass * kPass + pair * 16 >= arguments.columns) break;
      std::uint32_t word[4];  // two blocks of eight columns × two halves of eight rows
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float2 y = result<kEpilogue>(acc, pass * (kPass / 8) + pair * 2 + i / 2, i & 1, parameters);
        word[i] = rounded_pair<Element>(y.x, y.y);
      }
      rows.put(pair, word);
    }
    rows.drain(arguments.output, tile.first_row + warp_row, tile.rows - warp_row,
               first_column + pass * kPass, arguments.columns, see);
  }
}

}  // namespace sm90
}  // namespace flexact::cuda
