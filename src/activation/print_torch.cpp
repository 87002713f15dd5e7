// Torch: eager operations on tensors of any floating dtype and device, so that autograd works
// through forward(); the symbolic gradients stand beside it for those who want them.
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "activation/graph.hpp"
#include "activation/language.hpp"
#include "activation/printers.hpp"

namespace flexact::activation {

namespace {

// One Python function computing one graph.
class TorchPrinter {
 public:
  TorchPrinter(std::string name, Function function)
      : name_(std::move(name)), function_(std::move(function)), graph_(function_.graph()) {}

  std::string print() {
    const std::string input = graph_.gated ? "g" : "x";
    std::string text = "\n\ndef " + name_ + "(" + (graph_.gated ? "g, u" : "x");
    for (std::size_t i = 0; i < function_.parameters().size(); ++i)
      text += ", p" + std::to_string(i);
    text += "):\n    \"\"\"" + function_.formula() + "\"\"\"\n";
    std::string body;
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) body += statement(i);
    for (std::size_t i = 0; i < function_.parameters().size(); ++i) {
      if (!parameter_used_[i]) continue;
      const std::string p = "p" + std::to_string(i);
      text += "    " + p + " = torch.as_tensor(" + p + ", dtype=" + input +
              ".dtype, device=" + input + ".device)\n";
    }
    text += body;
    if (shaped_.back()) return text + "    return " + value_.back() + "\n";
    return text + "    return torch.zeros_like(" + input + ") + " + value_.back() + "\n";
  }

 private:
  std::string statement(std::size_t i) {
    const Node& n = graph_.nodes[i];
    const bool leaf = n.op == Op::Gate || n.op == Op::Up || n.op == Op::Input;
    bool shaped = leaf;
    for (int k = 0; k < operand_count(n.op); ++k) {
      shaped = shaped || shaped_[static_cast<std::size_t>(n.operands[k])];
    }
    shaped_.push_back(shaped);
    if (n.op == Op::Constant) {
      value_.push_back(python_literal(n.value));
      return {};
    }
    if (n.op == Op::Parameter) {
      parameter_used_[static_cast<std::size_t>(n.index)] = true;
      value_.push_back("p" + std::to_string(n.index));
      return {};
    }
    if (leaf) {
      value_.emplace_back(op_name(n.op));
      return {};
    }
    const std::string text = expression(n);
    value_.push_back("v" + std::to_string(i));
    return "    " + value_.back() + " = " + text + "\n";
  }

  bool is_number(const Node& n, int k) const {
    return graph_.nodes[static_cast<std::size_t>(n.operands[k])].op == Op::Constant;
  }

  // An operand as Python reads it: a tensor's name, or a number.
  std::string in(const Node& n, int k) const {
    return value_[static_cast<std::size_t>(n.operands[k])];
  }

  // An operand as a tensor, for operations that take no numbers.
  std::string tensor(const Node& n, int k) const {
    if (!is_number(n, k)) return in(n, k);
    const std::string like = graph_.gated ? "g" : "x";
    return "torch.full((), " + in(n, k) + ", dtype=" + like + ".dtype, device=" + like + ".device)";
  }

  std::string call(const std::string& name, const Node& n) const {
    std::string text = name + "(";
    for (int k = 0; k < operand_count(n.op); ++k) text += (k ? ", " : "") + tensor(n, k);
    return text + ")";
  }

  std::string expression(const Node& n) const {
    switch (n.op) {
      case Op::Neg:
        return "-" + tensor(n, 0);
      case Op::Add:
      case Op::Sub:
      case Op::Mul:
      case Op::Div:
        // Two numbers meet only where folding them would give NaN, which Python would refuse.
        return (is_number(n, 1) ? tensor(n, 0) : in(n, 0)) + " " + op_name(n.op) + " " + in(n, 1);
      case Op::Powi:
        return tensor(n, 0) + " ** " + python_literal(n.index);
      case Op::Where:
        return "torch.where(" + in(n, 0) + ", " + tensor(n, 1) + ", " + tensor(n, 2) + ")";
      case Op::Min:
        return call("torch.minimum", n);
      case Op::Max:
        return call("torch.maximum", n);
      case Op::Clamp:
        if (is_number(n, 1) && is_number(n, 2)) {
          return "torch.clamp(" + tensor(n, 0) + ", " + in(n, 1) + ", " + in(n, 2) + ")";
        }
        return call("torch.clamp", n);
      case Op::Silu:
        return call("F.silu", n);
      case Op::Gelu:
        return call("F.gelu", n);
      case Op::GeluTanh:
        return "F.gelu(" + tensor(n, 0) + ", approximate=\"tanh\")";
      // The threshold beyond which exp(-v) is lost in every dtype; torch's own 20 costs 2e-9.
      case Op::Softplus:
        return "F.softplus(" + tensor(n, 0) + ", threshold=40.0)";
      default:
        break;
    }
    if (is_comparison(n.op)) return tensor(n, 0) + " " + op_name(n.op) + " " + in(n, 1);
    return call(std::string("torch.") + op_name(n.op), n);
  }

  std::string name_;
  Function function_;
  const Graph& graph_;
  std::vector<std::string> value_;
  std::vector<bool> shaped_;
  std::array<bool, kMaxParameters> parameter_used_{};
};

}  // namespace

std::string print_torch(const Function& function) {
  std::string text = "# " + function.canonical() + "\n";
  std::vector<std::string> variables = {"x"};
  if (function.arity() == Arity::Gated) variables = {"g", "u"};
  for (std::size_t i = 0; i < function.parameters().size(); ++i) {
    const std::string& name = function.parameters()[i].name;
    text += "# p" + std::to_string(i) + ": " + name + "\n";
  }
  text += "import torch\nimport torch.nn.functional as F";
  text += "\n" + TorchPrinter("forward", function).print();
  for (const std::string& variable : variables) {
    text += TorchPrinter("gradient_" + variable, function.gradient(variable)).print();
  }
  for (std::size_t i = 0; i < function.parameters().size(); ++i) {
    const Function by = function.gradient(function.parameters()[i].name);
    text += TorchPrinter("gradient_p" + std::to_string(i), by).print();
  }
  return text;
}

}  // namespace flexact::activation
