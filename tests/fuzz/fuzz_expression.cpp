// Expressions as arbitrary text: refused at a column, or a function whose texts all read back as
// itself, whose printers and gradients work, and whose normal form has the value of the text.
//
// Text that begins with "unary(" or "gated(" is read as canonical text.
#include <vector>

#include "activation/ast.hpp"
#include "activation/function_access.hpp"
#include "activation/graph.hpp"
#include "flexact/activation.hpp"
#include "fuzz.hpp"
#include "graph_bounds.hpp"

namespace {

using namespace flexact;
using activation::Ast;
using activation::Expr;
using activation::Form;
using activation::Graph;
using activation::Node;
using activation::Op;
using fuzz::check;

// The expression as written, one node for each operation.
Graph as_written(const Ast& ast) {
  Graph graph;
  std::vector<std::int32_t> place(ast.exprs.size());
  const auto push = [&](Node node) {
    graph.nodes.push_back(node);
    return static_cast<std::int32_t>(graph.nodes.size()) - 1;
  };
  for (std::size_t i = 0; i < ast.exprs.size(); ++i) {
    const Expr& e = ast.exprs[i];
    std::array<std::int32_t, 3> in{-1, -1, -1};
    for (std::size_t k = 0; k < 3 && e.operands[k] >= 0; ++k)
      in[k] = place[static_cast<std::size_t>(e.operands[k])];
    const double n =
        e.form == Form::Power ? ast.exprs[static_cast<std::size_t>(e.operands[1])].value : 0;
    switch (e.form) {
      case Form::Number:
        place[i] = push({Op::Constant, in, e.value});
        break;
      case Form::Variable:
        place[i] = push({e.op});
        break;
      case Form::Parameter:
        place[i] = push({Op::Parameter, in, 0, e.index});
        break;
      case Form::Name:
        place[i] = in[0];
        break;
      case Form::Apply:
        place[i] = push({e.op, in});
        break;
      case Form::Power: {
        const Expr& exponent = ast.exprs[static_cast<std::size_t>(e.operands[1])];
        if (exponent.constant && n == std::trunc(n) && std::fabs(n) <= 16) {
          place[i] = push({Op::Powi, {in[0], -1, -1}, 0, static_cast<std::int32_t>(n)});
        } else if (exponent.constant && std::fabs(n) == 0.5) {
          place[i] = push({n > 0 ? Op::Sqrt : Op::Rsqrt, {in[0], -1, -1}});
        } else if (const Expr& base = ast.exprs[static_cast<std::size_t>(e.operands[0])];
                   base.constant && base.value == 1) {
          place[i] = push({Op::Constant, {-1, -1, -1}, 1});  // of NaN and infinities too, as pow
        } else {
          const std::int32_t log = push({Op::Log, {in[0], -1, -1}});
          const std::int32_t product = push({Op::Mul, {log, in[1], -1}});
          place[i] = push({Op::Exp, {product, -1, -1}});
        }
      }
    }
  }
  // The last node is the result.
  if (place[static_cast<std::size_t>(ast.result)] != graph.result()) {
    const std::int32_t result = place[static_cast<std::size_t>(ast.result)];
    const std::int32_t zero = push({Op::Constant, {-1, -1, -1}, 0});
    const std::int32_t one = push({Op::Lt, {zero, zero, -1}});
    push({Op::Where, {one, zero, result}});
  }
  return graph;
}

void check_values(const Function& function) {
  const auto& compiled = FunctionAccess::compiled(function);
  const Graph written = as_written(compiled.ast);
  const std::size_t count = function.parameters().size();
  const double kInputs[][2] = {{0.5, 1.25},   {-1.75, 0.5},   {3, -2},
                               {-40, 7},      {0, 0},         {1e-3, -9.5},
                               {HUGE_VAL, 1}, {-HUGE_VAL, 2}, {std::nan(""), 1}};
  for (const auto& [g, u] : kInputs) {
    std::vector<float> parameters;
    for (std::size_t i = 0; i < count; ++i)
      parameters.push_back(0.75f + 0.5f * static_cast<float>(i) - static_cast<float>(g > 1));
    const std::vector<double> wide(parameters.begin(), parameters.end());
    const bool gated = function.arity() == Arity::Gated;
    const double reference = gated ? function.reference(g, u, wide) : function.reference(g, wide);
    const test::Bounded want = test::bounded(written, g, u, parameters, test::kFp64);
    check(test::allows(want, reference), "the reference is wrong", function.canonical());
    // The graph's own bound covers rules that change the order of roundings.
    const double value = activation::evaluate(function.graph(), g, u, wide);
    const test::Bounded room = test::bounded(function.graph(), g, u, parameters, test::kFp64);
    if (!room.known() || std::isnan(room.value) != std::isnan(want.value)) continue;
    const bool finite = std::isfinite(room.value) && std::isfinite(want.value);
    check(test::allows(want, value, finite ? room.error : 0), "the normal form has another value",
          function.formula() + "\n" + function.canonical() + "\nat " + std::to_string(g) + ", " +
              std::to_string(u) + ": " + std::to_string(value) + " for " +
              std::to_string(static_cast<double>(want.value)));
  }
}

void check_texts(const Function& function) {
  const Function back = Function::from_canonical(function.canonical());
  check(back.canonical() == function.canonical(), "canonical text changes", function.canonical());
  check(back.graph() == function.graph(), "canonical text is another graph", function.canonical());
  check(back.fingerprint() == function.fingerprint(), "the fingerprint changes");
  for (Target target : {Target::Cuda, Target::Triton, Target::Torch, Target::Text}) {
    const std::string text = function.emit(target);
    check(fuzz::is_utf8(text) && text.size() > 10, "an odd text", text);
    check(text.size() < (std::size_t{4} << 20), "a text out of proportion", function.canonical());
  }
}

void check_function(const Function& function) {
  check_texts(function);
  check_values(function);
  const Function lifted = function.gated();
  check(Function::from_canonical(lifted.canonical()).graph() == lifted.graph(),
        "the lifted function changes", lifted.canonical());
  std::vector<std::string> variables = {"x"};
  if (function.arity() == Arity::Gated) variables = {"g", "u"};
  for (const Parameter& parameter : function.parameters()) variables.push_back(parameter.name);
  for (const std::string& variable : variables) {
    const Function slope = function.gradient(variable);
    check(Function::from_canonical(slope.canonical()).canonical() == slope.canonical(),
          "a gradient's text changes", slope.canonical());
    const std::vector<double> values(function.parameters().size(), 0.5);
    if (function.arity() == Arity::Gated) {
      slope.reference(0.5, -1.5, values);
    } else {
      slope.reference(0.5, values);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const bool canonical = text.starts_with("unary(") || text.starts_with("gated(");
  try {
    const Function function =
        canonical ? Function::from_canonical(text) : Function::expression(text);
    if (!canonical) {
      const Function again = Function::expression(function.formula(), function.parameters());
      check(again == function, "the formula reads back as another function", function.formula());
      check(again.formula() == function.formula(), "the formula changes", function.formula());
    }
    try {
      check_function(function);
    } catch (const Error& error) {
      fuzz::fail(error.what(), function.canonical());
    }
  } catch (const Error& error) {
    fuzz::check_error(error, ErrorCode::ExpressionError);
    check(error.where().starts_with("column "), "no column", error.what());
    const std::size_t column = std::stoul(error.where().substr(7));
    check(column >= 1 && column <= size + 1, "a column outside the text", error.what());
  }
  return 0;
}
