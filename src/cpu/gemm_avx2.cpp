// The kernels for AVX2, FMA and F16C: twelve of sixteen registers hold the sums of three rows by 32
// columns, or of six rows by 16.
#include <immintrin.h>

#include "cpu/gemm.hpp"

namespace flexact::cpu {

namespace {

void half_to_float(const void* from, float* to, std::int64_t n) {
  const auto* in = static_cast<const unsigned short*>(from);
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  for (; i < n; ++i) to[i] = _cvtsh_ss(in[i]);
}

void float_to_half(const float* from, void* to, std::int64_t n) {
  auto* out = static_cast<unsigned short*>(to);
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
  for (; i < n; ++i) {
    const __m128i half = _mm_cvtps_ph(_mm_set_ss(from[i]), _MM_FROUND_TO_NEAREST_INT);
    out[i] = static_cast<unsigned short>(_mm_extract_epi16(half, 0));
  }
}

struct V {
  using Reg = __m256;
  using Raw = __m256i;
  static constexpr int kLanes = 8, kSums = 12, kGroup = 2;
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Raw load_raw(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Reg low(Raw raw) { return _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16)); }
  static Reg high(Raw raw) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(raw, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Reg load_fp16(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

#include "cpu/gemm_rows.inl"
#include "cpu/gemm_tile.inl"

}  // namespace

extern const IsaKernels kKernelsAvx2 = {
    .bf16 = {Element::Bf16, Element::Fp32, 6, 2, "vfmadd 256",
             FLEXACT_TILES(FLEXACT_TILES_2, tile, Bf16Weights)},
    .fp16 = {Element::Fp16, Element::Fp32, 6, 2, "vfmadd 256",
             FLEXACT_TILES(FLEXACT_TILES_2, tile, Fp16Weights)},
    .fp32 = {Element::Fp32, Element::Fp32, 6, 2, "vfmadd 256",
             FLEXACT_TILES(FLEXACT_TILES_2, tile, Fp32Weights)},
    .rows = {widen, finish, store, combine},
};

}  // namespace flexact::cpu
