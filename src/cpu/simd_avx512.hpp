// The vector type of AVX-512 (F, BW, DQ, VL): sixteen floats. This header documents the operations
// that all three simd_*.hpp declare; templates over Vec find them by argument-dependent lookup.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define FLEXACT_INLINE [[gnu::always_inline]] inline

namespace flexact::cpu::avx512 {

struct Int {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};

struct Vec {
  using Scalar = float;
  static constexpr std::size_t kWidth = 16;
  __m512 v;

  FLEXACT_INLINE static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  FLEXACT_INLINE static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  FLEXACT_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
};

FLEXACT_INLINE Vec operator+(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec operator-(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec operator*(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec operator/(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
// a * b + c and c - a * b, rounded once where the ISA has it.
FLEXACT_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FLEXACT_INLINE Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
// a * b + c where the caller relies on the exact product (rounding errors of products).
FLEXACT_INLINE Vec fma_exact(Vec a, Vec b, Vec c) {
  return fma(a, b, c);
}
// The smaller (larger) one; b where either is NaN or both are zero.
FLEXACT_INLINE Vec min_second(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec max_second(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec sqrt(Vec a) {
  return {_mm512_sqrt_ps(a.v)};
}
FLEXACT_INLINE Vec floor(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
// The nearest integer of |a| < 2^22, ties to even; NaN stays NaN.
FLEXACT_INLINE Vec round_small(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// The bit pattern and integer arithmetic on it (wrapping).
FLEXACT_INLINE Int bits(Vec a) {
  return {_mm512_castps_si512(a.v)};
}
FLEXACT_INLINE Vec from_bits(Int a) {
  return {_mm512_castsi512_ps(a.v)};
}
FLEXACT_INLINE Int set_int(std::int32_t x) {
  return {_mm512_set1_epi32(x)};
}
// The same constant in every lane; the first argument only says which ISA is meant.
FLEXACT_INLINE Int int_of(Vec, std::int32_t x) {
  return set_int(x);
}
FLEXACT_INLINE Int operator+(Int a, Int b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
FLEXACT_INLINE Int operator-(Int a, Int b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
FLEXACT_INLINE Int operator&(Int a, Int b) {
  return {_mm512_and_si512(a.v, b.v)};
}
template <int kBits>
FLEXACT_INLINE Int shift_right(Int a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
FLEXACT_INLINE Vec to_float(Int a) {
  return {_mm512_cvtepi32_ps(a.v)};
}

FLEXACT_INLINE Vec abs(Vec a) {
  return {_mm512_abs_ps(a.v)};
}
FLEXACT_INLINE Vec negate(Vec a) {
  return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))};
}
FLEXACT_INLINE Vec copysign(Vec magnitude, Vec sign) {
  // 0xe4: bits of `sign` where the mask is set, of `magnitude` elsewhere.
  const __m512i mask = _mm512_set1_epi32(static_cast<std::int32_t>(0x80000000u));
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      _mm512_castps_si512(sign.v), _mm512_castps_si512(magnitude.v), mask, 0xe4))};
}

// Comparisons are false with NaN, except not_equal. unordered: a is NaN.
FLEXACT_INLINE Mask less(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
FLEXACT_INLINE Mask less_equal(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
FLEXACT_INLINE Mask equal(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)};
}
FLEXACT_INLINE Mask not_equal(Vec a, Vec b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)};
}
FLEXACT_INLINE Mask unordered(Vec a) {
  return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
// m ? a : b.
FLEXACT_INLINE Vec select(Mask m, Vec a, Vec b) {
  return {_mm512_mask_blend_ps(m.v, b.v, a.v)};
}

// 2^n for integral n in -126 … 127.
FLEXACT_INLINE Vec pow2(Vec n) {
  return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)};
}
// a * 2^n for a in 0.5 … 2 and integral n in -151 … 129, rounded once, with under- and overflow.
FLEXACT_INLINE Vec scale2(Vec a, Vec n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}
// 1 / a for a in 1 … 64, at most 1 ulp: 14 bits and one Newton step, about a quarter of a division.
FLEXACT_INLINE Vec reciprocal(Vec a) {
  const Vec r{_mm512_rcp14_ps(a.v)};
  return fma(r, fnma(a, r, Vec::set(1.0f)), r);
}

// Kernel-width groups of 16-bit floats; stores round to nearest even and keep NaN.
FLEXACT_INLINE Vec load_bf16(const std::uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return from_bits({_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)});
}
FLEXACT_INLINE void store_bf16(Vec a, std::uint16_t* p) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i wide = _mm512_mask_or_epi32(sum, unordered(a).v, x, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(wide, 16)));
}
FLEXACT_INLINE Vec load_fp16(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FLEXACT_INLINE void store_fp16(Vec a, std::uint16_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Separates 2 * kWidth floats e0,o0,e1,o1,…
FLEXACT_INLINE void deinterleave(const float* p, Vec& even, Vec& odd) {
  const __m512 low = _mm512_loadu_ps(p);
  const __m512 high = _mm512_loadu_ps(p + 16);
  const __m512i e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i o = _mm512_add_epi32(e, _mm512_set1_epi32(1));
  even.v = _mm512_permutex2var_ps(low, e, high);
  odd.v = _mm512_permutex2var_ps(low, o, high);
}

}  // namespace flexact::cpu::avx512
