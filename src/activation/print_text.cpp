// Printing with as few brackets as the grammar allows.
#include "activation/print_text.hpp"

#include <algorithm>
#include <cmath>

#include "activation/language.hpp"

namespace flexact::activation {

namespace {

// A piece of text and how tightly its outermost operator binds.
enum Strength : int { kCompare = 1, kSum = 2, kProduct = 3, kNegation = 4, kPower = 5, kAtom = 6 };

struct Piece {
  std::string text;
  Strength strength = kAtom;
};

std::string at_least(const Piece& piece, int strength) {
  return piece.strength >= strength ? piece.text : "(" + piece.text + ")";
}

Piece number_piece(double value) {
  if (std::signbit(value)) return {"-" + number_text(-value), kNegation};
  return {number_text(value), kAtom};
}

Piece apply_piece(Op op, const std::array<Piece, 3>& in, int exponent) {
  const std::string name = op_name(op);
  switch (op) {
    case Op::Neg:
      return {"-" + at_least(in[0], kNegation), kNegation};
    case Op::Add:
    case Op::Sub: {
      // A sum with a negative number reads as a difference.
      if (op == Op::Add && in[1].strength == kNegation && in[1].text[1] != '(') {
        return {at_least(in[0], kSum) + in[1].text, kSum};
      }
      return {at_least(in[0], kSum) + name + at_least(in[1], kProduct), kSum};
    }
    case Op::Mul:
    case Op::Div:
      return {at_least(in[0], kProduct) + name + at_least(in[1], kNegation), kProduct};
    case Op::Powi:
      return {at_least(in[0], kAtom) + "^" + std::to_string(exponent), kPower};
    default:
      break;
  }
  if (is_comparison(op)) return {at_least(in[0], kSum) + name + at_least(in[1], kSum), kCompare};
  std::string text = name + "(" + in[0].text;
  for (int i = 1; i < operand_count(op); ++i) text += "," + in[i].text;
  return {text + ")", kAtom};
}

std::string fresh_name(int& next, std::span<const std::string> taken) {
  while (true) {
    std::string name = "t" + std::to_string(next++);
    if (std::find(taken.begin(), taken.end(), name) == taken.end()) return name;
  }
}

}  // namespace

std::string to_text(const Graph& graph, std::span<const std::string> parameters) {
  const std::size_t count = graph.nodes.size();
  std::vector<int> uses(count, 0);
  // Comparisons have no name of their own, so each use of one is a use of its operands: without
  // that, text could double with every level of conditions.
  for (std::size_t i = count; i-- > 0;) {
    const Node& n = graph.nodes[i];
    const int times = is_comparison(n.op) ? std::min(uses[i], 2) : 1;
    for (int k = 0; k < operand_count(n.op); ++k)
      uses[static_cast<std::size_t>(n.operands[k])] += times;
  }
  constexpr int kInlineSize = 4;  // min(g,limit) is 3
  std::vector<Piece> pieces(count);
  std::vector<int> sizes(count, 1);
  std::string definitions;
  int next_name = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Node& n = graph.nodes[i];
    std::array<Piece, 3> in;
    for (int k = 0; k < operand_count(n.op); ++k) {
      const auto from = static_cast<std::size_t>(n.operands[k]);
      in[k] = pieces[from];
      sizes[i] += sizes[from];
    }
    switch (n.op) {
      case Op::Constant:
        pieces[i] = number_piece(n.value);
        break;
      case Op::Parameter:
        pieces[i] = {parameters[static_cast<std::size_t>(n.index)], kAtom};
        break;
      case Op::Gate:
      case Op::Up:
      case Op::Input:
        pieces[i] = {op_name(n.op), kAtom};
        break;
      default:
        pieces[i] = apply_piece(n.op, in, n.index);
    }
    if (uses[i] > 1 && sizes[i] > kInlineSize && !is_comparison(n.op)) {
      const std::string name = fresh_name(next_name, parameters);
      definitions += name + "=" + pieces[i].text + "; ";
      pieces[i] = {name, kAtom};
      sizes[i] = 1;
    }
  }
  return definitions + pieces.back().text;
}

std::string to_text(const Ast& ast, std::string_view input, std::string_view suffix) {
  std::vector<Piece> pieces(ast.exprs.size());
  std::vector<const std::string*> names(ast.exprs.size(), nullptr);
  for (const Definition& d : ast.definitions) names[static_cast<std::size_t>(d.expr)] = &d.name;
  std::string definitions;
  std::size_t next_definition = 0;
  for (std::size_t i = 0; i < ast.exprs.size(); ++i) {
    const Expr& e = ast.exprs[i];
    std::array<Piece, 3> in;
    for (std::size_t k = 0; k < 3 && e.operands[k] >= 0; ++k) {
      in[k] = pieces[static_cast<std::size_t>(e.operands[k])];
    }
    switch (e.form) {
      case Form::Number:
        pieces[i] = e.spelling != nullptr ? Piece{e.spelling, kAtom} : number_piece(e.value);
        break;
      case Form::Variable:
        pieces[i] = {e.op == Op::Input ? std::string(input) : op_name(e.op), kAtom};
        break;
      case Form::Parameter:
        pieces[i] = {ast.parameters[static_cast<std::size_t>(e.index)], kAtom};
        break;
      case Form::Name:
        pieces[i] = {*names[static_cast<std::size_t>(e.operands[0])], kAtom};
        break;
      case Form::Apply:
        pieces[i] = apply_piece(e.op, in, 0);
        break;
      case Form::Power:
        pieces[i] = {at_least(in[0], kAtom) + "^" + at_least(in[1], kNegation), kPower};
        break;
    }
    while (next_definition < ast.definitions.size() &&
           ast.definitions[next_definition].expr == static_cast<std::int32_t>(i)) {
      definitions += ast.definitions[next_definition++].name + " = " + pieces[i].text + "; ";
    }
  }
  const Piece& value = pieces[static_cast<std::size_t>(ast.result)];
  return definitions +
         (suffix.empty() ? value.text : at_least(value, kProduct) + std::string(suffix));
}

std::string canonical_text(const Graph& graph, std::span<const std::string> parameters) {
  std::string text = graph.gated ? "gated(" : "unary(";
  for (std::size_t i = 0; i < parameters.size(); ++i) text += (i ? "," : "") + parameters[i];
  return text + "): " + to_text(graph, parameters);
}

std::string listing(const Graph& graph, std::span<const std::string> parameters) {
  std::string text = canonical_text(graph, parameters) + "\n";
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& n = graph.nodes[i];
    text += "  %" + std::to_string(i) + " = ";
    switch (n.op) {
      case Op::Constant:
        text += number_text(n.value);
        break;
      case Op::Parameter:
        text += parameters[static_cast<std::size_t>(n.index)];
        break;
      case Op::Powi:
        text += "%" + std::to_string(n.operands[0]) + " ^ " + std::to_string(n.index);
        break;
      default: {
        text += op_name(n.op);
        for (int k = 0; k < operand_count(n.op); ++k) {
          text += (k ? ", %" : " %") + std::to_string(n.operands[k]);
        }
      }
    }
    text += "\n";
  }
  return text;
}

}  // namespace flexact::activation
