// What a floating-point evaluation of a graph may give: the exact value of every node and a bound
// of the error, by running error analysis. Operands are moved by their bounds, one at a time and
// the first two together, and every operation adds a few ulp of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "activation/graph.hpp"
#include "graph_reference.hpp"

namespace flexact::test {

// A value and a bound of the error; infinite: anything. NaN and infinities with a finite bound are
// certain.
struct Bounded {
  Real value = 0;
  Real error = 0;

  bool known() const { return error < std::numeric_limits<Real>::infinity(); }
};

// The arithmetic that is judged.
struct Arithmetic {
  int digits;  // of the significand
  Real tiny;   // room for results below the normal range
  Real huge;   // nothing is promised beyond
  Real ulp(Real value) const {
    const Real magnitude = std::abs(value);
    if (!(magnitude >= tiny)) return tiny * 0x1p-20L;
    return std::ldexp(Real{1}, std::ilogb(magnitude) + 1 - digits);
  }
};
inline constexpr Arithmetic kFp32{24, 0x1p-120L, 0x1p120L};
inline constexpr Arithmetic kFp64{53, 1e-290L, 1e290L};

namespace bounds {

inline bool certain(const Bounded& a, Real edge) {
  return std::abs(a.value - edge) > a.error;
}

// The ulps that the operation itself may lose beside its operands' errors.
inline Real own_ulps(const activation::Node& node, Real a) {
  using activation::Op;
  switch (node.op) {
    case Op::Powi:
      return 40;
    // Their tails multiply the rounding of an argument that grows with a.
    case Op::Gelu:
      return 8 + 4 * std::min<Real>(a * a, 3000);
    case Op::GeluTanh:
      return 8 + 4 * std::min<Real>(std::abs(a * (2 + a * a)), 3000);
    default:
      return 8;
  }
}

}  // namespace bounds

inline Bounded bounded_node(const activation::Node& node, const std::vector<Bounded>& values,
                            Real g, Real u, std::span<const float> parameters,
                            const Arithmetic& arithmetic) {
  using activation::Op;
  constexpr Real kUnknown = std::numeric_limits<Real>::infinity();
  std::array<Bounded, 3> in;
  std::vector<Real> exact(values.size());
  for (int k = 0; k < 3 && node.operands[k] >= 0; ++k) {
    in[k] = values[static_cast<std::size_t>(node.operands[k])];
    exact[static_cast<std::size_t>(node.operands[k])] = in[k].value;
  }
  Bounded result;
  result.value = evaluate_node(node, exact, g, u, parameters);
  if (node.op == Op::Constant && std::isfinite(result.value))
    result.error = arithmetic.ulp(result.value) / 2;
  if (node.operands[0] < 0) return result;

  const auto widen = [&](Real factor) {
    const Real other = evaluate_node(node, exact, g, u, parameters);
    if (std::isnan(other) != std::isnan(result.value)) return false;
    if (!std::isnan(other) && other != result.value)
      result.error = std::max(result.error, std::abs(other - result.value) * factor);
    return true;
  };
  for (int k = 0; k < 3 && node.operands[k] >= 0; ++k) {
    if (node.op == Op::Where && k != 0) {
      if ((in[0].value != 0) == (k == 1)) result.error += in[k].error;
      continue;
    }
    if (!in[k].known()) return {result.value, kUnknown};
    for (int side : {-1, 1}) {
      Real& moved = exact[static_cast<std::size_t>(node.operands[k])];
      moved += side * in[k].error;
      const bool same_kind = widen(3);
      moved = in[k].value;
      if (!same_kind) return {result.value, kUnknown};
    }
  }
  // A product of two values that are zero but for their errors moves only with both.
  if (node.op != Op::Where && node.operands[1] >= 0 && node.operands[1] != node.operands[0]) {
    for (int sides = 0; sides < 4; ++sides) {
      for (int k = 0; k < 2; ++k) {
        exact[static_cast<std::size_t>(node.operands[k])] =
            in[k].value + ((sides >> k & 1) != 0 ? in[k].error : -in[k].error);
      }
      const bool same_kind = widen(1);
      for (int k = 0; k < 2; ++k) exact[static_cast<std::size_t>(node.operands[k])] = in[k].value;
      if (!same_kind) return {result.value, kUnknown};
    }
  }
  if (activation::is_comparison(node.op)) {
    const bool sure = std::abs(in[0].value - in[1].value) > in[0].error + in[1].error ||
                      (in[0].error == 0 && in[1].error == 0);
    result.error = sure ? 0 : kUnknown;
    return result;
  }
  const bool floors = node.op == Op::Floor && std::floor(in[0].value - in[0].error) !=
                                                  std::floor(in[0].value + in[0].error);
  const bool signs = node.op == Op::Sign && in[0].error > 0 && !bounds::certain(in[0], 0);
  const bool divides =
      node.op == Op::Div || node.op == Op::Rsqrt || (node.op == Op::Powi && node.index < 0);
  const bool poles = divides && !std::isnan(in[node.op == Op::Div].value) &&
                     !bounds::certain(in[node.op == Op::Div], 0);
  if (floors || signs || poles) return {result.value, kUnknown};
  if (!std::isfinite(result.value)) return result;

  // silu, gelu and gelu_tanh turn around once; their slopes stay below 1.2.
  if (node.op == Op::Silu || node.op == Op::Gelu || node.op == Op::GeluTanh)
    result.error = std::max(result.error, 2 * in[0].error);
  result.error +=
      bounds::own_ulps(node, in[0].value) * arithmetic.ulp(result.value) + arithmetic.tiny;
  if (!(std::abs(result.value) + result.error < arithmetic.huge)) result.error = kUnknown;
  return result;
}

// Every node's value; the last is the result.
inline Bounded bounded(const activation::Graph& graph, Real g, Real u,
                       std::span<const float> parameters, const Arithmetic& arithmetic) {
  std::vector<Bounded> values;
  values.reserve(graph.nodes.size());
  for (const activation::Node& node : graph.nodes)
    values.push_back(bounded_node(node, values, g, u, parameters, arithmetic));
  return values.back();
}

// Whether `got` is what the arithmetic may give. Where nothing is known, everything is.
inline bool allows(const Bounded& want, Real got, Real room = 0) {
  if (!want.known()) return true;
  if (std::isnan(want.value)) return std::isnan(got);
  if (std::isinf(want.value)) return got == want.value;
  return std::abs(got - want.value) <= want.error + room;
}

}  // namespace flexact::test
