// The kernels for AVX-512 with BF16: vdpbf16ps multiplies pairs of bf16 and adds both products to
// an fp32 sum, so rows and weights stay as they are stored. It treats subnormal inputs as zero.
// Other formats, and the work on rows, are AVX-512's.
#include <immintrin.h>

#include "cpu/gemm.hpp"

namespace flexact::cpu {

namespace {

#include "cpu/gemm_avx512.inl"
#include "cpu/gemm_tile.inl"

struct __attribute__((packed, may_alias)) PairInMemory {
  std::int32_t bits;
};
typedef std::uint16_t __attribute__((may_alias, aligned(2))) Bf16InMemory;

template <int ROWS, int BLOCKS>
void tile_dot(const TileCall& call) {
  Sums<ROWS, BLOCKS> s;
  s.begin(call);
  const std::byte* a[ROWS];
  for (int r = 0; r < ROWS; ++r) a[r] = static_cast<const std::byte*>(call.rows[r]);
  const std::byte* w = call.weights;
  const std::byte* ahead = call.prefetch;

  const auto step = [&](const auto& pair) __attribute__((always_inline)) {
    __m512bh b[BLOCKS];
#pragma GCC unroll 4
    for (int j = 0; j < BLOCKS; ++j)
      b[j] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + 64 * j));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair(r)));
#pragma GCC unroll 4
      for (int j = 0; j < BLOCKS; ++j) s.sum[r][j] = _mm512_dpbf16_ps(s.sum[r][j], x, b[j]);
    }
    w += 64 * BLOCKS;
  };
  std::int64_t k = 0;
  for (; k + kPrefetchStep <= call.k; k += kPrefetchStep) {
    prefetch_lines(call, ahead);
#pragma GCC unroll kUnrolled
    for (int i = 0; i < kPrefetchStep; i += 2) {
      step([&](int r) __attribute__((always_inline)) {
        return reinterpret_cast<const PairInMemory*>(a[r] + 2 * (k + i))->bits;
      });
    }
  }
  for (; k + 2 <= call.k; k += 2) {
    step([&](int r) { return reinterpret_cast<const PairInMemory*>(a[r] + 2 * k)->bits; });
  }
  // The last value of an odd K: its partner is beyond the row's end and must not be read.
  if (k < call.k) {
    step([&](int r) {
      return static_cast<std::int32_t>(*reinterpret_cast<const Bf16InMemory*>(a[r] + 2 * k));
    });
  }
  s.end(call);
}

}  // namespace

extern const GemmKernels kBf16RowsAvx512Bf16 = {
    Element::Bf16, Element::Bf16, 6, 4, "vdpbf16ps", FLEXACT_TILES(FLEXACT_TILES_4, tile_dot)};

}  // namespace flexact::cpu
