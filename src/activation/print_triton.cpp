// Triton: one @triton.jit function in core operations, and the helper functions that it uses.
// Inputs are fp32 blocks, parameters fp32 blocks or scalars. Errors are stated in fp32 ulp for a
// device whose exp and log are good to 2 ulp.
#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "activation/gpu_forms.hpp"
#include "activation/graph.hpp"
#include "activation/language.hpp"
#include "activation/printers.hpp"

namespace flexact::activation {

namespace {

// What a GPU makes of Triton's operations decides the forms here: exp2, rsqrt and sqrt are one
// instruction of the special function unit each, exp is five, a quotient eight, log a polynomial of
// twenty-five.
const std::vector<Helper>& helpers() {
  static const std::vector<Helper> list = {
      {"sign", {}, R"(
@triton.jit
def _flexact_sign(a):
    # Exact; sign(+-0) is +-0, sign(NaN) is NaN.
    return tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, a))
)"},
      {"scale", {}, R"(
@triton.jit
def _flexact_scale(a, b):
    # a/b where b depends on parameters alone, so that 1/b is computed once: 3 ulp. The power of two p keeps
    # 1/(b*p) normal.
    size = tl.abs(b)
    # 2^-126 to the last digit: what is smaller would be a number of fp64.
    p = tl.where(size > 8.50705917e37, 1.1754943508222875e-38, 1.0)
    p = tl.where(size < 1.1754943508222875e-38, 8.50705917e37, p)
    return a * p * (1.0 / (b * p))
)"},
      {"exp", {}, R"(
@triton.jit
def _flexact_exp(a):
    # Relative error 2^-22 + |a|*2^-23.5, from rounding a*log2(e); results below the normal range are 0.
    return tl.exp2(a * 1.44269504)
)"},
      {"reciprocal", {}, R"(
@triton.jit
def _flexact_reciprocal(a):
    # 1/a for a of at least 1: 5 ulp.
    root = tl.rsqrt(a)
    return root * root
)"},
      {"expm1", {"exp"}, R"(
@triton.jit
def _flexact_expm1(a):
    # 3 ulp up to |a| = 0.35 by its series, then the error of exp over 1-exp(-0.35).
    p = 1.98412698e-4 * a + 1.38888889e-3
    p = p * a + 8.33333333e-3
    p = p * a + 4.16666667e-2
    p = p * a + 1.66666667e-1
    p = p * a + 0.5
    return tl.where(tl.abs(a) < 0.35, a * a * p + a, _flexact_exp(a) - 1.0)
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
      {"sigmoid", {"exp", "reciprocal"}, R"(
@triton.jit
def _flexact_sigmoid(a):
    # The relative error of exp(-a) plus 5 ulp.
    return _flexact_reciprocal(1.0 + _flexact_exp(-a))
)"},
      {"silu", {"sigmoid"}, R"(
@triton.jit
def _flexact_silu(a):
    # sigmoid's error plus half an ulp.
    return a * _flexact_sigmoid(a)
)"},
      {"tanh", {"exp", "reciprocal"}, R"(
@triton.jit
def _flexact_tanh(a):
    # 3 ulp below |a| = 0.6 by a polynomial, then 2^-21 of 1.
    s = a * a
    p = -0.0156126347 * s + 0.052211808
    p = p * s - 0.133131167
    p = p * s + 0.333325975
    t = 1.0 - 2.0 * _flexact_reciprocal(1.0 + _flexact_exp(2.0 * tl.abs(a)))
    return tl.where(tl.abs(a) < 0.6, a - a * s * p, tl.where(a < 0, -t, t))
)"},
      {"tanh_parts", {"exp"}, R"(
@triton.jit
def _flexact_tanh_parts(a):
    # Numerator and denominator, from 1 to 2, of tanh(a): 2e-5 by a itself below 2^-7, then 2^-17.
    e = _flexact_exp(-2.0 * tl.abs(a))
    n = 1.0 - e
    d = 1.0 + e
    return tl.where(tl.abs(a) < 0.0078125, a * d, tl.where(a < 0, -n, n)), d
)"},
      {"softplus", {"exp"}, R"(
@triton.jit
def _flexact_softplus(a):
    # max(a,0) + log1p(e), e = exp(-|a|), by a polynomial on [0,1]: the relative error of e plus 3 ulp.
    e = _flexact_exp(-tl.abs(a))
    p = 0.00523269083 * e - 0.0295052268
    p = p * e + 0.078225933
    p = p * e - 0.136632442
    p = p * e + 0.191060066
    p = p * e - 0.24842982
    p = p * e + 0.333190977
    p = p * e - 0.499994934
    p = p * e + 0.99999994
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL) + e * p
)"},
      {"tanh_of_softplus", {"exp", "reciprocal"}, R"(
@triton.jit
def _flexact_tanh_of_softplus(a):
    # n/(n+2), n = e*(e+2), e = exp(a); it is 1 from a = 20 on. Twice the relative error of exp plus 7 ulp.
    e = _flexact_exp(tl.minimum(a, 20.0, propagate_nan=tl.PropagateNan.ALL))
    n = e * (e + 2.0)
    return n * _flexact_reciprocal(n + 2.0)
)"},
      {"normal", {"sigmoid"}, R"(
@triton.jit
def _flexact_normal(a):
    # The normal distribution function as sigmoid(a*p(a^2)). a times its error is below 2^-23 beside 6 ulp;
    # relative to the result 2^-16 at a = -3, 2^-11 at -4, from -5 on it is lost.
    s = tl.minimum(a * a, 36.0, propagate_nan=tl.PropagateNan.ALL)
    p = 3.61123287e-9 * s - 2.66892813e-7
    p = p * s + 7.93821891e-6
    p = p * s - 1.10480316e-4
    p = p * s - 6.62599778e-5
    p = p * s + 0.0726685673
    p = p * s + 1.59576845
    return _flexact_sigmoid(a * p)
)"},
      {"one_plus_erf", {"normal"}, R"(
@triton.jit
def _flexact_one_plus_erf(a):
    # Twice the normal distribution function of a*sqrt(2), with its error.
    return 2.0 * _flexact_normal(1.41421356 * a)
)"},
      {"half_one_plus_erf", {"normal"}, R"(
@triton.jit
def _flexact_half_one_plus_erf(a):
    # The half of that.
    return _flexact_normal(1.41421356 * a)
)"},
      {"gelu", {"normal"}, R"(
@triton.jit
def _flexact_gelu(a):
    # a times the normal distribution function: 2^-23 beside 6 ulp.
    return a * _flexact_normal(a)
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
      : function_(function), graph_(function.graph()), forms_(graph_) {}

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
      } else if (forms_.absorbed(static_cast<int>(i))) {
        names_.emplace_back();
      } else {
        const std::string value = expression(static_cast<int>(i), body);
        names_.push_back("v" + std::to_string(i));
        body += "    " + names_.back() + " = " + value + "\n";
      }
    }
    if (block.back()) return body + "    return " + names_.back() + "\n";
    // A value without an input, such as a constant gradient, takes the inputs' shape.
    const std::string like = graph_.gated ? "g" : "x";
    return body + "    return tl.zeros_like(" + like + ") + " + names_.back() + "\n";
  }

  const std::string& name(int node) const { return names_[static_cast<std::size_t>(node)]; }

  // The gates' numerators over the product of their denominators, then the other factors one by
  // one.
  std::string gates(int node, const GpuForms::Product& product, std::string& body) {
    std::string above;
    std::string below;
    const auto times = [](std::string& text, const std::string& more) {
      text += (text.empty() ? "" : " * ") + more;
    };
    int count = 0;
    for (const GpuForms::Gate& gate : product.gates) {
      const std::string suffix = std::to_string(node) + "_" + std::to_string(count++);
      times(below, "d" + suffix);
      if (gate.op == Op::Tanh) {
        times(above, "n" + suffix);
        body += "    n" + suffix + ", d" + suffix + " = " + helpers_.use("tanh_parts") + "(" +
                name(gate.operand) + ")\n";
      } else {
        body += "    d" + suffix + " = 1.0 + " + helpers_.use("exp") + "(-" + name(gate.operand) +
                ")\n";
      }
    }
    times(above, helpers_.use("reciprocal") + "(" + below + ")");
    for (int factor : product.factors) times(above, name(factor));
    return above;
  }

  std::string divide(const Node& n) {
    const Node& by = graph_.nodes[static_cast<std::size_t>(n.operands[1])];
    // The reciprocal of a constant is folded where it is a normal number: 1.5 ulp in all.
    if (by.op == Op::Constant && std::fabs(by.value) > 1e-30 && std::fabs(by.value) < 1e30)
      return in(n, 0) + " * " + python_literal(1 / by.value);
    if (forms_.uniform(n.operands[1]) && by.op != Op::Constant && !forms_.uniform(n.operands[0]))
      return helpers_.use("scale") + "(" + in(n, 0) + ", " + in(n, 1) + ")";
    return in(n, 0) + " / " + in(n, 1);
  }

  std::string integer_power(const Node& n) const {
    const std::string product = power_text(in(n, 0), n.index);
    return n.index < 0 ? "1.0 / " + product : product;
  }

  static std::string propagating(const std::string& f, const std::string& a, const std::string& b) {
    return "tl." + f + "(" + a + ", " + b + ", propagate_nan=tl.PropagateNan.ALL)";
  }

  // Lines that the value needs go to `body`.
  std::string expression(int node, std::string& body) {
    const Node& n = graph_.nodes[static_cast<std::size_t>(node)];
    if (const auto* product = forms_.product(node)) return gates(node, *product, body);
    if (const int z = forms_.tanh_of_softplus(node); z >= 0)
      return helpers_.use("tanh_of_softplus") + "(" + name(z) + ")";
    if (const int z = forms_.half_one_plus_erf(node); z >= 0)
      return helpers_.use("half_one_plus_erf") + "(" + name(z) + ")";
    if (const int z = forms_.one_plus_erf(node); z >= 0)
      return helpers_.use("one_plus_erf") + "(" + name(z) + ")";
    switch (n.op) {
      case Op::Neg:
        return "-" + in(n, 0);
      case Op::Add:
      case Op::Sub:
      case Op::Mul:
        return in(n, 0) + " " + op_name(n.op) + " " + in(n, 1);
      case Op::Div:
        return divide(n);
      case Op::Powi:
        return integer_power(n);
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
  const GpuForms forms_;
  std::vector<std::string> names_;
  UsedHelpers helpers_{helpers(), "_flexact_"};
};

}  // namespace

std::string print_triton(const Function& function) {
  return TritonPrinter(function).print();
}

}  // namespace flexact::activation
