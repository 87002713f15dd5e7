// What a resolved config is to its reader: names of pairings and roles, and the JSON of `explain`.
#include <nlohmann/json.hpp>

#include "activation/binding.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact {

namespace {

constexpr Pairing kPairings[] = {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved,
                                 Pairing::Separate, Pairing::None};
constexpr Role kRoles[] = {Role::Routed, Role::Shared, Role::Dense};

nlohmann::ordered_json role_json(const std::optional<ResolvedActivation>& role,
                                 const LayerActivations& layer) {
  if (!role) return nullptr;
  const Function& function = role->activation.function();
  nlohmann::ordered_json params = nlohmann::ordered_json::object();
  for (const Parameter& parameter : function.parameters()) {
    const auto bound = role->activation.binding().find(parameter.name);
    if (bound == role->activation.binding().end()) {
      params[parameter.name] = parameter.default_value.value_or(0);
      continue;
    }
    // What runs in this layer: lists over layers show this layer's entry, other lists are lists.
    const auto shown = [&](const auto& self,
                           const ParameterValue& value) -> nlohmann::ordered_json {
      switch (value.kind()) {
        case ParameterValue::Kind::Scalar:
          return value.scalar();
        case ParameterValue::Kind::Tensor:
          return activation::value_to_json(value);
        case ParameterValue::Kind::PerLayer:
          return self(self, value.elements().at(static_cast<std::size_t>(layer.index)));
        case ParameterValue::Kind::PerExpert:
          break;
      }
      nlohmann::ordered_json list = nlohmann::ordered_json::array();
      for (const ParameterValue& element : value.elements()) list.push_back(self(self, element));
      return list;
    };
    params[parameter.name] = shown(shown, bound->second);
  }
  return {{"name", role->name},
          {"formula", function.formula()},
          {"params", std::move(params)},
          {"gated", role->gated},
          {"pairing", to_string(role->pairing)},
          {"transposed", role->transposed},
          {"from", role->from}};
}

}  // namespace

std::string_view to_string(Pairing pairing) noexcept {
  switch (pairing) {
    case Pairing::Concat:
      return "concat";
    case Pairing::UpFirst:
      return "up_first";
    case Pairing::Interleaved:
      return "interleaved";
    case Pairing::Separate:
      return "separate";
    case Pairing::None:
      return "none";
  }
  return "unknown";
}

std::string_view to_string(Role role) noexcept {
  switch (role) {
    case Role::Routed:
      return "routed";
    case Role::Shared:
      return "shared";
    case Role::Dense:
      return "dense";
  }
  return "unknown";
}

Pairing parse_pairing(std::string_view text) {
  for (Pairing pairing : kPairings) {
    if (to_string(pairing) == text) return pairing;
  }
  throw Error(ErrorCode::InvalidArgument, "unknown pairing '" + std::string(text) + "'", {},
              "concat, up_first, interleaved, separate or none");
}

Role parse_role(std::string_view text) {
  for (Role role : kRoles) {
    if (to_string(role) == text) return role;
  }
  throw Error(ErrorCode::InvalidArgument, "unknown role '" + std::string(text) + "'", {},
              "routed, shared or dense");
}

const std::optional<ResolvedActivation>& LayerActivations::role(Role role) const noexcept {
  static const std::optional<ResolvedActivation> none;
  switch (role) {
    case Role::Routed:
      return routed;
    case Role::Shared:
      return shared;
    case Role::Dense:
      return dense;
  }
  return none;
}

std::string ModelActivations::to_json(int indent) const {
  nlohmann::ordered_json document;
  document["model_type"] = model_type;
  document["layers"] = nlohmann::ordered_json::array();
  for (const LayerActivations& layer : layers) {
    document["layers"].push_back({{"index", layer.index},
                                  {"routed", role_json(layer.routed, layer)},
                                  {"shared", role_json(layer.shared, layer)},
                                  {"dense", role_json(layer.dense, layer)}});
  }
  document["warnings"] = warnings;
  return document.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace flexact
