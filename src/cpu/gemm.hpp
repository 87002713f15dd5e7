// The inner kernels of the block, one table for each instruction set.
//
// A packed weight is a sequence of panels. A panel holds `blocks` blocks of 16 output columns
// (narrower at the matrix's end) for all of K, and is read from its first byte to its last:
//
//   Bf16   for each pair of k, for each block: 16 columns x (k, k+1), so that one 64-byte load
//          feeds vdpbf16ps, or two shifts make two fp32 vectors; an odd K is padded with a zero
//   Fp16   for each k, for each block: 16 columns
//   Fp32   likewise
//
// A tile multiplies up to `rows` rows with one panel over one stretch of K and keeps the sums in
// registers. Every sum runs over k in the same order in every tile, so a row's result does not
// depend on the rows beside it.
//
// This header and what it includes is all that the files for one instruction set may see; see
// cmake/isa.cmake.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexact::cpu {

enum class Element : std::uint8_t { Fp32, Bf16, Fp16 };

constexpr std::int64_t bytes_of(Element element) noexcept {
  return element == Element::Fp32 ? 4 : 2;
}

inline constexpr int kColumns = 16;      // of a block
inline constexpr int kMaxBlocks = 4;     // of a panel
inline constexpr int kMaxRows = 6;       // of a tile
inline constexpr int kPrefetchStep = 8;  // k values between two groups of prefetches

struct TileCall {
  const void* const* rows;           // the tile's rows at the first k; elements are contiguous
  const std::byte* weights;          // the panel at the first k
  std::int64_t k;                    // values of k; odd only where K ends
  float* c;                          // first row of the sums
  std::int64_t c_stride;             // floats between rows
  std::int32_t columns[kMaxBlocks];  // where each block's 16 columns lie in a row of c
  bool accumulate;                   // add to what c holds
  std::int32_t prefetch_lines;       // of 64 bytes, every kPrefetchStep values of k
  const std::byte* prefetch;         // what will be read next
  bool prefetch_into_l2;             // and no further
};

struct GemmKernels {
  using Tile = void (*)(const TileCall& call);
  Element weights;
  Element inputs;  // of the rows: Bf16 for vdpbf16ps, else Fp32
  int rows;        // of the largest tile
  int blocks;      // of a whole panel; even, so that gate and up pair up
  const char* instruction;
  Tile tile[kMaxRows][kMaxBlocks];  // [rows - 1][blocks - 1]
};

// Work on rows of fp32 around the tiles.
struct RowKernels {
  // to[i] = from[i] in fp32.
  void (*widen)(const void* from, Element type, float* to, std::int64_t n);
  // x[r][c] = round(x[r][c] * scale[r] + bias[c]); null scale or bias: none; rounds to `type`.
  void (*finish)(float* x, std::int64_t rows, std::int64_t columns, const float* scale,
                 const float* bias, Element type);
  // Rounds `from` to `rounding` and stores it as `type`, which holds every such value.
  void (*store)(const float* from, std::int64_t n, Element rounding, Element type, void* to);
  // to[i] = round(factor * Σ_j weights[j] * (terms[j][i] + biases[j][i])), j ascending; null
  // biases: none.
  void (*combine)(const float* const* terms, const float* const* biases, const float* weights,
                  std::int32_t count, float factor, std::int64_t n, Element type, void* to);
};

// The tables of one instruction set, for rows of fp32.
struct IsaKernels {
  GemmKernels bf16;
  GemmKernels fp16;
  GemmKernels fp32;
  RowKernels rows;
};

extern const IsaKernels kKernelsScalar;
#if defined(__x86_64__)
extern const IsaKernels kKernelsAvx2;
extern const IsaKernels kKernelsAvx512;
// Bf16 weights and rows of bf16: all that AVX-512 with BF16 does otherwise than AVX-512.
extern const GemmKernels kBf16RowsAvx512Bf16;
#endif

}  // namespace flexact::cpu
