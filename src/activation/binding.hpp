// Questions about parameters and their values that other rooms ask.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flexact/activation.hpp"

namespace flexact::activation {

// The parameter of this name or alias; null where there is none.
const Parameter* find_parameter(const std::vector<Parameter>& parameters, std::string_view name);

// Throws ConfigError where a clamp's bounds cross under these parameter values.
void check_clamps(const Function& function, std::span<const double> values);

// A number or a scope form (per_layer, per_expert, tensor, nested; not the split by role). Throws
// ConfigError with the JSON pointer `where`, extended.
ParameterValue parse_value(const nlohmann::ordered_json& json, const std::string& where);
ParameterValue parse_value(const nlohmann::json& json, const std::string& where);

// The inverse of parse_value().
nlohmann::ordered_json value_to_json(const ParameterValue& value);

}  // namespace flexact::activation
