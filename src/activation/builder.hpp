// Builds graphs in normal form: equal functions written in different ways become one graph wherever
// that costs no accuracy.
//
// Rules that change no bit of any value:
//   constants fold where IEEE 754 fixes the result, and never to NaN
//   x*1, x/1, x-0, x^1 → x;  x^0 → 1;  -(-x) → x;  x*x → x^2;  x/2^k → 2^-k*x
//   a-c → a+(-c);  a+(-b) → a-b;  a-(-b) → a+b;  c*(-a) → (-c)*a
//   (-a)*b, a*(-b), (-a)/b, a/(-b) → -(a*b), -(a/b)
//   one order for the operands of + * == !=; constants stand on the right of a comparison
//   where() with a constant condition → the side it selects
// Rules with a stated error:
//   min, max: one order of operands        the sign of a zero chosen among zeros of either sign
//   v*sigmoid(v) → silu(v)                 none in fp64 (the definition of silu)
//   0.5*v*(1+erf(v/sqrt(2))) → gelu(v)     removes the cancellation of 1+erf, adds nothing
//   0.5*(1+tanh(z)) → sigmoid(2*z)         removes the cancellation of 1+tanh, adds nothing
//   c^y → exp2(y), exp(y), exp(log(c)*y)   relative error at most 2^-52 (1 + |y log c|)
// Nothing else: sums and products are never re-associated, and x*0 or x-x stay.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "activation/ast.hpp"
#include "activation/graph.hpp"

namespace flexact::activation {

class Builder {
 public:
  // A node of the graph under construction.
  using Ref = std::int32_t;

  Ref constant(double value);
  Ref variable(Op leaf);
  Ref parameter(int index);
  Ref unary(Op op, Ref a) { return make(op, {a, -1, -1}); }
  Ref binary(Op op, Ref a, Ref b) { return make(op, {a, b, -1}); }
  Ref ternary(Op op, Ref a, Ref b, Ref c) { return make(op, {a, b, c}); }
  // a ^ n for any n of magnitude at most 16.
  Ref power(Ref a, int n);
  // base ^ y for a positive constant base.
  Ref exponential(double base, Ref y);

  Ref from(const Ast& ast);
  // A copy of `graph`'s result; x becomes `x` (g in a lift), everything else stays.
  Ref copy(const Graph& graph, Op input);

  // The node `n` of another graph on operands of this one.
  Ref rebuild(const Node& n, const std::array<Ref, 3>& operands);

  // Also folds what the platform's libm rounds (exp, log, …): such constants are not the same on
  // every machine, so graphs that are printed as canonical text are built without.
  void fold_transcendentals(bool on) { fold_transcendentals_ = on; }

  const Node& node(Ref ref) const { return nodes_[static_cast<std::size_t>(ref)]; }
  std::size_t size() const { return nodes_.size(); }
  // The nodes that `result` needs, in an order that depends on nothing but the function.
  Graph finish(Ref result, int parameter_count, bool gated) const;

 private:
  using Operands = std::array<Ref, 3>;
  // What a node's value depends on besides parameters.
  enum class Reads : std::uint8_t { Nothing, Input, Up };

  Ref make(Op op, Operands operands, int index = 0);
  Ref intern(Op op, Operands operands, int index = 0, double value = 0);
  bool fold(Op op, const Operands& operands, int index, Ref& folded);
  std::optional<bool> fold_condition(Ref condition) const;
  std::optional<Ref> without_sign(Ref r);
  Ref make_sum(Op op, Ref a, Ref b);
  Ref make_product(Ref a, Ref b);
  Ref make_quotient(Ref a, Ref b);
  Ref make_comparison(Op op, Ref a, Ref b);
  bool match_half_sum(Ref half, Ref sum, Ref& factor, Ref& z, Op& f) const;
  bool match_scaled(Ref product, double scale, Ref& v) const;

  bool is_constant(Ref r) const { return node(r).op == Op::Constant; }
  bool is_constant(Ref r, double v) const { return is_constant(r) && node(r).value == v; }
  bool is(Ref r, Op op) const { return node(r).op == op; }
  Ref operand(Ref r, int i) const { return node(r).operands[i]; }
  bool before(Ref a, Ref b, Op op) const;
  int rank(Ref r, Op op) const;

  std::vector<Node> nodes_;
  std::vector<std::uint64_t> hashes_;  // of structure, the same on every machine
  std::vector<Reads> reads_;
  std::vector<std::uint32_t> sizes_;  // of the expression written out, saturating
  std::unordered_multimap<std::uint64_t, Ref> index_;
  bool fold_transcendentals_ = false;
};

}  // namespace flexact::activation
