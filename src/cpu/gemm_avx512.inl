// Vectors of sixteen floats, for the AVX-512 files; see gemm_tile.inl.

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

struct V {
  using Reg = __m512;
  using Raw = __m512i;
  static constexpr int kLanes = 16, kSums = 24, kGroup = 4;
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Raw load_raw(const std::byte* p) { return _mm512_loadu_si512(p); }
  static Reg low(Raw raw) { return _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16)); }
  static Reg high(Raw raw) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(raw, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Reg load_fp16(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
};

#include "cpu/gemm_rows.inl"
#include "cpu/gemm_tile.inl"

constexpr GemmKernels kBf16 = {Element::Bf16,
                               Element::Fp32,
                               6,
                               4,
                               "vfmadd 512",
                               FLEXACT_TILES(FLEXACT_TILES_4, tile, Bf16Weights)};
constexpr GemmKernels kFp16 = {Element::Fp16,
                               Element::Fp32,
                               6,
                               4,
                               "vfmadd 512",
                               FLEXACT_TILES(FLEXACT_TILES_4, tile, Fp16Weights)};
constexpr GemmKernels kFp32 = {Element::Fp32,
                               Element::Fp32,
                               6,
                               4,
                               "vfmadd 512",
                               FLEXACT_TILES(FLEXACT_TILES_4, tile, Fp32Weights)};
