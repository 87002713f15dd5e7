// One table row for each model family: which config key names the activation of which role, what
// the class makes of it, and which layers have which role. Rows are data; resolve.cpp is the only
// reader.
//
// How to write a row
// ------------------
// A row describes a *text model type* as its own class runs it (transformers' class; SGLang's or
// the published reference where transformers has none). Facts only: a key that the class never
// reads does not appear. Three shapes cover nearly all families (helpers are at the end of this
// file):
//
//   // every layer has a gated MLP that reads hidden_act
//   {.model_types = {"llama"}, .layers = count(32), .dense = mlp().with_bias("mlp_bias")},
//
//   // every layer has routed experts, and no other role
//   {.model_types = {"mixtral"}, .layers = count(32), .sparse = every_layer(),
//    .routed = experts(), .experts = {{"num_local_experts", "num_experts"}, 8}},
//
//   // the first k layers are dense, the rest have routed and shared experts
//   {.model_types = {"deepseek_v3"}, .layers = count(61),
//    .sparse = {from("first_k_dense_replace", 3)},
//    .routed = experts(), .shared = mlp().when({positive("n_shared_experts", 1)}), .dense = mlp(),
//    .experts = {{"n_routed_experts", "num_experts", "num_local_experts"}, 256}},
//
// Layers. `layers` is the number of layers: spellings (a class's attribute_map adds some; the first
// that is present counts) and the class default. `sparse` says in which layers the experts stand:
// all its conditions must hold. `routed` and `shared` stand in sparse layers, `dense` in the
// others; a role that differs says so itself: `.in(Where::Every)` (a dense MLP beside the experts),
// `.in(Where::Only)` (its own conditions alone decide: hybrid models whose layer is mamba,
// attention, MLP or MoE). `.when({…})` adds conditions ("only if n_shared_experts > 0").
//
// Names. `keys` are the spellings of the key that names the activation; a path goes into nested
// objects ("ffn_config/ffn_act_fn/name"). `default_name` is the class default; names are those of
// transformers unless `renames` says what the family means by one. `fixed` instead of `keys`: the
// class computes this catalogue function and reads no name.
//
// Values. `keyed` binds parameters of one function to keys (swiglu_oai's limit ← swiglu_limit);
// `limit` clamps around whatever the role computes. Defaults are the class's.
//
// Wrappers. `text` is the path to the text model's config; `inner` its model type where the inner
// config does not say one. A wrapper row has no roles.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "flexact/config.hpp"

