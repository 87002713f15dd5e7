// How the library itself makes functions: with a catalogue name, or from a graph.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "activation/ast.hpp"
#include "activation/graph.hpp"
#include "flexact/activation.hpp"

namespace flexact {

// Everything that a function's copies share; never changed after it is made.
struct Function::Compiled {
  std::string name;
  Arity arity = Arity::Unary;
  std::vector<Parameter> parameters;
  activation::Ast ast;
  bool lifted = false;  // the value is ast(g) * u
  std::string formula;
  activation::Graph normal;  // the normal form, from which canonical() is printed
  activation::Graph graph;   // the same with every constant folded
  std::string canonical;
};

struct FunctionAccess {
  // Parameters in order of first use where `parameters` is absent.
  static Function compile(std::string name, std::string_view text,
                          std::optional<std::vector<Parameter>> parameters);
  // A function of the library's own making, such as a gradient.
  static Function from_graph(std::string name, const activation::Graph& graph,
                             std::vector<Parameter> parameters);
  // Sets what follows from the normal form.
  static void fill(Function::Compiled& made, activation::Graph normal);
  static const Function::Compiled& compiled(const Function& function) {
    return *function.compiled_;
  }
};

namespace activation {

struct CatalogueEntry;

std::vector<std::string> parameter_names(const std::vector<Parameter>& parameters);

// Throws InvalidArgument where a name is not an identifier, is reserved or appears twice, or a
// default lies outside its domain.
void check_parameters(const std::vector<Parameter>& parameters);

// The row's function.
Function function_of(const CatalogueEntry& entry);

}  // namespace activation

}  // namespace flexact
