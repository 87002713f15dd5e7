#include "config/params.hpp"

#include <algorithm>
#include <cmath>

namespace flexact::config {

namespace {

constexpr std::array<std::string_view, 3> kRoles = {"routed", "shared", "dense"};
constexpr std::string_view kForms =
    R"(a number, {"per_layer": […]}, {"per_expert": […]}, {"tensor": "…"} or {"routed": …, "shared": …, "dense": …})";

// Every layer holds its own copy of such a list.
constexpr std::size_t kMaxExpertValues = 1'000'000;

// As long as any checkpoint has, and short enough to be searched again and again.
constexpr std::size_t kMaxTensorName = 512;

bool is_role(std::string_view key) {
  return std::find(kRoles.begin(), kRoles.end(), key) != kRoles.end();
}

Found member(const Found& object, std::string_view key) {
  return {object.value->find(key), json::join(object.pointer, key)};
}

// Adds the keys of `object` to one role's parameters.
void collect(RoleParams& role, const Found& object) {
  for (const auto& [key, value] : *object.value->object()) {
    if (is_role(key)) continue;
    Found found{&value, json::join(object.pointer, key)};
    role.given = true;
    Found* slot = key == "name" ? &role.name : key == "expr" ? &role.expr : nullptr;
    if (slot == nullptr) {
      const auto [at, fresh] = role.values.emplace(key, found);
      if (!fresh) {
        throw config_error("the parameter is given for all roles and for this one", found.pointer,
                           "keep one of them");
      }
      continue;
    }
    if (*slot) {
      throw config_error("the " + key + " is given for all roles and for this one", found.pointer,
                         "keep one of them");
    }
    *slot = std::move(found);
  }
}

const std::string& text_of(const Found& found, std::string_view what) {
  const std::string* text = found.value->string();
  if (text == nullptr) {
    throw config_error("expected " + std::string(what) + ", found " + json::described(*found.value),
                       found.pointer);
  }
  if (text->empty()) throw config_error("is empty", found.pointer, "expected " + std::string(what));
  return *text;
}

// A tensor's name in the checkpoint: never a path into the file system.
void check_tensor(const Found& found) {
  const std::string& name = text_of(found, "the name of a checkpoint tensor");
  const bool plain =
      name.size() <= kMaxTensorName && name.find_first_of("/\\") == std::string::npos &&
      name.find("..") == std::string::npos &&
      std::all_of(name.begin(), name.end(), [](char c) { return c > 0x20 && c < 0x7F; });
  if (!plain) {
    throw config_error(json::quote(name) + " is not the name of a checkpoint tensor", found.pointer,
                       "a name such as model.layers.{layer}.mlp.act_fn.alpha_p of at most 512 "
                       "characters; paths are "
                       "not allowed");
  }
  std::string rest = name;
  for (std::size_t at = 0; (at = rest.find("{layer}", at)) != std::string::npos;) rest.erase(at, 7);
  if (rest.find_first_of("{}") != std::string::npos) {
    throw config_error("the only placeholder is {layer}", found.pointer, json::quote(name));
  }
}

// The one form that an object is.
struct Form {
  enum Kind { PerLayer, PerExpert, Tensor, Roles } kind;
  Found content;  // the list or the name; Roles: the object itself
};

Form form_of(const Found& value) {
  const json::Object& members = *value.value->object();
  const auto only = [&](std::string_view key) {
    return members.size() == 1 && members.front().first == key;
  };
  if (only("per_layer")) return {Form::PerLayer, member(value, "per_layer")};
  if (only("per_expert")) return {Form::PerExpert, member(value, "per_expert")};
  if (only("tensor")) return {Form::Tensor, member(value, "tensor")};
  const bool roles =
      !members.empty() &&
      std::all_of(members.begin(), members.end(), [](const auto& m) { return is_role(m.first); });
  if (roles) return {Form::Roles, value};
  throw config_error("is not the value of a parameter: " + json::brief(*value.value), value.pointer,
                     std::string(kForms));
}

const json::Array& list_of(const Found& content) {
  const json::Array* list = content.value->array();
  if (list == nullptr)
    throw config_error("expected a list, found " + std::string(content.value->type_name()),
                       content.pointer);
  if (list->empty()) throw config_error("the list is empty", content.pointer);
  return *list;
}

// What surrounds a form; a form may not stand inside another of its own kind.
struct Inside {
  bool layer = false;
  bool expert = false;
  std::optional<Role> role = std::nullopt;
};

class Checker {
 public:
  Checker(const Parameter& parameter, const Scope& scope) : parameter_(parameter), scope_(scope) {}

  void check(const Found& found, Inside inside) const {
    if (found.value->object()) {
      form(form_of(found), inside);
      return;
    }
    if (found.value->array()) {
      throw config_error("a list must say what it runs over", found.pointer,
                         R"({"per_layer": […]} or {"per_expert": […]})");
    }
    const json::Number* number = found.value->number();
    if (number == nullptr) {
      throw config_error("expected a number, found " + json::described(*found.value), found.pointer,
                         std::string(kForms));
    }
    if (!parameter_.domain.contains(number->value)) {
      throw config_error(
          parameter_.name + " is " + json::brief(*found.value) + ", which is outside its domain",
          found.pointer, parameter_.domain.to_string());
    }
  }

