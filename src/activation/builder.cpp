// Hash-consing with local rewriting: a node is created only where no rule applies to it, so
// building the printed text of a graph again gives the same graph.
#include "activation/builder.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <utility>

#include "activation/language.hpp"
#include "activation/numerics.hpp"

namespace flexact::activation {

namespace {

std::uint64_t mix(std::uint64_t h, std::uint64_t v) noexcept {
  h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
  return h ^ (h >> 31);
}

// Operations whose fp64 result IEEE 754 fixes to the last bit.
bool exactly_rounded(Op op) noexcept {
  switch (op) {
    case Op::Neg:
    case Op::Add:
    case Op::Sub:
    case Op::Mul:
    case Op::Div:
    case Op::Powi:
    case Op::Sqrt:
    case Op::Abs:
    case Op::Sign:
    case Op::Floor:
    case Op::Relu:
    case Op::Min:
    case Op::Max:
    case Op::Clamp:
      return true;
    default:
      return is_comparison(op);
  }
}

constexpr std::uint32_t kLargeSize = 1u << 20;

bool is_power_of_two(double v) noexcept {
  int exponent = 0;
  return std::isnormal(v) && std::isnormal(1 / v) && std::fabs(std::frexp(v, &exponent)) == 0.5;
}

}  // namespace

Builder::Ref Builder::intern(Op op, Operands operands, int index, double value) {
  std::uint64_t hash = mix(0x243f6a8885a308d3u, static_cast<std::uint64_t>(op));
  for (Ref r : operands) hash = mix(hash, r < 0 ? 0 : hashes_[static_cast<std::size_t>(r)]);
  hash = mix(hash, static_cast<std::uint64_t>(static_cast<std::int64_t>(index)));
  hash = mix(hash, std::bit_cast<std::uint64_t>(value));

  const auto [first, last] = index_.equal_range(hash);
  for (auto it = first; it != last; ++it) {
    const Node& n = node(it->second);
    if (n.op == op && n.operands == operands && n.index == index &&
        std::bit_cast<std::uint64_t>(n.value) == std::bit_cast<std::uint64_t>(value)) {
      return it->second;
    }
  }
  Reads reads = op == Op::Up                        ? Reads::Up
                : op == Op::Gate || op == Op::Input ? Reads::Input
                                                    : Reads::Nothing;
  for (Ref r : operands) {
    if (r >= 0) reads = std::max(reads, reads_[static_cast<std::size_t>(r)]);
  }
  std::uint32_t size = 1;
  for (Ref r : operands) {
    if (r >= 0) size = std::min(size + sizes_[static_cast<std::size_t>(r)], kLargeSize);
  }
  Node made;
  made.op = op;
  made.operands = operands;
  made.index = index;
  made.value = value;
  const Ref ref = static_cast<Ref>(nodes_.size());
  nodes_.push_back(made);
  hashes_.push_back(hash);
  reads_.push_back(reads);
  sizes_.push_back(size);
  index_.emplace(hash, ref);
  return ref;
}

Builder::Ref Builder::constant(double value) {
  return intern(Op::Constant, {-1, -1, -1}, 0, value);
}
Builder::Ref Builder::variable(Op leaf) {
  return intern(leaf, {-1, -1, -1});
}
Builder::Ref Builder::parameter(int index) {
  return intern(Op::Parameter, {-1, -1, -1}, index);
}

// How people write the operands of a product: constants, what is made of parameters, g or x, what
// is made of them, u, what reads u. In sums, min and max constants and parameters come last.
int Builder::rank(Ref r, Op op) const {
  const bool product = op == Op::Mul;
  const Reads reads = reads_[static_cast<std::size_t>(r)];
  if (is_constant(r)) return product ? 0 : 7;
  if (reads == Reads::Nothing) return product ? 1 : 6;
  if (is(r, Op::Gate) || is(r, Op::Input)) return 2;
  if (is(r, Op::Up)) return 4;
  return reads == Reads::Up ? 5 : 3;
}

// The order of the operands of a commutative `op`; it depends on their structure alone.
bool Builder::before(Ref a, Ref b, Op op) const {
  // An inner product or sum comes first, which saves its brackets: 0.5*x*x.
  const auto nests = [&](Ref r, Ref other) {
    const bool same =
        (op == Op::Mul && is(r, Op::Mul)) || (op == Op::Add && (is(r, Op::Add) || is(r, Op::Sub)));
    return same && !is_constant(other) &&
           reads_[static_cast<std::size_t>(r)] == reads_[static_cast<std::size_t>(other)];
  };
  if (nests(a, b) != nests(b, a)) return nests(a, b);
  if (rank(a, op) != rank(b, op)) return rank(a, op) < rank(b, op);
  const auto size = [this](Ref r) { return sizes_[static_cast<std::size_t>(r)]; };
  if (size(a) != size(b)) return size(a) < size(b);
  if (node(a).op != node(b).op) return node(a).op < node(b).op;
  if (node(a).index != node(b).index) return node(a).index < node(b).index;
  return hashes_[static_cast<std::size_t>(a)] < hashes_[static_cast<std::size_t>(b)];
}

// Folds `op` on constants. NaN is never folded into a graph: it has no spelling.
bool Builder::fold(Op op, const Operands& operands, int index, Ref& folded) {
  std::array<double, 3> values{};
  for (int i = 0; i < operand_count(op); ++i) {
    if (!is_constant(operands[i])) return false;
    values[i] = node(operands[i]).value;
  }
  if (!exactly_rounded(op) && !fold_transcendentals_) return false;
  const double value = apply(op, values[0], values[1], values[2], index);
  if (std::isnan(value)) return false;
  folded = constant(value);
  return true;
}

Builder::Ref Builder::make(Op op, Operands operands, int index) {
  const auto [a, b, c] = operands;
  if (op == Op::Where && fold_condition(a)) return *fold_condition(a) ? b : c;
  Ref folded = -1;
  if (op != Op::Where && !is_comparison(op) && fold(op, operands, index, folded)) return folded;
  switch (op) {
    case Op::Neg:
      if (is(a, Op::Neg)) return operand(a, 0);
      if (is(a, Op::Mul) && is_constant(operand(a, 0))) {
        return make_product(constant(-node(operand(a, 0)).value), operand(a, 1));
      }
      if (is(a, Op::Div) && is_constant(operand(a, 0))) {
        return make_quotient(constant(-node(operand(a, 0)).value), operand(a, 1));
      }
      break;
    case Op::Add:
    case Op::Sub:
      return make_sum(op, a, b);
    case Op::Mul:
      return make_product(a, b);
    case Op::Div:
      return make_quotient(a, b);
    case Op::Min:
    case Op::Max:
      if (before(b, a, op)) return intern(op, {b, a, -1});
      break;
    case Op::Lt:
    case Op::Le:
    case Op::Gt:
    case Op::Ge:
    case Op::Eq:
    case Op::Ne:
      return make_comparison(op, a, b);
    default:
      break;
  }
  return intern(op, operands, index);
}

// The value of a comparison of constants.
std::optional<bool> Builder::fold_condition(Ref condition) const {
  const Ref a = operand(condition, 0);
  const Ref b = operand(condition, 1);
  if (!is_constant(a) || !is_constant(b)) return std::nullopt;
  return apply(node(condition).op, node(a).value, node(b).value, 0, 0) != 0;
}

// -r where r is written with a sign: -a, -2*a, -2/a.
std::optional<Builder::Ref> Builder::without_sign(Ref r) {
  if (is(r, Op::Neg)) return operand(r, 0);
  if (!is(r, Op::Mul) && !is(r, Op::Div)) return std::nullopt;
  const Ref lead = operand(r, 0);
  if (!is_constant(lead) || !std::signbit(node(lead).value)) return std::nullopt;
  const Ref rest = operand(r, 1);
  const Ref positive = constant(-node(lead).value);
  return is(r, Op::Mul) ? make_product(positive, rest) : make_quotient(positive, rest);
}

// (+-a) + (+-b), with the signs of the operands taken out first.
Builder::Ref Builder::make_sum(Op op, Ref a, Ref b) {
  bool minus_a = false;
  bool minus_b = op == Op::Sub;
  if (const auto positive = without_sign(a)) a = *positive, minus_a = true;
  if (const auto positive = without_sign(b)) b = *positive, minus_b = !minus_b;
  if (is_constant(b) && minus_b) b = constant(-node(b).value), minus_b = false;
  if (minus_a != minus_b) return intern(Op::Sub, minus_a ? Operands{b, a, -1} : Operands{a, b, -1});
  if (before(b, a, Op::Add)) std::swap(a, b);
  if (minus_a) return intern(Op::Sub, {unary(Op::Neg, a), b, -1});
  if (is_constant(b, 0) && std::signbit(node(b).value)) return a;
  return intern(Op::Add, {a, b, -1});
}

Builder::Ref Builder::make_product(Ref a, Ref b) {
  Ref folded = -1;
  if (fold(Op::Mul, {a, b, -1}, 0, folded)) return folded;
  if (before(b, a, Op::Mul)) std::swap(a, b);
  if (is_constant(a, 1)) return b;
  if (is_constant(a, -1)) return unary(Op::Neg, b);
  if (is_constant(a) && is(b, Op::Neg)) {
    return make_product(constant(-node(a).value), operand(b, 0));
  }
  if (is(a, Op::Neg)) return unary(Op::Neg, make_product(operand(a, 0), b));
  if (is(b, Op::Neg)) return unary(Op::Neg, make_product(a, operand(b, 0)));
  if (a == b) return power(a, 2);
  for (const auto& [v, f] : {std::pair{a, b}, std::pair{b, a}}) {
    if (is(f, Op::Sigmoid) && operand(f, 0) == v) return unary(Op::Silu, v);
    Ref factor = -1;
    Ref z = -1;
    Op function = Op::Constant;
    if (!match_half_sum(v, f, factor, z, function)) continue;
    if (function == Op::Tanh) {
      const Ref gate = unary(Op::Sigmoid, make_product(constant(2), z));
      return factor < 0 ? gate : make_product(factor, gate);
    }
    Ref scaled = -1;
    if (factor >= 0 && match_scaled(z, std::numbers::sqrt2 / 2, scaled) && scaled == factor) {
      return unary(Op::Gelu, factor);
    }
  }
  return intern(Op::Mul, {a, b, -1});
}

// `half` is 0.5 or 0.5*factor (factor -1 where there is none) and `sum` is f(z)+1, f erf or tanh.
bool Builder::match_half_sum(Ref half, Ref sum, Ref& factor, Ref& z, Op& f) const {
  if (!is(sum, Op::Add) || !is_constant(operand(sum, 1), 1)) return false;
  const Ref call = operand(sum, 0);
  if (!is(call, Op::Erf) && !is(call, Op::Tanh)) return false;
  f = node(call).op;
  z = operand(call, 0);
  factor = -1;
  if (is_constant(half, 0.5)) return true;
  if (!is(half, Op::Mul) || !is_constant(operand(half, 0), 0.5)) return false;
  factor = operand(half, 1);
  return true;
}

// `product` is scale*v or v/(1/scale), up to the rounding of the constant.
bool Builder::match_scaled(Ref product, double scale, Ref& v) const {
  const auto near = [](double p, double q) { return std::fabs(p - q) <= 1e-15 * std::fabs(q); };
  if (is(product, Op::Mul) && is_constant(operand(product, 0)) &&
      near(node(operand(product, 0)).value, scale)) {
    v = operand(product, 1);
    return true;
  }
  if (is(product, Op::Div) && is_constant(operand(product, 1)) &&
      near(node(operand(product, 1)).value, 1 / scale)) {
    v = operand(product, 0);
    return true;
  }
  return false;
}

Builder::Ref Builder::make_quotient(Ref a, Ref b) {
  Ref folded = -1;
  if (fold(Op::Div, {a, b, -1}, 0, folded)) return folded;
  if (is_constant(b) && is_power_of_two(node(b).value)) {
    return make_product(constant(1 / node(b).value), a);
  }
  if (is(a, Op::Neg)) return unary(Op::Neg, make_quotient(operand(a, 0), b));
  if (is(b, Op::Neg)) return unary(Op::Neg, make_quotient(a, operand(b, 0)));
  return intern(Op::Div, {a, b, -1});
}

Builder::Ref Builder::make_comparison(Op op, Ref a, Ref b) {
  const bool symmetric = op == Op::Eq || op == Op::Ne;
  if (before(b, a, op)) {
    std::swap(a, b);
    if (!symmetric) {
      op = op == Op::Lt ? Op::Gt : op == Op::Gt ? Op::Lt : op == Op::Le ? Op::Ge : Op::Le;
    }
  }
  return intern(op, {a, b, -1});
}

Builder::Ref Builder::power(Ref a, int n) {
  if (n == 0) return constant(1);
  if (n == 1) return a;
  if (n == -1) return make_quotient(constant(1), a);
  return make(Op::Powi, {a, -1, -1}, n);
}

Builder::Ref Builder::exponential(double base, Ref y) {
  if (base == 1) return constant(1);
  if (base == 2) return unary(Op::Exp2, y);
  if (base == std::numbers::e) return unary(Op::Exp, y);
  return unary(Op::Exp, make_product(unary(Op::Log, constant(base)), y));
}

Builder::Ref Builder::from(const Ast& ast) {
  std::vector<Ref> refs(ast.exprs.size(), -1);
  for (std::size_t i = 0; i < ast.exprs.size(); ++i) {
    const Expr& expr = ast.exprs[i];
    Operands operand{-1, -1, -1};
    for (std::size_t k = 0; k < 3 && expr.operands[k] >= 0; ++k) {
      operand[k] = refs[static_cast<std::size_t>(expr.operands[k])];
    }
    switch (expr.form) {
      case Form::Number:
        refs[i] = constant(expr.value);
        break;
      case Form::Variable:
        refs[i] = variable(expr.op);
        break;
      case Form::Parameter:
        refs[i] = parameter(expr.index);
        break;
      case Form::Name:
        refs[i] = operand[0];
        break;
      case Form::Apply:
        refs[i] = make(expr.op, operand);
        break;
      case Form::Power: {
        const Expr& base = ast.exprs[static_cast<std::size_t>(expr.operands[0])];
        const Expr& exponent = ast.exprs[static_cast<std::size_t>(expr.operands[1])];
        const double n = exponent.value;
        if (exponent.constant && n == std::trunc(n) && std::fabs(n) <= kMaxExponent) {
          refs[i] = power(operand[0], static_cast<int>(n));
        } else if (exponent.constant && std::fabs(n) == 0.5) {
          refs[i] = unary(n > 0 ? Op::Sqrt : Op::Rsqrt, operand[0]);
        } else {
          refs[i] = exponential(base.value, operand[1]);
        }
      }
    }
  }
  return refs[static_cast<std::size_t>(ast.result)];
}

Builder::Ref Builder::rebuild(const Node& n, const Operands& operands) {
  switch (n.op) {
    case Op::Constant:
      return constant(n.value);
    case Op::Gate:
    case Op::Up:
    case Op::Input:
      return variable(n.op);
    case Op::Parameter:
      return parameter(n.index);
    default:
      return make(n.op, operands, n.index);
  }
}

Builder::Ref Builder::copy(const Graph& graph, Op input) {
  std::vector<Ref> refs;
  refs.reserve(graph.nodes.size());
  for (const Node& n : graph.nodes) {
    Operands operands{-1, -1, -1};
    for (int k = 0; k < operand_count(n.op); ++k) {
      operands[k] = refs[static_cast<std::size_t>(n.operands[k])];
    }
    refs.push_back(n.op == Op::Input ? variable(input) : rebuild(n, operands));
  }
  return refs.back();
}

Graph Builder::finish(Ref result, int parameter_count, bool gated) const {
  Graph graph;
  graph.parameter_count = parameter_count;
  graph.gated = gated;
  // Depth first, operands before users, without recursion.
  std::vector<std::int32_t> position(nodes_.size(), -1);
  std::vector<std::pair<Ref, int>> stack = {{result, 0}};
  while (!stack.empty()) {
    auto& [ref, next] = stack.back();
    const Node& n = node(ref);
    if (position[static_cast<std::size_t>(ref)] < 0 && next < operand_count(n.op)) {
      stack.emplace_back(n.operands[next++], 0);
      continue;
    }
    if (position[static_cast<std::size_t>(ref)] < 0) {
      Node placed = n;
      for (int k = 0; k < operand_count(n.op); ++k) {
        placed.operands[k] = position[static_cast<std::size_t>(n.operands[k])];
      }
      position[static_cast<std::size_t>(ref)] = static_cast<std::int32_t>(graph.nodes.size());
      graph.nodes.push_back(placed);
    }
    stack.pop_back();
  }
  return graph;
}

}  // namespace flexact::activation
