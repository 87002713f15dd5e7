// CUDA: one straight-line function of one element, called twice, and the helper functions that it
// uses. Each helper's comment states its error against the exact value in fp32 ulp, or relative.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "activation/gpu_forms.hpp"
#include "activation/graph.hpp"
#include "activation/language.hpp"
#include "activation/print_text.hpp"
#include "activation/printers.hpp"

namespace flexact::activation {

namespace {

// Order matters: a helper stands after what it needs.
const std::vector<Helper>& helpers() {
  static const std::vector<Helper> list = {
      {"min", {}, R"(
// min with NaN where an operand is NaN (fminf drops it). Exact.
FLEXACT_HELPER float flexact_min(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
)"},
      {"max", {}, R"(
// max with NaN where an operand is NaN (fmaxf drops it). Exact.
FLEXACT_HELPER float flexact_max(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
)"},
      {"sign", {}, R"(
// Exact; sign(+-0) is +-0, sign(NaN) is NaN.
FLEXACT_HELPER float flexact_sign(float a) { return a > 0.0f ? 1.0f : a < 0.0f ? -1.0f : a; }
)"},
      {"div", {}, R"(
// 2 ulp over the full range (div.full). Precise: correctly rounded.
FLEXACT_HELPER float flexact_div(float a, float b) {
#ifdef FLEXACT_PRECISE
  return a / b;
#else
  float r;
  asm("div.full.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
#endif
}
)"},
      {"scale", {"div"}, R"(
// a/b where b depends on parameters alone, so that 1/b is computed once: 3 ulp. The power of two p
// keeps 1/(b*p) normal. Coarse: a divisor below 2^-128 is taken for that, and 1/b may have three
// bits less. Precise: correctly rounded.
FLEXACT_HELPER float flexact_scale(float a, float b) {
#ifdef FLEXACT_PRECISE
  return a / b;
#elif defined(FLEXACT_COARSE)
  const float most = 3.40282347e+38f;
  return a * fminf(fmaxf(flexact_div(1.0f, b), -most), most);
#else
  const float size = fabsf(b);
  const float p = size < 1.17549435e-38f   ? 8.50705917e+37f
                  : size > 8.50705917e+37f ? 1.17549435e-38f
                                           : 1.0f;
  return a * p * flexact_div(1.0f, b * p);
#endif
}
)"},
      {"exp2", {}, R"(
// 2 ulp; results below the normal range are 0. Precise: 2 ulp, with subnormal results.
FLEXACT_HELPER float flexact_exp2(float a) {
#ifdef FLEXACT_PRECISE
  return exp2f(a);
#else
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#endif
}
)"},
      {"exp", {"exp2"}, R"(
// Relative error 2^-22 + |a|*2^-23.5, from rounding a*log2(e); results below the normal range are 0.
// Precise: 2 ulp.
FLEXACT_HELPER float flexact_exp(float a) {
#ifdef FLEXACT_PRECISE
  return expf(a);
#else
  return flexact_exp2(a * 1.44269504f);
#endif
}
)"},
      {"exp_of", {"exp"}, R"(
// exp(a*c) of a constant c, with exp's error.
FLEXACT_HELPER float flexact_exp_of(float a, float c) {
#ifdef FLEXACT_PRECISE
  return flexact_exp(a * c);
#else
  return flexact_exp2(a * (c * 1.44269504f));
#endif
}
)"},
      {"expm1", {"exp"}, R"(
// 3 ulp up to |a| = 0.35 by its series, then the error of exp over 1-exp(-0.35).
// For bf16: 2^-22 beside exp's error, which is 2^-15 of the result at |a| = 0.01 and less elsewhere.
// Precise: 1 ulp.
FLEXACT_HELPER float flexact_expm1(float a) {
#ifdef FLEXACT_PRECISE
  return expm1f(a);
#elif defined(FLEXACT_BF16)
  return fabsf(a) < 0.01f ? 0.5f * a * a + a : flexact_exp(a) - 1.0f;
#else
  float p = 1.98412698e-4f;
  p = p * a + 1.38888889e-3f;
  p = p * a + 8.33333377e-3f;
  p = p * a + 4.16666679e-2f;
  p = p * a + 1.66666672e-1f;
  p = p * a + 0.5f;
  const float near_zero = a * a * p + a;
  return fabsf(a) < 0.35f ? near_zero : flexact_exp(a) - 1.0f;
#endif
}
)"},
      {"sqrt", {}, R"(
// 1 ulp; for bf16, the root of what is below the normal range is 0. Precise: correctly rounded.
FLEXACT_HELPER float flexact_sqrt(float a) {
#ifdef FLEXACT_PRECISE
  return sqrtf(a);
#elif defined(FLEXACT_BF16)
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#else
  float r;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#endif
}
)"},
      {"rsqrt", {}, R"(
// 2 ulp.
FLEXACT_HELPER float flexact_rsqrt(float a) {
  float r;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
)"},
      {"sigmoid", {"exp"}, R"(
// The relative error of exp(-a) plus 2 ulp; results below the normal range are 0. Precise: 4 ulp.
FLEXACT_HELPER float flexact_sigmoid(float a) {
#ifdef FLEXACT_PRECISE
  const float e = expf(-fabsf(a));
  return (a < 0.0f ? e : 1.0f) / (1.0f + e);
#else
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + flexact_exp(-a)));
  return r;
#endif
}
)"},
      {"sigmoid_of", {"sigmoid", "exp_of"}, R"(
// sigmoid(a*c) of a constant c, with sigmoid's error.
FLEXACT_HELPER float flexact_sigmoid_of(float a, float c) {
#ifdef FLEXACT_PRECISE
  return flexact_sigmoid(a * c);
#else
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + flexact_exp_of(a, -c)));
  return r;
#endif
}
)"},
      {"silu", {"sigmoid"}, R"(
// a*sigmoid(a): sigmoid's error plus half an ulp.
FLEXACT_HELPER float flexact_silu(float a) { return a * flexact_sigmoid(a); }
)"},
      {"tanh", {"exp"}, R"(
// 3 ulp below |a| = 0.6 by a polynomial, then 2^-22 of 1 by 1 - 2/(1+exp(2|a|)). For bf16: 2^-22, which
// is 2^-15 of the result at |a| = 2^-7 and less elsewhere. Coarse: 2^-11 of the result (tanh.approx).
// Precise: 2 ulp.
FLEXACT_HELPER float flexact_tanh(float a) {
#ifdef FLEXACT_PRECISE
  return tanhf(a);
#elif defined(FLEXACT_COARSE)
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#elif defined(FLEXACT_BF16)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + flexact_exp(2.0f * a)));
  return fabsf(a) < 0.0078125f ? a : 1.0f - 2.0f * r;
#else
  const float s = a * a;
  float p = -0.0156126347f;
  p = p * s + 0.052211808f;
  p = p * s + -0.133131167f;
  p = p * s + 0.333325975f;
  const float near_zero = a - a * s * p;
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + flexact_exp(2.0f * fabsf(a))));
  return fabsf(a) < 0.6f ? near_zero : copysignf(1.0f - 2.0f * r, a);
#endif
}
)"},
      {"softplus", {"max", "exp"}, R"(
// max(a,0) + log1p(e), e = exp(-|a|): the relative error of e plus 3 ulp; log1p by a polynomial on [0,1].
// Coarse: 2^-14 of the result. Precise: the C library's log1p.
FLEXACT_HELPER float flexact_softplus(float a) {
  const float e = flexact_exp(-fabsf(a));
#ifdef FLEXACT_PRECISE
  return flexact_max(a, 0.0f) + log1pf(e);
#elif defined(FLEXACT_COARSE)
  float p = 0.0412993394f * e - 0.157318935f;
  p = p * e + 0.306219339f;
  p = p * e - 0.496954978f;
  p = p * e + 0.999941528f;
  return flexact_max(a, 0.0f) + e * p;
#else
  float p = 0.00523269083f * e - 0.0295052268f;
  p = p * e + 0.078225933f;
  p = p * e - 0.136632442f;
  p = p * e + 0.191060066f;
  p = p * e - 0.24842982f;
  p = p * e + 0.333190977f;
  p = p * e - 0.499994934f;
  p = p * e + 0.99999994f;
  return flexact_max(a, 0.0f) + e * p;
#endif
}
)"},
      {"tanh_of_softplus", {"min", "tanh", "softplus"}, R"(
// n/(n+2), n = e*(e+2), e = exp(a); it is 1 from a = 20 on. Twice the relative error of exp plus 4 ulp.
// Precise: as written.
FLEXACT_HELPER float flexact_tanh_of_softplus(float a) {
#ifdef FLEXACT_PRECISE
  return flexact_tanh(flexact_softplus(a));
#else
  const float e = flexact_exp(flexact_min(a, 20.0f));
  const float n = e * (e + 2.0f);
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(n + 2.0f));
  return n * r;
#endif
}
)"},
      {"tanh_parts", {"exp", "tanh"}, R"(
// tanh(a) times `below`, a number from 1 to 2: 2e-5 by a itself below |a| = 2^-7, then 2^-17.
// Coarse and precise: tanh over 1.
FLEXACT_HELPER float flexact_tanh_parts(float a, float& below) {
#if defined(FLEXACT_PRECISE) || defined(FLEXACT_COARSE)
  below = 1.0f;
  return flexact_tanh(a);
#else
  const float e = flexact_exp(-2.0f * fabsf(a));
  below = 1.0f + e;
  return fabsf(a) < 0.0078125f ? a * below : copysignf(1.0f - e, a);
#endif
}
)"},
      {"sigmoid_parts", {"exp_of", "sigmoid"}, R"(
// sigmoid(a*c), c a constant, times `below`, a number of at least 1, with the relative error of exp(-a*c).
// Precise: sigmoid over 1.
FLEXACT_HELPER float flexact_sigmoid_parts(float a, float c, float& below) {
#ifdef FLEXACT_PRECISE
  below = 1.0f;
  return flexact_sigmoid(a * c);
#else
  below = 1.0f + flexact_exp_of(a, -c);
  return 1.0f;
#endif
}
)"},
      {"reciprocal", {}, R"(
// 1/a for a of at least 1: 1 ulp; of what is beyond the normal range 0. Precise: correctly rounded.
FLEXACT_HELPER float flexact_reciprocal(float a) {
#ifdef FLEXACT_PRECISE
  return 1.0f / a;
#else
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#endif
}
)"},
      {"normal", {"min", "sigmoid"}, R"(
// The normal distribution function of a*c, c a constant, as sigmoid(a*p(a^2)), in fast numerics only.
// a*c times its error is below 2^-23 beside 4 ulp; relative to the result 2^-16 at a*c = -3, 2^-11 at -4, from
// -5 on it is lost. Coarse: 2^-10.3 of the result, or a*c times its error below 2^-21.7.
FLEXACT_HELPER float flexact_normal(float a, float c) {
#ifdef FLEXACT_COARSE
  // Times -log2(e). The first coefficient makes it monotone, so nothing keeps a^2 in a range.
  const float s = a * a;
  const float c3 = c * c * c;
  float p = -8.64889699e-6f * c3 * c3 * c * s + 1.31863678e-3f * c3 * c * c;
  p = p * s - 0.108746608f * c3;
  p = p * s - 2.2984475f * c;
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + flexact_exp2(a * p)));
  return r;
#else
  const float b = a * c;
  const float s = flexact_min(b * b, 36.0f);
  float p = 3.61123287e-9f * s - 2.66892813e-7f;
  p = p * s + 7.93821891e-6f;
  p = p * s - 1.10480316e-4f;
  p = p * s - 6.62599778e-5f;
  p = p * s + 0.0726685673f;
  p = p * s + 1.59576845f;
  return flexact_sigmoid(b * p);
#endif
}
)"},
      {"one_plus_erf", {"normal"}, R"(
// 1 + erf(a*c), c a constant: twice the normal distribution function of a*c*sqrt(2), with its error.
// Precise: erfc(-a*c).
FLEXACT_HELPER float flexact_one_plus_erf(float a, float c) {
#ifdef FLEXACT_PRECISE
  return erfcf(-(a * c));
#else
  return 2.0f * flexact_normal(a, 1.41421356f * c);
#endif
}
)"},
      {"half_one_plus_erf", {"normal"}, R"(
// The half of that.
FLEXACT_HELPER float flexact_half_one_plus_erf(float a, float c) {
#ifdef FLEXACT_PRECISE
  return 0.5f * erfcf(-(a * c));
#else
  return flexact_normal(a, 1.41421356f * c);
#endif
}
)"},
      {"gelu", {"normal"}, R"(
// a times the normal distribution function: 2^-23 beside 5 ulp. Precise: a/2*erfc(-a/sqrt(2)) with the
// rounding of the argument put back, 8 ulp down to a = -12.
FLEXACT_HELPER float flexact_gelu(float a) {
#ifdef FLEXACT_PRECISE
  const float half = 0.5f * a;
  const float z = -0.707106769f * a;
  const float lost = fmaf(-0.707106769f, a, -z) + -1.21016175e-8f * a;
  const float tail = half * erfcf(z);
  return z > 0.5f && z < 12.0f ? tail - half * (1.12837917f * expf(-z * z) * lost) : tail;
#else
  return a * flexact_normal(a, 1.0f);
#endif
}
)"},
      {"gelu_tanh", {"sigmoid"}, R"(
// a*sigmoid(2*sqrt(2/pi)*(a+0.044715*a^3)): sigmoid's error at twice the argument's ulp.
FLEXACT_HELPER float flexact_gelu_tanh(float a) {
#ifdef FLEXACT_PRECISE
  return a * flexact_sigmoid(a * (0.0713548162726009f * a * a + 1.5957691216057308f));
#else
  float r;
  const float e = flexact_exp2(a * (-0.102943240f * a * a - 2.30220819f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
  return a * r;
#endif
}
)"},
  };
  return list;
}

