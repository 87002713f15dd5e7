// config.json, overrides and activation JSON as arbitrary bytes: resolved completely and the same
// way twice, or refused with a ConfigError that can be shown.
//
// The input is the config; after a line "===" the overrides, after another one the foreign stack.
#include <nlohmann/json.hpp>

#include "flexact/activation.hpp"
#include "flexact/config.hpp"
#include "fuzz.hpp"

namespace {

using namespace flexact;
using fuzz::check;

constexpr std::string_view kSeparator = "\n===\n";

std::string_view take_part(std::string_view& rest) {
  const std::size_t end = rest.find(kSeparator);
  const std::string_view part = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + kSeparator.size());
  return part;
}

bool resolves(std::string_view config, const ResolveOptions& options, ModelActivations& model) {
  try {
    model = resolve_config_text(config, options);
    return true;
  } catch (const Error& error) {
    // An unknown stack is the caller's mistake; some activations are understood, but no functions
    // of single elements.
    const bool stack = !options.from_stack.empty() && error.code() == ErrorCode::InvalidArgument;
    const bool other = stack || error.code() == ErrorCode::Unsupported;
    fuzz::check_error(error, other ? error.code() : ErrorCode::ConfigError);
    return false;
  }
}

void check_role(const ResolvedActivation& role, std::int64_t layer, const nlohmann::json& shown) {
  const Function& function = role.activation.function();
  check((function.arity() == Arity::Gated) == role.gated, "arity and gate disagree");
  check((role.pairing == Pairing::None) == !role.gated, "pairing and gate disagree");
  check(!role.from.empty(), "nothing decided");
  for (const Parameter& parameter : function.parameters())
    check(shown.at("params").contains(parameter.name), "a parameter is not shown", parameter.name);
  check(Activation::from_json(role.activation.to_json()) == role.activation,
        "the activation's own JSON reads back as another", role.activation.to_json());
  try {
    const ValueTable values = role.activation.values(layer, {0, 1});
    check(values.columns == static_cast<std::int64_t>(function.parameters().size()),
          "a wrong table");
  } catch (const Error& error) {
    fuzz::check_error(error, ErrorCode::ConfigError);
  }
}

void check_config(std::string_view config, const ResolveOptions& options) {
  ModelActivations model;
  ModelActivations again;
  const bool accepted = resolves(config, options, model);
  // Families' defaults have up to a hundred equal layers, which would only cost executions.
  if (accepted && model.layers.size() > 8) return;
  check(resolves(config, options, again) == accepted, "resolves only sometimes");
  if (!accepted) return;
  const std::string text = model.to_json();
  check(text == again.to_json(), "resolves to two things", text);
  for (const std::string& warning : model.warnings)
    check(fuzz::is_utf8(warning), "a warning that is not UTF-8", warning);
  const nlohmann::json document = nlohmann::json::parse(text);
  check(document.at("layers").size() == model.layers.size(), "layers are missing", text);
  for (std::size_t i = 0; i < std::min<std::size_t>(model.layers.size(), 4); ++i) {
    for (Role which : {Role::Routed, Role::Shared, Role::Dense}) {
      const auto& role = model.layers[i].role(which);
      const nlohmann::json& shown = document["layers"][i].at(std::string(to_string(which)));
      check(shown.is_null() == !role, "a role is missing", text);
      if (role) check_role(*role, model.layers[i].index, shown);
    }
  }
}

void check_activation(std::string_view text) {
  try {
    const Activation activation = Activation::from_json(text);
    check(Activation::from_json(activation.to_json()) == activation, "does not round-trip", text);
  } catch (const Error& error) {
    const bool expression = error.code() == ErrorCode::ExpressionError;
    fuzz::check_error(error, expression ? ErrorCode::ExpressionError : ErrorCode::ConfigError);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view config = take_part(rest);
  ResolveOptions options;
  options.overrides = take_part(rest);
  options.from_stack = take_part(rest);
  check_config(config, options);
  check_activation(config);
  return 0;
}
