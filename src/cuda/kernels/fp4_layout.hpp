// How FP4 weights meet the tensor core: the order of columns, where a thread's scales lie, and the
// bits of a decoded weight. Both sides include this, and tests run it.
//
// A thread of a warpgroup multiplies 32 neighbouring columns of each of its weight rows: 16 bytes
// as the checkpoint has them, under one scale of mxfp4 or two of nvfp4. wgmma expects others: of
// each 16 columns two pairs. A sum along K has no order of its own, so the columns of the *inputs*
// are put where those weights come to be multiplied, in each block of 128.
#pragma once

#include <cstdint>

namespace flexact::cuda {

inline constexpr int kFp4Block =
    128;  // columns that are permuted among each other; a stage's depth
inline constexpr int kFp4CodeBytes = 64;  // of a weight row in a block

// Which column of a block lies at a position.
constexpr int fp4_column(int position) {
  const int step = position / 16;     // of wgmma
  const int pair = position / 8 % 2;  // its first or second half of the columns
  const int thread = position % 8 / 2;
  return 32 * thread + 8 * (step / 2) + 2 * (step % 2) + pair + 4 * (position % 2);
}

// Eight weights are a word. Its j-th and (j + 4)-th as two bf16, of 2^-126 their value: exponent
// and mantissa of E2M1 are the lowest of bf16's exponent and the highest of its mantissa,
// subnormals among them.
constexpr std::uint32_t fp4_pair(std::uint32_t word, int j) {
  constexpr std::uint32_t kSigns = 0x80008000u, kMagnitudes = 0x01c001c0u;
  const std::uint32_t signs = j == 3 ? word : word << (12 - 4 * j);
  const std::uint32_t magnitudes = j < 2 ? word << (6 - 4 * j) : word >> (4 * j - 6);
  return (magnitudes & kMagnitudes) | (signs & kSigns);
}

// mxfp4: a scale is stored as the exponent of the bf16 that fp4_pair() is multiplied by. The
// products are 2^-32 of the weights: so scales up to 2^33 have one, and weights keep all bits down
// to 2^-100. Larger scales are NaN.
inline constexpr int kMxfp4Shift = 32;
inline constexpr std::uint8_t kMxfp4Nan = 255;
constexpr std::uint8_t mxfp4_stored(std::uint8_t e8m0) {
  constexpr int kMore = 126 - kMxfp4Shift;
  return static_cast<std::uint8_t>(e8m0 + kMore <= 254 ? e8m0 + kMore : kMxfp4Nan);
}
// Twice, for a pair.
constexpr std::uint32_t mxfp4_factor(std::uint32_t stored) {
  return stored == kMxfp4Nan ? 0x7fff7fffu : stored * 0x00800080u;
}

// nvfp4: the products are 2^-8 of weights without their global scale, and the factor 2^118 of the
// scale.
inline constexpr int kNvfp4Shift = 8;
inline constexpr float kNvfp4Factor = 0x1p118f;

// A tile's scales in a block of 128 columns: for each thread of the two warpgroups its own, of the
// weight rows `part` (128 of the tile each) and `half` (eight rows apart) one after the other.
inline constexpr int kFp4ScaleThreads = 256;
constexpr int fp4_scale_bytes(int of_row) {
  return kFp4ScaleThreads * 4 * of_row;
}
// The row of a part, by its place among the results; `permuted`: results are the next GEMM's
// inputs.
constexpr int fp4_row(int thread, int half, bool permuted) {
  const int position = thread / 32 * 16 + half * 8 + thread % 32 / 4;
  return permuted ? fp4_column(position) : position;
}

}  // namespace flexact::cuda
