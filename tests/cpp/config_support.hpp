// What the tests of config resolution share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact::config_test {

inline ModelActivations resolve(std::string_view text, std::string overrides = {},
                                std::string from_stack = {}) {
  return resolve_config_text(text, {std::move(overrides), std::move(from_stack)});
}

// A config of a family with the members `rest`, without braces.
inline std::string config(std::string_view model_type, std::string_view rest = {}) {
  std::string text = "{\"model_type\": \"" + std::string(model_type) + '"';
  if (!rest.empty()) text += ", " + std::string(rest);
  return text + '}';
}

inline std::string all_warnings(const ModelActivations& model) {
  std::string text;
  for (const std::string& warning : model.warnings) text += warning + '\n';
  return text;
}

inline bool warns(const ModelActivations& model, std::string_view part) {
  return std::any_of(model.warnings.begin(), model.warnings.end(), [&](const std::string& warning) {
    return warning.find(part) != std::string::npos;
  });
}

// The fp64 value that a role of a layer computes.
inline double value(const ModelActivations& model, std::int64_t layer, Role role, double g,
                    double u, std::int64_t expert = 0) {
  const auto& resolved = model.layers.at(static_cast<std::size_t>(layer)).role(role);
  if (!resolved) {
    ADD_FAILURE() << "layer " << layer << " has no " << to_string(role);
    return 0;
  }
  const ValueTable table = resolved->activation.values(layer, {expert, expert + 1});
  return resolved->gated ? resolved->activation.function().reference(g, u, table.data)
                         : resolved->activation.function().reference(g, table.data);
}

inline const ResolvedActivation& role(const ModelActivations& model, std::int64_t layer,
                                      Role which) {
  return model.layers.at(static_cast<std::size_t>(layer)).role(which).value();
}

// The call is refused with this JSON pointer, and what() has `part`.
// A configuration that is wrong, or a family that no one function describes.
inline bool is_refusal(const Error& error) {
  return error.code() == ErrorCode::ConfigError || error.code() == ErrorCode::Unsupported;
}

inline void expect_refused(std::string_view text, std::string_view pointer,
                           std::string_view part = {}, std::string overrides = {},
                           std::string from_stack = {}, ErrorCode code = ErrorCode::ConfigError) {
  try {
    const ModelActivations model = resolve(text, std::move(overrides), std::move(from_stack));
    FAIL() << text << "\naccepted: " << model.to_json();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(error.where(), pointer) << text << '\n' << error.what();
    EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << error.what();
  }
}

inline void expect_quiet(const ModelActivations& model) {
  EXPECT_TRUE(model.warnings.empty()) << all_warnings(model);
}

// References written out independently of the library's expressions.
double sigmoid(double x);
double silu(double x);
double gelu(double x);
double gelu_tanh(double x);
double swish(double x, double beta);
double clamp(double x, double lo, double hi);

inline constexpr double kTolerance = 1e-12;

}  // namespace flexact::config_test
