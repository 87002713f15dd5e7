#include "config/formula.hpp"

#include <algorithm>

#include "activation/binding.hpp"
#include "activation/catalogue.hpp"
#include "config/names.hpp"

namespace flexact::config {

namespace {

// Larger limits clamp nothing that fp16 can hold, and overflow its constants in other stacks.
constexpr double kLargestUsefulLimit = 65504;

std::string number_text(double value) {
  return json::brief(json::Value(json::Number{value, false, false, 0}));
}

std::string in_role(Role role) {
  return " (" + std::string(to_string(role)) + ")";
}

std::string parameter_list(const Function& f) {
  std::string text;
  for (const Parameter& parameter : f.parameters())
    text += (text.empty() ? "" : ", ") + parameter.name;
  return text.empty() ? f.name() + " has no parameters" : f.name() + " has " + text;
}

bool bound(const std::map<std::string, Found>& values, std::string_view name) {
  return values.find(std::string(name)) != values.end();
}

}  // namespace

RoleFormula::RoleFormula(const StackContext& context, Role role, const RoleRule& rule)
    : context_(context), role_(role), rule_(rule), family_(context.model_type), gated_(rule.gated) {
  choose_base();
  bind_params();
  read_keyed();
  read_limit();
  if (base_->arity() == Arity::Gated && !gated_) {
    throw config_error(base_->name() + " is natively gated, but the " +
                           std::string(to_string(role_)) + " layers of " + family_ +
                           " have no gate",
                       name_pointer_, "a function of x");
  }
}

Scope RoleFormula::scope() const {
  return {role_,
          context_.has_routed,
          context_.layers,
          context_.experts,
          &context_.section,
          &context_.warnings};
}

// ---- the function -------------------------------------------------------------------------------

void RoleFormula::choose_base() {
  const RoleParams& own = context_.params.of(role_);
  if (rule_.style != NameStyle::Plain) choose_gate();
  if (own.name) return replace_base(own);
  if (rule_.fixed.empty()) return read_base_name();
  if (own.expr) return replace_base(own);
  if (own.given) {
    throw config_error(
        "the " + std::string(to_string(role_)) + " formula of " + family_ +
            " is fixed by its class (" + std::string(rule_.fixed) +
            "), so parameters alone say nothing",
        own.pointer,
        R"(name what replaces it: {"name": "swish", "beta": 1.5} or {"name": "expr", "expr": "…"})");
  }
  base_ = catalogue_function(rule_.fixed, {});
  from_ = "fixed by " + family_;
}

// activation_params says what the role computes, whatever the family reads.
void RoleFormula::replace_base(const RoleParams& own) {
  replaced_ = true;
  const std::string name = own.name ? *own.name.value->string() : "expr";
  name_pointer_ = own.name ? own.name.pointer : own.expr.pointer;
  if (name == "expr") {
    if (!own.expr)
      throw config_error("\"expr\" needs an expression", own.pointer,
                         R"({"name": "expr", "expr": "g*sigmoid(g)*u"})");
    base_ = expression_function(*own.expr.value->string(), own.expr.pointer);
  } else {
    if (own.expr)
      throw config_error("an expression stands beside the name " + json::quote(name),
                         own.expr.pointer, "keep one of them");
    base_ = catalogue_function(name, own.name.pointer);
  }
  from_ = name_pointer_;
  const Found read = context_.section.find_first(rule_.keys);
  if (rule_.fixed.empty() && read && read.value->string() && *read.value->string() != name) {
    context_.warnings.add(read.pointer, json::brief(*read.value) + " is replaced by " +
                                            json::quote(name) + " of " + name_pointer_);
  }
}

// The name that a boolean key means; empty where the key holds names.
std::string_view RoleFormula::by_flag(const Found& found) const {
  if (rule_.when_true.empty()) return {};
  const bool* value = found.value->boolean();
  if (value == nullptr)
    throw config_error("expected true or false, found " + std::string(found.value->type_name()) +
                           ' ' + json::brief(*found.value),
                       found.pointer);
  return *value ? rule_.when_true : rule_.when_false;
}

void RoleFormula::read_base_name() {
  const RoleParams& own = context_.params.of(role_);
  Found found = context_.section.find_first(rule_.keys);
  if (found && found.value->is_null()) {
    const auto& nullable = context_.family.nullable_names;
    const bool published = std::any_of(nullable.begin(), nullable.end(), [&](std::string_view key) {
      return found.pointer == json::join(context_.section.pointer(), key);
    });
    if (published) found.value = nullptr;
  }
  if (!found) {
    if (own.expr) return replace_base(own);
    read_name_ = std::string(rule_.default_name);
    name_pointer_ = found.pointer;
    from_ = found.pointer + " missing: " + family_ + " default " + json::quote(read_name_);
    base_ = reads_proj()
                ? t5_function(read_name_, found.pointer)
                : named_function(read_name_, context_.family, {}, found.pointer, context_.warnings);
    return;
  }
  const std::string flag_name(by_flag(found));
  const std::string* text = rule_.when_true.empty() ? found.value->string() : &flag_name;
  if (text == nullptr) {
    throw config_error("expected the name of an activation, found " + json::described(*found.value),
                       found.pointer);
  }
  if (text->empty()) throw config_error("the name of the activation is empty", found.pointer);
  read_name_ = *text;
  name_pointer_ = found.pointer;
  from_ = found.pointer;
  if (*text == "expr") {
    if (!own.expr) {
      throw config_error("\"expr\" needs an expression", found.pointer,
                         R"("activation_params": {"expr": "g*sigmoid(g)*u"})");
    }
    from_ += ", " + own.expr.pointer;
    base_ = expression_function(*own.expr.value->string(), own.expr.pointer);
    return;
  }
  if (own.expr) {
    throw config_error("an expression stands beside the name " + json::quote(*text),
                       own.expr.pointer,
                       "set " + found.pointer + " to \"expr\", or add \"name\": \"expr\"");
  }
  base_ = reads_proj() ? t5_function(*text, found.pointer)
                       : named_function(*text, context_.family, context_.from_stack, found.pointer,
                                        context_.warnings);
}

// T5 says in one key what is read and whether there is a gate: "NAME" or "gated-NAME".
void RoleFormula::choose_gate() {
  const bool gate_only = rule_.style == NameStyle::FeedForwardGate;
  const Found found = gate_only ? context_.section.find("feed_forward_proj")
                                : context_.section.find_first(rule_.keys);
  const std::string* stated = found ? found.value->string() : nullptr;
  if (gate_only && found && stated == nullptr) {
    throw config_error("expected a string, found " + std::string(found.value->type_name()),
                       found.pointer);
  }
  const std::string text = stated      ? *stated
                           : gate_only ? "gated-gelu"
                                       : std::string(rule_.default_name);
  gated_ = text.starts_with("gated-");
}

// "gated-gelu" means the tanh form. dense_act_fn and is_gated_act, where a file carries them, must
// say the same.
Function RoleFormula::t5_function(const std::string& text, const std::string& where) {
  const std::string name = gated_ ? text.substr(6) : text;
  if (name.empty() || name.find('-') != std::string::npos) {
    throw config_error(json::quote(text) + " is neither NAME nor gated-NAME", where,
                       R"(for example "relu" or "gated-gelu")");
  }
  const auto meaning = [&](const std::string& word, const std::string& at) {
    return named_function(word, context_.family, context_.from_stack, at, context_.warnings);
  };
  const bool tanh_form = rule_.style == NameStyle::FeedForwardProj && gated_ && name == "gelu" &&
                         context_.from_stack.empty();
  Function function = tanh_form ? catalogue_function("gelu_tanh", where) : meaning(name, where);
  if (const Found act = context_.section.find("dense_act_fn")) {
    const std::string* other = act.value->string();
    if (other == nullptr)
      throw config_error("expected a string, found " + std::string(act.value->type_name()),
                         act.pointer);
    if (!same_function(meaning(*other, act.pointer), function)) {
      throw config_error(
          json::quote(*other) + " contradicts feed_forward_proj " + json::quote(text), act.pointer,
          "keep feed_forward_proj alone");
    }
  }
  if (const auto is_gated = context_.section.boolean({"is_gated_act"});
      is_gated && *is_gated != gated_) {
    throw config_error(std::string(*is_gated ? "true" : "false") +
                           " contradicts feed_forward_proj " + json::quote(text),
                       json::join(context_.section.pointer(), "is_gated_act"),
                       "keep feed_forward_proj alone");
  }
  return function;
}

// ---- parameters
// -----------------------------------------------------------------------------------

void RoleFormula::bind_params() {
  const RoleParams& own = context_.params.of(role_);
  const auto take = [&](const Function& f) {
    values_.clear();
    for (const auto& [key, found] : own.values) {
      const Parameter* parameter = activation::find_parameter(f.parameters(), key);
      if (parameter == nullptr) {
        throw config_error(json::quote(f.name()) + " has no parameter " + json::quote(key),
                           found.pointer, parameter_list(f));
      }
      if (!values_.emplace(parameter->name, found).second) {
        throw config_error(
            "the parameter " + parameter->name + " is given twice, by its name and by an alias",
            found.pointer, "keep one of them");
      }
      check_value(found, *parameter, scope());
      const json::Number* number = found.value->number();
      if (parameter->name == "limit" && number != nullptr && number->value > kLargestUsefulLimit) {
        context_.warnings.add(found.pointer,
                              json::brief(*found.value) +
                                  " is beyond any value that fp16 holds; the limit has no effect");
      }
    }
  };
  take(*base_);
  // A function whose parameter may be left out is another function without it.
  const auto* row = activation::find_entry(base_->name());
  if (row != nullptr && !row->optional_parameter.empty() &&
      !bound(values_, row->optional_parameter) &&
      !(rule_.keyed && !replaced_ && rule_.keyed->function == base_->name())) {
    base_ = catalogue_function(row->without_it, name_pointer_);
    take(*base_);
  }
}

RoleFormula::Number RoleFormula::scalar(const ValueKey& key, const Parameter& parameter,
                                        const Found& found, bool alone) const {
  Number result{std::nullopt, found.pointer, true};
  const auto off = [&](std::string_view text) {
    if (key.off != Off::Allowed) {
      throw config_error(std::string(text) + " has no meaning for " + family_, found.pointer,
                         parameter.name + ": " + parameter.domain.to_string());
    }
    if (alone)
      context_.warnings.add(found.pointer, std::string(text) + " means no " + parameter.name);
    return result;
  };
  if (found.value->is_null()) return off("null");
  const json::Number* number = found.value->number();
  if (number == nullptr) {
    throw config_error("expected a number, found " + json::described(*found.value), found.pointer);
  }
  if (alone && number->integral) {
    context_.warnings.add(
        found.pointer,
        json::brief(*found.value) +
            " is an integer where the class declares a float; transformers refuses it");
  }
  if (number->value == 0 && key.is_limit && key.off == Off::Allowed) return off("0");
  if (number->value == 0 && key.off == Off::Allowed && !parameter.domain.contains(0))
    return off("0");
  if (!parameter.domain.contains(number->value)) {
    throw config_error(
        parameter.name + " is " + json::brief(*found.value) + ", which is outside its domain",
        found.pointer, parameter.domain.to_string());
  }
  if (key.is_limit && number->value > kLargestUsefulLimit) {
    context_.warnings.add(found.pointer,
                          json::brief(*found.value) +
                              " is beyond any value that fp16 holds; the limit has no effect");
  }
  result.value = number->value;
  return result;
}

RoleFormula::Number RoleFormula::scalar_key(const ValueKey& key, const Parameter& parameter) const {
  Found found;
  for (std::string_view name : key.names) {
    const Found other = context_.section.find(name);
    if (!other) continue;
    if (found && !(*found.value == *other.value)) {
      throw config_error("contradicts " + found.pointer + ": " + json::brief(*other.value) +
                             " and " + json::brief(*found.value),
                         other.pointer, "keep one of them");
    }
    if (!found) found = other;
  }
  if (found) {
    Number number = scalar(key, parameter, found, true);
    if (key.reader == Reader::ClassOnly && number.value != key.fallback)
      context_.warnings.add(found.pointer, key.note);
    return number;
  }
  const std::string pointer = json::join(context_.section.pointer(), key.names.front());
  if (!key.fallback) {
    if (key.off == Off::Allowed) return {std::nullopt, {}, false};
    throw config_error(family_ + " needs this number for " + parameter.name, pointer,
                       parameter.domain.to_string());
  }
  if (key.is_limit)
    context_.warnings.add(pointer, "is missing; the default of " + family_ + ", " +
                                       number_text(*key.fallback) + ", is used");
  return {key.fallback, pointer + " missing: default " + number_text(*key.fallback), false};
}

// The family's own keys for this function's parameters (swiglu_alpha, activation_situ_beta, …).
void RoleFormula::read_keyed() {
  if (!rule_.keyed) return;
  const Keyed& keyed = *rule_.keyed;
  keyed_applies_ = !replaced_ && base_->name() == keyed.function;
  if (!keyed_applies_) {
    for (const ValueKey& key : keyed.values) {
      const Found found = context_.section.find_first(key.names);
      if (found && !found.value->is_null()) {
        context_.warnings.add(found.pointer, "is not used: it belongs to " +
                                                 std::string(keyed.function) +
                                                 ", and the layers compute " + base_->name());
      }
    }
    return;
  }
  if (!keyed.caution.empty()) context_.warnings.add({}, keyed.caution);
  if (keyed.reference_pairing) reference_layout_ = true;
  for (const ValueKey& key : keyed.values) {
    const Parameter* parameter = activation::find_parameter(base_->parameters(), key.parameter);
    if (bound(values_, parameter->name)) {
      if (const Found found = context_.section.find_first(key.names)) {
        throw config_error("the parameter " + parameter->name + " is given here and by " +
                               values_.at(parameter->name).pointer,
                           found.pointer, "keep one of them");
      }
      continue;
    }
    keyed_[parameter->name] = scalar_key(key, *parameter);
  }
}

// ---- limits
// -----------------------------------------------------------------------------------------

void RoleFormula::read_limit() {
  if (!rule_.limit) return;
  const Limit& limit = *rule_.limit;
  static const Parameter parameter{"limit",
                                   std::nullopt,
                                   Domain{0, std::numeric_limits<double>::infinity(), false, true},
                                   {},
                                   std::nullopt};
  if (!limit.value.per_layer) {
    limits_ = {scalar_key(limit.value, parameter)};
  } else {
    limit_list_ = context_.section.find_first(limit.value.names);
    if (!limit_list_) return;
    if (limit_list_.value->is_null()) {
      limits_ = {scalar(limit.value, parameter, limit_list_, true)};
      return;
    }
    const json::Array* list = limit_list_.value->array();
    if (list == nullptr) {
      throw config_error("expected a list with one limit for each layer, found " +
                             json::described(*limit_list_.value),
                         limit_list_.pointer);
    }
    if (list->empty()) return;
    if (context_.layers)
      check_layer_list(list->size(), *context_.layers, context_.section, limit_list_.pointer,
                       context_.warnings);
    limit_by_layer_ = true;
    for (std::size_t i = 0; i < list->size(); ++i) {
      limits_.push_back(
          scalar(limit.value, parameter, {&(*list)[i], json::join(limit_list_.pointer, i)}, false));
    }
    if (limit.reference_pairing) reference_layout_ = true;
  }
  const bool any = std::any_of(limits_.begin(), limits_.end(),
                               [](const Number& n) { return n.value.has_value(); });
  if (any && limit.value.reader == Reader::ReferenceOnly)
    context_.warnings.add(limit_list_.pointer, limit.value.note);
}

std::optional<double> RoleFormula::limit_at(std::optional<std::int64_t> layer,
                                            std::string& from) const {
  if (limits_.empty()) return std::nullopt;
  const Number& number = limits_[limit_by_layer_ ? static_cast<std::size_t>(layer.value_or(0)) : 0];
  if (number.value) from = number.from;
  return number.value;
}

bool RoleFormula::limited() const {
  return !replaced_ && std::any_of(limits_.begin(), limits_.end(),
                                   [](const Number& n) { return n.value.has_value(); });
}

Error RoleFormula::foreign_limit(const Function& f) const {
  const auto on = std::find_if(limits_.begin(), limits_.end(),
                               [](const Number& n) { return n.value.has_value(); });
  return foreign_limit(f, on == limits_.end() ? 0 : *on->value);
}

Error RoleFormula::foreign_limit(const Function& f, double limit) const {
  const std::string text =
      f.arity() == Arity::Unary ? limited_text(f, rule_.limit->form, limit) : f.formula();
  const auto on = std::find_if(limits_.begin(), limits_.end(),
                               [](const Number& n) { return n.value.has_value(); });
  const std::string where = on == limits_.end() ? name_pointer_ : on->from;
  return config_error(
      "the limit " + number_text(limit) + " of the " + std::string(to_string(role_)) +
          " layers of " + family_ + " stands beside " + json::quote(f.name()) +
          ", and only silu is known to be meant with it",
      where,
      R"(if that is meant, write the formula out: "hidden_act": "expr", "activation_params": {"expr": ")" +
          text + "\"}");
}

