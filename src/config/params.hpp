// activation_params: a function's name and the values of its parameters, with the forms that give a
// value a scope (per_layer, per_expert, tensor, and a split by role).
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>

#include "config/section.hpp"
#include "flexact/activation.hpp"

namespace flexact::config {

// What activation_params says about one role.
struct RoleParams {
  bool given = false;                   // anything at all
  Found name;                           // "name", where present
  Found expr;                           // "expr", where present
  std::map<std::string, Found> values;  // the other keys, as they are spelled
  std::string pointer;
};

struct ActivationParams {
  bool given = false;
  std::string pointer;
  std::array<RoleParams, 3> roles;  // by Role

  const RoleParams& of(Role role) const { return roles[static_cast<std::size_t>(role)]; }
};

// Reads the object and splits it by role. {} and null are absent.
ActivationParams read_activation_params(const Found& found);

// What the scope of a value is resolved against.
struct Scope {
  Role role = Role::Routed;
  bool has_routed = true;               // the model has routed experts
  std::optional<std::int64_t> layers;   // none: undetermined
  std::optional<std::int64_t> experts;  // none: undetermined
  const Section* section = nullptr;     // for the length check
  Warnings* warnings = nullptr;
};

// Checks one value with all its forms: types, the domain, lengths, where each form may stand.
void check_value(const Found& value, const Parameter& parameter, const Scope& scope);
// The value for the role in `layer` (nullopt: the forms over layers are kept); nullopt where a form
// leaves this role out.
std::optional<ParameterValue> pick_value(const Found& value, const Scope& scope,
                                         std::optional<std::int64_t> layer);

}  // namespace flexact::config
