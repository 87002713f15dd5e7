// From a config's text to activations: read it, merge the overrides, find the text model and its
// family, resolve each role of each layer, and judge every activation key that nobody read.
#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <set>
#include <unordered_map>

#include "config/formula.hpp"
#include "config/keys.hpp"
#include "config/names.hpp"

namespace flexact {
namespace config {
namespace {

constexpr std::string_view kParams = "activation_params";
constexpr std::array<Role, 3> kRoles = {Role::Routed, Role::Shared, Role::Dense};

// ---- overrides
// --------------------------------------------------------------------------------------

// Objects merge key by key, everything else replaces; activation_params is one thing and replaces.
void merge(json::Value& base, const json::Value& over) {
  json::Object& members = *base.object();
  // The views stay valid: nothing is moved while they are used.
  members.reserve(members.size() + over.object()->size());
  std::unordered_map<std::string_view, json::Value*> index;
  for (auto& [key, value] : members) index.emplace(key, &value);
  for (const auto& [key, value] : *over.object()) {
    const auto present = index.find(key);
    if (present == index.end()) {
      members.emplace_back(key, value);
    } else if (key != kParams && present->second->object() && value.object()) {
      merge(*present->second, value);
    } else {
      *present->second = value;
    }
  }
}

// ---- the text model
// ---------------------------------------------------------------------------------

const json::Value& empty_object() {
  static const json::Value value{json::Object{}};
  return value;
}

// The text model of a config: its section(s) and family, and the levels passed on the way.
struct TextModel {
  std::vector<std::string_view> path;  // from the root to the text model's object
  std::vector<Section> outer;          // levels above, the root first
  std::optional<Section> section;
  const Family* family = nullptr;  // null: unknown
  std::string model_type;          // the family's, for messages
  // The number of layers where a wrapper says so and the config nothing.
  std::optional<std::int64_t> default_layers;
};

const std::string* model_type_of(const json::Value& object, const std::string& pointer) {
  const json::Value* value = object.find("model_type");
  if (value == nullptr || value->is_null()) return nullptr;
  if (value->string() == nullptr) {
    throw config_error("expected a string, found " + json::described(*value),
                       json::join(pointer, "model_type"));
  }
  return value->string();
}

const Family* family_of_architectures(const json::Value& root) {
  const json::Value* value = root.find("architectures");
  if (value == nullptr || value->array() == nullptr) return nullptr;
  for (const json::Value& name : *value->array()) {
    if (name.string() == nullptr) continue;
    if (const Family* family = find_family_of_architecture(*name.string())) return family;
  }
  return nullptr;
}

// Where models keep their text model's config, for wrappers that no row knows.
constexpr std::array<std::string_view, 4> kTextKeys = {"text_config", "language_config",
                                                       "llm_config", "thinker_config"};

Section descend(TextModel& model, const Section& from, std::string_view key, bool& missing) {
  model.outer.push_back(from);
  model.path.push_back(key);
  const json::Value* value = from.object().find(key);
  const std::string pointer = json::join(from.pointer(), key);
  missing = value == nullptr || value->is_null();
  if (missing) return {empty_object(), pointer};
  if (value->object() == nullptr) {
    throw config_error("expected an object, found " + json::described(*value), pointer);
  }
  return {*value, pointer};
}

// From `section` on; `fallback` is the model type where the section does not say one.
TextModel find_text_model(Section section, std::string_view fallback, Warnings& warnings) {
  TextModel model;
  const std::string* stated = model_type_of(section.object(), section.pointer());
  std::string type = stated ? *stated : std::string(fallback);
  const Family* family = find_family(type);
  if (const Family* published = family_of_architectures(section.object())) {
    family = published;
    if (stated == nullptr) type = std::string(published->model_types.front());
  }
  constexpr int kMaxWrappers = 4;
  for (int depth = 0; depth < kMaxWrappers; ++depth) {
    if (family == nullptr) {
      // An unknown wrapper around a text model.
      const auto key = std::find_if(kTextKeys.begin(), kTextKeys.end(), [&](std::string_view k) {
        const json::Value* value = section.object().find(k);
        return value != nullptr && value->object() != nullptr;
      });
      if (key == kTextKeys.end()) break;
      bool missing = false;
      section = descend(model, section, *key, missing);
      const std::string* inner = model_type_of(section.object(), section.pointer());
      type = inner ? *inner : "";
      family = find_family(type);
      continue;
    }
    if (family->text.empty()) break;
    const Family* wrapper = family;
    bool missing = false;
    if (wrapper->flat && section.object().find(wrapper->text.front()) == nullptr) {
      type = std::string(wrapper->inner);
      family = find_family(type);
      break;
    }
    // Published Qwen3-ASR puts everything one level deeper than its class in transformers does.
    constexpr std::string_view kThinker = "thinker_config";
    const json::Value* thinker = section.object().find(kThinker);
    if (section.object().find(wrapper->text.front()) == nullptr && thinker != nullptr &&
        thinker->object() != nullptr && wrapper->text.front() != kThinker) {
      section = descend(model, section, kThinker, missing);
    }
    for (std::string_view key : wrapper->text) section = descend(model, section, key, missing);
    model.default_layers = missing ? wrapper->layers.fallback : std::nullopt;
    const std::string* inner = model_type_of(section.object(), section.pointer());
    const Family* named = inner && !wrapper->inner_always ? find_family(*inner) : nullptr;
    if (named == nullptr && inner != nullptr && !wrapper->inner.empty() && !wrapper->inner_always &&
        *inner != wrapper->inner) {
      warnings.add(json::join(section.pointer(), "model_type"),
                   json::quote(*inner) + " is not known; " + std::string(wrapper->inner) +
                       " is meant in " + std::string(wrapper->model_types.front()));
    }
    type = named                    ? *inner
           : wrapper->inner.empty() ? (inner ? *inner : "")
                                    : std::string(wrapper->inner);
    family = named ? named : find_family(type);
  }
  model.section = section;
  model.family = family;
  model.model_type = type;
  return model;
}

TextModel find_text_model(const json::Value& root, Warnings& warnings) {
  return find_text_model(Section(root, ""), {}, warnings);
}

// ---- overrides that reach the text model
// ----------------------------------------------------------------

// A top-level override with activation_params means the text model, wherever the host keeps it.
// Moves its activation keys there.
void reach_text_model(const json::Value& root, json::Value& over) {
  const json::Value* params = over.find(kParams);
  if (params == nullptr) return;
  Warnings unused;
  const TextModel model = find_text_model(root, unused);
  std::vector<std::vector<std::string_view>> targets;
  if (!model.path.empty()) targets.push_back(model.path);
  if (model.family != nullptr && targets.empty()) {
    for (const Stack& stack : model.family->stacks) {
      if (!stack.path.empty()) targets.push_back(stack.path);
    }
  }
  if (targets.empty()) return;
  json::Object moved;
  json::Object& members = *over.object();
  for (auto at = members.begin(); at != members.end();) {
    if (classify_key(at->first, at->second) == KeyKind::Other) {
      ++at;
      continue;
    }
    moved.push_back(std::move(*at));
    at = members.erase(at);
  }
  for (const auto& path : targets) {
    json::Value* level = &over;
    std::string pointer;
    for (std::string_view key : path) {
      pointer = json::join(pointer, key);
      if (level->find(key) == nullptr) level->set(key, json::Value(json::Object{}));
      level = level->find(key);
      if (level->object() == nullptr) {
        throw config_error("the override's activation_params belongs into " + pointer +
                               ", which the override replaces by " +
                               std::string(level->type_name()),
                           "/activation_params");
      }
    }
    for (const auto& [key, value] : moved) {
      const json::Value* present = level->find(key);
      if (present != nullptr && !(*present == value)) {
        throw config_error("the override gives " + key + " at the top and in " + pointer +
                               " with different values",
                           json::join(pointer, key), "keep one of them");
      }
      level->set(key, value);
    }
  }
}

// ---- keys that nobody read
// ------------------------------------------------------------------------------

class UnreadKeys {
 public:
  UnreadKeys(const Family& family, std::string model_type, Warnings& warnings)
      : family_(family), model_type_(std::move(model_type)), warnings_(warnings) {}

