// The fp64 definition of every operation.
#include "activation/numerics.hpp"

#include <cmath>
#include <limits>
#include <numbers>

namespace flexact::activation {

namespace {

double propagating_min(double a, double b) noexcept {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  return b < a ? b : a;
}

double propagating_max(double a, double b) noexcept {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  return b > a ? b : a;
}

double sigmoid(double v) noexcept {
  if (v >= 0) return 1 / (1 + std::exp(-v));
  const double e = std::exp(v);
  return e / (1 + e);
}

double softplus(double v) noexcept {
  if (v > 0) return v + std::log1p(std::exp(-v));
  return std::log1p(std::exp(v));
}

// v * Phi(v); erfc keeps the left tail's relative accuracy.
double gelu(double v) noexcept {
  return 0.5 * v * std::erfc(-v * std::numbers::sqrt2 / 2);
}

// 0.5 * (1 + tanh(z)) is sigmoid(2 z) exactly, and without cancellation.
double gelu_tanh(double v) noexcept {
  const double c = std::sqrt(2 / std::numbers::pi);
  return v * sigmoid(2 * (c * (v + 0.044715 * v * v * v)));
}

double sign(double v) noexcept {
  return v > 0 ? 1.0 : v < 0 ? -1.0 : v;
}

// Squaring from the lowest bit of the exponent; exponent 3 is (a*a)*a.
double powi(double a, int exponent) noexcept {
  double power = 1;
  for (int n = exponent < 0 ? -exponent : exponent; n != 0; n >>= 1, a *= a) {
    if (n & 1) power *= a;
  }
  return exponent < 0 ? 1 / power : power;
}

}  // namespace

double one_plus_erf(double z) noexcept {
  return std::erfc(-z);
}

double one_plus_tanh(double z) noexcept {
  return 2 * sigmoid(2 * z);
}

double apply(Op op, double a, double b, double c, int exponent) noexcept {
  switch (op) {
    case Op::Neg:
      return -a;
    case Op::Add:
      return a + b;
    case Op::Sub:
      return a - b;
    case Op::Mul:
      return a * b;
    case Op::Div:
      return a / b;
    case Op::Powi:
      return powi(a, exponent);
    case Op::Exp:
      return std::exp(a);
    case Op::Exp2:
      return std::exp2(a);
    case Op::Expm1:
      return std::expm1(a);
    case Op::Log:
      return std::log(a);
    case Op::Log1p:
      return std::log1p(a);
    case Op::Sqrt:
      return std::sqrt(a);
    case Op::Rsqrt:
      return 1 / std::sqrt(a);
    case Op::Abs:
      return std::fabs(a);
    case Op::Sign:
      return sign(a);
    case Op::Floor:
      return std::floor(a);
    case Op::Tanh:
      return std::tanh(a);
    case Op::Sigmoid:
      return sigmoid(a);
    case Op::Erf:
      return std::erf(a);
    case Op::Softplus:
      return softplus(a);
    case Op::Relu:
      return propagating_max(a, 0.0);
    case Op::Silu:
      return a * sigmoid(a);
    case Op::Gelu:
      return gelu(a);
    case Op::GeluTanh:
      return gelu_tanh(a);
    case Op::Min:
      return propagating_min(a, b);
    case Op::Max:
      return propagating_max(a, b);
    case Op::Clamp:
      return propagating_min(propagating_max(a, b), c);
    case Op::Lt:
      return a < b;
    case Op::Le:
      return a <= b;
    case Op::Gt:
      return a > b;
    case Op::Ge:
      return a >= b;
    case Op::Eq:
      return a == b;
    case Op::Ne:
      return a != b;
    case Op::Where:
      return a != 0 ? b : c;
    case Op::Constant:
    case Op::Gate:
    case Op::Up:
    case Op::Input:
    case Op::Parameter:
      break;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace flexact::activation
