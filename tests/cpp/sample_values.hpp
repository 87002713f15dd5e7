// Parameter values to test a function with: chosen from each parameter's default and domain, so
// that a new row of the catalogue is tested without naming it anywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "flexact/activation.hpp"

namespace flexact::test {

// A number inside the domain, spread over the part of it that models use.
inline double sample_in(const Domain& domain, std::mt19937& random) {
  const double low = std::isinf(domain.min) ? -2.0 : domain.min;
  const double high =
      std::isinf(domain.max) ? std::max(low, 0.0) + (low >= 0 ? 10.0 : 2.0) : domain.max;
  const double margin = (high - low) / 16;  // keeps off an end that may be excluded
  return std::uniform_real_distribution<double>(low + margin, high - margin)(random);
}

// The first set holds defaults (else initial values, else sampled ones), the others are sampled.
// All numbers are fp32, as kernels read them.
inline std::vector<std::vector<float>> sample_parameters(const Function& function, int sets) {
  std::mt19937 random(static_cast<std::uint32_t>(std::hash<Function>{}(function)));
  std::vector<std::vector<float>> result;
  for (int set = 0; set < sets; ++set) {
    std::vector<float> values;
    for (const Parameter& parameter : function.parameters()) {
      double value = sample_in(parameter.domain, random);
      if (set == 0 && parameter.initial_value) value = *parameter.initial_value;
      if (set == 0 && parameter.default_value) value = *parameter.default_value;
      values.push_back(static_cast<float>(value));
    }
    result.push_back(std::move(values));
    if (function.parameters().empty()) break;
  }
  return result;
}

// The spacing of bf16 numbers at `exact`.
inline double bf16_ulp(double exact) {
  const double magnitude = std::abs(exact);
  if (!(magnitude > 0x1p-126)) return 0x1p-133;
  return std::ldexp(1.0, std::ilogb(magnitude) - 7);
}

}  // namespace flexact::test
