// Random configs: what is accepted is complete and consistent, and nothing but an Error comes out
// of what is not.
#include <gtest/gtest.h>

// rapidcheck/gtest.h needs GoogleTest before it.
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "config/family.hpp"
#include "config_support.hpp"

namespace flexact::config_test {
namespace {

using nlohmann::json;

template <typename T>
const T& pick(const std::vector<T>& from) {
  return from[*rc::gen::inRange<std::size_t>(0, from.size())];
}

std::string random_model_type() {
  const auto& table = config::families();
  const auto* family = table[*rc::gen::inRange<std::size_t>(0, table.size())];
  return std::string(pick(family->model_types));
}

// A value for any key: mostly of a plausible kind.
json random_value(int depth) {
  static const std::vector<std::string> names = {"silu",     "swish", "gelu", "relu2",
                                                 "gelu_new", "expr",  "situ", "swiglu_oai",
                                                 "nonsense", "",      "SiLU"};
  switch (*rc::gen::inRange(0, depth > 0 ? 12 : 8)) {
    case 0:
      return nullptr;
    case 1:
      return *rc::gen::arbitrary<bool>();
    case 2:
      return *rc::gen::inRange(-2, 12);
    case 3:
      return *rc::gen::inRange(-20, 200) / 8.0;
    case 4:
    case 5:
      return pick(names);
    case 6:
      return *rc::gen::arbitrary<std::int64_t>();
    case 7:
      return "model.layers.{layer}.x";
    case 8:
    case 9: {
      json list = json::array();
      const int n = *rc::gen::inRange(0, 6);
      for (int i = 0; i < n; ++i) list.push_back(random_value(depth - 1));
      return list;
    }
    default: {
      static const std::vector<std::string> forms = {"per_layer", "per_expert", "tensor", "routed",
                                                     "shared",    "dense",      "beta",   "alpha",
                                                     "name",      "expr",       "limit"};
      json object = json::object();
      const int n = *rc::gen::inRange(0, 3);
      for (int i = 0; i < n; ++i) object[pick(forms)] = random_value(depth - 1);
      return object;
    }
  }
}

const std::vector<std::string>& known_keys() {
  static const std::vector<std::string> keys = {"hidden_act",
                                                "hidden_activation",
                                                "activation_function",
                                                "activation_params",
                                                "swiglu_limit",
                                                "swiglu_limits",
                                                "swiglu_alpha",
                                                "text_config",
                                                "thinker_config",
                                                "num_hidden_layers",
                                                "n_layer",
                                                "num_layers",
                                                "num_local_experts",
                                                "num_experts",
                                                "mlp_layer_types",
                                                "moe_layers_enum",
                                                "first_k_dense_replace",
                                                "feed_forward_proj",
                                                "dense_act_fn",
                                                "is_gated_act",
                                                "mlp_bias",
                                                "ffn_config",
                                                "hybrid_override_pattern",
                                                "layers_block_type",
                                                "activation_situ_beta",
                                                "mlp_gate_softcap",
                                                "activation_sparsity_pattern",
                                                "expert_swiglu_limit_list",
                                                "num_nextn_predict_layers",
                                                "encoder",
                                                "decoder",
                                                "moe_layer_freq",
                                                "model_type"};
  return keys;
}

json random_config() {
  json object = {{"model_type", random_model_type()}};
  const int n = *rc::gen::inRange(0, 5);
  for (int i = 0; i < n; ++i) object[pick(known_keys())] = random_value(3);
  return object;
}

// Resolves; false where it is refused with a proper Error.
bool survives(const std::string& text, const std::string& overrides, ModelActivations& model) {
  try {
    model = resolve(text, overrides);
    return true;
  } catch (const Error& error) {
    RC_ASSERT(is_refusal(error));
    RC_ASSERT(!std::string(error.what()).empty());
    return false;
  }
}

// What an answer promises: JSON of the documented form, and values for every layer.
void expect_complete(const ModelActivations& model) {
  const json document = json::parse(model.to_json());
  RC_ASSERT(document.at("layers").size() == model.layers.size());
  RC_ASSERT(document.at("warnings").size() == model.warnings.size());
  for (const LayerActivations& layer : model.layers) {
    RC_ASSERT(document["layers"][static_cast<std::size_t>(layer.index)].at("index") == layer.index);
    for (Role which : {Role::Routed, Role::Shared, Role::Dense}) {
      const auto& resolved = layer.role(which);
      const json& shown = document["layers"][static_cast<std::size_t>(layer.index)].at(
          std::string(to_string(which)));
      RC_ASSERT(shown.is_null() == !resolved.has_value());
      if (!resolved) continue;
      RC_ASSERT(!resolved->from.empty());
      RC_ASSERT((resolved->pairing == Pairing::None) == !resolved->gated);
      RC_ASSERT((resolved->activation.function().arity() == Arity::Gated) == resolved->gated);
      // The formula is a formula of the expression language and the same function.
      const Function& function = resolved->activation.function();
      RC_ASSERT(Function::expression(function.formula(), function.parameters()).canonical() ==
                function.canonical());
      for (const Parameter& parameter : function.parameters())
        RC_ASSERT(shown.at("params").contains(parameter.name));
    }
  }
}

RC_GTEST_PROP(ConfigProperty, random_configs_resolve_completely_or_are_refused, ()) {
  const json object = random_config();
  ModelActivations model;
  if (survives(object.dump(), *rc::gen::arbitrary<bool>() ? random_config().dump() : "", model))
    expect_complete(model);
}

// A family's own defaults with a β of any scope: accepted wherever the role reads a name.
RC_GTEST_PROP(ConfigProperty, resolving_is_repeatable_and_ignores_unrelated_keys, ()) {
  json object = random_config();
  ModelActivations first;
  const bool accepted = survives(object.dump(), "", first);
  object["zz_" + std::to_string(*rc::gen::inRange(0, 1000))] = {{"torch_dtype", "bfloat16"},
                                                                {"x", {1, 2, 3}}};
  ModelActivations second;
  RC_ASSERT(survives(object.dump(), "", second) == accepted);
  if (accepted) RC_ASSERT(first.to_json() == second.to_json());
}

RC_GTEST_PROP(ConfigProperty, an_override_equals_the_merged_file, ()) {
  const json base = {{"model_type", random_model_type()}};
  json over = json::object();
  for (int i = *rc::gen::inRange(0, 3); i > 0; --i) {
    const std::string key = pick(known_keys());
    if (key != "activation_params") over[key] = random_value(2);
  }
  json merged = base;
  merged.merge_patch(json::object());
  for (const auto& [key, value] : over.items()) merged[key] = value;
  ModelActivations a;
  ModelActivations b;
  const bool accepted = survives(base.dump(), over.dump(), a);
  RC_ASSERT(survives(merged.dump(), "", b) == accepted);
  if (accepted) RC_ASSERT(a.to_json() == b.to_json());
}

RC_GTEST_PROP(ConfigProperty, damaged_text_never_crashes, ()) {
  std::string text = random_config().dump();
  const int edits = *rc::gen::inRange(1, 6);
  for (int i = 0; i < edits && !text.empty(); ++i) {
    const std::size_t at = *rc::gen::inRange<std::size_t>(0, text.size());
    switch (*rc::gen::inRange(0, 5)) {
      case 0:
        text.erase(at, 1);
        break;
      case 1:
        text[at] = static_cast<char>(*rc::gen::inRange(0, 256));
        break;
      case 2:
        text.insert(at, 1, static_cast<char>(*rc::gen::inRange(0, 256)));
        break;
      case 3:
        text.insert(at, text.substr(at, static_cast<std::size_t>(*rc::gen::inRange(0, 20))));
        break;
      default:
        text.resize(at);
        break;
    }
  }
  ModelActivations model;
  if (survives(text, "", model)) expect_complete(model);
}

RC_GTEST_PROP(ConfigProperty, a_beta_for_any_family_is_what_its_layers_compute, ()) {
  const double beta = *rc::gen::inRange(-30, 30) / 8.0;
  const json object = {{"model_type", random_model_type()}};
  const json over = {{"activation_params", {{"name", "swish"}, {"beta", beta}}}};
  ModelActivations model;
  if (!survives(object.dump(), over.dump(), model)) return;  // refused families
  for (const LayerActivations& layer : model.layers) {
    for (Role which : {Role::Routed, Role::Shared, Role::Dense}) {
      const auto& resolved = layer.role(which);
      if (!resolved) continue;
      const double want = swish(0.75, beta) * (resolved->gated ? 2.0 : 1.0);
      RC_ASSERT(std::abs(value(model, layer.index, which, 0.75, 2.0) - want) < 1e-12);
    }
  }
}

}  // namespace
}  // namespace flexact::config_test
