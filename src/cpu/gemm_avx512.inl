// Vectors of sixteen floats, for the AVX-512 files; see gemm_tile.inl.

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
