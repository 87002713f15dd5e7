// Every function of the catalogue on every instruction set over all 65,536 bf16 inputs (gated:
// every g against a fixed set of u), by the numerics contract: at most one bf16 ulp of the exact
// result or 2^-14, whichever is larger; NaN and infinities as the reference has them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "cpu/tape.hpp"
#include "flexact/activation.hpp"
#include "graph_reference.hpp"
#include "sample_values.hpp"

namespace flexact::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Within the range of trained models, at clamp limits, large, tiny and special.
const float kUps[] = {1.0f,    -0.75f, 3.140625f, -7.0f,  0.0f,      -0.0f, 96.0f,
                      -640.0f, 1e-3f,  65504.0f,  1e-38f, kInfinity, NAN};

struct Sweep {
  std::vector<float> g, u;
  std::vector<double> exact;
  // Where the formula passes through numbers beyond fp32 (or, with infinite u, below its normal
  // range), no fp32 evaluation can follow it; the result may then be infinite or NaN.
  std::vector<bool> beyond_fp32;
};

bool passes_beyond_fp32(const Function& function, float g, float u,
                        const std::vector<float>& parameters) {
  for (test::Real value : test::evaluate(function.graph(), g, u, parameters)) {
    if (std::isfinite(value) && test::overflows_fp32(value)) return true;
    if (std::isinf(u) && value != 0 && std::abs(value) < 0x1p-120L) return true;
  }
  return false;
}

Sweep sweep_of(const Function& function, const std::vector<float>& parameters) {
  const std::vector<double> values(parameters.begin(), parameters.end());
  Sweep sweep;
  const bool gated = function.arity() == Arity::Gated;
  for (float u : kUps) {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      const float g = test::from_bf16(static_cast<std::uint16_t>(bits));
      sweep.g.push_back(g);
      sweep.u.push_back(u);
      sweep.exact.push_back(gated ? function.reference(g, u, values)
                                  : function.reference(g, values));
      // Only extreme inputs can; the check is slow.
      const bool extreme = std::abs(g) > 0x1p18f || std::abs(u) > 0x1p18f;
      sweep.beyond_fp32.push_back(extreme && passes_beyond_fp32(function, g, u, parameters));
    }
    if (!gated) break;
  }
  return sweep;
}

// Empty where `actual` satisfies the contract, else what is wrong.
std::string violation(float actual, double exact, bool finite_inputs) {
  if (std::isnan(exact)) return std::isnan(actual) ? "" : "must be NaN";
  if (std::isinf(exact)) return actual == static_cast<float>(exact) ? "" : "must be infinite";
  const double largest = std::numeric_limits<float>::max();
  if (std::abs(exact) > largest) return std::isinf(actual) ? "" : "must overflow";
  if (std::isnan(actual)) return finite_inputs ? "NaN out of numbers" : "NaN instead of a number";
  const double allowed = std::max(test::bf16_ulp(exact), 0x1p-14);
  return std::abs(static_cast<double>(actual) - exact) <= allowed ? "" : "error above the contract";
}

class CatalogueOnTape : public testing::TestWithParam<std::string> {};

TEST_P(CatalogueOnTape, all_bf16_inputs_satisfy_the_numerics_contract) {
  const Function function = ActivationRegistry::instance().get_function(GetParam());
  for (const std::vector<float>& parameters : test::sample_parameters(function, 3)) {
    const Sweep sweep = sweep_of(function, parameters);
    for (Isa isa : supported_isas()) {
      const Tape tape(function.graph(), isa);
      std::vector<float> y(sweep.g.size(), -12345.0f);
      tape.run(sweep.g.data(), sweep.u.data(), y.data(), y.size(), parameters.data());
      test::Real worst = 0;
      int reported = 0;
      for (std::size_t i = 0; i < y.size() && reported < 3; ++i) {
        const float g = sweep.g[i], u = function.arity() == Arity::Gated ? sweep.u[i] : 0.0f;
        if (sweep.beyond_fp32[i] && !std::isfinite(y[i])) continue;
        const std::string wrong =
            violation(y[i], sweep.exact[i], std::isfinite(g) && std::isfinite(u));
        if (!wrong.empty()) {
          ADD_FAILURE() << GetParam() << " on " << to_string(isa) << " at g = " << g
                        << ", u = " << u << ": " << y[i] << " instead of " << sweep.exact[i] << ": "
                        << wrong << "\n"
                        << testing::PrintToString(parameters) << "\n"
                        << tape.to_string();
          ++reported;
        }
        if (std::isfinite(sweep.exact[i]) && std::abs(sweep.exact[i]) > 0x1p-14) {
          worst = std::max(worst, test::ulp_error(y[i], sweep.exact[i]));
        }
      }
      if (std::getenv("FLEXACT_PRINT_ERRORS")) {
        std::printf("%-22s %-10s %9.2Lf fp32 ulp\n", GetParam().c_str(),
                    std::string(to_string(isa)).c_str(), worst);
        if (isa == Isa::Scalar)
          std::printf("%s\n%s", function.formula().c_str(), tape.to_string().c_str());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, CatalogueOnTape,
                         testing::ValuesIn(ActivationRegistry::instance().list()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace flexact::cpu