  void read(const std::vector<std::string_view>& keys) {
    for (std::string_view key : keys) read_.insert(std::string(key.substr(0, key.find('/'))));
  }
  void read(const RoleRule& rule) {
    if (rule.where == Where::Nowhere) return;
    read(rule.keys);
    if (rule.style != NameStyle::Plain) read({"feed_forward_proj", "dense_act_fn", "is_gated_act"});
    if (rule.keyed) {
      for (const ValueKey& key : rule.keyed->values) read(key.names);
    }
    if (rule.limit) read(rule.limit->value.names);
  }

  // What the roles compute and how the config calls it.
  void role(const RoleFormula& formula) { roles_.push_back(&formula); }

  // activation_params goes with the spelling that the family reads. Where another spelling says
  // something else, it is not certain which of them the parameters are for.
  void check_spellings(const Section& section, const ActivationParams& params,
                       const std::string& from_stack) const {
    const RoleRule* reading = nullptr;
    for (const RoleRule* rule : {&family_.routed, &family_.shared, &family_.dense}) {
      if (rule->where != Where::Nowhere && rule->fixed.empty() && reading == nullptr)
        reading = rule;
    }
    const bool named = std::any_of(params.roles.begin(), params.roles.end(),
                                   [](const RoleParams& p) { return bool(p.name); });
    if (!params.given || named || reading == nullptr) return;
    const Found read = section.find_first(reading->keys);
    const std::string* text = read ? read.value->string() : nullptr;
    const std::string name = text ? *text : std::string(reading->default_name);
    for (const auto& [key, value] : *section.object().object()) {
      if (read_.contains(key) || other_part(key) || classify_key(key, value) != KeyKind::Name)
        continue;
      const std::string* other = value.string();
      if (other == nullptr || *other == name || same_names(*other, name, from_stack)) continue;
      throw config_error(json::quote(*other) + " stands beside activation_params, but " +
                             model_type_ + " reads " + spelling() + " (" + json::quote(name) + ')',
                         json::join(section.pointer(), key),
                         "keep the spelling that the family reads");
    }
  }