std::string literal(double value) {
  if (std::isnan(value)) return "__int_as_float(0x7fc00000)";
  const auto rounded = static_cast<float>(value);
  if (std::isinf(rounded)) {
    return rounded > 0 ? "__int_as_float(0x7f800000)" : "__int_as_float(0xff800000)";
  }
  std::array<char, 40> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.9g", static_cast<double>(rounded));
  std::string text = buffer.data();
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text + "f";
}

class CudaPrinter {
 public:
  explicit CudaPrinter(const Function& function)
      : function_(function), graph_(function.graph()), forms_(graph_) {
    for (int i = 0; i <= graph_.result(); ++i) {
      const int argument = forms_.argument(i);
      if (argument < 0) continue;
      GpuForms::Scaled scaled = forms_.scaled(argument);
      if (scaled.inside.empty()) continue;
      inside_.insert(scaled.inside.begin(), scaled.inside.end());
      arguments_.emplace(argument, std::move(scaled));
    }
  }

  std::string print() {
    const std::string body = print_body();
    std::string text = head();
    text += helpers_.text();
    const bool gated = graph_.gated;
    const std::string in = gated ? "float g, float u" : "float x";
    text += "\nFLEXACT_HELPER float flexact_value(" + in + ", const float* parameters) {\n" + body +
            "}\n\n";
    if (gated) {
      text +=
          "FLEXACT_ACT void flexact_act2(const float g[2], const float u[2], "
          "const float* parameters, float y[2]) {\n"
          "  const float y0 = flexact_value(g[0], u[0], parameters);\n"
          "  const float y1 = flexact_value(g[1], u[1], parameters);\n";
    } else {
      text +=
          "FLEXACT_ACT void flexact_act2_unary(const float x[2], const float* parameters, "
          "float y[2]) {\n"
          "  const float y0 = flexact_value(x[0], parameters);\n"
          "  const float y1 = flexact_value(x[1], parameters);\n";
    }
    return text + "  y[0] = y0;\n  y[1] = y1;\n}\n#undef FLEXACT_HELPER\n#undef FLEXACT_COARSE\n";
  }

