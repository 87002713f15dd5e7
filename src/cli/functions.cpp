// Commands about functions: list, show, emit, and eval of a named function or an expression.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>

#include "activation/binding.hpp"
#include "activation/catalogue.hpp"
#include "activation/language.hpp"
#include "cli/commands.hpp"
#include "config/family.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact::cli {

namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void fail(const std::string& message, const std::string& hint = {}) {
  throw Error(ErrorCode::InvalidArgument, message, {}, hint);
}

const char* arity_name(Arity arity) {
  return arity == Arity::Gated ? "gated" : "unary";
}

// "swish_glu(beta=1)"
std::string signature(const std::string& name, const Function& function) {
  std::string text = name;
  const char* separator = "(";
  for (const Parameter& parameter : function.parameters()) {
    text += separator + parameter.name;
    if (parameter.default_value) text += "=" + activation::number_text(*parameter.default_value);
    separator = ", ";
  }
  return function.parameters().empty() ? text : text + ")";
}

Json parameter_json(const Parameter& parameter) {
  Json json = {{"name", parameter.name}, {"domain", parameter.domain.to_string()}};
  if (parameter.default_value) json["default"] = *parameter.default_value;
  if (parameter.initial_value) json["initial"] = *parameter.initial_value;
  if (!parameter.aliases.empty()) json["aliases"] = parameter.aliases;
  return json;
}

Json function_json(const std::string& name, const Function& function) {
  Json json = {
      {"name", name}, {"arity", arity_name(function.arity())}, {"formula", function.formula()}};
  json["parameters"] = Json::array();
  for (const Parameter& p : function.parameters()) json["parameters"].push_back(parameter_json(p));
  json["canonical"] = function.canonical();
  json["fingerprint"] = function.fingerprint();
  if (const activation::CatalogueEntry* row = activation::find_entry(name)) {
    json["summary"] = row->summary;
    json["source"] = row->source;
    if (row->id) json["id"] = *row->id;
    json["aliases"] = Json::array();
    for (const activation::Alias& alias : row->aliases) {
      json["aliases"].push_back(
          {{"name", alias.name}, {"stack", alias.stack}, {"needs_from", !alias.plain}});
    }
  }
  return json;
}

// Values for a plot: defaults, initial values, or 1 where the domain allows it.
std::vector<double> sample_values(const Function& function, const Binding& given) {
  std::vector<double> values;
  for (const Parameter& p : function.parameters()) {
    const auto bound = given.find(p.name);
    if (bound != given.end()) {
      values.push_back(bound->second.scalar());
    } else {
      values.push_back(p.default_value.value_or(
          p.initial_value.value_or(p.domain.contains(1) ? 1 : p.domain.min)));
    }
  }
  return values;
}

// Model types that compute `function` unless their config says otherwise. What a gated layer makes
// of a unary default counts as the gated function.
std::vector<std::string> models_using(const Function& function) {
  std::vector<std::string> models;
  for (const activation::CatalogueEntry& row : activation::catalogue()) {
    const Function other = Function::named(row.name);
    if (other != function && other.gated() != function) continue;
    for (std::string_view model : config::families_with_default(row.name)) {
      if (std::find(models.begin(), models.end(), model) == models.end())
        models.emplace_back(model);
    }
  }
  return models;
}

// Words in lines of at most a hundred columns.
std::string wrapped(const std::vector<std::string>& words) {
  std::string text;
  std::string line;
  for (const std::string& word : words) {
    if (line.size() + word.size() > 98) {
      text += " " + line + "\n";
      line.clear();
    }
    line += " " + word;
  }
  return text + " " + line + "\n";
}

Binding parse_parameters(const std::vector<std::string>& texts) {
  Binding binding;
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      fail("'" + text + "' is not a parameter", "-p name=value, for example -p beta=1.5");
    }
    const std::string name = text.substr(0, equals);
    const double value = parse_number(text.substr(equals + 1), "-p " + name);
    if (!binding.emplace(name, value).second) fail("parameter '" + name + "' is given twice");
  }
  return binding;
}

// The registry's name for what `choice` names.
std::string chosen_name(const FunctionChoice& choice) {
  if (choice.stack.empty()) return choice.name;
  return function_from_stack(choice.name, choice.stack).name();
}

}  // namespace

double parse_number(const std::string& text, const std::string& option) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  while (begin != end && (*begin == ' ' || *begin == '\t')) ++begin;
  while (begin != end && (end[-1] == ' ' || end[-1] == '\t')) --end;
  if (begin != end && *begin == '+') ++begin;
  double value = 0;
  const auto result = std::from_chars(begin, end, value);
  if (result.ec == std::errc::result_out_of_range) {
    fail(option + ": '" + text + "' does not fit a double");
  }
  if (result.ec != std::errc() || result.ptr != end ||
      (begin != end && begin[0] == '-' && text.find('+') == 0)) {
    fail(option + ": '" + text + "' is not a number", "decimal numbers, inf, -inf, nan");
  }
  return value;
}

