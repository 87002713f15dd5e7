// Vector math in fp32, one source for every instruction set: templates over the Vec of a
// simd_*.hpp.
//
// Every comment states the valid range and the largest error in units in the last place of the
// exact fp32 result (of the largest subnormal where that is below the normal range), over all bf16
// inputs and a dense sample of fp32 inputs, as asserted for each ISA by
// tests/cpp/cpu_vector_math_test.cpp. Unless said otherwise the range is every float, NaN gives
// NaN, and ±0 and ±inf give the function's limit. Coefficients come from
// scripts/fit_vector_math.py.
#pragma once

#include <cstdint>

namespace flexact::cpu::math {

// c[0] + x c[1] + … by Horner's rule.
template <class V, int kCount>
[[gnu::always_inline]] inline V polynomial(V x, const float (&c)[kCount]) {
  V sum = V::set(c[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) sum = fma(sum, x, V::set(c[i]));
  return sum;
}

// min_second and max_second return their second operand if either is NaN, so a NaN in x stays.
template <class V>
[[gnu::always_inline]] inline V clamp_keeping_nan(V x, float low, float high) {
  return min_second(V::set(high), max_second(V::set(low), x));
}

// The sum n ln2 + r = x with |r| <= ln2/2 and integral n, for |x| < 2^22.
template <class V>
struct Reduced {
  V n, r;
};
template <class V>
[[gnu::always_inline]] inline Reduced<V> reduce_by_ln2(V x) {
  // ln2 in two parts, the first with so few bits that n * 0.693359375 is exact.
  const V n = round_small(x * V::set(1.44269504f));
  return {n, fnma(n, V::set(-2.12194440e-4f), fnma(n, V::set(0.693359375f), x))};
}

// e^r - 1 for |r| <= 0.35.
template <class V>
[[gnu::always_inline]] inline V expm1_reduced(V r) {
  constexpr float kExp[] = {4.999999702e-01f, 1.666654646e-01f, 4.166743904e-02f, 8.366252296e-03f,
                            1.387027092e-03f};
  return fma(r * r, polynomial(r, kExp), r);
}

// e^(x + tail), |tail| far below 1: the second word of an argument that needs more than fp32.
template <class V>
[[gnu::always_inline]] inline V exp_with_tail(V x, V tail) {
  Reduced<V> reduced = reduce_by_ln2(clamp_keeping_nan(x, -104.0f, 89.0f));
  return scale2(expm1_reduced(reduced.r + tail) + V::set(1.0f), reduced.n);
}

// e^x. At most 1.1 ulp; gradual underflow.
template <class V>
[[gnu::always_inline]] inline V exp(V x) {
  const Reduced<V> reduced = reduce_by_ln2(clamp_keeping_nan(x, -104.0f, 89.0f));
  return scale2(expm1_reduced(reduced.r) + V::set(1.0f), reduced.n);
}

// 2^x. At most 1.1 ulp; gradual underflow.
template <class V>
[[gnu::always_inline]] inline V exp2(V x) {
  const V clamped = clamp_keeping_nan(x, -151.0f, 129.0f);
  const V n = round_small(clamped);
  const V r = (clamped - n) * V::set(6.93147182e-1f);
  return scale2(expm1_reduced(r) + V::set(1.0f), n);
}

// e^x - 1. At most 2 ulp; keeps the sign of zero.
template <class V>
[[gnu::always_inline]] inline V expm1(V x) {
  const Reduced<V> reduced = reduce_by_ln2(clamp_keeping_nan(x, -20.0f, 89.0f));
  // Half the result, so that 2^128 is not needed for results that fit.
  const V half = pow2(reduced.n - V::set(1.0f));
  const V result = fma(half, expm1_reduced(reduced.r), half - V::set(0.5f));
  return copysign(result + result, x);
}

// log(1 + f) for f in [-1/4, 1/2].
template <class V>
[[gnu::always_inline]] inline V log1p_reduced(V f) {
  constexpr float kLog[] = {3.333334029e-01f,  -2.500016391e-01f, 1.999958009e-01f,
                            -1.665531695e-01f, 1.427675188e-01f,  -1.272831410e-01f,
                            1.169739738e-01f,  -9.107789397e-02f, 3.761572391e-02f};
  const V inner = fma(f, polynomial(f, kLog), V::set(-0.5f));
  return fma(f * f, inner, f);
}

// e * 2^23 for the exponent e that leaves x * 2^-e in [3/4, 3/2).
template <class V>
[[gnu::always_inline]] inline auto exponent_bits(V x) {
  return (bits(x) - int_of(x, 0x3f400000)) & int_of(x, static_cast<std::int32_t>(0xff800000u));
}

// log x, NaN below 0, -inf at ±0. At most 2 ulp; subnormal inputs included.
template <class V>
[[gnu::always_inline]] inline V log(V x) {
  const auto subnormal = less(x, V::set(1.17549435e-38f));
  const V normal = select(subnormal, x * V::set(0x1p24f), x);
  const V bias = select(subnormal, V::set(-24.0f), V::set(0.0f));
  const auto above = exponent_bits(normal);
  const V e = fma(to_float(above), V::set(0x1p-23f), bias);
  const V f = from_bits(bits(normal) - above) - V::set(1.0f);
  const V low = fma(e, V::set(-2.12194440e-4f), log1p_reduced(f));
  const V finite = fma(e, V::set(0.693359375f), low);
  const V at_zero =
      select(less(x, V::set(0.0f)), V::set(__builtin_nanf("")), V::set(-__builtin_inff()));
  const V special = select(less_equal(x, V::set(0.0f)), at_zero, x);  // else +inf or NaN
  const auto ordinary = less(x, V::set(__builtin_inff()));
  return select(less(V::set(0.0f), x), select(ordinary, finite, special), special);
}

// log(1 + x), NaN below -1, -inf at -1. At most 2 ulp; keeps the sign of zero.
template <class V>
[[gnu::always_inline]] inline V log1p(V x) {
  const V u = x + V::set(1.0f);
  // With e the exponent of u: f = 2^-e (1 + x) - 1, formed from x itself so that nothing of x is
  // lost.
  const auto e = exponent_bits(u);
  const V scaled = from_bits(bits(x) - e);
  const V four = from_bits(bits(V::set(4.0f)) - e);
  const V f = scaled + fma(V::set(0.25f), four, V::set(-1.0f));
  const V exponent = to_float(e) * V::set(0x1p-23f);
  const V low = fma(exponent, V::set(-2.12194440e-4f), log1p_reduced(f));
  const V finite = copysign(fma(exponent, V::set(0.693359375f), low), x);
  const V at_one =
      select(less(x, V::set(-1.0f)), V::set(__builtin_nanf("")), V::set(-__builtin_inff()));
  const V special = select(less_equal(x, V::set(-1.0f)), at_one, x);
  const auto ordinary = less(x, V::set(__builtin_inff()));
  return select(less(V::set(-1.0f), x), select(ordinary, finite, special), special);
}

// log(1 + t) for t in [0, 1]. At most 2 ulp.
template <class V>
[[gnu::always_inline]] inline V log1p_unit(V t) {
  constexpr float kLog1p[] = {
      -4.999998808e-01f, 3.333271444e-01f,  -2.498886585e-01f, 1.989964098e-01f,  -1.613526046e-01f,
      1.247977167e-01f,  -8.324279636e-02f, 4.211840779e-02f,  -1.369348913e-02f, 2.084931824e-03f};
  return fma(t * t, polynomial(t, kLog1p), t);
}

// tanh x. At most 3 ulp; keeps the sign of zero.
template <class V>
[[gnu::always_inline]] inline V tanh(V x) {
  // tanh |x| = -m / (2 + m) with m = e^(-2|x|) - 1, which is in [-1, 0]: no cancellation at 0.
  const V magnitude = min_second(V::set(10.0f), abs(x));
  const Reduced<V> reduced = reduce_by_ln2(magnitude * V::set(-2.0f));
  const V scale = pow2(reduced.n);
  const V m = fma(scale, expm1_reduced(reduced.r), scale - V::set(1.0f));
  return copysign(m * reciprocal(m + V::set(2.0f)), x);
}

// 1 / (1 + e^-(x + tail)).
template <class V>
[[gnu::always_inline]] inline V sigmoid_with_tail(V x, V tail) {
  // From e^-|x|, which is at most 1: no overflow, and tiny results keep their relative accuracy.
  const auto negative = less(x, V::set(0.0f));
  const V e = exp_with_tail(negate(abs(x)), select(negative, tail, negate(tail)));
  return select(negative, e, V::set(1.0f)) * reciprocal(e + V::set(1.0f));
}

// sigmoid x. At most 3 ulp.
template <class V>
[[gnu::always_inline]] inline V sigmoid(V x) {
  const V e = exp(negate(abs(x)));
  return select(less(x, V::set(0.0f)), e, V::set(1.0f)) * reciprocal(e + V::set(1.0f));
}

// sigmoid(b * c) with the product's rounding error carried along: without it e^(b c) would lose as
// many ulp as |b c|. At most 3 ulp, and silu(x) = x * sigmoid(x) at most 4, plus |x| * 2^-149 where
// the sigmoid is below the normal range.
template <class V>
[[gnu::always_inline]] inline V sigmoid_of_product(V b, V c) {
  const V product = b * c;
  const V error = fma_exact(b, c, negate(product));
  const V tail = select(less(abs(product), V::set(128.0f)), error, V::set(0.0f));
  return sigmoid_with_tail(product, tail);
}

// log(1 + e^x). At most 3 ulp.
template <class V>
[[gnu::always_inline]] inline V softplus(V x) {
  return max_second(V::set(0.0f), x) + log1p_unit(exp(negate(abs(x))));
}

// tanh(softplus(x)), the gate of mish. At most 3.5 ulp.
template <class V>
[[gnu::always_inline]] inline V tanh_softplus(V x) {
  // With w = e^x: (w^2 + 2w) / (w^2 + 2w + 2); from e^-|x| so that nothing overflows.
  const auto negative = less(x, V::set(0.0f));
  const V t = exp(negate(abs(x)));
  const V top = select(negative, t * (t + V::set(2.0f)), fma(V::set(2.0f), t, V::set(1.0f)));
  const V rest = select(negative, V::set(2.0f), V::set(2.0f) * t * t);
  return top * reciprocal(top + rest);
}

// erf(x) / x - 1 as a polynomial in x^2, for |x| < 1.
template <class V>
[[gnu::always_inline]] inline V erf_series(V square) {
  constexpr float kSmall[] = {1.283791661e-01f,  -3.761262596e-01f, 1.128357872e-01f,
                              -2.685334533e-02f, 5.187152419e-03f,  -7.997693610e-04f,
                              7.806082431e-05f};
  return polynomial(square, kSmall);
}

// erf x. At most 2 ulp; keeps the sign of zero.
template <class V>
[[gnu::always_inline]] inline V erf(V x) {
  // -log erfc, so that erf = 1 - e^-p keeps its last bits where it approaches 1.
  constexpr float kLarge[] = {-1.834441500e-04f, 1.129556775e+00f,  6.332628727e-01f,
                              1.083719805e-01f,  -2.517847531e-02f, 4.193346482e-03f,
                              -4.390332906e-04f, 2.148800922e-05f};
  const V magnitude = min_second(V::set(4.0f), abs(x));
  const V small = fma(x, erf_series(magnitude * magnitude), x);
  const V large = V::set(1.0f) - exp(negate(polynomial(magnitude, kLarge)));
  return select(less(magnitude, V::set(0.97f)), small, copysign(large, x));
}

// The standard normal tail Q(t) = e^(-t^2/2) s P(s - 0.6), s = 1/(1 + 0.3125 t), for 0 <= t
// <= 14.5, where Q underflows; t^2/2 in two words.
template <class V>
[[gnu::always_inline]] inline V normal_tail(V t, V half_square, V half_square_error) {
  constexpr float kTail[] = {
      2.682647705e-01f,  4.082899094e-01f, 3.883243501e-01f, 1.727179140e-01f,  -5.150265247e-02f,
      -8.166818321e-02f, 1.722245291e-02f, 4.092737660e-02f, -1.200718805e-02f, -1.913037896e-02f};
  const V e = exp_with_tail(negate(half_square), negate(half_square_error));
  const V s = reciprocal(fma(V::set(0.3125f), t, V::set(1.0f)));
  return e * (s * polynomial(s - V::set(0.603515625f), kTail));
}

// 1 + erf x = 2 Q(-sqrt(2) x). At most 5.5 ulp; the tail far below 0 keeps its relative accuracy.
template <class V>
[[gnu::always_inline]] inline V one_plus_erf(V x) {
  const V magnitude = min_second(V::set(10.25f), abs(x));
  const V square = magnitude * magnitude;
  const V error = fma_exact(magnitude, magnitude, negate(square));
  const V half_tail = normal_tail(magnitude * V::set(1.41421356f), square, error);
  const V tail = half_tail + half_tail;
  const V outer = select(less(x, V::set(0.0f)), tail, V::set(2.0f) - tail);
  // In -0.35 … 0.96 the series is more accurate.
  const V inner = fma(x, erf_series(square), x) + V::set(1.0f);
  return select(less(abs(x - V::set(0.305f)), V::set(0.655f)), inner, outer);
}

// The standard normal distribution function, gelu(x) / x. gelu(x) = x * normal_cdf(x) is at most 5
// ulp off, plus |x| * 2^-149 where this gate is below the normal range.
template <class V>
[[gnu::always_inline]] inline V normal_cdf(V x) {
  const V t = min_second(V::set(14.5f), abs(x));
  const V square = t * t;
  const V error = fma_exact(t, t, negate(square));
  const V half = V::set(0.5f);
  const V tail = normal_tail(t, half * square, half * error);
  const V outer = select(less(x, V::set(0.0f)), tail, V::set(1.0f) - tail);
  // In -0.5 … 1.36 the series of erf(x / sqrt 2) / 2 is more accurate.
  const V slope = V::set(0.353553391f);
  const V inner = fma(x, fma(slope, erf_series(V::set(0.5f) * square), slope), V::set(0.5f));
  return select(less(abs(x - V::set(0.43f)), V::set(0.93f)), inner, outer);
}

// gelu_tanh(x) / x = (1 + tanh z) / 2 = sigmoid(2z), z = sqrt(2/pi) (x + 0.044715 x^3).
// gelu_tanh(x) is at most 4 ulp off, plus |x| * 2^-149 where this gate is below the normal range.
template <class V>
[[gnu::always_inline]] inline V gelu_tanh_gate(V x) {
  // 2z = x (a + b x^2) in two words, since e^2z turns its absolute error into a relative one. The
  // first word of a has 12 bits, so that a - w below is exact.
  constexpr double kA = 1.5957691216057308, kB = 0.07135481627260025;
  constexpr float kAHigh = 1.595703125f, kALow = static_cast<float>(kA - 1.595703125);
  constexpr float kBHigh = static_cast<float>(kB);
  constexpr float kBLow = static_cast<float>(kB - static_cast<double>(kBHigh));
  const V c = clamp_keeping_nan(x, -13.0f, 13.0f);  // e^-177 = 0 beyond
  const V square = c * c;
  const V square_error = fma_exact(c, c, negate(square));
  const V w = fma(V::set(kBHigh), square, V::set(kAHigh));
  const V w_error = fma_exact(V::set(kBHigh), square, V::set(kAHigh) - w) +
                    fma(V::set(kBHigh), square_error, fma(V::set(kBLow), square, V::set(kALow)));
  const V z = c * w;
  const V z_error = fma(c, w_error, fma_exact(c, w, negate(z)));
  return sigmoid_with_tail(z, z_error);
}

// 1 / sqrt x. At most 1.5 ulp.
template <class V>
[[gnu::always_inline]] inline V rsqrt(V x) {
  return V::set(1.0f) / sqrt(x);
}

// -1, ±0, 1 or NaN. Exact.
template <class V>
[[gnu::always_inline]] inline V sign(V x) {
  const V positive = select(less(V::set(0.0f), x), V::set(1.0f), x);
  return select(less(x, V::set(0.0f)), V::set(-1.0f), positive);
}

// The smaller (larger) one, NaN where either is NaN. Exact.
template <class V>
[[gnu::always_inline]] inline V min(V a, V b) {
  return select(unordered(a), a, min_second(a, b));
}
template <class V>
[[gnu::always_inline]] inline V max(V a, V b) {
  return select(unordered(a), a, max_second(a, b));
}

// x^|exponent| by squaring, then the reciprocal where the exponent is negative. At most 1 ulp for
// each factor.
template <class V>
[[gnu::always_inline]] inline V power(V x, int exponent) {
  int rest = exponent < 0 ? -exponent : exponent;
  V result = V::set(1.0f);
  V square = x;
  for (; rest != 0; rest >>= 1) {
    if (rest & 1) result = result * square;
    if (rest > 1) square = square * square;
  }
  return exponent < 0 ? V::set(1.0f) / result : result;
}

}  // namespace flexact::cpu::math