// `f` with the family's limit around it.
Function RoleFormula::limited(const Function& f, double limit) const {
  const bool before = rule_.limit->form == LimitForm::Before;
  const bool plain = values_.empty() && f.arity() == Arity::Unary;
  if (plain && same_function(f, catalogue_function("silu", {})))
    return catalogue_function(before ? "swiglu_clamp" : "swiglu_step", {});
  const bool clash = activation::find_parameter(f.parameters(), "limit") != nullptr;
  if (!rule_.limit->around_any || f.arity() != Arity::Unary || clash) throw foreign_limit(f, limit);
  context_.warnings.add(limits_.front().from,
                        family_ + " puts its limit around any activation, so " +
                            json::quote(f.name()) +
                            " runs as f(min(g, limit))*clamp(u, -limit, limit)" + in_role(role_));
  if (plain && same_function(f, catalogue_function("gelu", {})))
    return catalogue_function("geglu_clamp", {});
  return limited_before(f);
}

// ---- one layer
// ----------------------------------------------------------------------------------------

// Parameters that a model learns and the config does not bind are tensors of the class's module.
void RoleFormula::bind_learned(const Function& f, Binding& binding) const {
  for (const Parameter& parameter : f.parameters()) {
    if (binding.contains(parameter.name) || parameter.default_value) continue;
    if (!parameter.initial_value) {
      throw config_error(json::quote(f.name()) + " needs a value for " + parameter.name,
                         name_pointer_,
                         "\"activation_params\": {\"" + parameter.name + "\": …}, " +
                             parameter.domain.to_string());
    }
    std::string prefix(rule_.learned);
    if (prefix.empty()) {
      prefix = role_ == Role::Routed   ? "model.layers.{layer}.mlp.experts.act_fn."
               : role_ == Role::Shared ? "model.layers.{layer}.mlp.shared_experts.act_fn."
                                       : "model.layers.{layer}.mlp.act_fn.";
    }
    binding.emplace(parameter.name, ParameterValue::tensor(prefix + parameter.name));
  }
}

