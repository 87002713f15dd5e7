// Function: text to parsed expression to graph, once, shared by all copies.
#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "activation/builder.hpp"
#include "activation/catalogue.hpp"
#include "activation/digest.hpp"
#include "activation/function_access.hpp"
#include "activation/gradient.hpp"
#include "activation/language.hpp"
#include "activation/print_text.hpp"
#include "activation/printers.hpp"
#include "flexact/error.hpp"

namespace flexact {

using activation::Ast;
using activation::Builder;
using activation::Graph;

namespace {

// The normal form of `ast`; canonical text is printed from it.
Graph normal_graph(const Ast& ast) {
  Builder builder;
  const Builder::Ref result = builder.from(ast);
  return builder.finish(result, static_cast<int>(ast.parameters.size()), ast.arity == Arity::Gated);
}

// What backends read: the normal form with every constant folded.
Graph folded_graph(const Graph& normal) {
  Builder builder;
  builder.fold_transcendentals(true);
  const Builder::Ref result = builder.copy(normal, activation::Op::Input);
  return builder.finish(result, normal.parameter_count, normal.gated);
}

[[noreturn]] void fail_argument(const std::string& message) {
  throw Error(ErrorCode::InvalidArgument, message);
}

void check_count(const Function& function, std::size_t given) {
  const std::size_t wanted = function.parameters().size();
  if (given != wanted) {
    fail_argument("function '" + function.name() + "' has " + std::to_string(wanted) +
                  " parameters, " + std::to_string(given) + " values were given");
  }
}

}  // namespace

namespace activation {

std::vector<std::string> parameter_names(const std::vector<Parameter>& parameters) {
  std::vector<std::string> names;
  names.reserve(parameters.size());
  for (const Parameter& parameter : parameters) names.push_back(parameter.name);
  return names;
}

void check_parameters(const std::vector<Parameter>& parameters) {
  if (parameters.size() > kMaxParameters) {
    fail_argument("more than " + std::to_string(kMaxParameters) + " parameters");
  }
  std::set<std::string> seen;
  for (const Parameter& parameter : parameters) {
    std::vector<std::string> names = parameter.aliases;
    names.push_back(parameter.name);
    for (const std::string& name : names) {
      if (!is_identifier(name)) {
        throw Error(ErrorCode::InvalidArgument, "'" + name + "' cannot name a parameter", {},
                    "a name is a letter or _, then letters, digits and _");
      }
      if (is_reserved(name)) fail_argument("'" + name + "' is a reserved word");
      if (!seen.insert(name).second) fail_argument("parameter '" + name + "' is declared twice");
    }
    for (const auto& value : {parameter.default_value, parameter.initial_value}) {
      if (value && !parameter.domain.contains(*value)) {
        fail_argument("parameter '" + parameter.name + "': " + number_text(*value) +
                      " is outside its domain, " + parameter.domain.to_string());
      }
    }
  }
}

Function function_of(const CatalogueEntry& entry) {
  return FunctionAccess::compile(entry.name, entry.formula, entry.parameters);
}

}  // namespace activation

Function::Function(std::shared_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}

void FunctionAccess::fill(Function::Compiled& made, Graph normal) {
  made.canonical = activation::canonical_text(normal, activation::parameter_names(made.parameters));
  made.graph = folded_graph(normal);
  made.normal = std::move(normal);
}

Function FunctionAccess::compile(std::string name, std::string_view text,
                                 std::optional<std::vector<Parameter>> parameters) {
  auto made = std::make_shared<Function::Compiled>();
  activation::ParseOptions options;
  std::vector<std::string> names;
  if (parameters) {
    activation::check_parameters(*parameters);
    names = activation::parameter_names(*parameters);
    options.parameters = &names;
  }
  made->ast = activation::parse(text, options);
  made->name = std::move(name);
  made->arity = made->ast.arity;
  if (parameters) {
    made->parameters = std::move(*parameters);
  } else {
    for (const std::string& parameter : made->ast.parameters) {
      made->parameters.push_back(Parameter{parameter});
    }
  }
  Graph normal = normal_graph(made->ast);
  if (normal.nodes.size() > activation::kMaxNodes) {
    throw Error(ErrorCode::ExpressionError,
                "the expression needs " + std::to_string(normal.nodes.size()) + " operations",
                "column 1", "at most " + std::to_string(activation::kMaxNodes));
  }
  made->formula = activation::to_text(made->ast);
  fill(*made, std::move(normal));
  return Function(std::move(made));
}

Function FunctionAccess::from_graph(std::string name, const Graph& graph,
                                    std::vector<Parameter> parameters) {
  auto made = std::make_shared<Function::Compiled>();
  const std::vector<std::string> names = activation::parameter_names(parameters);
  activation::ParseOptions options;
  options.parameters = &names;
  options.printed = true;
  options.arity = graph.gated ? Arity::Gated : Arity::Unary;
  made->formula = activation::to_text(graph, names);
  made->ast = activation::parse(made->formula, options);
  made->name = std::move(name);
  made->arity = options.arity;
  made->parameters = std::move(parameters);
  fill(*made, graph);
  return Function(std::move(made));
}

Function Function::named(std::string_view name) {
  return ActivationRegistry::instance().get_function(name);
}

Function Function::expression(std::string_view text) {
  return FunctionAccess::compile("expr", text, std::nullopt);
}

Function Function::expression(std::string_view text, std::vector<Parameter> parameters) {
  return FunctionAccess::compile("expr", text, std::move(parameters));
}

Function Function::from_canonical(std::string_view text) {
  const auto fail = [](std::size_t column, const std::string& message) {
    throw Error(ErrorCode::ExpressionError, message, "column " + std::to_string(column),
                "canonical text reads 'unary(PARAMETERS): EXPRESSION' or 'gated(…): …'");
  };
  const bool gated = text.starts_with("gated(");
  if (!gated && !text.starts_with("unary(")) fail(1, "not canonical text");
  const std::size_t close = text.find("): ");
  if (close == std::string_view::npos) fail(text.size() + 1, "'): ' is missing");

  std::vector<std::string> names;
  constexpr std::size_t kHead = 6;  // "gated(" or "unary("
  for (std::size_t at = kHead; at < close;) {
    const std::size_t end = std::min(text.find(',', at), close);
    const std::string name(text.substr(at, end - at));
    if (!activation::is_identifier(name) || activation::is_reserved(name) ||
        std::find(names.begin(), names.end(), name) != names.end() || end + 1 == close) {
      fail(at + 1, "'" + name + "' cannot name a parameter");
    }
    names.push_back(name);
    at = end + 1;
  }
  if (names.size() > activation::kMaxParameters) fail(kHead + 1, "too many parameters");

  activation::ParseOptions options;
  options.parameters = &names;
  options.printed = true;
  options.arity = gated ? Arity::Gated : Arity::Unary;
  auto made = std::make_shared<Compiled>();
  made->name = "expr";
  made->arity = options.arity;
  for (const std::string& name : names) made->parameters.push_back(Parameter{name});
  made->ast = activation::parse(text.substr(close + 3), options);
  made->formula = activation::to_text(made->ast);
  FunctionAccess::fill(*made, normal_graph(made->ast));
  return Function(std::move(made));
}

const std::string& Function::name() const noexcept {
  return compiled_->name;
}
Arity Function::arity() const noexcept {
  return compiled_->arity;
}
const std::string& Function::formula() const noexcept {
  return compiled_->formula;
}
const std::vector<Parameter>& Function::parameters() const noexcept {
  return compiled_->parameters;
}
const std::string& Function::canonical() const noexcept {
  return compiled_->canonical;
}
const activation::Graph& Function::graph() const noexcept {
  return compiled_->graph;
}

std::string Function::fingerprint() const {
  return activation::sha256_hex(compiled_->canonical).substr(0, 32);
}

double Function::reference(double x, std::span<const double> values) const {
  check_count(*this, values.size());
  if (arity() != Arity::Unary) fail_argument("'" + name() + "' is gated: it needs g and u");
  return activation::evaluate(compiled_->ast, x, 0, values);
}

double Function::reference(double g, double u, std::span<const double> values) const {
  check_count(*this, values.size());
  if (arity() != Arity::Gated) fail_argument("'" + name() + "' is unary: it takes x alone");
  const double value = activation::evaluate(compiled_->ast, g, u, values);
  return compiled_->lifted ? value * u : value;
}

Function Function::gated() const {
  if (arity() == Arity::Gated) return *this;
  auto made = std::make_shared<Compiled>(*compiled_);
  made->arity = Arity::Gated;
  made->lifted = true;
  made->formula = activation::to_text(made->ast, "g", "*u");
  Builder builder;
  const Builder::Ref f = builder.copy(compiled_->normal, activation::Op::Gate);
  const Builder::Ref lifted =
      builder.binary(activation::Op::Mul, f, builder.variable(activation::Op::Up));
  FunctionAccess::fill(*made,
                       builder.finish(lifted, static_cast<int>(made->parameters.size()), true));
  return Function(std::move(made));
}

Function Function::gradient(std::string_view variable) const {
  using activation::Op;
  const bool is_gated = arity() == Arity::Gated;
  const Op leaf = variable == "g" && is_gated    ? Op::Gate
                  : variable == "u" && is_gated  ? Op::Up
                  : variable == "x" && !is_gated ? Op::Input
                                                 : Op::Parameter;
  int index = -1;
  for (std::size_t i = 0; i < parameters().size(); ++i) {
    if (parameters()[i].name == variable) index = static_cast<int>(i);
  }
  if (leaf == Op::Parameter && index < 0) {
    std::vector<std::string> known = {is_gated ? "g, u" : "x"};
    for (const Parameter& parameter : parameters()) known.push_back(parameter.name);
    throw Error(ErrorCode::InvalidArgument,
                "'" + name() + "' has no variable '" + std::string(variable) + "'", {},
                "it has " + activation::join(known));
  }
  return FunctionAccess::from_graph(
      "expr", activation::differentiate(compiled_->normal, leaf, index), parameters());
}

std::string Function::emit(Target target) const {
  switch (target) {
    case Target::Cuda:
      return activation::print_cuda(*this);
    case Target::Triton:
      return activation::print_triton(*this);
    case Target::Torch:
      return activation::print_torch(*this);
    case Target::Text:
      return activation::listing(graph(), activation::parameter_names(parameters()));
  }
  fail_argument("not a target");
}

}  // namespace flexact