  // A role whose formula the class fixes does not follow the name that other roles read. With a
  // limit on, hosts disagree about what is meant.
  void check_fixed(const Section& section, const RoleFormula& formula, const RoleRule& rule,
                   Role role) {
    if (rule.fixed.empty() || formula.replaced()) return;
    for (const RoleRule* other : {&family_.routed, &family_.shared, &family_.dense}) {
      if (other->where == Where::Nowhere || !other->fixed.empty()) continue;
      const Found found = section.find_first(other->keys);
      const std::string* text = found ? found.value->string() : nullptr;
      if (text == nullptr || *text == rule.fixed) continue;
      std::optional<Function> named;
      try {
        named = Function::named(*text);
      } catch (const Error&) {
        // "expr", or a name that the reading role refuses.
      }
      if (named && same_function(*named, formula.base())) continue;
      if (formula.limited()) throw formula.foreign_limit(named ? *named : formula.base());
      warnings_.add(found.pointer, json::quote(*text) + " is not read by the " +
                                       std::string(to_string(role)) + " layers of " + model_type_ +
                                       ", which compute " + formula.base().name());
    }
  }

  // Judges the keys of the text model's own level.
  void judge(const Section& section) {
    for (const auto& [key, value] : *section.object().object()) {
      if (key == kParams || read_.contains(key) || other_part(key)) continue;
      const std::string pointer = json::join(section.pointer(), key);
      if (key == "is_gated_act") {
        gate_flag(pointer, value);
        continue;
      }
      switch (classify_key(key, value)) {
        case KeyKind::Other:
          break;
        case KeyKind::Formula:
          formula_key(pointer, key, value);
          break;
        case KeyKind::Name:
          name_key(pointer, value);
          break;
      }
    }
  }

