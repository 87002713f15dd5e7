// A parsed expression: what the user wrote, typed and with positions, before any simplification.
// The fp64 reference evaluates this; the graph is built from it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "activation/graph.hpp"
#include "flexact/activation.hpp"

namespace flexact::activation {

enum class Form : std::uint8_t {
  Number,     // value; `spelling` is set for pi, e and inf
  Variable,   // op: Gate, Up or Input
  Parameter,  // index
  Name,       // a definition's name: operands[0] is what it stands for
  Apply,      // op with operands
  Power,      // operands[0] ^ operands[1], the rules of `^` already checked
};

struct Expr {
  Form form = Form::Number;
  Op op = Op::Constant;
  bool condition = false;  // a comparison, readable only by where()
  bool constant = false;   // made of numbers alone: `value` holds its fp64 value
  double value = 0;
  std::int32_t index = 0;
  std::array<std::int32_t, 3> operands{-1, -1, -1};
  const char* spelling = nullptr;
  std::size_t column = 1;
};

struct Definition {
  std::string name;
  std::int32_t expr = -1;
};

// Expressions refer only to earlier ones; the last is the result.
struct Ast {
  std::vector<Expr> exprs;
  std::vector<Definition> definitions;
  std::vector<std::string> parameters;
  Arity arity = Arity::Unary;
  std::int32_t result = -1;
};

// How strictly parse() reads.
struct ParseOptions {
  // The parameters in order; null: every unknown name is one, in order of first use.
  const std::vector<std::string>* parameters = nullptr;
  // Text that the library itself printed: the arity is given, parameters may be unused, the limits
  // are wider and constants may be infinite or not a number.
  bool printed = false;
  Arity arity = Arity::Unary;  // read only where `printed`
};

// Throws ExpressionError with the column of the fault.
Ast parse(std::string_view text, const ParseOptions& options);

// The value of the expression as written. `first` is g or x.
double evaluate(const Ast& ast, double first, double u, std::span<const double> parameters);

}  // namespace flexact::activation