namespace flexact::config {

// An integer key: spellings, and its value where it is absent. `nullable`: the class declares
// "int or None", and null counts as absent (with no fallback: as zero). `per_layer`: a list with
// one integer for each layer is allowed in place of the integer.
struct IntKey {
  std::vector<std::string_view> names;
  std::optional<std::int64_t> fallback = std::nullopt;
  bool nullable = false;
  bool per_layer = false;
};

// The number of layers. A list that holds one entry for each layer decides before the count where
// the class works so (nemotron_h's layers_block_type).
struct LayerCount {
  std::vector<std::string_view> names = {"num_hidden_layers"};
  std::optional<std::int64_t> fallback = std::nullopt;  // none: undetermined when absent
  std::vector<std::string_view> length_of = {};
};

// A test of one layer number.
struct Condition {
  enum class Kind {
    From,      // layer >= key
    Before,    // layer < key
    UpTo,      // layer <= key; -1 is the last layer
    Multiple,  // (layer + shift) divides by key; never where key is 0 or null. A list in place of
               // the number has one entry for each layer: 0 or false, or anything else
    Phase,     // layer >= shift and (layer - shift) % key == other
    Step,     // layers are spread evenly, layers / key apart from layer 1 on (switch_transformers);
              // the second key, where present, is that distance
    Listed,   // key is a list of layer numbers (or a string "3,4,5") that has this layer
    Typed,    // key is a list of strings or integers, one for each layer; this layer's is in values
    Letter,   // key is a string, one character for each layer; this layer's is in values
    Above,    // key > shift (an integer, or a list with this layer's); null is 0
    Flag,     // key is true
    Exactly,  // layer numbers in `layers` (for class defaults)
    Any,      // one of the conditions in `otherwise` holds; there is no key
  };
  Kind kind;
  std::vector<std::string_view> keys = {};
  std::optional<std::int64_t> fallback = std::nullopt;  // where the key is absent (or null)
  std::vector<std::string_view> other = {};             // Phase, Step: the second key
  std::int64_t other_fallback = 0;
  std::int64_t shift = 0;
  std::vector<std::string_view> values = {};  // Typed, Letter; integers and booleans as text
  std::vector<std::string_view> others =
      {};                                 // Typed, Letter: the other values there are; none: any
  std::vector<std::int64_t> layers = {};  // Exactly
  bool negated = false;
  bool nullable = false;
  // Read in place of this condition where the key is absent or null; all must hold. Without it an
  // absent key without a fallback means: a list that has no layer, a count of zero, false.
  std::vector<Condition> otherwise = {};
  // A warning where the key is present with another value than the fallback: who reads it.
  std::string_view note = {};
};

// Whether the projections have biases: always or never, or as a boolean key says. `nullable`: null
// means false.
struct BiasRule {
  bool value = false;
  std::vector<std::string_view> keys = {};
  bool nullable = false;
};

// What 0 or null means for a value.
enum class Off { Error, Allowed };
// Who reads a key: both the class and the published reference, or one of them. A key of the
// reference alone is obeyed, with a warning; so is a key of one class where its value is not the
// reference's.
enum class Reader { Both, ReferenceOnly, ClassOnly };

// A number in the config that is a parameter of the function.
struct ValueKey {
  std::vector<std::string_view> names;
  std::string_view parameter;
  std::optional<double> fallback = std::nullopt;  // none: off if `off` allows it, else required
  bool is_limit = false;   // its absence is warned about where the fallback is a number
  bool per_layer = false;  // a list over absolute layer numbers
  Off off = Off::Error;
  Reader reader = Reader::Both;
  std::string_view note = {};  // ReferenceOnly, ClassOnly: who reads it, for the warning
};

// Parameters of one function that come from the family's own keys, when that function is what the
// role computes. `without`: the function to use where a value is off (situ without linear_beta).
struct Keyed {
  std::string_view function;
  std::vector<ValueKey> values;
  std::string_view without = {};
  std::string_view caution = {};  // a warning whenever this function is what the role computes
  // How the weights lie in the module of the reference, where only the reference computes this.
  std::optional<Pairing> reference_pairing = std::nullopt;
};

enum class LimitForm {
  Before,  // f(min(g, limit)) * clamp(u, -limit, limit)
  After,   // min(f(g), limit) * clamp(u, -limit, limit)
};

// A clamp around the role's activation.
struct Limit {
  ValueKey value;
  LimitForm form = LimitForm::Before;
  // True: the class puts it around whatever the name says; a unary f other than silu runs clamped,
  // with a warning. False: only silu is known to be meant; anything else beside it is refused.
  bool around_any = false;
  // How the weights lie in the module of the reference, where only the reference reads the limit.
  std::optional<Pairing> reference_pairing = std::nullopt;
};

// In which layers a role stands.
enum class Where {
  Nowhere,
  Sparse,     // where Family::sparse holds
  NotSparse,  // in the other layers
  Every,      // in all layers
  Only,       // where `conditions` hold, whatever `sparse` says
};

enum class NameStyle {
  Plain,  // the key's value is the name
  // T5's feed_forward_proj: "NAME" (unary) or "gated-NAME"; dense_act_fn and is_gated_act must
  // agree.
  FeedForwardProj,       // "gated-gelu" means gelu_tanh (t5, mt5, umt5, longt5)
  FeedForwardProjExact,  // "gated-gelu" means what it says (udop)
  FeedForwardGate,       // feed_forward_proj says only whether there is a gate (pop2piano)
};

struct RoleRule {
  Where where = Where::Nowhere;
  std::vector<Condition> conditions = {};
  std::vector<std::string_view> keys = {"hidden_act"};
  std::string_view default_name = "silu";
  // The key is a boolean: what true and false mean (xlm's gelu_activation).
  std::string_view when_true = {};
  std::string_view when_false = {};
  std::string_view fixed = {};  // catalogue function; the role reads no name
  NameStyle style = NameStyle::Plain;
  bool gated = true;
  Pairing pairing = Pairing::Separate;
  bool transposed = false;
  BiasRule bias = {};
  std::optional<Keyed> keyed = std::nullopt;
  std::optional<Limit> limit = std::nullopt;
  // Where the class keeps learned parameters of the activation (xielu): the checkpoint tensor's
  // name up to the parameter's, with {layer}.
  std::string_view learned = {};

