// A second, independent evaluation of graphs: one node at a time in extended precision, with the
// language's rules for NaN spelled out. Also the distance in fp32 ulp from an exact value.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <span>
#include <vector>

#include "activation/graph.hpp"

namespace flexact::test {

using Real = long double;

inline Real normal_cdf(Real x) {
  return std::erfc(-x / std::sqrt(Real{2})) / 2;
}
inline Real sigmoid(Real x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

inline Real evaluate_node(const activation::Node& node, const std::vector<Real>& v, Real g, Real u,
                          std::span<const float> parameters) {
  using activation::Op;
  const auto operand = [&](int i) { return v[node.operands[i]]; };
  const Real a = node.operands[0] < 0 ? 0 : operand(0);
  const Real b = node.operands[1] < 0 ? 0 : operand(1);
  const Real c = node.operands[2] < 0 ? 0 : operand(2);
  const auto least = [](Real p, Real q) {
    return std::isnan(p) ? p : std::isnan(q) ? q : p < q ? p : q;
  };
  const auto most = [](Real p, Real q) {
    return std::isnan(p) ? p : std::isnan(q) ? q : p > q ? p : q;
  };
  const Real pi = std::acos(Real{-1});
  switch (node.op) {
    case Op::Constant:
      return node.value;
    case Op::Gate:
    case Op::Input:
      return g;
    case Op::Up:
      return u;
    case Op::Parameter:
      return parameters[node.index];
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
      return std::pow(a, Real(node.index));
    case Op::Exp:
      return std::exp(a);
    case Op::Exp2:
      return std::exp2(a);
    case Op::Expm1:
      return std::expm1(a);
    case Op::Log:
      return a < 0 ? std::numeric_limits<Real>::quiet_NaN() : std::log(a);
    case Op::Log1p:
      return a < -1 ? std::numeric_limits<Real>::quiet_NaN() : std::log1p(a);
    case Op::Sqrt:
      return a < 0 ? std::numeric_limits<Real>::quiet_NaN() : std::sqrt(a);
    case Op::Rsqrt:
      return a < 0 ? std::numeric_limits<Real>::quiet_NaN() : 1 / std::sqrt(a);
    case Op::Abs:
      return std::abs(a);
    case Op::Sign:
      return a > 0 ? 1 : a < 0 ? -1 : a;
    case Op::Floor:
      return std::floor(a);
    case Op::Tanh:
      return std::tanh(a);
    case Op::Sigmoid:
      return sigmoid(a);
    case Op::Erf:
      return std::erf(a);
    case Op::Softplus:
      return std::isnan(a) ? a : (a > 0 ? a : 0) + std::log1p(std::exp(-std::abs(a)));
    case Op::Relu:
      return a < 0 ? 0 : a;
    case Op::Silu:
      return a * sigmoid(a);
    case Op::Gelu:
      return a * normal_cdf(a);
    case Op::GeluTanh:
      return a * sigmoid(2 * std::sqrt(2 / pi) * (a + Real(0.044715) * a * a * a));
    case Op::Min:
      return least(a, b);
    case Op::Max:
      return most(a, b);
    case Op::Clamp:
      return least(most(a, b), c);
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
  }
  return std::numeric_limits<Real>::quiet_NaN();
}

// Every node's value; the last is the result.
inline std::vector<Real> evaluate(const activation::Graph& graph, Real g, Real u,
                                  std::span<const float> parameters = {}) {
  std::vector<Real> values;
  values.reserve(graph.nodes.size());
  for (const activation::Node& node : graph.nodes) {
    values.push_back(evaluate_node(node, values, g, u, parameters));
  }
  return values;
}

// The spacing of fp32 numbers around `exact`, that of the smallest normal number below it.
inline Real ulp_of(Real exact) {
  const Real magnitude = std::abs(exact);
  if (!(magnitude >= Real(std::numeric_limits<float>::min()))) return std::ldexp(Real{1}, -149);
  return std::ldexp(Real{1}, std::ilogb(magnitude) - 23);
}

inline bool overflows_fp32(Real exact) {
  return std::abs(exact) >=
         Real(std::numeric_limits<float>::max()) + ulp_of(std::numeric_limits<float>::max()) / 2;
}

// |actual - exact| in fp32 ulp; 0 where both are NaN or the same infinity (an exact value beyond
// fp32 counts as infinity), infinite where only one is. Results below the normal range may be zero.
inline Real ulp_error(float actual, Real exact) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  if (std::isnan(actual) || std::isnan(exact))
    return std::isnan(actual) && std::isnan(exact) ? 0 : infinity;
  if (overflows_fp32(exact)) {
    // One ulp short of infinity is one ulp of error.
    if (std::isinf(actual) && (actual > 0) == (exact > 0)) return 0;
    const Real largest = std::numeric_limits<float>::max();
    return !std::isinf(exact) && std::abs(std::abs(exact) - largest) < 8 * ulp_of(largest)
               ? std::abs(actual - exact) / ulp_of(largest)
               : infinity;
  }
  if (std::isinf(actual)) {
    const Real largest = std::numeric_limits<float>::max();
    return largest - std::abs(exact) < 8 * ulp_of(largest)
               ? (largest - std::abs(exact)) / ulp_of(largest) + 1
               : infinity;
  }
  if (std::abs(exact) < Real(std::numeric_limits<float>::min()) &&
      std::abs(actual) <= std::numeric_limits<float>::min())
    return 0;
  return std::abs(Real(actual) - exact) / ulp_of(exact);
}

inline float from_bf16(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace flexact::test
