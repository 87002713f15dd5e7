// The process's table of functions: the catalogue's rows, compiled once, and registered ones.
#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "activation/binding.hpp"
#include "activation/catalogue.hpp"
#include "activation/function_access.hpp"
#include "activation/language.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {

struct ActivationRegistry::State {
  mutable std::shared_mutex mutex;
  std::vector<std::string> order;                           // canonical names
  std::map<std::string, Function, std::less<>> functions;   // by canonical name
  std::map<std::string, std::string, std::less<>> aliases;  // alias → canonical name
};

ActivationRegistry::ActivationRegistry() : state_(std::make_shared<State>()) {
  for (const activation::CatalogueEntry& row : activation::catalogue()) {
    state_->order.push_back(row.name);
    state_->functions.emplace(row.name, activation::function_of(row));
    for (const activation::Alias& alias : row.aliases) {
      if (alias.plain) state_->aliases.emplace(alias.name, row.name);
    }
  }
}

ActivationRegistry& ActivationRegistry::instance() {
  static ActivationRegistry registry;
  return registry;
}

Function ActivationRegistry::get_function(std::string_view name) const {
  const std::shared_lock lock(state_->mutex);
  const auto alias = state_->aliases.find(name);
  const auto found = state_->functions.find(alias == state_->aliases.end() ? name : alias->second);
  if (found != state_->functions.end()) return found->second;

  std::vector<std::string> known = state_->order;
  for (const auto& entry : state_->aliases) known.push_back(entry.first);
  const std::string near = activation::closest(name, known);
  // A name may hold anything; only what can be printed is repeated.
  std::string shown;
  for (char c : name.substr(0, 64)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  throw Error(ErrorCode::ConfigError, "unknown activation '" + shown + "'", {},
              near.empty() ? "'flexact list' shows the known ones; a formula of your own goes by "
                             "{\"expr\": \"…\"}"
                           : "did you mean '" + near + "'? Letter case matters");
}

Activation ActivationRegistry::get_activation(std::string_view name, const Binding& params) const {
  const Function function = get_function(name);
  const activation::CatalogueEntry* row = activation::find_entry(function.name());
  if (row != nullptr && !row->optional_parameter.empty()) {
    const bool given = std::any_of(params.begin(), params.end(), [&](const auto& entry) {
      const Parameter* parameter = activation::find_parameter(function.parameters(), entry.first);
      return parameter != nullptr && parameter->name == row->optional_parameter;
    });
    if (!given) return Activation(get_function(row->without_it), params);
  }
  return Activation(function, params);
}

Function ActivationRegistry::register_function(std::string name, std::string_view expression,
                                               std::vector<Parameter> parameters) {
  if (!activation::is_identifier(name)) {
    throw Error(ErrorCode::InvalidArgument, "'" + name + "' cannot name a function", {},
                "a name is a letter or _, then letters, digits and _, at most 64 characters");
  }
  static constexpr std::string_view kTaken[] = {"expr", "name", "none", "canonical", "gated"};
  if (std::find(std::begin(kTaken), std::end(kTaken), name) != std::end(kTaken)) {
    throw Error(ErrorCode::InvalidArgument, "'" + name + "' is a reserved word");
  }
  const Function made = parameters.empty()
                            ? FunctionAccess::compile(name, expression, std::nullopt)
                            : FunctionAccess::compile(name, expression, std::move(parameters));
  const std::unique_lock lock(state_->mutex);
  if (state_->functions.contains(name) || state_->aliases.contains(name)) {
    throw Error(ErrorCode::InvalidArgument, "an activation is called '" + name + "' already");
  }
  state_->order.push_back(name);
  state_->functions.emplace(name, made);
  return made;
}

std::vector<std::string> ActivationRegistry::list() const {
  const std::shared_lock lock(state_->mutex);
  return state_->order;
}

}  // namespace flexact