  // Judges a level above the text model.
  void judge_outer(const Section& outer, const Section& section) {
    for (const auto& [key, value] : *outer.object().object()) {
      if (other_part(key)) continue;
      const std::string pointer = json::join(outer.pointer(), key);
      const KeyKind kind = classify_key(key, value);
      if (kind == KeyKind::Name) name_key(pointer, value);
      if (kind != KeyKind::Formula) continue;
      if (key == kParams && empty_params(value)) continue;
      const json::Value* inner = section.object().find(key);
      if (inner != nullptr && *inner == value) {
        warnings_.add(pointer, "is not read here; the same value stands in " + section.pointer());
        continue;
      }
      throw config_error("is not read here: the text model reads " + section.pointer(), pointer,
                         "move it there");
    }
  }

 private:
  bool other_part(std::string_view key) const {
    return std::find(family_.other_parts.begin(), family_.other_parts.end(), key) !=
           family_.other_parts.end();
  }
  static bool empty_params(const json::Value& value) {
    return value.is_null() || (value.object() && value.object()->empty());
  }
  static bool all_zero(const json::Value& value) {
    if (const json::Number* n = value.number()) return n->value == 0;
    const json::Array* a = value.array();
    return a != nullptr && std::all_of(a->begin(), a->end(), all_zero);
  }

  void formula_key(const std::string& pointer, std::string_view key, const json::Value& value) {
    // A limit that is off here still says that someone believes in a limit.
    const bool off = value.boolean() && !*value.boolean();
    const bool inert = off || value.is_null() || all_zero(value);
    if (off || (inert && !is_limit_key(key))) {
      warnings_.add(pointer, "is not read by " + model_type_ + "; it is " + json::brief(value) +
                                 " and changes nothing");
      return;
    }
    throw config_error(
        "would change the formula, but " + model_type_ + " does not read it (" +
            json::brief(value) + ')',
        pointer,
        R"(remove it, or write the formula out: "hidden_act": "expr", "activation_params": {"expr": "…"})");
  }

  void gate_flag(const std::string& pointer, const json::Value& value) {
    const bool* flag = value.boolean();
    const bool agrees =
        flag != nullptr && std::all_of(roles_.begin(), roles_.end(),
                                       [&](const RoleFormula* r) { return r->gated() == *flag; });
    if (!agrees) warnings_.add(pointer, json::brief(value) + " is not read by " + model_type_);
  }

  static bool same_names(const std::string& a, const std::string& b,
                         const std::string& from_stack) {
    try {
      return same_function(function_from_stack(a, from_stack), function_from_stack(b, from_stack));
    } catch (const Error&) {
      return false;
    }
  }

  bool equals_read_name(const std::string& text) const {
    if (std::find(family_.published.begin(), family_.published.end(), text) !=
        family_.published.end())
      return true;
    return !roles_.empty() &&
           std::all_of(roles_.begin(), roles_.end(), [&](const RoleFormula* role) {
             if (role->read_name() == text) return true;
             try {
               return same_function(Function::named(text), role->base());
             } catch (const Error&) {
               return false;
             }
           });
  }

  void name_key(const std::string& pointer, const json::Value& value) {
    if (value.is_null()) {
      for (std::string_view key : family_.nullable_names) {
        if (pointer.size() > key.size() && pointer.ends_with(key)) return;
      }
    }
    if (const std::string* text = value.string(); text != nullptr && equals_read_name(*text))
      return;
    warnings_.add(pointer, json::brief(value) + " is not read by " + model_type_ +
                               ", which reads " + spelling());
  }

  std::string spelling() const {
    std::string text;
    for (const std::string& key : read_) {
      const bool is_name =
          std::find(name_keys().begin(), name_keys().end(), key) != name_keys().end() ||
          key == "feed_forward_proj";
      if (is_name) text += (text.empty() ? "" : ", ") + key;
    }
    return text.empty() ? "no name" : text;
  }