  // Row-writing helpers; each returns a changed copy.
  RoleRule in(Where value) const {
    auto r = *this;
    r.where = value;
    return r;
  }
  RoleRule when(std::vector<Condition> value) const {
    auto r = *this;
    r.conditions = std::move(value);
    return r;
  }
  RoleRule reads(std::string_view key, std::string_view default_value) const {
    auto r = *this;
    r.keys = {key};
    r.default_name = default_value;
    return r;
  }
  RoleRule defaults_to(std::string_view name) const {
    auto r = *this;
    r.default_name = name;
    return r;
  }
  RoleRule always(std::string_view function) const {
    auto r = *this;
    r.keys.clear();
    r.fixed = function;
    return r;
  }
  RoleRule with(Pairing value, bool is_transposed = false) const {
    auto r = *this;
    r.pairing = value;
    r.transposed = is_transposed;
    return r;
  }
  RoleRule with_bias() const {
    auto r = *this;
    r.bias = {true, {}};
    return r;
  }
  RoleRule with_bias(std::string_view key, bool fallback = false) const {
    auto r = *this;
    r.bias = {fallback, {key}};
    return r;
  }
  RoleRule with_bias_or_null(std::string_view key) const {
    auto r = *this;
    r.bias = {false, {key}, true};
    return r;
  }
  RoleRule with_keys(Keyed value) const {
    auto r = *this;
    r.keyed = std::move(value);
    return r;
  }
  RoleRule with_limit(Limit value) const {
    auto r = *this;
    r.limit = std::move(value);
    return r;
  }
  RoleRule with_learned(std::string_view prefix) const {
    auto r = *this;
    r.learned = prefix;
    return r;
  }
};

// What a family means by a name where that is not transformers' meaning.
struct Rename {
  std::string_view name;
  std::string_view meaning;  // catalogue name
  bool warn = false;
};

// The second stack of an encoder-decoder model. Layer i of both stacks must agree.
struct Stack {
  std::string_view name;                    // "encoder", "decoder"
  std::vector<std::string_view> path = {};  // sub-config, empty: the same object
  LayerCount layers = {};
  std::vector<Condition> sparse = {};
};

struct Family {
  std::vector<std::string_view> model_types;
  // Files with one of these in `architectures` are of this family, whatever model type they carry
  // (Grok 2 is published as "git").
  std::vector<std::string_view> architectures = {};

  // Wrappers only.
  std::vector<std::string_view> text = {};  // {"text_config"}, {"thinker_config", "text_config"}
  std::string_view inner = {};              // model type where the inner config has none
  bool inner_always = false;                // `inner` whatever model type the inner config says
  bool flat = false;  // without that object the text model's keys are read from this level

  // In a wrapper: the number of layers where that object is missing, if it is not the text model's
  // default.
  LayerCount layers = {};
  std::vector<Condition> sparse = {};  // empty: no layer is sparse
  RoleRule routed = {};
  RoleRule shared = {};
  RoleRule dense = {};
  IntKey experts = {};  // number of routed experts, for per_expert lists
  // Encoder-decoder models: both stacks, in place of `layers`. With `inner`, each stack is a model
  // of its own type.
  std::vector<Stack> stacks = {};

