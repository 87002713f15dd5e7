// Triton: one @triton.jit function in core operations, and the helper functions that it uses.
// Inputs are fp32 blocks, parameters fp32 blocks or scalars. Errors are stated in fp32 ulp for a
// device whose exp and log are good to 2 ulp.
#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "activation/graph.hpp"
#include "activation/language.hpp"
#include "activation/printers.hpp"

namespace flexact::activation {

namespace {

const std::vector<Helper>& helpers() {
  static const std::vector<Helper> list = {
      {"sign", {}, R"(
@triton.jit
def _flexact_sign(a):
    # Exact; sign(+-0) is +-0, sign(NaN) is NaN.
    return tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, a))
)"},
      {"expm1", {}, R"(
@triton.jit
def _flexact_expm1(a):
    # 3 ulp up to |a| = 0.35 by its series, then the error of exp over 1-exp(-0.35).
    p = 1.98412698e-4 * a + 1.38888889e-3
    p = p * a + 8.33333333e-3
    p = p * a + 4.16666667e-2
    p = p * a + 1.66666667e-1
    p = p * a + 0.5
    return tl.where(tl.abs(a) < 0.35, a * a * p + a, tl.exp(a) - 1.0)
)"},
      {"log1p", {}, R"(
@triton.jit
def _flexact_log1p(a):
    # 4 ulp: what rounding 1+a loses is put back by the factor a/((1+a)-1).
    w = 1.0 + a
    d = w - 1.0
    small = d == 0
    scale = tl.where(small, 1.0, a / tl.where(small, 1.0, d))
    return tl.where(small, a, tl.where(tl.abs(d) < 3.0e38, tl.log(w) * scale, tl.log(w)))
)"},
      {"sigmoid", {}, R"(
@triton.jit
def _flexact_sigmoid(a):
    # The relative error of exp(-a) plus 3 ulp.
    return 1.0 / (1.0 + tl.exp(-a))
)"},
      {"silu", {"sigmoid"}, R"(
@triton.jit
def _flexact_silu(a):
    # sigmoid's error plus half an ulp.
    return a * _flexact_sigmoid(a)
)"},
      {"tanh", {}, R"(
@triton.jit
def _flexact_tanh(a):
    # 3 ulp below |a| = 0.6 by a polynomial, then 2^-22 of 1.
    s = a * a
    p = -0.0156126347 * s + 0.052211808
    p = p * s - 0.133131167
    p = p * s + 0.333325975
    t = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(a)))
    return tl.where(tl.abs(a) < 0.6, a - a * s * p, tl.where(a < 0, -t, t))
)"},
      {"softplus", {"log1p"}, R"(
@triton.jit
def _flexact_softplus(a):
    # max(a,0) + log1p(exp(-|a|)): the relative error of exp(-|a|) plus 4 ulp.
    top = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return top + _flexact_log1p(tl.exp(-tl.abs(a)))
)"},
      {"gelu", {}, R"(
@triton.jit
def _flexact_gelu(a):
    # a/2*(1+erf(a/sqrt(2))): |a|*2^-23 beside 3 ulp.
    return 0.5 * a * (1.0 + tl.erf(0.7071067811865476 * a))
)"},
      {"gelu_tanh", {"sigmoid"}, R"(
@triton.jit
def _flexact_gelu_tanh(a):
    # a*sigmoid(2*sqrt(2/pi)*(a+0.044715*a^3)): sigmoid's error at twice the argument's ulp.
    return a * _flexact_sigmoid(a * (0.0713548162726009 * a * a + 1.5957691216057308))
)"},
  };
  return list;
}

class TritonPrinter {
 public:
  explicit TritonPrinter(const Function& function)
      : function_(function), graph_(function.graph()) {}

