// The exact value of a graph's formula, to fp32 accuracy and far beyond: every node in 240 bits,
// so that no sum of the catalogue cancels to less than a double holds. Independent of the library:
// MPFR computes every operation.
#pragma once

#include <mpfr.h>

#include <cstdint>
#include <vector>

#include "activation/graph.hpp"
#include "graph_reference.hpp"

namespace flexact::test {

class ExactEvaluation {
 public:
  explicit ExactEvaluation(const activation::Graph& graph) : graph_(graph) {
    values_.resize(graph.nodes.size());
    for (auto& value : values_) mpfr_init2(&value, kBits);
    mpfr_inits2(kBits, a_, b_, nullptr);
    for (const activation::Node& node : graph.nodes) {
      unsigned reads = node.op == activation::Op::Gate || node.op == activation::Op::Input ? kGate
                       : node.op == activation::Op::Up                                     ? kUp
                                                                                           : 0;
      for (std::int32_t operand : node.operands) {
        if (operand >= 0) reads |= reads_[static_cast<std::size_t>(operand)];
      }
      reads_.push_back(reads);
    }
  }
  ~ExactEvaluation() {
    for (auto& value : values_) mpfr_clear(&value);
    mpfr_clears(a_, b_, nullptr);
  }
  ExactEvaluation(const ExactEvaluation&) = delete;
  ExactEvaluation& operator=(const ExactEvaluation&) = delete;

  void set_parameters(const std::vector<float>& parameters) {
    parameters_ = parameters;
    update(0, true);
  }
  void set_gate(float g) {
    g_ = g;
    update(kGate, false);
  }
  void set_up(float u) {
    u_ = u;
    update(kUp, false);
  }
  Real result() const { return mpfr_get_ld(&values_.back(), MPFR_RNDN); }

 private:
  static constexpr mpfr_prec_t kBits = 240;
  static constexpr unsigned kGate = 1, kUp = 2;

  // Recomputes the nodes that depend on `input`, or those that depend on none.
  void update(unsigned input, bool uniform) {
    for (std::size_t i = 0; i < values_.size(); ++i) {
      if (uniform ? reads_[i] == 0 : (reads_[i] & input) != 0) compute(i);
    }
  }

