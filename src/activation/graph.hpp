// The compiled form of a function: a small SSA graph in topological order. Every target (reference
// interpreter, CPU tape, CUDA, Triton, torch, text, gradient) reads this and nothing else.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flexact::activation {

// Operations keep the level of the expression language: a backend lowers sigmoid, silu, gelu or
// softplus to the stable and cheap form that suits it, and states that form's error.
enum class Op : std::uint8_t {
  // Leaves.
  Constant,   // value
  Gate,       // g
  Up,         // u
  Input,      // x (unary)
  Parameter,  // index: column of the value table
  // Arithmetic.
  Neg,
  Add,
  Sub,
  Mul,
  Div,
  Powi,  // a ^ index, |index| in 2 … 16 (negative: reciprocal of the positive power)
  // Functions of one argument.
  Exp,
  Exp2,
  Expm1,
  Log,
  Log1p,
  Sqrt,
  Rsqrt,
  Abs,
  Sign,  // sign(±0) = ±0, sign(NaN) = NaN
  Floor,
  Tanh,
  Sigmoid,
  Erf,
  Softplus,
  Relu,  // propagates NaN
  Silu,
  Gelu,      // erf form
  GeluTanh,  // tanh form
  // Two and three arguments; min, max and clamp propagate NaN.
  Min,
  Max,
  Clamp,  // a clamped to [b, c]
  // Comparisons are conditions: they are read only by Where. False with NaN, except Ne.
  Lt,
  Le,
  Gt,
  Ge,
  Eq,
  Ne,
  Where,  // a ? b : c; both sides are evaluated
};

// Number of operands of `op`, 0 … 3.
int operand_count(Op op) noexcept;
// The operation's name as the expression language spells it ("sigmoid", "+", …).
const char* op_name(Op op) noexcept;
bool is_comparison(Op op) noexcept;

struct Node {
  Op op = Op::Constant;
  std::array<std::int32_t, 3> operands{-1, -1, -1};  // indices of earlier nodes
  double value = 0;                                  // Constant
  std::int32_t index = 0;                            // Parameter: column; Powi: exponent
  friend bool operator==(const Node&, const Node&) = default;
};

// Nodes reference only earlier nodes; the last node is the result. No two nodes are equal (common
// subexpressions are shared) and every node reaches the result.
class Graph {
 public:
  std::vector<Node> nodes;
  int parameter_count = 0;
  bool gated = false;  // reads Gate/Up; otherwise Input

  int result() const noexcept { return static_cast<int>(nodes.size()) - 1; }
  bool uses(Op leaf) const noexcept;
  friend bool operator==(const Graph&, const Graph&) = default;
};

// The graph's value in fp64. `first` is g or x; `u` is ignored by unary graphs.
double evaluate(const Graph& graph, double first, double u, std::span<const double> parameters);

}  // namespace flexact::activation