  std::vector<Rename> renames = {};
  // Names that published files of the family carry in keys that nothing reads: no warning.
  std::vector<std::string_view> published = {};
  // Keys whose null is published (gemma 1): read as absent without a word.
  std::vector<std::string_view> nullable_names = {};
  // Keys that change the formula, that this family's class or reference reads, and that are
  // harmless at these values; any other value refuses the config (gemma3n's sparsity pattern: 0).
  std::vector<std::string_view> zero_keys = {};
  // With at least this many layers their absence refuses as well (the class default is not zero).
  std::int64_t zero_keys_default_from = 0;
  // Activation-like keys of this level that belong to another part of the model.
  std::vector<std::string_view> other_parts = {};
  std::string_view caution = {};    // a warning with every config of the family
  std::string_view refusal = {};    // the whole family is refused, for this reason
  std::string_view reference = {};  // where the facts come from, if not from transformers' class
};

// All rows: special_families() and plain_families(). No model type appears twice.
const std::vector<const Family*>& families();
const Family* find_family(std::string_view model_type);
const Family* find_family_of_architecture(std::string_view architecture);
// Model types whose default is this catalogue function in some role ("mixtral", …), in table order.
std::vector<std::string_view> families_with_default(std::string_view function);

// families_special.cpp: families with a rule of their own. families_plain.cpp: the rest.
const std::vector<Family>& special_families();
const std::vector<Family>& plain_families();

// --- helpers for rows ---------------------------------------------------------------------------

inline LayerCount count(std::int64_t fallback,
                        std::vector<std::string_view> names = {"num_hidden_layers"}) {
  return {std::move(names), fallback, {}};
}
// A gated MLP of three matrices that reads hidden_act, in the layers that are not sparse; as
// `shared`, in the sparse ones.
inline RoleRule mlp() {
  return {.where = Where::NotSparse};
}
inline RoleRule shared_mlp() {
  return {.where = Where::Sparse};
}
// An MLP without a gate.
inline RoleRule plain_mlp() {
  return {.where = Where::NotSparse, .gated = false, .pairing = Pairing::None};
}
// Gated routed experts, gate rows then up rows in one tensor, hidden_act.
inline RoleRule experts() {
  return {.where = Where::Sparse, .pairing = Pairing::Concat};
}
inline RoleRule plain_experts() {
  return {.where = Where::Sparse, .gated = false, .pairing = Pairing::None};
}

inline std::vector<Condition> every_layer() {
  return {{.kind = Condition::Kind::From, .fallback = 0}};
}
inline Condition from(std::string_view key, std::int64_t fallback) {
  return {.kind = Condition::Kind::From, .keys = {key}, .fallback = fallback};
}
inline Condition from_layer(std::int64_t first) {
  return {.kind = Condition::Kind::From, .fallback = first};
}
inline Condition before(std::string_view key, std::int64_t fallback) {
  return {.kind = Condition::Kind::Before, .keys = {key}, .fallback = fallback};
}
// (layer + shift) % key == 0
inline Condition multiple(std::string_view key, std::int64_t fallback, std::int64_t shift = 0) {
  return {.kind = Condition::Kind::Multiple, .keys = {key}, .fallback = fallback, .shift = shift};
}
// (layer - first) % period == offset, from layer `first` on
inline Condition phase(std::string_view period, std::int64_t period_fallback,
                       std::string_view offset, std::int64_t offset_fallback,
                       std::int64_t first = 0) {
  return {.kind = Condition::Kind::Phase,
          .keys = {period},
          .fallback = period_fallback,
          .other = {offset},
          .other_fallback = offset_fallback,
          .shift = first};
}
inline Condition up_to(std::string_view key, std::int64_t fallback) {
  return {.kind = Condition::Kind::UpTo, .keys = {key}, .fallback = fallback};
}
inline Condition any_of(std::vector<Condition> alternatives) {
  return {.kind = Condition::Kind::Any, .otherwise = std::move(alternatives)};
}
inline Condition listed(std::string_view key, std::vector<Condition> otherwise = {}) {
  return {.kind = Condition::Kind::Listed,
          .keys = {key},
          .nullable = true,
          .otherwise = std::move(otherwise)};
}
inline Condition not_listed(std::string_view key) {
  return {.kind = Condition::Kind::Listed, .keys = {key}, .negated = true, .nullable = true};
}
// mlp_layer_types[layer] is one of `values`; where the list is absent or null, `otherwise` decides.
inline Condition typed(std::string_view key, std::vector<std::string_view> values,
                       std::vector<Condition> otherwise) {
  return {.kind = Condition::Kind::Typed,
          .keys = {key},
          .values = std::move(values),
          .nullable = true,
          .otherwise = std::move(otherwise)};
}
// mlp_layer_types says "sparse"; without the list all conditions of `otherwise` decide.
inline Condition sparse_types(std::vector<Condition> otherwise) {
  Condition c = typed("mlp_layer_types", {"sparse"}, std::move(otherwise));
  c.others = {"dense"};
  return c;
}
inline Condition sparse_types(Condition otherwise) {
  return sparse_types(std::vector<Condition>{std::move(otherwise)});
}
inline Condition letter(std::string_view key, std::vector<std::string_view> values,
                        std::vector<Condition> otherwise = {}) {
  return {.kind = Condition::Kind::Letter,
          .keys = {key},
          .values = std::move(values),
          .nullable = true,
          .otherwise = std::move(otherwise)};
}
// key > 0; null counts as 0 where `nullable`.
inline Condition positive(std::string_view key, std::int64_t fallback, bool nullable = false) {
  return {
      .kind = Condition::Kind::Above, .keys = {key}, .fallback = fallback, .nullable = nullable};
}
// The same where the key has several spellings.
inline Condition positive_any(std::vector<std::string_view> keys, std::int64_t fallback) {
  return {.kind = Condition::Kind::Above, .keys = std::move(keys), .fallback = fallback};
}
inline Condition above(std::string_view key, std::int64_t bound, std::int64_t fallback,
                       bool nullable = false) {
  return {.kind = Condition::Kind::Above,
          .keys = {key},
          .fallback = fallback,
          .shift = bound,
          .nullable = nullable};
}
inline Condition flag(std::string_view key, bool fallback) {
  return {.kind = Condition::Kind::Flag, .keys = {key}, .fallback = fallback ? 1 : 0};
}
inline Condition exactly(std::vector<std::int64_t> layers) {
  return {.kind = Condition::Kind::Exactly, .layers = std::move(layers)};
}
inline Condition opposite(Condition c) {
  c.negated = !c.negated;
  return c;
}

}  // namespace flexact::config