  const Family& family_;
  std::string model_type_;
  Warnings& warnings_;
  std::set<std::string> read_;
  std::vector<const RoleFormula*> roles_;
};

// ---- families that no row knows
// -----------------------------------------------------------------------------

// A known name alone is enough: gated, for every role and layer. Keys that change the formula are
// not understood, so they are refused with the rest of the unread keys.
Family unknown_family(const Section& section, const std::string& model_type, Warnings& warnings) {
  static const std::vector<std::string_view> counts = {"num_hidden_layers", "n_layer", "n_layers",
                                                       "num_layers", "decoder_layers"};
  const std::string who = model_type.empty()
                              ? "the model type is missing"
                              : "the model type " + json::quote(model_type) + " is not known";
  const bool gpt = model_type.find("gpt") != std::string::npos;
  Found chosen;
  for (std::string_view key : name_keys()) {
    const Found found = section.find(key);
    if (!found || found.value->is_null()) continue;
    if (chosen && !(*chosen.value == *found.value)) {
      throw config_error(who + ", and two keys name an activation: " + chosen.pointer + " says " +
                             json::brief(*chosen.value) + ", this says " +
                             json::brief(*found.value),
                         found.pointer, "keep one of them");
    }
    if (!chosen) chosen = found;
  }
  if (const Found t5 = section.find("feed_forward_proj")) {
    throw config_error(who + ", and feed_forward_proj is read by T5 models only", t5.pointer,
                       "name the activation in hidden_act");
  }
  Family family;
  family.layers = {counts, std::nullopt, {}};
  RoleRule role{.where = Where::Every, .default_name = gpt ? "gelu" : "silu"};
  role.keys = {chosen ? *std::find_if(name_keys().begin(), name_keys().end(),
                                      [&](std::string_view key) {
                                        return chosen.pointer == json::join(section.pointer(), key);
                                      })
                      : name_keys().front()};
  family.routed = role.with(Pairing::Concat);
  family.shared = role;
  family.dense = role;
  family.experts = {{"num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"},
                    std::nullopt,
                    true,
                    true};
  for (std::string_view key : name_keys()) {
    if (section.find(key)) family.nullable_names.push_back(key);
  }
  warnings.add(
      chosen ? chosen.pointer : std::string(),
      who + "; " +
          (chosen ? json::brief(*chosen.value) : std::string(role.default_name) + " is assumed") +
          ", gated, for every role and layer");
  return family;
}

// ---- one stack of layers
// ------------------------------------------------------------------------------------

struct ResolvedStack {
  std::vector<LayerActivations> layers;
  bool known = true;
};

const RoleRule& rule_of(const Family& family, Role role) {
  return role == Role::Routed ? family.routed : role == Role::Shared ? family.shared : family.dense;
}

std::optional<ResolvedActivation>& slot_of(LayerActivations& layer, Role role) {
  return role == Role::Routed ? layer.routed : role == Role::Shared ? layer.shared : layer.dense;
}

// In which layers a role stands; with unknown layers, one entry: whether it may stand anywhere.
std::vector<bool> presence(const RoleRule& rule, const std::vector<Condition>& sparse,
                           std::optional<std::int64_t> layers, const Section& section,
                           Warnings& warnings) {
  const auto n = static_cast<std::size_t>(layers.value_or(1));
  std::vector<bool> result(n, rule.where != Where::Nowhere);
  if (rule.where == Where::Nowhere) return result;
  const bool by_sparse = rule.where == Where::Sparse || rule.where == Where::NotSparse;
  const bool wanted = rule.where == Where::Sparse;
  if (!layers) {
    const bool everywhere = sparse.size() == 1 && sparse.front().kind == Condition::Kind::From &&
                            sparse.front().keys.empty();
    const bool fits =
        !by_sparse ||
        (wanted ? !sparse.empty() && could_hold(sparse, section, warnings) : !everywhere);
    result[0] = fits && could_hold(rule.conditions, section, warnings);
    return result;
  }
  if (by_sparse) {
    const std::vector<bool> holds = sparse.empty()
                                        ? std::vector<bool>(n, false)
                                        : layers_where(sparse, *layers, section, warnings);
    for (std::size_t i = 0; i < n; ++i) result[i] = holds[i] == wanted;
  }
  const std::vector<bool> holds = layers_where(rule.conditions, *layers, section, warnings);
  for (std::size_t i = 0; i < n; ++i) result[i] = result[i] && holds[i];
  return result;
}

// The configuration is understood, and no one function is what the family computes. A host may
// leave such a model as it is, so it is told apart from a configuration that is wrong.
Error not_computable(std::string message, std::string where, std::string hint = {}) {
  return {ErrorCode::Unsupported, std::move(message), std::move(where), std::move(hint)};
}

// Functions that are not element-wise where this key is not zero.
void check_zero_keys(const Family& family, const Section& section, const std::string& model_type,
                     std::optional<std::int64_t> layers) {
  for (std::string_view key : family.zero_keys) {
    const Found found = section.find(key);
    const std::string reason = "the activation of " + model_type + " depends on whole rows where " +
                               std::string(key) + " is not zero";
    if (!found || found.value->is_null()) {
      if (family.zero_keys_default_from > 0 &&
          layers.value_or(family.zero_keys_default_from) >= family.zero_keys_default_from) {
        throw not_computable(reason + ", and its default is not", found.pointer,
                             "only an all-zero pattern is element-wise");
      }
      continue;
    }
    const auto zero = [](const json::Value& value) {
      return value.number() != nullptr && value.number()->value == 0;
    };
    const json::Array* list = found.value->array();
    if (list ? std::all_of(list->begin(), list->end(), zero) : zero(*found.value)) continue;
    throw not_computable(reason, found.pointer, "only an all-zero pattern is element-wise");
  }
}

// A role that stands in no layer computes nothing, but its keys still have types.
void check_unused(const StackContext& context, Role role, const RoleRule& rule) {
  if (rule.where == Where::Nowhere) return;
  const ActivationParams none;
  Warnings unheard;
  const StackContext bare{context.family,     context.section, none,
                          context.from_stack, unheard,         context.model_type,
                          context.layers,     context.experts, context.has_routed};
  RoleFormula(bare, role, rule);
}

// One stack of layers to resolve.
struct StackTask {
  const Family& family;
  std::string_view name;  // "encoder", "decoder"; empty where there is one stack
  const std::vector<Condition>& sparse;
  Section section;
  std::vector<Section> outer;
  std::optional<std::int64_t> layers;
};

// What all stacks of a model share.
struct ModelTask {
  std::string model_type;  // as messages call it
  const std::string& from_stack;
  Warnings& warnings;
  std::optional<std::int64_t> longest;  // layers of the longest stack, for lists over layers
};

std::optional<std::int64_t> expert_count(const IntKey& key, const Section& section) {
  if (key.names.empty()) return std::nullopt;
  const Found found = section.find_first(key.names);
  if (found && key.per_layer && found.value->array()) return std::nullopt;
  const auto stated = section.integer(key.names, key.nullable);
  if (stated && *stated < 0) throw config_error("must not be negative", found.pointer);
  return stated ? stated : key.fallback;
}

ResolvedStack resolve_stack(const StackTask& task, const ModelTask& model) {
  const Family& family = task.family;
  const Section& section = task.section;
  Warnings& warnings = model.warnings;
  check_zero_keys(family, section, model.model_type, task.layers);
  const ActivationParams params = read_activation_params(section.find(kParams));

  std::array<std::vector<bool>, 3> stands;
  for (Role role : kRoles) {
    stands[static_cast<std::size_t>(role)] =
        presence(rule_of(family, role), task.sparse, task.layers, section, warnings);
  }
  const auto anywhere = [](const std::vector<bool>& layers) {
    return std::find(layers.begin(), layers.end(), true) != layers.end();
  };
  const StackContext context{family,
                             section,
                             params,
                             model.from_stack,
                             warnings,
                             model.model_type,
                             model.longest,
                             expert_count(family.experts, section),
                             anywhere(stands[0])};

  UnreadKeys unread(family, model.model_type, warnings);
  for (Role role : kRoles) unread.read(rule_of(family, role));
  unread.read(family.zero_keys);
  unread.check_spellings(section, params, model.from_stack);
  std::array<std::optional<RoleFormula>, 3> formulas;
  for (Role role : kRoles) {
    const auto i = static_cast<std::size_t>(role);
    if (!anywhere(stands[i])) {
      check_unused(context, role, rule_of(family, role));
      continue;
    }
    formulas[i].emplace(context, role, rule_of(family, role));
    unread.check_fixed(section, *formulas[i], rule_of(family, role), role);
    unread.role(*formulas[i]);
  }

  ResolvedStack result;
  result.known = task.layers.has_value();
  for (std::int64_t index = 0; index < task.layers.value_or(1); ++index) {
    LayerActivations layer;
    layer.index = index;
    for (Role role : kRoles) {
      const auto i = static_cast<std::size_t>(role);
      if (!stands[i][static_cast<std::size_t>(index)]) continue;
      slot_of(layer, role) =
          formulas[i]->resolve(task.layers ? std::optional(index) : std::nullopt);
    }
    result.layers.push_back(std::move(layer));
  }
  unread.judge(section);
  for (const Section& level : task.outer) unread.judge_outer(level, section);
  return result;
}

bool agree(const std::optional<ResolvedActivation>& a, const std::optional<ResolvedActivation>& b) {
  if (!a || !b) return !a && !b;
  return a->activation == b->activation && a->gated == b->gated && a->pairing == b->pairing &&
         a->transposed == b->transposed && a->bias == b->bias;
}

// Layer i of encoder and decoder is one layer here, so both must compute the same.
void join_stacks(ResolvedStack& first, const ResolvedStack& second, const StackTask& task,
                 std::string_view first_name) {
  const std::size_t common = std::min(first.layers.size(), second.layers.size());
  for (std::size_t i = 0; i < common; ++i) {
    for (Role role : kRoles) {
      if (agree(first.layers[i].role(role), second.layers[i].role(role))) continue;
      throw config_error("layer " + std::to_string(i) + " of the " + std::string(first_name) +
                             " and of the " + std::string(task.name) + " differ in their " +
                             std::string(to_string(role)) + " activation",
                         task.section.pointer(), "both stacks must compute the same in a layer");
    }
  }
  for (std::size_t i = common; i < second.layers.size(); ++i)
    first.layers.push_back(second.layers[i]);
  first.known = first.known && second.known;
}

// ---- the whole
// ------------------------------------------------------------------------------------

ResolvedStack resolve_stacks(const std::vector<StackTask>& tasks, const std::string& model_type,
                             const std::string& from_stack, Warnings& warnings) {
  ModelTask model{model_type, from_stack, warnings, std::nullopt};
  for (const StackTask& task : tasks) {
    if (task.layers) model.longest = std::max(model.longest.value_or(0), *task.layers);
  }
  ResolvedStack result = resolve_stack(tasks.front(), model);
  for (std::size_t i = 1; i < tasks.size(); ++i)
    join_stacks(result, resolve_stack(tasks[i], model), tasks[i], tasks.front().name);
  return result;
}

ResolvedStack resolve_model(const TextModel& model, const std::string& from_stack,
                            Warnings& warnings) {
  const Section& section = *model.section;
  if (model.family == nullptr) {
    const Family family = unknown_family(section, model.model_type, warnings);
    const std::string name =
        model.model_type.empty() ? "a model of unknown type" : json::quote(model.model_type);
    return resolve_stacks(
        {{family, {}, family.sparse, section, model.outer, layer_count(family.layers, section)}},
        name, from_stack, warnings);
  }
  const Family& family = *model.family;
  if (!family.refusal.empty())
    throw not_computable(model.model_type + " is refused: " + std::string(family.refusal),
                         "/model_type");
  if (!family.caution.empty()) warnings.add({}, family.caution);
  if (family.stacks.empty()) {
    LayerCount count = family.layers;
    if (model.default_layers) count.fallback = model.default_layers;
    return resolve_stacks(
        {{family, {}, family.sparse, section, model.outer, layer_count(count, section)}},
        model.model_type, from_stack, warnings);
  }
  std::vector<StackTask> tasks;
  for (const Stack& stack : family.stacks) {
    TextModel below;
    below.outer = model.outer;
    Section at = section;
    bool missing = false;
    for (std::string_view key : stack.path) at = descend(below, at, key, missing);
    tasks.push_back(
        {family, stack.name, stack.sparse, at, below.outer, layer_count(stack.layers, at)});
  }
  if (family.inner.empty()) return resolve_stacks(tasks, model.model_type, from_stack, warnings);
  // Each stack is a model of its own type.
  std::optional<ResolvedStack> result;
  for (const StackTask& task : tasks) {
    ResolvedStack one =
        resolve_model(find_text_model(task.section, family.inner, warnings), from_stack, warnings);
    if (result) {
      join_stacks(*result, one, task, tasks.front().name);
    } else {
      result = std::move(one);
    }
  }
  return std::move(*result);
}

ModelActivations resolve(std::string_view text, const ResolveOptions& options) {
  if (!options.from_stack.empty()) {
    const std::vector<std::string> stacks = known_stacks();
    if (std::find(stacks.begin(), stacks.end(), options.from_stack) == stacks.end())
      function_from_stack("", options.from_stack);
  }
  Warnings warnings;
  json::Document document = json::parse(text, "config");
  for (const std::string& warning : document.warnings) warnings.add({}, warning);
  if (options.overrides.find_first_not_of(" \t\r\n") != std::string::npos) {
    json::Document over = json::parse(options.overrides, "override");
    for (const std::string& warning : over.warnings) warnings.add("override", warning);
    check_members(over.root, "");
    // Where the text model is may itself be overridden; where activation keys go is decided after.
    json::Value merged = document.root;
    merge(merged, over.root);
    reach_text_model(merged, over.root);
    merge(document.root, over.root);
  }
  const TextModel model = find_text_model(document.root, warnings);
  ResolvedStack stack = resolve_model(model, options.from_stack, warnings);
  ModelActivations result;
  const std::string* stated = model_type_of(document.root, "");
  result.model_type = stated ? *stated : "";
  result.layers = std::move(stack.layers);
  result.layers_known = stack.known;
  result.warnings = warnings.list();
  return result;
}

}  // namespace

std::vector<std::string_view> families_with_default(std::string_view function) {
  // What each family's empty config resolves to, by function; rows do not change.
  static const std::map<std::string, std::vector<std::string_view>, std::less<>> index = [] {
    std::map<std::string, std::vector<std::string_view>, std::less<>> found;
    for (const Family* family : families()) {
      for (std::string_view type : family->model_types) {
        std::set<std::string> names;
        try {
          for (const LayerActivations& layer :
               resolve("{\"model_type\": " + json::quote(type) + '}', {}).layers) {
            for (Role role : kRoles) {
              if (const auto& resolved = layer.role(role)) names.insert(resolved->name);
            }
          }
        } catch (const Error&) {
          continue;  // a family without a usable default has none
        }
        for (const std::string& name : names) found[name].push_back(type);
      }
    }
    return found;
  }();
  const auto found = index.find(function);
  return found == index.end() ? std::vector<std::string_view>() : found->second;
}

}  // namespace config

ModelActivations resolve_config_text(std::string_view json, const ResolveOptions& options) {
  return config::resolve(json, options);
}

ModelActivations resolve_config(const std::filesystem::path& path, const ResolveOptions& options) {
  std::error_code failure;
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(file, failure)) file /= "config.json";
  const auto status = std::filesystem::status(file, failure);
  if (!std::filesystem::exists(status))
    throw Error(ErrorCode::IoError, "there is no such file", file.string(),
                "a model folder with a config.json, or a config file");
  if (!std::filesystem::is_regular_file(status))
    throw Error(ErrorCode::IoError, "is not a regular file", file.string());
  const auto size = std::filesystem::file_size(file, failure);
  if (failure) throw Error(ErrorCode::IoError, failure.message(), file.string());
  if (size > config::json::kMaxBytes) {
    throw Error(ErrorCode::ConfigError, "the config is larger than 256 MiB", file.string());
  }
  std::ifstream in(file, std::ios::binary);
  std::string text(static_cast<std::size_t>(size), '\0');
  if (!in || !in.read(text.data(), static_cast<std::streamsize>(text.size()))) {
    throw Error(ErrorCode::IoError, "cannot be read", file.string());
  }
  return resolve_config_text(text, options);
}

}  // namespace flexact
