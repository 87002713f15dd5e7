// FLEXACT_NUMERICS=precise: every function of the catalogue on every instruction set, over all
// finite bf16 inputs (gated: against several u), is within 0.6 fp32 ulp of the formula's exact
// value. Measured through the whole block, whose weights are ones so that it returns the
// activation.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/backend.hpp"
#include "cpu/tape.hpp"
#include "cpu_moe_case.hpp"
#include "exact_evaluation.hpp"
#include "flexact/activation.hpp"
#include "graph_reference.hpp"
#include "sample_values.hpp"

namespace flexact::cpu {
namespace {

// Ordinary, the zero of u + 1, beyond the limits of clamps, small.
const float kUps[] = {1.0f, -1.0078125f, -640.0f, 1e-3f};

std::vector<float> finite_bf16() {
#if defined(__SANITIZE_THREAD__)
  constexpr std::uint32_t kStep = 61;  // a build that looks for races needs no more
#else
  constexpr std::uint32_t kStep = 1;
#endif
  std::vector<float> values;
  for (std::uint32_t bits = 0; bits < 65536; bits += kStep) {
    const float x = test::from_bf16(static_cast<std::uint16_t>(bits));
    if (std::isfinite(x)) values.push_back(x);
  }
  return values;
}

// One expert whose gate is the first hidden value, whose up is the second, and whose output is the
// activation.
std::vector<float> block_of_ones(const Function& function, const std::vector<float>& parameters,
                                 const std::vector<float>& g, float u, Isa isa, Numerics numerics) {
  const bool gated = function.arity() == Arity::Gated;
  MoeProblem problem;
  problem.experts = problem.top_k = problem.intermediate = 1;
  problem.hidden = 2;
  problem.format = Format::Fp32;
  problem.io_dtype = DType::Float32;
  problem.pairing = gated ? Pairing::Concat : Pairing::None;
  const std::vector<float> w13 = {1, 0, 0, 1}, w2 = {1, 1};
  MoeWeights weights;
  weights.w13 = testing::view(w13.data(), DType::Float32, {1, gated ? 2 : 1, 2});
  weights.w2 = testing::view(w2.data(), DType::Float32, {1, 2, 1});
  const auto plan = make_moe_plan(problem, function, weights, {isa, numerics, nullptr});

  const auto tokens = static_cast<std::int64_t>(g.size());
  std::vector<float> hidden;
  for (const float value : g) hidden.insert(hidden.end(), {value, u});
  const std::vector<float> router(g.size(), 1.0f);
  const std::vector<std::int32_t> ids(g.size(), 0);
  std::vector<float> output(2 * g.size(), -12345.0f);
  MoeInputs inputs;
  inputs.tokens = tokens;
  inputs.hidden_states = testing::view(hidden.data(), DType::Float32, {tokens, 2});
  inputs.topk_weights = testing::view(router.data(), DType::Float32, {tokens, 1});
  inputs.topk_ids = testing::view(ids.data(), DType::Int32, {tokens, 1});
  inputs.output = output.data();
  const std::size_t bytes = plan->workspace_bytes(tokens);
  std::vector<std::byte> memory(bytes + 64);
  void* workspace = memory.data();
  std::size_t room = memory.size();
  std::align(64, bytes, workspace, room);
  const ParameterTable values{parameters.data(), 1, static_cast<std::int64_t>(parameters.size())};
  plan->run(inputs, values, workspace, bytes, nullptr);
  std::vector<float> y;
  for (std::size_t i = 0; i < output.size(); i += 2) y.push_back(output[i]);
  return y;
}

class PreciseOnBlock : public ::testing::TestWithParam<std::string> {};

TEST_P(PreciseOnBlock, all_finite_bf16_inputs_are_within_six_tenths_of_an_ulp_of_the_exact_value) {
  const Function function = ActivationRegistry::instance().get_function(GetParam());
  const bool gated = function.arity() == Arity::Gated;
  const std::vector<float> parameters = test::sample_parameters(function, 1)[0];
  const std::vector<float> g = finite_bf16();
  const std::size_t ups = gated ? std::size(kUps) : 1;

  std::vector<std::vector<test::Real>> exact(ups);
  test::ExactEvaluation evaluation(function.graph());
  evaluation.set_parameters(parameters);
  for (const float value : g) {
    evaluation.set_gate(value);
    for (std::size_t i = 0; i < ups; ++i) {
      if (gated) evaluation.set_up(kUps[i]);
      exact[i].push_back(evaluation.result());
    }
  }

  for (const Isa isa : supported_isas()) {
    test::Real worst = 0;
    for (std::size_t i = 0; i < ups; ++i) {
      const std::vector<float> y =
          block_of_ones(function, parameters, g, kUps[i], isa, Numerics::Precise);
      int reported = 0;
      for (std::size_t j = 0; j < g.size() && reported < 3; ++j) {
        const test::Real error = test::ulp_error(y[j], exact[i][j]);
        worst = std::max(worst, error);
        if (!(error <= 0.6L)) {
          ADD_FAILURE() << to_string(isa) << " at g = " << g[j] << ", u = " << kUps[i] << ": "
                        << y[j] << " is " << error << " ulp from " << exact[i][j];
          ++reported;
        }
      }
    }
    if (std::getenv("FLEXACT_PRINT_ERRORS")) {
      std::printf("%-22s %-10s %9.4Lf fp32 ulp\n", GetParam().c_str(),
                  std::string(to_string(isa)).c_str(), worst);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, PreciseOnBlock,
                         ::testing::ValuesIn(ActivationRegistry::instance().list()),
                         [](const auto& test) { return test.param; });

// Far below 0, 1 + erf multiplies the rounding of its argument.
TEST(PreciseNumerics, differ_from_fast_where_a_formula_cancels) {
  const Function laplace = Function::named("laplace");
  const std::vector<float> g = {-1.0f};
  const float fast = block_of_ones(laplace, {}, g, 0, Isa::Scalar, Numerics::Fast)[0];
  const float precise = block_of_ones(laplace, {}, g, 0, Isa::Scalar, Numerics::Precise)[0];
  EXPECT_NE(fast, precise);
  EXPECT_FLOAT_EQ(precise, 7.1737261e-10f);
}

TEST(PreciseNumerics, have_the_language_s_special_values) {
  const float inputs[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f};
  for (const std::string& name : ActivationRegistry::instance().list()) {
    const Function function = Function::named(name);
    const std::vector<float> parameters = test::sample_parameters(function, 1)[0];
    const std::vector<double> wide(parameters.begin(), parameters.end());
    for (const float g : inputs) {
      for (const float u : {1.0f, -2.0f, INFINITY, NAN}) {
        float y = -12345.0f;
        Tape(function.graph(), Isa::Scalar, Arithmetic::Fp64).run(&g, &u, &y, 1, parameters.data());
        const double expected = function.arity() == Arity::Gated ? function.reference(g, u, wide)
                                                                 : function.reference(g, wide);
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(y)) << name << " at " << g << ", " << u << ": " << y;
        } else {
          EXPECT_FLOAT_EQ(y, static_cast<float>(expected)) << name << " at " << g << ", " << u;
        }
      }
    }
  }
}

// Dense MLPs read the same switch.
TEST(PreciseNumerics, hold_for_act_and_mul) {
  const Function laplace = Function::named("laplace");
  const float x[] = {-1.0f, -0.5f, 0.25f};
  float y[3] = {};
  setenv("FLEXACT_NUMERICS", "precise", 1);
  act_and_mul(laplace, ParameterTable{nullptr, 1, 0}, Pairing::None, DType::Float32, 1, 3, x, 3, y,
              3);
  unsetenv("FLEXACT_NUMERICS");
  float expected[3] = {};
  Tape(laplace.graph(), Isa::Scalar, Arithmetic::Fp64).run(x, nullptr, expected, 3, nullptr);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(y[i], expected[i]);
}

}  // namespace
}  // namespace flexact::cpu
