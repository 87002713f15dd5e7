// The tape in fp64, one element at a time, with the C library's functions: 29 bits more than the
// result keeps, so that what a formula cancels or amplifies is lost from those. Every instruction
// set runs this same code.
#include <cmath>

#include "cpu/tape_run.hpp"

namespace flexact::cpu {

namespace fp64 {

// The operations that tape_run.hpp and the templates of vector_math.hpp ask of a vector type, see
// simd_avx512.hpp; the functions below replace those made for fp32.
struct Vec {
  using Scalar = double;
  static constexpr std::size_t kWidth = 1;
  double v;

  static Vec load(const double* p) { return {*p}; }
  static Vec set(double x) { return {x}; }
  void store(double* p) const { *p = v; }
};

inline Vec operator+(Vec a, Vec b) {
  return {a.v + b.v};
}
inline Vec operator-(Vec a, Vec b) {
  return {a.v - b.v};
}
inline Vec operator*(Vec a, Vec b) {
  return {a.v * b.v};
}
inline Vec operator/(Vec a, Vec b) {
  return {a.v / b.v};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return a * b + c;
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return c - a * b;
}
inline Vec min_second(Vec a, Vec b) {
  return {a.v < b.v ? a.v : b.v};
}
inline Vec max_second(Vec a, Vec b) {
  return {a.v > b.v ? a.v : b.v};
}
inline Vec sqrt(Vec a) {
  return {std::sqrt(a.v)};
}
inline Vec floor(Vec a) {
  return {std::floor(a.v)};
}
inline Vec abs(Vec a) {
  return {std::abs(a.v)};
}
inline Vec negate(Vec a) {
  return {-a.v};
}
inline bool less(Vec a, Vec b) {
  return a.v < b.v;
}
inline bool less_equal(Vec a, Vec b) {
  return a.v <= b.v;
}
inline bool equal(Vec a, Vec b) {
  return a.v == b.v;
}
inline bool not_equal(Vec a, Vec b) {
  return a.v != b.v;
}
inline bool unordered(Vec a) {
  return std::isnan(a.v);
}
inline Vec select(bool m, Vec a, Vec b) {
  return m ? a : b;
}

}  // namespace fp64

namespace math {

using Double = fp64::Vec;

template <>
inline Double exp(Double x) {
  return {std::exp(x.v)};
}
template <>
inline Double exp2(Double x) {
  return {std::exp2(x.v)};
}
template <>
inline Double expm1(Double x) {
  return {std::expm1(x.v)};
}
template <>
inline Double log(Double x) {
  return {std::log(x.v)};
}
template <>
inline Double log1p(Double x) {
  return {std::log1p(x.v)};
}
template <>
inline Double tanh(Double x) {
  return {std::tanh(x.v)};
}
template <>
inline Double erf(Double x) {
  return {std::erf(x.v)};
}
template <>
inline Double one_plus_erf(Double x) {
  return {std::erfc(-x.v)};
}
template <>
inline Double softplus(Double x) {
  return max_second(Double{0}, x) + Double{std::log1p(std::exp(-std::abs(x.v)))};
}
template <>
inline Double sigmoid(Double x) {
  return {1 / (1 + std::exp(-x.v))};
}
template <>
inline Double sigmoid_of_product(Double b, Double c) {
  return sigmoid(b * c);
}
template <>
inline Double tanh_softplus(Double x) {
  return {std::tanh(softplus(x).v)};
}
template <>
inline Double normal_cdf(Double x) {
  return {0.5 * std::erfc(-0.70710678118654752440 * x.v)};
}
template <>
inline Double gelu_tanh_gate(Double x) {
  return sigmoid_of_product(Double{1.59576912160573071176 * x.v}, Double{1 + 0.044715 * x.v * x.v});
}

}  // namespace math

void run_tape_fp64(const TapeView& tape, const float* g, const float* u, float* y, std::size_t n,
                   const float* parameters) noexcept {
  double gate[kTapeBlock], up[kTapeBlock], result[kTapeBlock];
  for (std::size_t done = 0; done < n; done += kTapeBlock) {
    const std::size_t count = n - done < kTapeBlock ? n - done : kTapeBlock;
    for (std::size_t i = 0; i < count; ++i) {
      if (tape.reads_gate) gate[i] = double{g[done + i]};
      if (tape.reads_up) up[i] = double{u[done + i]};
    }
    TapeRunner<fp64::Vec>::run(tape, gate, up, result, count, parameters);
    for (std::size_t i = 0; i < count; ++i) y[done + i] = static_cast<float>(result[i]);
  }
}

}  // namespace flexact::cpu
