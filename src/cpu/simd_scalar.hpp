// The vector type of the portable build: one float. See simd_avx512.hpp for the meaning of each
// operation; the three headers declare the same set.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#define FLEXACT_INLINE [[gnu::always_inline]] inline

namespace flexact::cpu::scalar {

struct Int {
  std::int32_t v;
};
struct Mask {
  bool v;
};

struct Vec {
  using Scalar = float;
  static constexpr std::size_t kWidth = 1;
  float v;

  FLEXACT_INLINE static Vec load(const float* p) { return {*p}; }
  FLEXACT_INLINE static Vec set(float x) { return {x}; }
  FLEXACT_INLINE void store(float* p) const { *p = v; }
};

FLEXACT_INLINE Vec operator+(Vec a, Vec b) {
  return {a.v + b.v};
}
FLEXACT_INLINE Vec operator-(Vec a, Vec b) {
  return {a.v - b.v};
}
FLEXACT_INLINE Vec operator*(Vec a, Vec b) {
  return {a.v * b.v};
}
FLEXACT_INLINE Vec operator/(Vec a, Vec b) {
  return {a.v / b.v};
}
FLEXACT_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {a.v * b.v + c.v};
}
FLEXACT_INLINE Vec fnma(Vec a, Vec b, Vec c) {
  return {c.v - a.v * b.v};
}
// Without fused hardware the product is formed in double, where it is exact.
FLEXACT_INLINE Vec fma_exact(Vec a, Vec b, Vec c) {
  return {static_cast<float>(static_cast<double>(a.v) * static_cast<double>(b.v) +
                             static_cast<double>(c.v))};
}
FLEXACT_INLINE Vec min_second(Vec a, Vec b) {
  return {a.v < b.v ? a.v : b.v};
}
FLEXACT_INLINE Vec max_second(Vec a, Vec b) {
  return {a.v > b.v ? a.v : b.v};
}
FLEXACT_INLINE Vec sqrt(Vec a) {
  return {__builtin_sqrtf(a.v)};
}
FLEXACT_INLINE Vec floor(Vec a) {
  return {__builtin_floorf(a.v)};
}
// Nearest integer for |a| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
FLEXACT_INLINE Vec round_small(Vec a) {
  return {(a.v + 12582912.0f) - 12582912.0f};
}

FLEXACT_INLINE Int bits(Vec a) {
  return {__builtin_bit_cast(std::int32_t, a.v)};
}
FLEXACT_INLINE Vec from_bits(Int a) {
  return {__builtin_bit_cast(float, a.v)};
}
FLEXACT_INLINE Int set_int(std::int32_t x) {
  return {x};
}
FLEXACT_INLINE Int int_of(Vec, std::int32_t x) {
  return set_int(x);
}
FLEXACT_INLINE Int operator+(Int a, Int b) {
  return {
      static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v) + static_cast<std::uint32_t>(b.v))};
}
FLEXACT_INLINE Int operator-(Int a, Int b) {
  return {
      static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v) - static_cast<std::uint32_t>(b.v))};
}
FLEXACT_INLINE Int operator&(Int a, Int b) {
  return {a.v & b.v};
}
template <int kBits>
FLEXACT_INLINE Int shift_right(Int a) {
  return {a.v >> kBits};
}
template <int kBits>
FLEXACT_INLINE Int shift_left(Int a) {
  return {static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v) << kBits)};
}
FLEXACT_INLINE Vec to_float(Int a) {
  return {static_cast<float>(a.v)};
}
// A NaN stays inside the range of int; the caller's NaN reaches the result by another way.
FLEXACT_INLINE Int to_int(Vec a) {
  return {a.v == a.v ? static_cast<std::int32_t>(a.v) : std::int32_t{0}};
}

FLEXACT_INLINE Vec abs(Vec a) {
  return {__builtin_fabsf(a.v)};
}
FLEXACT_INLINE Vec negate(Vec a) {
  return {-a.v};
}
FLEXACT_INLINE Vec copysign(Vec magnitude, Vec sign) {
  return {__builtin_copysignf(magnitude.v, sign.v)};
}

FLEXACT_INLINE Mask less(Vec a, Vec b) {
  return {a.v < b.v};
}
FLEXACT_INLINE Mask less_equal(Vec a, Vec b) {
  return {a.v <= b.v};
}
FLEXACT_INLINE Mask equal(Vec a, Vec b) {
  return {a.v == b.v};
}
FLEXACT_INLINE Mask not_equal(Vec a, Vec b) {
  return {a.v != b.v};
}
FLEXACT_INLINE Mask unordered(Vec a) {
  return {a.v != a.v};
}
FLEXACT_INLINE Vec select(Mask m, Vec a, Vec b) {
  return m.v ? a : b;
}

FLEXACT_INLINE Vec pow2(Vec n) {
  return from_bits(shift_left<23>(to_int(n) + set_int(127)));
}
FLEXACT_INLINE Vec scale2(Vec a, Vec n) {
  const Int whole = to_int(n);
  const Int half = shift_right<1>(whole);
  const Vec first = from_bits(shift_left<23>(half + set_int(127)));
  const Vec second = from_bits(shift_left<23>(whole - half + set_int(127)));
  return a * first * second;
}
FLEXACT_INLINE Vec reciprocal(Vec a) {
  return {1.0f / a.v};
}

// Half and brain floats, one element at a time.
FLEXACT_INLINE Vec load_bf16(const std::uint16_t* p) {
  return {__builtin_bit_cast(float, static_cast<std::uint32_t>(*p) << 16)};
}
FLEXACT_INLINE void store_bf16(Vec a, std::uint16_t* p) {
  const std::uint32_t x = __builtin_bit_cast(std::uint32_t, a.v);
  const std::uint32_t rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
  *p = static_cast<std::uint16_t>(a.v == a.v ? rounded : (x >> 16) | 0x40u);
}
FLEXACT_INLINE Vec load_fp16(const std::uint16_t* p) {
  const std::uint32_t h = *p;
  const std::uint32_t sign = (h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7fffu;
  float value;
  if (magnitude >= 0x7c00u) {  // infinity, NaN (made quiet)
    const std::uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
    value = __builtin_bit_cast(float, 0x7f800000u | ((magnitude & 0x3ffu) << 13) | quiet);
  } else {  // exact also for subnormal halves
    value = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  }
  return {__builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) | sign)};
}
FLEXACT_INLINE void store_fp16(Vec a, std::uint16_t* p) {
  const std::uint32_t x = __builtin_bit_cast(std::uint32_t, a.v);
  const std::uint32_t sign = (x >> 16) & 0x8000u;
  const std::uint32_t magnitude = x & 0x7fffffffu;
  std::uint32_t h;
  if (magnitude > 0x7f800000u) {
    h = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    h = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: the addition rounds to its grid
    const float grid = __builtin_bit_cast(float, magnitude) + 0.5f;
    h = __builtin_bit_cast(std::uint32_t, grid) - 0x3f000000u;
  } else {
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  *p = static_cast<std::uint16_t>(h | sign);
}
// Separates g0,u0,g1,u1,…
FLEXACT_INLINE void deinterleave(const float* p, Vec& even, Vec& odd) {
  even.v = p[0];
  odd.v = p[1];
}

}  // namespace flexact::cpu::scalar