  void compute(std::size_t index) {
    using activation::Op;
    const activation::Node& node = graph_.nodes[index];
    mpfr_ptr r = &values_[index];
    const auto in = [&](int k) -> mpfr_srcptr {
      return &values_[static_cast<std::size_t>(node.operands[k])];
    };
    const auto constant = [&](double value) { mpfr_set_d(r, value, MPFR_RNDN); };
    constexpr auto kNearest = MPFR_RNDN;
    switch (node.op) {
      case Op::Constant:
        return constant(node.value);
      case Op::Gate:
      case Op::Input:
        return constant(g_);
      case Op::Up:
        return constant(u_);
      case Op::Parameter:
        return constant(parameters_[static_cast<std::size_t>(node.index)]);
      case Op::Neg:
        mpfr_neg(r, in(0), kNearest);
        return;
      case Op::Add:
        mpfr_add(r, in(0), in(1), kNearest);
        return;
      case Op::Sub:
        mpfr_sub(r, in(0), in(1), kNearest);
        return;
      case Op::Mul:
        mpfr_mul(r, in(0), in(1), kNearest);
        return;
      case Op::Div:
        mpfr_div(r, in(0), in(1), kNearest);
        return;
      case Op::Powi:
        mpfr_pow_si(r, in(0), node.index, kNearest);
        return;
      case Op::Exp:
        mpfr_exp(r, in(0), kNearest);
        return;
      case Op::Exp2:
        mpfr_exp2(r, in(0), kNearest);
        return;
      case Op::Expm1:
        mpfr_expm1(r, in(0), kNearest);
        return;
      case Op::Log:
        mpfr_log(r, in(0), kNearest);
        return;
      case Op::Log1p:
        mpfr_log1p(r, in(0), kNearest);
        return;
      case Op::Sqrt:
        mpfr_sqrt(r, in(0), kNearest);
        return;
      case Op::Rsqrt:
        mpfr_rec_sqrt(r, in(0), kNearest);
        return;
      case Op::Abs:
        mpfr_abs(r, in(0), kNearest);
        return;
      case Op::Sign:
        return constant(mpfr_sgn(in(0)));
      case Op::Floor:
        mpfr_floor(r, in(0));
        return;
      case Op::Tanh:
        mpfr_tanh(r, in(0), kNearest);
        return;
      case Op::Sigmoid:
        return sigmoid(r, in(0));
      case Op::Erf:
        mpfr_erf(r, in(0), kNearest);
        return;
      case Op::Softplus:
        // log(1 + e^a) = max(a, 0) + log1p(e^-|a|)
        mpfr_abs(a_, in(0), kNearest);
        mpfr_neg(a_, a_, kNearest);
        mpfr_exp(a_, a_, kNearest);
        mpfr_log1p(r, a_, kNearest);
        if (mpfr_sgn(in(0)) > 0) mpfr_add(r, r, in(0), kNearest);
        return;
      case Op::Relu:
        mpfr_set(r, in(0), kNearest);
        if (mpfr_sgn(in(0)) < 0) constant(0);
        return;
      case Op::Silu:
        sigmoid(b_, in(0));
        mpfr_mul(r, in(0), b_, kNearest);
        return;
      case Op::Gelu:
        // a/2 * erfc(-a / sqrt 2)
        mpfr_sqrt_ui(a_, 2, kNearest);
        mpfr_div(a_, in(0), a_, kNearest);
        mpfr_neg(a_, a_, kNearest);
        mpfr_erfc(a_, a_, kNearest);
        mpfr_mul(a_, a_, in(0), kNearest);
        mpfr_div_ui(r, a_, 2, kNearest);
        return;
      case Op::GeluTanh:
        // a/2 * (1 + tanh(sqrt(2/pi) * (a + 0.044715 a^3)))
        mpfr_sqr(b_, in(0), kNearest);
        mpfr_mul_d(b_, b_, 0.044715, kNearest);
        mpfr_add_ui(b_, b_, 1, kNearest);
        mpfr_mul(b_, b_, in(0), kNearest);
        mpfr_const_pi(a_, kNearest);
        mpfr_ui_div(a_, 2, a_, kNearest);
        mpfr_sqrt(a_, a_, kNearest);
        mpfr_mul(b_, b_, a_, kNearest);
        mpfr_tanh(b_, b_, kNearest);
        mpfr_add_ui(b_, b_, 1, kNearest);
        mpfr_mul(b_, b_, in(0), kNearest);
        mpfr_div_ui(r, b_, 2, kNearest);
        return;
      case Op::Min:
        mpfr_min(r, in(0), in(1), kNearest);
        return;
      case Op::Max:
        mpfr_max(r, in(0), in(1), kNearest);
        return;
      case Op::Clamp:
        mpfr_max(r, in(0), in(1), kNearest);
        mpfr_min(r, r, in(2), kNearest);
        return;
      case Op::Lt:
        return constant(mpfr_less_p(in(0), in(1)));
      case Op::Le:
        return constant(mpfr_lessequal_p(in(0), in(1)));
      case Op::Gt:
        return constant(mpfr_greater_p(in(0), in(1)));
      case Op::Ge:
        return constant(mpfr_greaterequal_p(in(0), in(1)));
      case Op::Eq:
        return constant(mpfr_equal_p(in(0), in(1)));
      case Op::Ne:
        return constant(!mpfr_equal_p(in(0), in(1)));
      case Op::Where:
        mpfr_set(r, mpfr_zero_p(in(0)) ? in(2) : in(1), kNearest);
        return;
    }
  }

  void sigmoid(mpfr_ptr r, mpfr_srcptr x) {
    mpfr_neg(a_, x, MPFR_RNDN);
    mpfr_exp(a_, a_, MPFR_RNDN);
    mpfr_add_ui(a_, a_, 1, MPFR_RNDN);
    mpfr_ui_div(r, 1, a_, MPFR_RNDN);
  }

  const activation::Graph& graph_;
  std::vector<__mpfr_struct> values_;
  std::vector<unsigned> reads_;
  std::vector<float> parameters_;
  float g_ = 0, u_ = 0;
  mpfr_t a_, b_;
};

}  // namespace flexact::test
