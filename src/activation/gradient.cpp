// Forward-mode differentiation, one pass over the graph. A derivative that is zero by structure has
// no node, so that no 0*inf can appear.
#include "activation/gradient.hpp"

#include <numbers>
#include <optional>
#include <vector>

#include "activation/builder.hpp"

namespace flexact::activation {

namespace {

using Ref = Builder::Ref;
using Term = std::optional<Ref>;  // nothing: zero

class Differentiator {
 public:
  explicit Differentiator(Builder& builder) : b_(builder) {}

  Ref number(double v) { return b_.constant(v); }
  Ref add(Ref x, Ref y) { return b_.binary(Op::Add, x, y); }
  Ref sub(Ref x, Ref y) { return b_.binary(Op::Sub, x, y); }
  Ref mul(Ref x, Ref y) { return b_.binary(Op::Mul, x, y); }
  Ref div(Ref x, Ref y) { return b_.binary(Op::Div, x, y); }
  Ref call(Op op, Ref x) { return b_.unary(op, x); }
  Ref square(Ref x) { return b_.power(x, 2); }
  Ref select(Op comparison, Ref x, Ref y, Ref yes, Ref no) {
    return b_.ternary(Op::Where, b_.binary(comparison, x, y), yes, no);
  }
  Ref zero() { return number(0); }

  Term sum(Term x, Term y) {
    if (!x || !y) return x ? x : y;
    return add(*x, *y);
  }

  // d f(a) by a, for functions of one argument; `f` is the node of f(a) itself.
  Ref slope(Op op, Ref f, Ref a);
  Term product(Op op, Ref a, Ref b, Term da, Term db);
  Term extreme(Op op, Ref a, Ref b, Term da, Term db);
  Term clamp(const std::array<Ref, 3>& in, const std::array<Term, 3>& d);
  Term power(Ref a, int n, Term da);

