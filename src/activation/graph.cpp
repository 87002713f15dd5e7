// What the operations are called and how many operands they take, and questions about a graph.
#include "activation/graph.hpp"

#include <algorithm>

#include "activation/numerics.hpp"

namespace flexact::activation {

namespace {

struct OpInfo {
  const char* name;
  int operands;
};

OpInfo info(Op op) noexcept {
  switch (op) {
    case Op::Constant:
      return {"constant", 0};
    case Op::Gate:
      return {"g", 0};
    case Op::Up:
      return {"u", 0};
    case Op::Input:
      return {"x", 0};
    case Op::Parameter:
      return {"parameter", 0};
    case Op::Neg:
      return {"-", 1};
    case Op::Add:
      return {"+", 2};
    case Op::Sub:
      return {"-", 2};
    case Op::Mul:
      return {"*", 2};
    case Op::Div:
      return {"/", 2};
    case Op::Powi:
      return {"^", 1};
    case Op::Exp:
      return {"exp", 1};
    case Op::Exp2:
      return {"exp2", 1};
    case Op::Expm1:
      return {"expm1", 1};
    case Op::Log:
      return {"log", 1};
    case Op::Log1p:
      return {"log1p", 1};
    case Op::Sqrt:
      return {"sqrt", 1};
    case Op::Rsqrt:
      return {"rsqrt", 1};
    case Op::Abs:
      return {"abs", 1};
    case Op::Sign:
      return {"sign", 1};
    case Op::Floor:
      return {"floor", 1};
    case Op::Tanh:
      return {"tanh", 1};
    case Op::Sigmoid:
      return {"sigmoid", 1};
    case Op::Erf:
      return {"erf", 1};
    case Op::Softplus:
      return {"softplus", 1};
    case Op::Relu:
      return {"relu", 1};
    case Op::Silu:
      return {"silu", 1};
    case Op::Gelu:
      return {"gelu", 1};
    case Op::GeluTanh:
      return {"gelu_tanh", 1};
    case Op::Min:
      return {"min", 2};
    case Op::Max:
      return {"max", 2};
    case Op::Clamp:
      return {"clamp", 3};
    case Op::Lt:
      return {"<", 2};
    case Op::Le:
      return {"<=", 2};
    case Op::Gt:
      return {">", 2};
    case Op::Ge:
      return {">=", 2};
    case Op::Eq:
      return {"==", 2};
    case Op::Ne:
      return {"!=", 2};
    case Op::Where:
      return {"where", 3};
  }
  return {"?", 0};
}

}  // namespace

int operand_count(Op op) noexcept {
  return info(op).operands;
}

const char* op_name(Op op) noexcept {
  return info(op).name;
}

bool is_comparison(Op op) noexcept {
  return op >= Op::Lt && op <= Op::Ne;
}

bool Graph::uses(Op leaf) const noexcept {
  return std::any_of(nodes.begin(), nodes.end(), [leaf](const Node& n) { return n.op == leaf; });
}

double evaluate(const Graph& graph, double first, double u, std::span<const double> parameters) {
  std::vector<double> values(graph.nodes.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    switch (node.op) {
      case Op::Constant:
        values[i] = node.value;
        break;
      case Op::Gate:
      case Op::Input:
        values[i] = first;
        break;
      case Op::Up:
        values[i] = u;
        break;
      case Op::Parameter:
        values[i] = parameters[static_cast<std::size_t>(node.index)];
        break;
      default: {
        std::array<double, 3> operand{};
        for (int k = 0; k < operand_count(node.op); ++k) operand[k] = values[node.operands[k]];
        values[i] = apply(node.op, operand[0], operand[1], operand[2], node.index);
      }
    }
  }
  return values.back();
}

}  // namespace flexact::activation