  std::string print() {
    const std::string body = print_body();
    std::string text =
        "# " + function_.canonical() + "\nimport triton\nimport triton.language as tl\n";
    text += helpers_.text("\n");
    text += "\n\n@triton.jit\ndef flexact_act(" + std::string(graph_.gated ? "g, u" : "x");
    for (std::size_t i = 0; i < function_.parameters().size(); ++i)
      text += ", p" + std::to_string(i);
    text += "):\n";
    for (std::size_t i = 0; i < function_.parameters().size(); ++i) {
      text += "    # p" + std::to_string(i) + ": " + function_.parameters()[i].name + "\n";
    }
    return text + body;
  }

 private:
  std::string in(const Node& n, int k) const {
    return names_[static_cast<std::size_t>(n.operands[k])];
  }

  std::string print_body() {
    std::string body;
    std::vector<bool> block;  // depends on an input, so it has a block's shape
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& n = graph_.nodes[i];
      const bool leaf = n.op == Op::Gate || n.op == Op::Up || n.op == Op::Input;
      bool shaped = leaf;
      for (int k = 0; k < operand_count(n.op); ++k) {
        shaped = shaped || block[static_cast<std::size_t>(n.operands[k])];
      }
      block.push_back(shaped);
      if (n.op == Op::Constant) {
        names_.push_back(python_literal(n.value));
      } else if (n.op == Op::Parameter) {
        names_.push_back("p" + std::to_string(n.index));
      } else if (leaf) {
        names_.emplace_back(op_name(n.op));
      } else {
        const std::string value = expression(n);
        names_.push_back("v" + std::to_string(i));
        body += "    " + names_.back() + " = " + value + "\n";
      }
    }
    if (block.back()) return body + "    return " + names_.back() + "\n";
    // A value without an input, such as a constant gradient, takes the inputs' shape.
    const std::string like = graph_.gated ? "g" : "x";
    return body + "    return tl.zeros_like(" + like + ") + " + names_.back() + "\n";
  }

  std::string integer_power(const Node& n) const {
    const std::string product = power_text(in(n, 0), n.index);
    return n.index < 0 ? "1.0 / " + product : product;
  }

  static std::string propagating(const std::string& f, const std::string& a, const std::string& b) {
    return "tl." + f + "(" + a + ", " + b + ", propagate_nan=tl.PropagateNan.ALL)";
  }

  std::string expression(const Node& n) {
    switch (n.op) {
      case Op::Neg:
        return "-" + in(n, 0);
      case Op::Add:
      case Op::Sub:
      case Op::Mul:
      case Op::Div:
        return in(n, 0) + " " + op_name(n.op) + " " + in(n, 1);
      case Op::Powi:
        return integer_power(n);
      case Op::Exp:
      case Op::Exp2:
      case Op::Log:
      case Op::Sqrt:
      case Op::Rsqrt:
      case Op::Abs:
      case Op::Floor:
      case Op::Erf:
        return std::string("tl.") + op_name(n.op) + "(" + in(n, 0) + ")";
      case Op::Relu:
        return propagating("maximum", in(n, 0), "0.0");
      case Op::Min:
        return propagating("minimum", in(n, 0), in(n, 1));
      case Op::Max:
        return propagating("maximum", in(n, 0), in(n, 1));
      case Op::Clamp:
        return propagating("minimum", propagating("maximum", in(n, 0), in(n, 1)), in(n, 2));
      case Op::Where:
        return "tl.where(" + in(n, 0) + ", " + in(n, 1) + ", " + in(n, 2) + ")";
      default:
        break;
    }
    if (is_comparison(n.op)) return in(n, 0) + " " + op_name(n.op) + " " + in(n, 1);
    return helpers_.use(op_name(n.op)) + "(" + in(n, 0) + ")";
  }

  const Function& function_;
  const Graph& graph_;
  std::vector<std::string> names_;
  UsedHelpers helpers_{helpers(), "_flexact_"};
};

}  // namespace

std::string print_triton(const Function& function) {
  return TritonPrinter(function).print();
}

}  // namespace flexact::activation
