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
// subnormals among them. One product is both shifts, of the sign and of the rest, in a pipe that
// the logical operations leave free.
constexpr std::uint32_t fp4_pair(std::uint32_t word, int j) {
  constexpr std::uint32_t kSigns = 0x80008000u, kMagnitudes = 0x01c001c0u;
  const std::uint32_t codes = (j < 2 ? word : word >> 8) & 0x000f000fu << j % 2 * 4;
  return codes * ((1u << 12 | 1u << 6) >> j % 2 * 4) & (kSigns | kMagnitudes);
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
// A thread's two rows of a part, `half` 0 and 1, by their places among the results. `permuted`:
// results are the next GEMM's inputs, in the order of its columns, and two rows are neighbours.
// `gated`: every other group of four lanes takes the later one first, so that what eight lanes load
// at once lies in all banks of shared memory.
constexpr int fp4_place(int thread, int half, bool gated) {
  const int eighth = thread % 32 / 4;
  return thread / 32 * 16 + (gated ? half ^ (eighth & 1) : half) * 8 + eighth;
}
constexpr int fp4_row(int thread, int half, bool permuted, bool gated) {
  const int place = fp4_place(thread, half, gated);
  return permuted ? fp4_column(place) : place;
}
// Rows of a thread differ in this bit alone.
constexpr int fp4_other_row(bool permuted) {
  return permuted ? 1 : 8;
}

// ---- mxfp4_fp8: the same codes beside E4M3 inputs
//
// A row's groups are brought to the largest of its scales: the weight 6 under it becomes 384. So 15
// scales are exact, down to 2^-14 of the largest, where 0.5 is E4M3's smallest number. Below them
// weights are rounded to nearest even, and at most 2^-16 of the largest scale is lost.

// A register of wgmma holds four neighbouring columns; a word, one step's two.
constexpr int mxfp4_fp8_column(int position) {
  const int step = position / 32;
  const int half = position / 16 % 2;
  const int thread = position % 16 / 4;
  return 32 * thread + 8 * step + 4 * half + position % 4;
}
// As fp4_row(). Codes leave in pairs of neighbouring lanes, so `half` is the place's second bit.
constexpr int mxfp4_fp8_row(int thread, int half, bool permuted) {
  const int eighth = thread % 32 / 4;
  return permuted ? mxfp4_fp8_column(thread / 32 * 16 + eighth / 2 * 4 + half * 2 + eighth % 2)
                  : fp4_row(thread, half, false, false);
}

inline constexpr int kMxfp4Fp8Exact = 14;    // powers of two below a row's largest scale
inline constexpr int kMxfp4Fp8Nothing = 19;  // from here on all weights are zeros
inline constexpr int kMxfp4Fp8Nan = 20;

// A group's scale as a place in a table, by the largest scale of its row.
constexpr std::uint8_t mxfp4_fp8_stored(std::uint8_t e8m0, std::uint8_t largest) {
  const int below = largest - e8m0;
  return static_cast<std::uint8_t>(e8m0 == 255                ? kMxfp4Fp8Nan
                                   : below > kMxfp4Fp8Nothing ? kMxfp4Fp8Nothing
                                                              : below);
}

// The table: E4M3 of the eight magnitudes, the first in the lowest byte.
constexpr std::uint64_t mxfp4_fp8_magnitudes(int stored) {
  std::uint64_t all = 0;
  for (int i = 7; i >= 0; --i) {
    // In halves, then in units of 2^-9, E4M3's smallest number.
    const int halves = i < 5 ? i : i == 5 ? 6 : i == 6 ? 8 : 12;
    int units = halves << kMxfp4Fp8Exact;
    if (stored <= kMxfp4Fp8Exact) {
      units >>= stored;
    } else {
      // To nearest, ties to even; what is rounded is below 2^-7 and a subnormal.
      const int digits = stored - kMxfp4Fp8Exact;
      units = (halves + (1 << (digits - 1)) - 1 + (halves >> digits & 1)) >> digits;
    }
    int exponent = 0;
    while (units >= 16) {
      units >>= 1;
      ++exponent;
    }
    // Eight units and more have an exponent, whose implied bit is the eight.
    const int code = stored == kMxfp4Fp8Nan ? 0x7f : exponent * 8 + units;
    all = all << 8 | static_cast<std::uint64_t>(code);
  }
  return all;
}

// The bits of what a row's sums are multiplied by: 2^-6 of its largest scale, a subnormal at the
// end.
constexpr std::uint32_t mxfp4_fp8_factor(std::uint8_t largest) {
  return largest > 6 ? (largest - 6u) << 23 : 1u << (largest + 16u);
}

#ifdef __CUDACC__
#define FLEXACT_ON_BOTH_SIDES __host__ __device__
#else
#define FLEXACT_ON_BOTH_SIDES
#endif

// PTX's prmt: byte i of the result is the one of {low, high} that the selector's i-th four bits
// name.
FLEXACT_ON_BOTH_SIDES inline std::uint32_t select_bytes(std::uint32_t low, std::uint32_t high,
                                                        std::uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const std::uint64_t both = std::uint64_t{high} << 32 | low;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const auto byte = static_cast<std::uint32_t>(both >> (selector >> 4 * i & 7) * 8 & 0xff);
    result |= byte << 8 * i;
  }
  return result;
#endif
}

// Eight codes of a word, whose magnitudes are a table's two words: its first four and its last
// four.
struct Mxfp4Fp8Codes {
  std::uint32_t first, last;
};
FLEXACT_ON_BOTH_SIDES inline Mxfp4Fp8Codes mxfp4_fp8_codes(std::uint32_t word, std::uint32_t low,
                                                           std::uint32_t high) {
  constexpr std::uint32_t kSigns = 0x80808080u;
  const std::uint32_t magnitudes = word & 0x77777777u;
  // Bytes whose highest bits are the signs of even codes; those of odd ones are in the word itself.
  const std::uint32_t even = word << 4;
  return {select_bytes(low, high, magnitudes) | (select_bytes(even, word, 0x5140) & kSigns),
          select_bytes(low, high, magnitudes >> 16) | (select_bytes(even, word, 0x7362) & kSigns)};
}
#undef FLEXACT_ON_BOTH_SIDES

}  // namespace flexact::cuda
