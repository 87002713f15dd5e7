// The error of every vector math primitive, on every instruction set of this machine: over all
// 65,536 bf16 inputs and a dense sample of fp32 inputs, against extended precision. The bounds are
// those stated in src/cpu/vector_math.hpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cpu/tape.hpp"
#include "graph_reference.hpp"

namespace flexact::cpu {
namespace {

using activation::Graph;
using activation::Node;
using activation::Op;
using test::Real;

struct Primitive {
  Op op;
  const char* name;
  double max_ulp;
  // x times a gate: where the gate is subnormal, its grid times x is allowed as well.
  bool gated_by_itself = false;
};

// As stated over each function.
constexpr Primitive kPrimitives[] = {
    {Op::Exp, "exp", 1.1},       {Op::Exp2, "exp2", 1.1},     {Op::Expm1, "expm1", 2},
    {Op::Log, "log", 2},         {Op::Log1p, "log1p", 2},     {Op::Tanh, "tanh", 3},
    {Op::Sigmoid, "sigmoid", 3}, {Op::Erf, "erf", 2},         {Op::Softplus, "softplus", 3},
    {Op::Silu, "silu", 4, true}, {Op::Gelu, "gelu", 5, true}, {Op::GeluTanh, "gelu_tanh", 4, true},
    {Op::Rsqrt, "rsqrt", 1.5},   {Op::Sqrt, "sqrt", 0.5},     {Op::Relu, "relu", 0},
    {Op::Abs, "abs", 0},         {Op::Neg, "neg", 0},         {Op::Sign, "sign", 0},
    {Op::Floor, "floor", 0},
};

Graph unary(Op op) {
  Graph graph;
  graph.nodes = {Node{Op::Input}, Node{op, {0, -1, -1}}};
  return graph;
}

std::vector<float> sample() {
  std::vector<float> inputs;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    inputs.push_back(test::from_bf16(static_cast<std::uint16_t>(bits)));
  }
  // Dense where activations work, and every exponent.
  std::mt19937 random(1);
  std::uniform_real_distribution<float> near(-20, 20), closer(-1.5f, 1.5f), far(-110, 110);
  std::uniform_int_distribution<std::uint32_t> any;
  for (int i = 0; i < 60000; ++i) {
    inputs.push_back(near(random));
    inputs.push_back(closer(random));
    inputs.push_back(far(random));
    inputs.push_back(__builtin_bit_cast(float, any(random)));
  }
  return inputs;
}

class VectorMath : public testing::TestWithParam<Isa> {};

// Against `reference`, or the graph's own evaluation in extended precision where that is none.
void expect_error_below(Isa isa, const Graph& graph, double max_ulp, const std::string& name,
                        bool gated_by_itself = false, Real (*reference)(Real) = nullptr) {
  static const std::vector<float> inputs = sample();
  std::vector<float> outputs(inputs.size(), std::nanf("77"));
  Tape(graph, isa).run(inputs.data(), nullptr, outputs.data(), inputs.size(), nullptr);
  Real worst = 0;
  float where = 0, got = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Real exact =
        reference ? reference(inputs[i]) : test::evaluate(graph, inputs[i], 0).back();
    Real error = test::ulp_error(outputs[i], exact);
    if (gated_by_itself && std::abs(exact) < 0x1p-118L) {
      error -= std::abs(Real(inputs[i])) * 0x1p-149L / test::ulp_of(exact);
    }
    if (error > worst) {
      worst = error;
      where = inputs[i];
      got = outputs[i];
    }
  }
  if (std::getenv("FLEXACT_PRINT_ERRORS")) {
    std::printf("%-12s %-10s %.3Lf ulp at %.9g\n", name.c_str(),
                std::string(to_string(isa)).c_str(), worst, where);
  }
  EXPECT_LE(worst, max_ulp) << name << " at " << where << ": " << got << " instead of "
                            << static_cast<double>(test::evaluate(graph, where, 0).back());
}

TEST_P(VectorMath, primitives_stay_within_their_stated_error) {
  for (const Primitive& primitive : kPrimitives) {
    expect_error_below(GetParam(), unary(primitive.op), primitive.max_ulp, primitive.name,
                       primitive.gated_by_itself);
  }
}

TEST_P(VectorMath, the_gate_of_mish_stays_within_its_stated_error) {
  Graph graph;
  graph.nodes = {Node{Op::Input}, Node{Op::Softplus, {0, -1, -1}}, Node{Op::Tanh, {1, -1, -1}}};
  expect_error_below(GetParam(), graph, 3.5, "mish gate");
}

// Written as sums and differences: what cancels far from 0 must not be lost.
TEST_P(VectorMath, one_plus_or_minus_erf_and_tanh_keep_their_accuracy_in_the_tail) {
  const auto check = [](Op op, Op sum, double max_ulp, const char* name, Real (*exact)(Real)) {
    Graph graph;
    graph.nodes = {Node{Op::Constant, {-1, -1, -1}, 1.0}, Node{Op::Input}, Node{op, {1, -1, -1}},
                   Node{sum, {0, 2, -1}}};
    expect_error_below(GetParam(), graph, max_ulp, name, false, exact);
  };
  check(Op::Erf, Op::Add, 5.5, "1+erf", [](Real x) { return std::erfc(-x); });
  check(Op::Erf, Op::Sub, 5.5, "1-erf", [](Real x) { return std::erfc(x); });
  check(Op::Tanh, Op::Add, 3, "1+tanh", [](Real x) { return 2 * test::sigmoid(2 * x); });
  check(Op::Tanh, Op::Sub, 3, "1-tanh", [](Real x) { return 2 * test::sigmoid(-2 * x); });
}

TEST_P(VectorMath, a_sigmoid_of_a_product_keeps_its_accuracy_in_the_tail) {
  Graph graph;
  graph.nodes = {Node{Op::Input}, Node{Op::Constant, {-1, -1, -1}, 1.702f},
                 Node{Op::Mul, {0, 1, -1}}, Node{Op::Sigmoid, {2, -1, -1}}};
  expect_error_below(GetParam(), graph, 3, "sigmoid(1.702x)");
}

TEST_P(VectorMath, zero_keeps_its_sign_in_odd_functions) {
  for (Op op : {Op::Expm1, Op::Log1p, Op::Tanh, Op::Erf, Op::Sign, Op::Silu, Op::Gelu, Op::GeluTanh,
                Op::Sqrt, Op::Floor}) {
    const float inputs[] = {0.0f, -0.0f};
    float outputs[] = {1.0f, 1.0f};
    Tape(unary(op), GetParam()).run(inputs, nullptr, outputs, 2, nullptr);
    EXPECT_EQ(outputs[0], 0.0f);
    EXPECT_FALSE(std::signbit(outputs[0])) << static_cast<int>(op);
    EXPECT_TRUE(std::signbit(outputs[1])) << static_cast<int>(op);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, VectorMath, testing::ValuesIn(supported_isas()),
                         [](const auto& test) { return std::string(to_string(test.param)); });

}  // namespace
}  // namespace flexact::cpu
