// The vector type of AVX2 + FMA + F16C: eight floats. See simd_avx512.hpp for the meaning of each
// operation; the three headers declare the same set.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define FLEXACT_INLINE [[gnu::always_inline]] inline

namespace flexact::cpu::avx2 {

struct Int {
  __m256i v;
};
struct Mask {
  __m256 v;
};

struct Vec {
  using Scalar = float;
  static constexpr std::size_t kWidth = 8;
  __m256 v;

  FLEXACT_INLINE static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  FLEXACT_INLINE static Vec set(float x) { return {_mm256_set1_ps(x)}; }
  FLEXACT_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
};

FLEXACT_INLINE Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
FLEXACT_INLINE Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
FLEXACT_INLINE Vec fma_exact(Vec a, Vec b, Vec c) {
  return fma(a, b, c);
}
FLEXACT_INLINE Vec min_second(Vec a, Vec b) {
  return {_mm256_min_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec max_second(Vec a, Vec b) {
  return {_mm256_max_ps(a.v, b.v)};
}
FLEXACT_INLINE Vec sqrt(Vec a) {
  return {_mm256_sqrt_ps(a.v)};
}
FLEXACT_INLINE Vec floor(Vec a) {
  return {_mm256_floor_ps(a.v)};
}
FLEXACT_INLINE Vec round_small(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

FLEXACT_INLINE Int bits(Vec a) {
  return {_mm256_castps_si256(a.v)};
}
FLEXACT_INLINE Vec from_bits(Int a) {
  return {_mm256_castsi256_ps(a.v)};
}
FLEXACT_INLINE Int set_int(std::int32_t x) {
  return {_mm256_set1_epi32(x)};
}
FLEXACT_INLINE Int int_of(Vec, std::int32_t x) {
  return set_int(x);
}
FLEXACT_INLINE Int operator+(Int a, Int b) {
  return {_mm256_add_epi32(a.v, b.v)};
}
FLEXACT_INLINE Int operator-(Int a, Int b) {
  return {_mm256_sub_epi32(a.v, b.v)};
}
FLEXACT_INLINE Int operator&(Int a, Int b) {
  return {_mm256_and_si256(a.v, b.v)};
}
template <int kBits>
FLEXACT_INLINE Int shift_right(Int a) {
  return {_mm256_srai_epi32(a.v, kBits)};
}
template <int kBits>
FLEXACT_INLINE Int shift_left(Int a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
FLEXACT_INLINE Vec to_float(Int a) {
  return {_mm256_cvtepi32_ps(a.v)};
}
FLEXACT_INLINE Int to_int(Vec a) {
  return {_mm256_cvtps_epi32(a.v)};
}

FLEXACT_INLINE Vec sign_bit() {
  return {_mm256_set1_ps(-0.0f)};
}
FLEXACT_INLINE Vec abs(Vec a) {
  return {_mm256_andnot_ps(sign_bit().v, a.v)};
}
FLEXACT_INLINE Vec negate(Vec a) {
  return {_mm256_xor_ps(a.v, sign_bit().v)};
}
FLEXACT_INLINE Vec copysign(Vec magnitude, Vec sign) {
  return {_mm256_or_ps(abs(magnitude).v, _mm256_and_ps(sign_bit().v, sign.v))};
}

FLEXACT_INLINE Mask less(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
FLEXACT_INLINE Mask less_equal(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}
FLEXACT_INLINE Mask equal(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}
FLEXACT_INLINE Mask not_equal(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)};
}
FLEXACT_INLINE Mask unordered(Vec a) {
  return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)};
}
FLEXACT_INLINE Vec select(Mask m, Vec a, Vec b) {
  return {_mm256_blendv_ps(b.v, a.v, m.v)};
}

FLEXACT_INLINE Vec pow2(Vec n) {
  return from_bits(shift_left<23>(to_int(n) + set_int(127)));
}
// In two steps, so that only the last multiplication can round (or overflow).
FLEXACT_INLINE Vec scale2(Vec a, Vec n) {
  const Int whole = to_int(n);
  const Int half = shift_right<1>(whole);
  const Vec first = from_bits(shift_left<23>(half + set_int(127)));
  const Vec second = from_bits(shift_left<23>(whole - half + set_int(127)));
  return a * first * second;
}
FLEXACT_INLINE Vec reciprocal(Vec a) {
  return {_mm256_div_ps(_mm256_set1_ps(1.0f), a.v)};
}

FLEXACT_INLINE Vec load_bf16(const std::uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return from_bits({_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)});
}
FLEXACT_INLINE void store_bf16(Vec a, std::uint16_t* p) {
  const __m256i x = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
  const __m256 wide =
      _mm256_blendv_ps(_mm256_castsi256_ps(sum), _mm256_castsi256_ps(quiet), unordered(a).v);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(wide), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
FLEXACT_INLINE Vec load_fp16(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
FLEXACT_INLINE void store_fp16(Vec a, std::uint16_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FLEXACT_INLINE void deinterleave(const float* p, Vec& even, Vec& odd) {
  const __m256 low = _mm256_loadu_ps(p);
  const __m256 high = _mm256_loadu_ps(p + 8);
  // Within 128-bit lanes first, then the lanes' quarters in order.
  const __m256 e = _mm256_shuffle_ps(low, high, 0x88);
  const __m256 o = _mm256_shuffle_ps(low, high, 0xdd);
  even.v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(e), 0xd8));
  odd.v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(o), 0xd8));
}

}  // namespace flexact::cpu::avx2
