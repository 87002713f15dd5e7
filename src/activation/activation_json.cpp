// Activations as JSON, as they stand under activation_params.
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "activation/binding.hpp"
#include "activation/language.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {

namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void fail(const std::string& message, const std::string& where,
                       const std::string& hint = {}) {
  throw Error(ErrorCode::ConfigError, message, where, hint);
}

std::string escaped(const std::string& key) {
  std::string pointer;
  for (char c : key) pointer += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return pointer;
}

template <typename AnyJson>
ParameterValue parse(const AnyJson& json, const std::string& where) {
  if (json.is_number()) return ParameterValue(json.template get<double>());
  if (!json.is_object()) {
    fail(std::string("a ") + json.type_name() + " where a number belongs", where,
         "a number, or one of {\"per_layer\": […]}, {\"per_expert\": […]}, {\"tensor\": \"…\"}");
  }
  if (json.size() != 1) fail("a value form has exactly one key", where);
  const std::string key = json.begin().key();
  const AnyJson& content = json.begin().value();
  const std::string at = where + "/" + escaped(key);
  if (key == "tensor") {
    if (!content.is_string()) fail("a tensor is given by its name", at);
    return ParameterValue::tensor(content.template get<std::string>());
  }
  if (key != "per_layer" && key != "per_expert") {
    fail("unknown value form '" + key + "'", at, "per_layer, per_expert, tensor");
  }
  if (!content.is_array()) fail("'" + key + "' is a list of values", at);
  std::vector<ParameterValue> elements;
  for (std::size_t i = 0; i < content.size(); ++i) {
    elements.push_back(parse(content[i], at + "/" + std::to_string(i)));
  }
  return key == "per_layer" ? ParameterValue::per_layer(std::move(elements))
                            : ParameterValue::per_expert(std::move(elements));
}

// Parses strictly: one value, no comments, depth at most 128, no key twice in one object.
Json parse_strictly(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  const Json::parser_callback_t watch = [&keys](int depth, Json::parse_event_t event,
                                                Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      if (depth > 128) fail("JSON nests deeper than 128 levels", {});
      keys.emplace_back();
    } else if (event == Json::parse_event_t::array_start) {
      if (depth > 128) fail("JSON nests deeper than 128 levels", {});
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const std::string key = parsed.get<std::string>();
      if (!keys.back().insert(key).second) fail("key '" + key + "' appears twice", {});
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& e) {
    fail(std::string("not JSON: ") + e.what(), {});
  }
}

std::string text_of(const Json& json, const std::string& where) {
  if (!json.is_string()) fail("a text is expected", where);
  return json.get<std::string>();
}

}  // namespace

namespace activation {

ParameterValue parse_value(const nlohmann::ordered_json& json, const std::string& where) {
  return parse(json, where);
}

ParameterValue parse_value(const nlohmann::json& json, const std::string& where) {
  return parse(json, where);
}

nlohmann::ordered_json value_to_json(const ParameterValue& value) {
  const auto list = [&value] {
    Json elements = Json::array();
    for (const ParameterValue& element : value.elements())
      elements.push_back(value_to_json(element));
    return elements;
  };
  switch (value.kind()) {
    case ParameterValue::Kind::Scalar:
      return value.scalar();
    case ParameterValue::Kind::PerLayer:
      return {{"per_layer", list()}};
    case ParameterValue::Kind::PerExpert:
      return {{"per_expert", list()}};
    case ParameterValue::Kind::Tensor:
      return {{"tensor", value.tensor_name()}};
  }
  return nullptr;
}

}  // namespace activation

// Beside the parameters, an activation's JSON has one of "name", "expr" or "canonical" (a text,
// which no parameter's value is), and "gated": true where a unary function is lifted.
Activation Activation::from_json(std::string_view json) {
  const Json object = parse_strictly(json);
  if (!object.is_object()) fail("an activation is a JSON object", {});
  std::optional<std::string> name;
  std::optional<Function> function;
  bool lifted = false;
  Binding binding;
  const auto take_function = [&](const std::string& where, auto make) {
    if (function || name) fail("more than one of 'name', 'expr' and 'canonical'", where);
    try {
      make();
    } catch (const Error& e) {
      throw Error(e.code(), e.message(), e.where().empty() ? where : where + ", " + e.where(),
                  e.hint());
    }
  };
  for (const auto& [key, value] : object.items()) {
    const std::string where = "/" + escaped(key);
    const std::string text = key == "name" || key == "expr" ? text_of(value, where) : std::string();
    if (key == "name") {
      take_function(where, [&] { ActivationRegistry::instance().get_function(text), name = text; });
    } else if (key == "expr") {
      take_function(where, [&] { function = Function::expression(text); });
    } else if (key == "canonical" && value.is_string()) {
      const std::string canonical = value.get<std::string>();
      take_function(where, [&] { function = Function::from_canonical(canonical); });
    } else if (key == "gated" && value.is_boolean()) {
      lifted = value.get<bool>();
    } else {
      binding.emplace(key, activation::parse_value(value, where));
    }
  }
  if (!function && !name) fail("neither 'name' nor 'expr' is given", {});
  Activation made = name ? ActivationRegistry::instance().get_activation(*name, binding)
                         : Activation(std::move(*function), std::move(binding));
  return lifted ? made.gated() : made;
}

std::string Activation::to_json() const {
  Json object = Json::object();
  const ActivationRegistry& registry = ActivationRegistry::instance();
  const auto named = [&]() -> std::optional<Function> {
    const std::vector<std::string> names = registry.list();
    for (const std::string& name : names) {
      if (name == function_.name()) return registry.get_function(name);
    }
    return std::nullopt;
  }();
  if (named && *named == function_) {
    object["name"] = function_.name();
  } else if (named && named->gated() == function_) {
    object["name"] = function_.name();
    object["gated"] = true;
  } else {
    object["canonical"] = function_.canonical();
  }
  for (const Parameter& parameter : function_.parameters()) {
    const auto bound = binding_.find(parameter.name);
    if (bound != binding_.end()) object[parameter.name] = activation::value_to_json(bound->second);
  }
  return object.dump();
}

}  // namespace flexact