std::vector<double> parse_numbers(const std::string& text, const std::string& option) {
  std::vector<double> values;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    values.push_back(parse_number(text.substr(begin, end - begin), option));
    begin = end + 1;
  }
  return values;
}

Function choose_function(const FunctionChoice& choice) {
  if (choice.name.empty() == choice.expression.empty()) {
    fail("give either a NAME or --expr TEXT");
  }
  if (!choice.expression.empty()) {
    if (!choice.stack.empty()) fail("--from goes with a NAME");
    return Function::expression(choice.expression);
  }
  return Function::named(chosen_name(choice));
}

Activation choose(const FunctionChoice& choice, bool lift) {
  const Binding binding = parse_parameters(choice.parameters);
  const Function function = choose_function(choice);
  const Activation activation =
      choice.expression.empty()
          ? ActivationRegistry::instance().get_activation(chosen_name(choice), binding)
          : Activation(function, binding);
  return lift ? activation.gated() : activation;
}

void list(bool json, std::ostream& out) {
  const ActivationRegistry& registry = ActivationRegistry::instance();
  if (json) {
    Json all = Json::array();
    for (const std::string& name : registry.list())
      all.push_back(function_json(name, registry.get_function(name)));
    out << all.dump(2) << "\n";
    return;
  }
  std::size_t width = 0;
  for (const std::string& name : registry.list()) {
    width = std::max(width, signature(name, registry.get_function(name)).size());
  }
  for (const std::string& name : registry.list()) {
    const Function function = registry.get_function(name);
    const activation::CatalogueEntry* row = activation::find_entry(name);
    out << fmt::format("{:<{}}  {}  {}\n", signature(name, function), width,
                       arity_name(function.arity()),
                       row != nullptr ? row->summary : function.formula());
  }
}

void show(const FunctionChoice& choice, bool json, std::ostream& out, std::ostream&) {
  const Binding binding = parse_parameters(choice.parameters);
  const Function function = choose_function(choice);
  for (const auto& [name, value] : binding) {
    const Parameter* parameter = activation::find_parameter(function.parameters(), name);
    if (parameter == nullptr) fail("'" + function.name() + "' has no parameter '" + name + "'");
    if (!parameter->domain.contains(value.scalar())) {
      fail("parameter '" + name + "' is outside its domain", parameter->domain.to_string());
    }
  }
  if (json) {
    Json described = function_json(function.name(), function);
    described["models"] = models_using(function);
    out << described.dump(2) << "\n";
    return;
  }
  const activation::CatalogueEntry* row = activation::find_entry(function.name());
  out << fmt::format("{}   {}\n", signature(function.name(), function),
                     arity_name(function.arity()));
  if (row != nullptr) out << "  " << row->summary << "\n\n";
  out << "formula      " << function.formula() << "\n";
  out << "canonical    " << function.canonical() << "\n";
  out << "fingerprint  " << function.fingerprint() << "\n";
  if (row != nullptr) out << "source       " << row->source << "\n";
  if (row != nullptr && row->id) out << "id           " << *row->id << "\n";
  if (!function.parameters().empty()) out << "\nparameters\n";
  for (const Parameter& p : function.parameters()) {
    std::string text = fmt::format("  {:<12} {}", p.name, p.domain.to_string());
    if (p.default_value) text += "; default " + activation::number_text(*p.default_value);
    if (p.initial_value)
      text += "; learned, starts at " + activation::number_text(*p.initial_value);
    if (!p.default_value && !p.initial_value) text += "; must be given";
    if (!p.aliases.empty()) text += "; also called " + activation::join(p.aliases);
    out << text << "\n";
  }
  if (row != nullptr && !row->aliases.empty()) {
    out << "\nother names\n";
    for (const activation::Alias& alias : row->aliases) {
      out << fmt::format("  {:<22} {}{}\n", alias.name, alias.stack,
                         alias.plain ? "" : fmt::format(" (with --from {})", alias.stack));
    }
  }
  const std::vector<std::string> models = models_using(function);
  if (!models.empty()) {
    out << "\nmodel types that compute it by default\n" << wrapped(models);
  }
  const std::vector<double> values = sample_values(function, binding);
  std::string at;
  for (std::size_t i = 0; i < values.size(); ++i) {
    at += fmt::format("{}{} = {}", i ? ", " : ", ", function.parameters()[i].name,
                      activation::number_text(values[i]));
  }
  out << "\n"
      << (function.arity() == Arity::Gated ? "g from -6 to 6, u = 1" : "x from -6 to 6") << at
      << "\n"
      << plot(function, values);
}

void emit(const FunctionChoice& choice, const std::string& target, bool gated, std::ostream& out) {
  static const std::array<std::pair<const char*, Target>, 4> kTargets = {
      {{"cuda", Target::Cuda},
       {"triton", Target::Triton},
       {"torch", Target::Torch},
       {"text", Target::Text}}};
  for (const auto& [name, value] : kTargets) {
    if (target != name) continue;
    const Function function = choose_function(choice);
    out << (gated ? function.gated() : function).emit(value);
    return;
  }
  fail("unknown target '" + target + "'", "cuda, triton, torch, text");
}

}  // namespace flexact::cli
