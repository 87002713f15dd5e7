// The kernels for AVX-512: six rows by 64 columns in 24 of 32 registers.
#include <immintrin.h>

#include "cpu/gemm.hpp"

namespace flexact::cpu {

namespace {

void half_to_float(const void* from, float* to, std::int64_t n) {
  const auto* in = static_cast<const unsigned short*>(from);
  for (std::int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask =
        n - i < 16 ? static_cast<__mmask16>((1u << (n - i)) - 1u) : static_cast<__mmask16>(0xffffu);
    _mm512_mask_storeu_ps(to + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, in + i)));
  }
}

void float_to_half(const float* from, void* to, std::int64_t n) {
  auto* out = static_cast<unsigned short*>(to);
  for (std::int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask =
        n - i < 16 ? static_cast<__mmask16>((1u << (n - i)) - 1u) : static_cast<__mmask16>(0xffffu);
    const __m256i halves =
        _mm512_cvtps_ph(_mm512_maskz_loadu_ps(mask, from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(out + i, mask, halves);
  }
}

#include "cpu/gemm_avx512.inl"
#include "cpu/gemm_rows.inl"
#include "cpu/gemm_tile.inl"

}  // namespace

extern const IsaKernels kKernelsAvx512 = {
    .bf16 = {Element::Bf16, Element::Fp32, 6, 4, "vfmadd 512",
             FLEXACT_TILES(FLEXACT_TILES_4, tile, Bf16Weights)},
    .fp16 = {Element::Fp16, Element::Fp32, 6, 4, "vfmadd 512",
             FLEXACT_TILES(FLEXACT_TILES_4, tile, Fp16Weights)},
    .fp32 = {Element::Fp32, Element::Fp32, 6, 4, "vfmadd 512",
             FLEXACT_TILES(FLEXACT_TILES_4, tile, Fp32Weights)},
    .rows = {widen, finish, store, combine},
};

}  // namespace flexact::cpu
