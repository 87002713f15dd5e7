// eval: fp64 reference values of a function, or of what one layer of a model runs.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ostream>

#include "cli/checkpoint.hpp"
#include "cli/commands.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact::cli {

namespace {

[[noreturn]] void fail(const std::string& message, const std::string& hint = {}) {
  throw Error(ErrorCode::InvalidArgument, message, {}, hint);
}

// "%.17g", with one spelling for NaN.
std::string format_value(double value) {
  if (std::isnan(value)) return "nan";
  std::array<char, 40> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.17g", value);
  return buffer.data();
}

// Element i of a list, where a list of one stands for any number.
double at(const std::vector<double>& list, std::size_t i) {
  return list.size() == 1 ? list[0] : list[i];
}

void print_values(const Function& function, const std::vector<double>& parameters,
                  const EvalOptions& options, std::ostream& out) {
  if (function.arity() == Arity::Unary) {
    for (double x : parse_numbers(*options.x, "--x")) {
      out << format_value(function.reference(x, parameters)) << "\n";
    }
    return;
  }
  const std::vector<double> g = parse_numbers(*options.g, "--g");
  const std::vector<double> u = parse_numbers(*options.u, "--u");
  if (g.size() != u.size() && g.size() != 1 && u.size() != 1) {
    fail("--g has " + std::to_string(g.size()) + " values and --u has " + std::to_string(u.size()),
         "lists of equal length, or one value for all");
  }
  for (std::size_t i = 0; i < std::max(g.size(), u.size()); ++i) {
    out << format_value(function.reference(at(g, i), at(u, i), parameters)) << "\n";
  }
}

// The values of one layer and expert; warns where the model's own are not at hand.
std::vector<double> values_of(const Activation& activation, std::int64_t layer, std::int64_t expert,
                              const TensorReader& tensors, std::ostream& err) {
  std::vector<std::string> missing;
  const ValueTable table = activation.values(layer, {expert, expert + 1}, tensors, &missing);
  for (const std::string& name : missing) {
    err << "warning: '" << name << "' is learned by the model; its initial value is used\n";
  }
  return table.data;
}

void check_inputs(const EvalOptions& options) {
  const bool gated = options.g || options.u;
  if (gated && options.x)
    fail("--x beside --g or --u", "a unary function takes --x, a gated one --g and --u");
  if (gated && !(options.g && options.u)) fail(options.g ? "--g without --u" : "--u without --g");
  if (!gated && !options.x) fail("no inputs", "--x V[,V...], or --g V[,V...] --u V[,V...]");
}

bool differs_by_expert(const ParameterValue& value) {
  if (value.kind() == ParameterValue::Kind::PerExpert) return true;
  return std::any_of(value.elements().begin(), value.elements().end(), differs_by_expert);
}

void eval_layer(const EvalOptions& options, std::ostream& out, std::ostream& err) {
  if (!options.function.name.empty() || !options.function.expression.empty() ||
      !options.function.parameters.empty()) {
    fail("--config says what to evaluate; NAME, --expr and -p do not go with it");
  }
  if (!options.layer || options.role.empty()) fail("--config needs --layer and --role");
  const Role role = parse_role(options.role);
  const ModelActivations model = resolve_config(
      options.config,
      ResolveOptions{.overrides = options.overrides, .from_stack = options.function.stack});
  for (const std::string& warning : model.warnings) err << "warning: " << warning << "\n";

  const std::int64_t layer = *options.layer;
  const auto found = std::find_if(model.layers.begin(), model.layers.end(),
                                  [&](const LayerActivations& l) { return l.index == layer; });
  if (model.layers.empty() || layer < 0 || (model.layers_known && found == model.layers.end())) {
    fail("there is no layer " + std::to_string(layer),
         model.layers.empty() ? "the model has no layers"
                              : "layers are 0 to " + std::to_string(model.layers.back().index));
  }
  const LayerActivations& chosen = found != model.layers.end() ? *found : model.layers.front();
  const auto& resolved = chosen.role(role);
  if (!resolved) fail("layer " + std::to_string(layer) + " has no " + options.role + " activation");

  const Activation& activation = resolved->activation;
  const bool by_expert =
      std::any_of(activation.binding().begin(), activation.binding().end(),
                  [](const auto& entry) { return differs_by_expert(entry.second); });
  if (by_expert && !options.expert) fail("values differ by expert", "give --expert E");
  if (options.expert && *options.expert < 0) fail("experts count from 0");
  const bool gated = activation.function().arity() == Arity::Gated;
  if (gated != options.g.has_value()) {
    fail(gated ? "this layer is gated" : "this layer is unary",
         gated ? "give --g and --u" : "give --x");
  }
  print_values(activation.function(),
               values_of(activation, layer, options.expert.value_or(0),
                         checkpoint_reader(options.config), err),
               options, out);
}

}  // namespace

void eval(const EvalOptions& options, std::ostream& out, std::ostream& err) {
  check_inputs(options);
  if (!options.config.empty()) return eval_layer(options, out, err);
  if (options.layer || !options.role.empty() || options.expert || !options.overrides.empty()) {
    fail("--layer, --role, --expert and --set go with --config");
  }
  const Activation activation = choose(options.function, options.g.has_value());
  const Function& function = activation.function();
  if (function.arity() == Arity::Gated && !options.g) {
    fail("'" + function.name() + "' is gated", "give --g and --u");
  }
  print_values(function, values_of(activation, 0, 0, nullptr, err), options, out);
}

}  // namespace flexact::cli