 private:
  Builder& b_;
};

Ref Differentiator::slope(Op op, Ref f, Ref a) {
  switch (op) {
    case Op::Neg:
      return number(-1);
    case Op::Exp:
      return f;
    case Op::Exp2:
      return mul(number(std::numbers::ln2), f);
    case Op::Expm1:
      return add(f, number(1));
    case Op::Log:
      return div(number(1), a);
    case Op::Log1p:
      return div(number(1), add(a, number(1)));
    case Op::Sqrt:
      return div(number(0.5), f);
    case Op::Rsqrt:
      return mul(number(-0.5), b_.power(f, 3));
    case Op::Abs:
      return call(Op::Sign, a);
    case Op::Tanh:
      return sub(number(1), square(f));
    // s(-a) in place of 1-s(a), which cancels for large a.
    case Op::Sigmoid:
      return mul(f, call(Op::Sigmoid, call(Op::Neg, a)));
    case Op::Erf: {
      const double scale = 2 * std::numbers::inv_sqrtpi;
      return mul(number(scale), call(Op::Exp, call(Op::Neg, square(a))));
    }
    case Op::Softplus:
      return call(Op::Sigmoid, a);
    case Op::Relu:
      return select(Op::Le, a, zero(), zero(), number(1));
    case Op::Silu: {
      const Ref rest = mul(a, call(Op::Sigmoid, call(Op::Neg, a)));
      return mul(call(Op::Sigmoid, a), add(number(1), rest));
    }
    case Op::Gelu: {
      const Ref scaled = mul(number(std::numbers::sqrt2 / 2), a);
      const Ref below = mul(number(0.5), add(call(Op::Erf, scaled), number(1)));
      const Ref density = call(Op::Exp, mul(number(-0.5), square(a)));
      const double scale = std::numbers::inv_sqrtpi * std::numbers::sqrt2 / 2;
      return add(below, mul(number(scale), mul(a, density)));
    }
    case Op::GeluTanh: {
      // a*s(z) with z = 2*sqrt(2/pi)*(a + 0.044715*a^3).
      const double scale = 2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi;
      const Ref cubic = mul(number(0.044715), square(a));
      const Ref z = mul(mul(number(scale), a), add(cubic, number(1)));
      const Ref dz = mul(number(scale), add(mul(number(3), cubic), number(1)));
      const Ref rest = mul(mul(a, dz), call(Op::Sigmoid, call(Op::Neg, z)));
      return mul(call(Op::Sigmoid, z), add(rest, number(1)));
    }
    default:
      return zero();  // sign, floor
  }
}

Term Differentiator::product(Op op, Ref a, Ref b, Term da, Term db) {
  if (op == Op::Mul) {
    return sum(da ? Term(mul(*da, b)) : Term(), db ? Term(mul(a, *db)) : Term());
  }
  const Term from_a = da ? Term(div(*da, b)) : Term();
  if (!db) return from_a;
  const Ref from_b = mul(div(div(a, b), b), *db);
  return from_a ? sub(*from_a, from_b) : call(Op::Neg, from_b);
}

Term Differentiator::extreme(Op op, Ref a, Ref b, Term da, Term db) {
  const auto share = [&](Ref mine, Ref other, Term d) -> Term {
    if (!d) return std::nullopt;
    const Ref half = mul(number(0.5), *d);
    const Op loses = op == Op::Min ? Op::Gt : Op::Lt;
    return select(Op::Eq, mine, other, half, select(loses, mine, other, zero(), *d));
  };
  return sum(share(a, b, da), share(b, a, db));
}

Term Differentiator::clamp(const std::array<Ref, 3>& in, const std::array<Term, 3>& d) {
  const auto [v, low, high] = in;
  Term total;
  if (d[0]) {
    total = select(Op::Ge, v, low, select(Op::Le, v, high, *d[0], zero()), zero());
  }
  if (d[1]) total = sum(total, select(Op::Lt, v, low, *d[1], zero()));
  if (d[2]) total = sum(total, select(Op::Gt, v, high, *d[2], zero()));
  return total;
}

Term Differentiator::power(Ref a, int n, Term da) {
  if (!da) return std::nullopt;
  // For negative n, a^n/a: the exponent n-1 may be beyond the language's 16.
  const Ref lower = n > 0 ? b_.power(a, n - 1) : div(b_.power(a, n), a);
  return mul(mul(number(n), lower), *da);
}

}  // namespace

Graph differentiate(const Graph& graph, Op leaf, int parameter) {
  Builder builder;
  Differentiator d(builder);
  std::vector<Ref> values;
  std::vector<Term> slopes;
  for (const Node& n : graph.nodes) {
    std::array<Ref, 3> in{-1, -1, -1};
    std::array<Term, 3> din;
    bool any = false;
    for (int k = 0; k < operand_count(n.op); ++k) {
      in[k] = values[static_cast<std::size_t>(n.operands[k])];
      din[k] = slopes[static_cast<std::size_t>(n.operands[k])];
      any = any || din[k].has_value();
    }
    const Ref value = builder.rebuild(n, in);
    values.push_back(value);
    Term slope;
    if (operand_count(n.op) == 0) {
      const bool chosen = n.op == leaf && (leaf != Op::Parameter || n.index == parameter);
      if (chosen) slope = d.number(1);
    } else if (any) {
      switch (n.op) {
        case Op::Add:
          slope = d.sum(din[0], din[1]);
          break;
        case Op::Sub:
          slope = din[0] && din[1] ? Term(d.sub(*din[0], *din[1]))
                  : din[0]         ? din[0]
                                   : Term(d.call(Op::Neg, *din[1]));
          break;
        case Op::Mul:
        case Op::Div:
          slope = d.product(n.op, in[0], in[1], din[0], din[1]);
          break;
        case Op::Powi:
          slope = d.power(in[0], n.index, din[0]);
          break;
        case Op::Min:
        case Op::Max:
          slope = d.extreme(n.op, in[0], in[1], din[0], din[1]);
          break;
        case Op::Clamp:
          slope = d.clamp(in, din);
          break;
        case Op::Where: {
          if (!din[1] && !din[2]) break;
          slope = builder.ternary(Op::Where, in[0], din[1].value_or(d.zero()),
                                  din[2].value_or(d.zero()));
          break;
        }
        case Op::Sign:
        case Op::Floor:
          break;
        default:
          if (!is_comparison(n.op)) slope = d.mul(d.slope(n.op, value, in[0]), *din[0]);
      }
    }
    slopes.push_back(slope);
  }
  const Ref result = slopes.back().value_or(d.zero());
  return builder.finish(result, graph.parameter_count, graph.gated);
}

}  // namespace flexact::activation