 private:
  void form(const Form& form, Inside inside) const {
    const std::string& where = form.content.pointer;
    switch (form.kind) {
      case Form::PerLayer: {
        const json::Array& list = list_of(form.content);
        if (inside.layer) throw config_error("per_layer stands inside per_layer", where);
        inside.layer = true;
        if (scope_.layers)
          check_layer_list(list.size(), *scope_.layers, *scope_.section, where, *scope_.warnings);
        each(list, where, inside);
        return;
      }
      case Form::PerExpert: {
        const json::Array& list = list_of(form.content);
        if (inside.expert) throw config_error("per_expert stands inside per_expert", where);
        if (!scope_.has_routed || inside.role.value_or(Role::Routed) != Role::Routed) {
          throw config_error("per_expert holds for routed experts only", where,
                             scope_.has_routed ? "give the other roles their own value"
                                               : "this model has no routed experts");
        }
        inside.expert = true;
        if (scope_.layers &&
            list.size() * static_cast<std::size_t>(*scope_.layers) > kMaxExpertValues) {
          throw config_error("the list has more entries over all layers than any model has experts",
                             where);
        }
        const auto size = static_cast<std::int64_t>(list.size());
        if (scope_.experts && size != *scope_.experts) {
          throw config_error("the list has " + std::to_string(size) + " entries for " +
                                 std::to_string(*scope_.experts) + " experts",
                             where, "one entry for each logical expert of the whole model");
        }
        each(list, where, inside);
        return;
      }
      case Form::Tensor:
        check_tensor(form.content);
        return;
      case Form::Roles:
        if (inside.role) throw config_error("a split by role stands inside another", where);
        for (std::size_t i = 0; i < kRoles.size(); ++i) {
          const Found part = member(form.content, kRoles[i]);
          inside.role = static_cast<Role>(i);
          if (part) check(part, inside);
        }
    }
  }

  void each(const json::Array& list, const std::string& where, const Inside& inside) const {
    for (std::size_t i = 0; i < list.size(); ++i) check({&list[i], json::join(where, i)}, inside);
  }

  const Parameter& parameter_;
  const Scope& scope_;
};

}  // namespace

ActivationParams read_activation_params(const Found& found) {
  ActivationParams params;
  params.pointer = found.pointer;
  if (!found || found.value->is_null()) return params;
  const json::Object* object = found.value->object();
  if (object == nullptr) {
    throw config_error("expected an object, found " + json::described(*found.value), found.pointer,
                       R"(for example {"beta": 1.5})");
  }
  if (object->empty()) return params;
  params.given = true;
  for (std::size_t i = 0; i < kRoles.size(); ++i) {
    RoleParams& role = params.roles[i];
    role.pointer = found.pointer;
    collect(role, found);
    const Found own = member(found, kRoles[i]);
    if (!own) continue;
    if (own.value->object() == nullptr) {
      throw config_error(
          "expected an object of parameters, found " + std::string(own.value->type_name()),
          own.pointer);
    }
    for (std::string_view key : kRoles) {
      if (member(own, key))
        throw config_error("a split by role stands inside another", json::join(own.pointer, key));
    }
    role.pointer = own.pointer;
    collect(role, own);
  }
  for (const RoleParams& role : params.roles) {
    if (role.name) text_of(role.name, "the name of an activation");
    if (role.expr) text_of(role.expr, "an expression");
  }
  return params;
}

void check_value(const Found& value, const Parameter& parameter, const Scope& scope) {
  Checker(parameter, scope).check(value, {});
}

std::optional<ParameterValue> pick_value(const Found& value, const Scope& scope,
                                         std::optional<std::int64_t> layer) {
  if (const json::Number* number = value.value->number()) return ParameterValue(number->value);
  const Form form = form_of(value);
  const auto pick_all = [&](const json::Array& list) -> std::optional<std::vector<ParameterValue>> {
    std::vector<ParameterValue> values;
    for (std::size_t i = 0; i < list.size(); ++i) {
      auto one = pick_value({&list[i], json::join(form.content.pointer, i)}, scope, layer);
      if (!one) return std::nullopt;
      values.push_back(std::move(*one));
    }
    return values;
  };
  switch (form.kind) {
    case Form::PerLayer: {
      const json::Array& list = *form.content.value->array();
      if (layer) {
        const auto i = static_cast<std::size_t>(*layer);
        return pick_value({&list[i], json::join(form.content.pointer, i)}, scope, layer);
      }
      auto values = pick_all(list);
      if (!values) return std::nullopt;
      return ParameterValue::per_layer(std::move(*values));
    }
    case Form::PerExpert: {
      if (scope.role != Role::Routed) return std::nullopt;
      auto values = pick_all(*form.content.value->array());
      if (!values) return std::nullopt;
      return ParameterValue::per_expert(std::move(*values));
    }
    case Form::Tensor: {
      std::string name = *form.content.value->string();
      if (layer) {
        const std::string number = std::to_string(*layer);
        for (std::size_t at = 0; (at = name.find("{layer}", at)) != std::string::npos;)
          name.replace(at, 7, number);
      }
      return ParameterValue::tensor(std::move(name));
    }
    case Form::Roles: {
      const Found own = member(form.content, kRoles[static_cast<std::size_t>(scope.role)]);
      if (!own) return std::nullopt;
      return pick_value(own, scope, layer);
    }
  }
  return std::nullopt;
}

}  // namespace flexact::config
