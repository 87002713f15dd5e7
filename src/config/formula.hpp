// From a role's rule to what each of its layers computes: the function that the name means, the
// family's own keys, its limit, and the values of activation_params.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/params.hpp"
#include "flexact/config.hpp"

namespace flexact::config {

// What all roles of one stack share.
struct StackContext {
  const Family& family;
  const Section& section;
  const ActivationParams& params;
  const std::string& from_stack;
  Warnings& warnings;
  std::string model_type;              // for messages
  std::optional<std::int64_t> layers;  // of the longest stack, for lists over layers
  std::optional<std::int64_t> experts;
  bool has_routed = false;
};

class RoleFormula {
 public:
  // Reads everything that does not depend on the layer; throws ConfigError.
  RoleFormula(const StackContext& context, Role role, const RoleRule& rule);

  // What `layer` computes; nullopt: one layer that stands for all.
  ResolvedActivation resolve(std::optional<std::int64_t> layer) const;

  // For the judgement of keys that nobody read.
  const Function& base() const noexcept { return *base_; }
  bool gated() const noexcept { return gated_; }
  bool replaced() const noexcept { return replaced_; }
  // The name as the config spells it; empty where the role reads none.
  const std::string& read_name() const noexcept { return read_name_; }
  // A limit of the role's family is on in some layer, and it is not replaced.
  bool limited() const;
  // The refusal of a limit beside another activation.
  Error foreign_limit(const Function& f) const;

 private:
  // A number from the config: its value (none: off) and where it came from.
  struct Number {
    std::optional<double> value;
    std::string from;
    bool present = false;
  };

  void choose_base();
  void choose_gate();
  bool reads_proj() const {
    return rule_.style == NameStyle::FeedForwardProj ||
           rule_.style == NameStyle::FeedForwardProjExact;
  }
  void replace_base(const RoleParams& own);
  std::string_view by_flag(const Found& found) const;
  void read_base_name();
  Function t5_function(const std::string& text, const std::string& where);
  void bind_params();
  void read_keyed();
  void read_limit();
  Number scalar(const ValueKey& key, const Parameter& parameter, const Found& found,
                bool alone) const;
  Number scalar_key(const ValueKey& key, const Parameter& parameter) const;
  std::optional<double> limit_at(std::optional<std::int64_t> layer, std::string& from) const;
  Function limited(const Function& f, double limit) const;
  Error foreign_limit(const Function& f, double limit) const;
  void bind_learned(const Function& f, Binding& binding) const;
  void note_tensors(const Function& f, const Binding& binding) const;
  Scope scope() const;

  const StackContext& context_;
  Role role_;
  const RoleRule& rule_;
  std::string family_;

  std::optional<Function> base_;
  std::string from_;
  std::string read_name_;
  std::string name_pointer_;
  bool gated_;
  bool replaced_ = false;

  std::map<std::string, Found> values_;  // activation_params by canonical parameter name
  std::map<std::string, Number> keyed_;  // the family's own keys by parameter name
  bool keyed_applies_ = false;
  Found limit_list_;            // per layer
  std::vector<Number> limits_;  // one (all layers alike) or one a layer
  bool limit_by_layer_ = false;
  bool reference_layout_ = false;
  mutable std::map<std::string, Function> functions_;  // compiled once, by what they are made from
};

}  // namespace flexact::config
