#include "config/names.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "activation/catalogue.hpp"

namespace flexact {

std::vector<std::string> known_stacks() {
  return activation::stacks();
}

namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// The stacks that spell an activation exactly so, without being understood by everyone.
std::vector<std::string> stacks_spelling(std::string_view name) {
  std::vector<std::string> found;
  for (const auto& row : activation::catalogue()) {
    for (const auto& alias : row.aliases) {
      if (alias.name == name && !alias.plain) found.push_back(alias.stack);
    }
  }
  return found;
}

}  // namespace

Function function_from_stack(std::string_view name, std::string_view stack) {
  if (stack.empty()) return Function::named(name);
  const std::vector<std::string> stacks = known_stacks();
  if (std::find(stacks.begin(), stacks.end(), stack) == stacks.end()) {
    throw Error(ErrorCode::InvalidArgument, "unknown stack " + config::json::quote(stack), {},
                "one of " + joined(stacks));
  }
  if (const auto* row = activation::find_entry(name, stack)) return Function::named(row->name);
  std::vector<std::string> names;
  for (const auto& row : activation::catalogue()) {
    for (const auto& alias : row.aliases) {
      if (alias.stack == stack) names.push_back(alias.name);
    }
  }
  throw Error(ErrorCode::ConfigError,
              config::json::quote(name) + " is no activation of " + std::string(stack), {},
              "its names here are " + joined(names));
}

namespace config {

Function catalogue_function(std::string_view name, const std::string& where) {
  try {
    return Function::named(name);
  } catch (const Error& error) {
    std::string hint = error.hint();
    const std::vector<std::string> stacks = stacks_spelling(name);
    if (!stacks.empty()) {
      hint += (hint.empty() ? "" : "; ") + std::string("it is a name of ") + joined(stacks) +
              ", which --from " + stacks.front() + " admits";
    }
    throw config_error("unknown activation " + json::quote(name), where, std::move(hint));
  }
}

Function named_function(std::string_view name, const Family& family, const std::string& from_stack,
                        const std::string& where, Warnings& warnings) {
  if (!from_stack.empty()) {
    try {
      return function_from_stack(name, from_stack);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::ConfigError) throw;
      throw config_error(error.message(), where, error.hint());
    }
  }
  for (const Rename& rename : family.renames) {
    if (rename.name != name) continue;
    if (rename.warn) {
      warnings.add(where, "in " + std::string(family.model_types.front()) + " files " +
                              json::quote(name) + " means " + std::string(rename.meaning));
    }
    return catalogue_function(rename.meaning, where);
  }
  return catalogue_function(name, where);
}

Function expression_function(std::string_view text, const std::string& where) {
  try {
    return Function::expression(text);
  } catch (const Error& error) {
    throw config_error(
        error.where().empty() ? error.message() : error.where() + ": " + error.message(), where,
        error.hint());
  }
}

bool looks_like_activation(std::string_view name) {
  const auto same = [&](std::string_view other) {
    return name.size() == other.size() && std::equal(name.begin(), name.end(), other.begin(),
                                                     [](unsigned char a, unsigned char b) {
                                                       return std::tolower(a) == std::tolower(b);
                                                     });
  };
  for (const auto& row : activation::catalogue()) {
    if (same(row.name)) return true;
    for (const auto& alias : row.aliases) {
      if (same(alias.name)) return true;
    }
  }
  return false;
}

bool same_function(const Function& a, const Function& b) {
  if (a.arity() != b.arity()) return same_function(a.gated(), b.gated());
  if (a == b) return true;
  const auto defaults = [](const Function& f, std::vector<double>& values) {
    for (const Parameter& parameter : f.parameters()) {
      if (!parameter.default_value) return false;
      values.push_back(*parameter.default_value);
    }
    return true;
  };
  std::vector<double> va;
  std::vector<double> vb;
  if (!defaults(a, va) || !defaults(b, vb)) return false;
  const auto close = [](double x, double y) {
    return std::abs(x - y) <= 1e-13 + 1e-13 * std::abs(y);
  };
  for (int i = -40; i <= 40; ++i) {
    const double g = i * 0.375;
    if (a.arity() == Arity::Unary) {
      if (!close(a.reference(g, va), b.reference(g, vb))) return false;
    } else {
      for (double u : {-9.5, -0.5, 1.0, 8.25}) {
        if (!close(a.reference(g, u, va), b.reference(g, u, vb))) return false;
      }
    }
  }
  return true;
}

namespace {

// The formula of a unary function with another text in place of x; local definitions stay in front.
std::string substituted(const Function& f, std::string_view argument, std::string_view prefix,
                        std::string_view suffix) {
  const std::string& text = f.formula();
  const auto word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  std::string out;
  std::size_t value_at = 0;  // in `out`: where the value after the last definition begins
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == 'x' && (i == 0 || !word(text[i - 1])) &&
        (i + 1 == text.size() || !word(text[i + 1]))) {
      out += argument;
      ++i;
      continue;
    }
    out += text[i];
    if (text[i] == ';') value_at = out.size();
    ++i;
  }
  return out.substr(0, value_at) + std::string(prefix) + out.substr(value_at) + std::string(suffix);
}

}  // namespace

Function limited_before(const Function& f) {
  std::vector<Parameter> parameters = f.parameters();
  parameters.push_back({"limit",
                        std::nullopt,
                        Domain{0, std::numeric_limits<double>::infinity(), false, true},
                        {},
                        std::nullopt});
  return Function::expression(substituted(f, "min(g,limit)", "(", ")*clamp(u,-limit,limit)"),
                              std::move(parameters));
}

std::string limited_text(const Function& f, LimitForm form, double limit) {
  const std::string value = json::brief(json::Value(json::Number{limit, false, false, 0}));
  const std::string up = "*clamp(u,-" + value + "," + value + ")";
  return form == LimitForm::Before ? substituted(f, "min(g," + value + ")", "(", ")" + up)
                                   : substituted(f, "g", "min(", "," + value + ")" + up);
}

}  // namespace config
}  // namespace flexact