 private:
  std::string head() const {
    std::string text = "// " + function_.canonical() + "\n";
    for (std::size_t i = 0; i < function_.parameters().size(); ++i) {
      text += "// parameters[" + std::to_string(i) + "]: " + function_.parameters()[i].name + "\n";
    }
    text +=
        "#ifndef FLEXACT_ACT\n#define FLEXACT_ACT extern \"C\" __device__\n#endif\n"
        "#define FLEXACT_HELPER [[maybe_unused]] static __device__ __forceinline__\n";
    if (forms_.coarse()) {
      text +=
          "#if defined(FLEXACT_BF16) && !defined(FLEXACT_PRECISE)\n"
          "#define FLEXACT_COARSE\n#endif\n";
    }
    return text;
  }

  std::string print_body() {
    std::string body;
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& n = graph_.nodes[i];
      if (n.op == Op::Constant) {
        names_.push_back(literal(n.value));
        if (names_.back()[0] == '-') names_.back() = "(" + names_.back() + ")";
        continue;
      }
      if (n.op == Op::Gate || n.op == Op::Up || n.op == Op::Input) {
        names_.emplace_back(op_name(n.op));
        continue;
      }
      if (forms_.absorbed(static_cast<int>(i)) || inside_.contains(static_cast<int>(i))) {
        names_.emplace_back();
        continue;
      }
      const std::string value = expression(static_cast<int>(i), body);
      names_.push_back("v" + std::to_string(i));
      body += std::string("  const ") + (is_comparison(n.op) ? "bool " : "float ") + names_.back() +
              " = " + value + ";\n";
    }
    return body + "  return " + names_.back() + ";\n";
  }

  const std::string& name(int node) const { return names_[static_cast<std::size_t>(node)]; }

  std::string in(const Node& n, int k) const {
    return names_[static_cast<std::size_t>(n.operands[k])];
  }

  // a/c for a constant: a times its reciprocal, 1.5 ulp in all. Where that is no normal fp32
  // number, a power of two comes first, chosen so that what it does to a (overflow, lost bits) only
  // happens where the quotient is infinite or below the normal range.
  static std::string divide_by_constant(const std::string& a, double c) {
    constexpr int kMost = 126;
    const double inverse = 1 / c;
    const double size = std::fabs(inverse);
    if (!std::isfinite(c) || c == 0 || (size >= 0x1p-126 && size <= 0x1p126)) {
      return a + " * " + literal(inverse);
    }
    int exponent = 0;
    const double fraction = std::frexp(c, &exponent);
    const int first = std::clamp(-exponent, -kMost, kMost);
    // A number, so that 0 divided by the tiniest c is 0 and infinity by the largest is infinity.
    using Float = std::numeric_limits<float>;
    const double rest = std::clamp(std::ldexp(1 / std::fabs(fraction), -exponent - first),
                                   double{Float::min()}, double{Float::max()});
    return a + " * " + literal(std::ldexp(1.0, first)) + " * " +
           literal(std::copysign(rest, fraction));
  }

  // A function's argument and, after a comma, the constant that it is to be multiplied with.
  std::string argument(int node) const {
    const auto found = arguments_.find(node);
    if (found == arguments_.end()) return name(node) + ", 1.0f";
    std::string text;
    for (int factor : found->second.factors) {
      text += (text.empty() ? "" : " * ") + name(factor);
    }
    return text + ", " + literal(found->second.constant);
  }

  std::string divide(const Node& n) {
    const Node& by = graph_.nodes[static_cast<std::size_t>(n.operands[1])];
    if (by.op == Op::Constant) return divide_by_constant(in(n, 0), by.value);
    return helpers_.use(forms_.uniform(n.operands[1]) ? "scale" : "div") + "(" + in(n, 0) + ", " +
           in(n, 1) + ")";
  }

  std::string integer_power(const Node& n) {
    const std::string product = power_text(in(n, 0), n.index);
    return n.index < 0 ? helpers_.use("div") + "(1.0f, " + product + ")" : product;
  }

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
      const bool tanh = gate.op == Op::Tanh;
      body += "  float d" + suffix + ";\n  const float n" + suffix + " = " +
              helpers_.use(tanh ? "tanh_parts" : "sigmoid_parts") + "(" +
              (tanh ? name(gate.operand) : argument(gate.operand)) + ", d" + suffix + ");\n";
      times(above, "n" + suffix);
      times(below, "d" + suffix);
    }
    times(above, helpers_.use("reciprocal") + "(" + below + ")");
    for (int factor : product.factors) times(above, name(factor));
    return above;
  }

  // Lines that the value needs go to `body`.
  std::string expression(int node, std::string& body) {
    const Node& n = graph_.nodes[static_cast<std::size_t>(node)];
    if (const auto* product = forms_.product(node)) return gates(node, *product, body);
    if (const int z = forms_.tanh_of_softplus(node); z >= 0)
      return helpers_.use("tanh_of_softplus") + "(" + name(z) + ")";
    if (const int z = forms_.half_one_plus_erf(node); z >= 0)
      return helpers_.use("half_one_plus_erf") + "(" + argument(z) + ")";
    if (const int z = forms_.one_plus_erf(node); z >= 0)
      return helpers_.use("one_plus_erf") + "(" + argument(z) + ")";
    switch (n.op) {
      case Op::Parameter:
        return "parameters[" + std::to_string(n.index) + "]";
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
      case Op::Abs:
        return "fabsf(" + in(n, 0) + ")";
      case Op::Floor:
        return "floorf(" + in(n, 0) + ")";
      case Op::Log:
        return "logf(" + in(n, 0) + ")";
      case Op::Log1p:
        return "log1pf(" + in(n, 0) + ")";
      case Op::Erf:
        return "erff(" + in(n, 0) + ")";
      case Op::Relu:
        return helpers_.use("max") + "(" + in(n, 0) + ", 0.0f)";
      case Op::Clamp: {
        const std::string below = helpers_.use("max") + "(" + in(n, 0) + ", " + in(n, 1) + ")";
        return helpers_.use("min") + "(" + below + ", " + in(n, 2) + ")";
      }
      case Op::Where:
        return in(n, 0) + " ? " + in(n, 1) + " : " + in(n, 2);
      case Op::Exp:
      case Op::Sigmoid:
        if (!arguments_.contains(n.operands[0])) break;
        return helpers_.use(n.op == Op::Exp ? "exp_of" : "sigmoid_of") + "(" +
               argument(n.operands[0]) + ")";
      default:
        break;
    }
    if (is_comparison(n.op)) return in(n, 0) + " " + op_name(n.op) + " " + in(n, 1);
    std::string text = helpers_.use(op_name(n.op)) + "(" + in(n, 0);
    for (int k = 1; k < operand_count(n.op); ++k) text += ", " + in(n, k);
    return text + ")";
  }

  const Function& function_;
  const Graph& graph_;
  const GpuForms forms_;
  std::map<int, GpuForms::Scaled> arguments_;  // of exponentials, by node
  std::set<int> inside_;                       // what is computed within them
  std::vector<std::string> names_;
  UsedHelpers helpers_{helpers(), "flexact_"};
};

}  // namespace

std::string print_cuda(const Function& function) {
  return CudaPrinter(function).print();
}

}  // namespace flexact::activation
