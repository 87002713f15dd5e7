// explain: what every layer of a model computes, and which key says so.
#include <fmt/format.h>

#include <array>
#include <ostream>

#include "activation/language.hpp"
#include "cli/commands.hpp"
#include "flexact/config.hpp"

namespace flexact::cli {

namespace {

std::string value_text(const ParameterValue& value) {
  switch (value.kind()) {
    case ParameterValue::Kind::Scalar:
      return activation::number_text(value.scalar());
    case ParameterValue::Kind::Tensor:
      return "tensor " + value.tensor_name();
    case ParameterValue::Kind::PerLayer:
      return fmt::format("one for each of {} layers", value.elements().size());
    case ParameterValue::Kind::PerExpert:
      return fmt::format("one for each of {} experts", value.elements().size());
  }
  return {};
}

// The value that holds in `layer`, where it differs by layer.
const ParameterValue& in_layer(const ParameterValue& value, std::int64_t layer) {
  const auto index = static_cast<std::size_t>(layer);
  const bool listed =
      value.kind() == ParameterValue::Kind::PerLayer && index < value.elements().size();
  return listed ? value.elements()[index] : value;
}

// What a layer's role computes, on one line.
std::string describe(const ResolvedActivation& role, std::int64_t layer) {
  std::string text = fmt::format("{}  {}", role.name, role.activation.function().formula());
  for (const auto& [name, value] : role.activation.binding()) {
    text += fmt::format("  {}={}", name, value_text(in_layer(value, layer)));
  }
  text += role.gated ? fmt::format("  [{}", to_string(role.pairing)) : std::string("  [unary");
  if (role.transposed) text += ", transposed";
  if (role.bias) text += ", bias";
  return text + fmt::format("]  from {}", role.from);
}

}  // namespace

void explain(const ExplainOptions& options, std::ostream& out, std::ostream& err) {
  const ModelActivations model = resolve_config(
      options.path, ResolveOptions{.overrides = options.overrides, .from_stack = options.stack});
  if (options.json) {
    out << model.to_json(2) << "\n";
    return;
  }
  for (const std::string& warning : model.warnings) err << "warning: " << warning << "\n";
  out << (model.model_type.empty() ? "unknown model type" : model.model_type) << ", "
      << (model.layers_known
              ? fmt::format("{} layer{}", model.layers.size(), model.layers.size() == 1 ? "" : "s")
              : "layer count unknown")
      << "\n";

  // Runs of layers that say the same share a line.
  for (const Role role : {Role::Routed, Role::Shared, Role::Dense}) {
    for (std::size_t i = 0; i < model.layers.size();) {
      const auto text = [&](std::size_t k) {
        const LayerActivations& layer = model.layers[k];
        return layer.role(role) ? describe(*layer.role(role), layer.index) : std::string();
      };
      const std::string first = text(i);
      std::size_t end = i + 1;
      while (end < model.layers.size() && text(end) == first) ++end;
      if (!first.empty()) {
        const std::int64_t from = model.layers[i].index;
        const std::int64_t to = model.layers[end - 1].index;
        const std::string range = !model.layers_known ? "all"
                                  : from == to        ? std::to_string(from)
                                                      : fmt::format("{}-{}", from, to);
        out << fmt::format("  {:<7} {:<7} {}\n", to_string(role), range, first);
      }
      i = end;
    }
  }
}

}  // namespace flexact::cli