namespace {

bool has_tensor(const ParameterValue& value) {
  if (value.kind() == ParameterValue::Kind::Tensor) return true;
  return std::any_of(value.elements().begin(), value.elements().end(), has_tensor);
}

// The same binding with {layer} filled in.
ParameterValue at_layer(const ParameterValue& value, std::int64_t layer) {
  if (value.kind() != ParameterValue::Kind::Tensor) return value;
  std::string name = value.tensor_name();
  for (std::size_t at; (at = name.find("{layer}")) != std::string::npos;)
    name.replace(at, 7, std::to_string(layer));
  return ParameterValue::tensor(std::move(name));
}

}  // namespace

void RoleFormula::note_tensors(const Function& f, const Binding& binding) const {
  for (const Parameter& parameter : f.parameters()) {
    const auto value = binding.find(parameter.name);
    if (value == binding.end() || !has_tensor(value->second)) continue;
    context_.warnings.add(
        name_pointer_,
        parameter.name + " of " + f.name() + " is a tensor of the checkpoint" +
            (parameter.initial_value ? "; without it the initial value " +
                                           number_text(*parameter.initial_value) + " is used"
                                     : ", and has no value without it"));
  }
}

ResolvedActivation RoleFormula::resolve(std::optional<std::int64_t> layer) const {
  Function f = *base_;
  Binding binding;
  std::string from = from_;
  const auto note = [&](const std::string& piece) {
    if (!piece.empty()) from += "; " + piece;
  };

  if (keyed_applies_) {
    for (const auto& [name, number] : keyed_) {
      if (number.value) {
        binding.emplace(name, ParameterValue(*number.value));
        note(number.from);
      } else {
        f = catalogue_function(rule_.keyed->without, name_pointer_);
      }
    }
  }
  std::string limit_from;
  if (const auto limit = limit_at(layer, limit_from)) {
    const bool class_wraps = rule_.limit->around_any && f.arity() == Arity::Unary;
    const bool own_formula = replaced_ || (read_name_ == "expr" && f.arity() == Arity::Gated);
    if (own_formula && !class_wraps) {
      context_.warnings.add(
          limits_.front().from,
          "the limit is not applied: the formula of activation_params replaces it");
    } else {
      const std::string key = f.canonical();
      auto cached = functions_.find(key);
      if (cached == functions_.end()) cached = functions_.emplace(key, limited(f, *limit)).first;
      f = cached->second;
      binding.emplace("limit", ParameterValue(*limit));
      note(limit_from);
    }
  }
  for (const auto& [name, found] : values_) {
    const auto value = pick_value(found, scope(), layer);
    if (value) {
      binding.emplace(name, *value);
      note(found.pointer);
      continue;
    }
    const Parameter* parameter = activation::find_parameter(f.parameters(), name);
    if (!parameter->default_value) {
      throw config_error("says nothing about the " + std::string(to_string(role_)) +
                             " layers, and " + name + " of " + f.name() + " has no default",
                         found.pointer, R"({"routed": …, "shared": …, "dense": …})");
    }
    context_.warnings.add(found.pointer, "says nothing about the " + std::string(to_string(role_)) +
                                             " layers; they use " + name + " = " +
                                             number_text(*parameter->default_value));
  }
  bind_learned(f, binding);
  if (layer) {
    for (auto& [name, value] : binding) value = at_layer(value, *layer);
  }
  note_tensors(f, binding);

  const std::string name = f.name();
  if (gated_ && f.arity() == Arity::Unary) {
    const std::string key = "gated " + f.canonical();
    auto cached = functions_.find(key);
    if (cached == functions_.end()) cached = functions_.emplace(key, f.gated()).first;
    f = cached->second;
  }
  const bool bias = rule_.bias.keys.empty()
                        ? rule_.bias.value
                        : context_.section.boolean(rule_.bias.keys, rule_.bias.nullable)
                              .value_or(rule_.bias.value);
  Pairing pairing = gated_ ? rule_.pairing : Pairing::None;
  if (gated_ && role_ == Role::Routed && reference_layout_) {
    pairing = rule_.limit ? rule_.limit->reference_pairing.value_or(pairing)
                          : rule_.keyed->reference_pairing.value_or(pairing);
  }
  try {
    return {Activation(f, std::move(binding)),
            name,
            gated_,
            pairing,
            rule_.transposed,
            bias,
            std::move(from)};
  } catch (const Error& error) {
    throw config_error(error.message(),
                       name_pointer_ + (error.where().empty() ? "" : " " + error.where()),
                       error.hint());
  }
}

}  // namespace flexact::config
