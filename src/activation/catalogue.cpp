// The table of activations. Columns are documented in catalogue.hpp; docs/add-an-activation.md
// shows how a row comes to be. Constants in formulas mean the nearest fp64 number.
#include "activation/catalogue.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace flexact::activation {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Domain kAny{};
constexpr Domain kPositive{0, kInfinity, false, true};
constexpr Domain kZeroToOne{0, 1, true, true};
constexpr Domain kAtMostZero{-kInfinity, 0, true, true};

// Parameters that several rows share.
Parameter limit(std::optional<double> value = std::nullopt) {
  return {"limit", value, kPositive, {"L"}};
}
Parameter number(std::string name, std::optional<double> value = std::nullopt,
                 std::vector<std::string> aliases = {}) {
  return {std::move(name), value, kAny, std::move(aliases)};
}
Parameter positive(std::string name, std::vector<std::string> aliases) {
  return {std::move(name), std::nullopt, kPositive, std::move(aliases)};
}
// A parameter that the model learns, with the value a new module starts with.
Parameter learned(std::string name, double initial) {
  return {std::move(name), std::nullopt, kAny, {}, initial};
}

// Accepted everywhere.
Alias plain(std::string name, std::string stack = "transformers") {
  return {std::move(name), std::move(stack), true};
}
// Accepted only as that stack's name.
Alias only(std::string stack, std::string name) {
  return {std::move(name), std::move(stack), false};
}

std::vector<CatalogueEntry> unary_rows() {
  return {
      {"silu",
       "x*sigmoid(x)",
       {},
       {plain("swish1", "torch"), plain("silu_no_mul", "vllm"), only("flashinfer", "Silu"),
        only("ggml", "SILU"), only("torch", "silu")},
       "sigmoid-weighted linear unit",
       "torch.nn.functional.silu; arXiv:1702.03118",
       0},
      {"swish",
       "x*sigmoid(beta*x)",
       {number("beta", 1)},
       {},
       "silu with a slope; transformers' swish is beta = 1",
       "arXiv:1710.05941",
       1},
      {"gelu",
       "gelu(x)",
       {},
       {plain("gelu_python"), plain("gelu_erf"), plain("gelu_no_mul", "vllm"),
        only("ggml", "GELU_ERF"), only("torch", "gelu")},
       "x times the normal distribution function, exact",
       "torch.nn.functional.gelu; arXiv:1606.08415",
       2},
      {"gelu_tanh",
       "gelu_tanh(x)",
       {},
       {plain("gelu_new"), plain("gelu_pytorch_tanh"), plain("gelu_python_tanh"),
        plain("gelu_accurate"), plain("gelu_tanh_no_mul", "vllm"), only("ggml", "GELU")},
       "gelu by its tanh approximation",
       "0.5*x*(1+tanh(sqrt(2/pi)*(x+0.044715*x*x*x))); transformers NewGELUActivation"},
      {"gelu_fast",
       "0.5*x*(1+tanh(0.7978845608*x*(1+0.044715*x*x)))",
       {},
       {},
       "gelu_tanh with a constant of ten digits",
       "transformers FastGELUActivation"},
      {"gelu_bloom",
       "0.5*x*(1+tanh(0.79788456*x*(1+0.044715*x*x)))",
       {},
       {},
       "gelu_tanh with a constant of eight digits",
       "transformers BloomGelu"},
      {"gelu_10",
       "clamp(gelu(x),-10,10)",
       {},
       {},
       "gelu with its output clipped to 10",
       "transformers ClippedGELUActivation; arXiv:2004.09602"},
      {"quick_gelu",
       "x*sigmoid(1.702*x)",
       {},
       {plain("gelu_quick", "ggml"), plain("quick-gelu"), only("ggml", "GELU_QUICK")},
       "gelu by a sigmoid",
       "transformers QuickGELUActivation"},
      {"relu",
       "relu(x)",
       {},
       {plain("relu_no_mul", "vllm"), only("flashinfer", "Relu"), only("ggml", "RELU"),
        only("torch", "relu")},
       "the positive part",
       "torch.nn.functional.relu",
       3},
      {"leaky_relu",
       "where(x>0,x,alpha*x)",
       {{"alpha", 0.01, kZeroToOne, {"negative_slope"}}},
       {plain("leakyrelu"), only("torch", "leaky_relu")},
       "relu with a slope for negative inputs",
       "torch.nn.functional.leaky_relu",
       4},
      {"prelu",
       "where(x>0,x,a*x)",
       {number("a")},
       {only("torch", "prelu")},
       "leaky_relu with a learned slope",
       "torch.nn.PReLU; arXiv:1502.01852"},
      {"relu2",
       "relu(x)^2",
       {},
       {plain("squared_relu"), plain("relu_squared"), plain("relu2_no_mul", "vllm"),
        only("flashinfer", "Relu2"), only("sglang", "relu2")},
       "relu squared",
       "transformers ReLUSquaredActivation; arXiv:2109.08668"},
      {"relu6",
       "clamp(x,0,6)",
       {},
       {only("torch", "relu6")},
       "relu limited to 6",
       "torch.nn.functional.relu6"},
      {"sigmoid",
       "sigmoid(x)",
       {},
       {plain("logistic", "ggml"), only("ggml", "SIGMOID"), only("torch", "sigmoid")},
       "the logistic function",
       "torch.sigmoid"},
      {"hardsigmoid",
       "clamp(x+3,0,6)/6",
       {},
       {plain("hard_sigmoid", "ggml"), only("ggml", "HARDSIGMOID"), only("torch", "hardsigmoid")},
       "sigmoid by straight lines",
       "torch.nn.functional.hardsigmoid"},
      {"tanh",
       "tanh(x)",
       {},
       {only("ggml", "TANH"), only("torch", "tanh")},
       "hyperbolic tangent",
       "torch.tanh"},
      {"mish",
       "x*tanh(softplus(x))",
       {},
       {only("torch", "mish")},
       "x times tanh of softplus",
       "torch.nn.functional.mish; arXiv:1908.08681"},
      {"hardswish",
       "x*(clamp(x+3,0,6)/6)",
       {},
       {plain("hard_swish"), only("ggml", "HARDSWISH"), only("torch", "hardswish")},
       "swish by straight lines",
       "torch.nn.functional.hardswish; arXiv:1905.02244"},
      {"softplus",
       "softplus(x)",
       {},
       {only("ggml", "SOFTPLUS")},
       "log(1+exp(x)), exact (torch switches to x above 20)",
       "arXiv:1511.07289"},
      {"elu",
       "where(x>0,x,alpha*expm1(min(x,0)))",
       {number("alpha", 1)},
       {only("ggml", "ELU"), only("torch", "elu")},
       "exponential linear unit",
       "torch.nn.functional.elu; arXiv:1511.07289"},
      {"selu",
       "1.0507009873554805*where(x>0,x,1.6732632423543772*expm1(min(x,0)))",
       {},
       {only("torch", "selu")},
       "elu scaled to keep mean and variance",
       "torch.nn.functional.selu; arXiv:1706.02515"},
      {"linear",
       "x",
       {},
       {plain("identity"), plain("Identity", "flashinfer")},
       "the input itself",
       "transformers LinearActivation"},
      {"laplace",
       "0.5*(1+erf((x-0.707107)/(0.282095*sqrt(2))))",
       {},
       {},
       "a Laplace-like squared relu with six-digit constants",
       "transformers LaplaceActivation; arXiv:2209.10655"},
      {"sqrtsoftplus",
       "sqrt(softplus(x))",
       {},
       {},
       "square root of softplus",
       "transformers; DeepSeek-V4's router score, selectable as an activation"},
      {"clamped_relu2",
       "relu(scale*tanh(x/scale))^2",
       {positive("scale", {"s"})},
       {plain("clampedrelu2", "flashinfer"), plain("ClampedRelu2", "flashinfer")},
       "relu2 of a soft-capped input",
       "FlashInfer ClampedRelu2"},
      {"xielu",
       "ap = softplus(alpha_p); an = beta+softplus(alpha_n); "
       "where(x>0,ap*x*x+beta*x,(expm1(min(x,eps))-x)*an+beta*x)",
       // The class stores log(expm1(0.8)) and log(expm1(0.8 - beta)).
       {learned("alpha_p", std::log(std::expm1(0.8))),
        learned("alpha_n", std::log(std::expm1(0.3))),
        number("beta", 0.5),
        {"eps", -1e-6, kAtMostZero}},
       {only("ggml", "XIELU")},
       "learned slopes around an integrated elu",
       "transformers XIELUActivation; arXiv:2411.13010"},
  };
}

std::vector<CatalogueEntry> gated_rows() {
  return {
      {"swiglu",
       "silu(g)*u",
       {},
       {plain("silu_and_mul", "sglang"), plain("Swiglu", "flashinfer"), plain("SWIGLU", "ggml"),
        only("vllm", "silu"), only("sglang", "silu")},
       "silu-gated linear unit",
       "arXiv:2002.05202"},
      {"swish_glu",
       "g*sigmoid(beta*g)*u",
       {number("beta", 1)},
       {},
       "swish-gated linear unit",
       "arXiv:2002.05202",
       5},
      {"geglu",
       "gelu(g)*u",
       {},
       {plain("gelu_and_mul", "sglang"), plain("GEGLU_ERF", "ggml"), only("vllm", "gelu"),
        only("sglang", "gelu")},
       "gelu-gated linear unit, erf form",
       "arXiv:2002.05202"},
      {"geglu_tanh",
       "gelu_tanh(g)*u",
       {},
       {plain("gelu_tanh_and_mul", "sglang"), plain("GegluTanh", "flashinfer"),
        only("vllm", "gelu_tanh"), only("vllm", "gelu_pytorch_tanh"), only("sglang", "gelu_tanh"),
        only("ggml", "GEGLU")},
       "gelu-gated linear unit, tanh form",
       "transformers Gemma4 experts"},
      {"geglu_quick",
       "g*sigmoid(1.702*g)*u",
       {},
       {plain("GEGLU_QUICK", "ggml")},
       "quick_gelu-gated linear unit",
       "ggml GEGLU_QUICK"},
      {"reglu",
       "relu(g)*u",
       {},
       {plain("REGLU", "ggml")},
       "relu-gated linear unit",
       "arXiv:2002.05202"},
      {"relu2_glu",
       "relu(g)^2*u",
       {},
       {only("vllm", "relu2")},
       "relu2-gated linear unit",
       "transformers BitNet MLP"},
      {"glu", "sigmoid(g)*u", {}, {}, "sigmoid-gated linear unit", "arXiv:1612.08083"},
      {"bilinear", "g*u", {}, {}, "the product of gate and up", "arXiv:2002.05202"},
      {"swiglu_clamp",
       "silu(min(g,limit))*clamp(u,-limit,limit)",
       {limit()},
       {plain("silu_clamp_before")},
       "swiglu with both inputs limited before silu",
       "transformers DeepseekV4Experts, glm5_next, hy_v4"},
      {"geglu_clamp",
       "gelu(min(g,limit))*clamp(u,-limit,limit)",
       {limit()},
       {},
       "geglu with both inputs limited",
       "transformers DeepseekV4Experts with hidden_act gelu"},
      {"swiglu_step",
       "min(silu(g),limit)*clamp(u,-limit,limit)",
       {limit()},
       {plain("swiglustep", "vllm"), plain("SwigluStep", "flashinfer"), plain("silu_clamp_after")},
       "swiglu with the gate limited after silu",
       "transformers Step3p7Experts"},
      {"swiglu_oai",
       "min(g,limit)*sigmoid(alpha*min(g,limit))*(clamp(u,-limit,limit)+beta)",
       {number("alpha", 1.702), limit(7), number("beta", 1)},
       {plain("swigluoai", "vllm"), plain("swigluoai_uninterleave", "vllm"),
        plain("SwigluBias", "flashinfer"), plain("SWIGLU_OAI", "ggml")},
       "gpt-oss: limited swish gate times u plus one; the gate is limited from above only",
       "transformers GptOssExperts, MiniMaxM3VLExperts"},
      {"swiglu_oai_symmetric",
       "clamp(g,-limit,limit)*sigmoid(alpha*clamp(g,-limit,limit))*(clamp(u,-limit,limit)+1)",
       {number("alpha", 1.702), limit(7)},
       {only("kt-kernel", "swigluoai")},
       "swiglu_oai with the gate limited from both sides: no model's formula, a known deviation",
       "kt-kernel"},
      {"situ",
       "beta*tanh(g/beta)*sigmoid(g)*(linear_beta*tanh(u/linear_beta))",
       {positive("beta", {"b"}), positive("linear_beta", {"bl"})},
       {plain("Situ", "flashinfer"), plain("softcapped_swiglu"), only("vllm", "situ"),
        only("sglang", "situ")},
       "swiglu with soft caps on the gate and on up",
       "transformers Inkling2Experts",
       std::nullopt,
       "linear_beta",
       "situ_nolinear"},
      {"situ_nolinear",
       "beta*tanh(g/beta)*sigmoid(g)*u",
       {positive("beta", {"b"})},
       {},
       "swiglu with a soft cap on the gate",
       "vLLM situ without activation_situ_linear_beta"},
  };
}

}  // namespace

const std::vector<CatalogueEntry>& catalogue() {
  static const std::vector<CatalogueEntry> rows = [] {
    std::vector<CatalogueEntry> all = unary_rows();
    std::vector<CatalogueEntry> gated = gated_rows();
    for (CatalogueEntry& row : gated) all.push_back(std::move(row));
    return all;
  }();
  return rows;
}

const CatalogueEntry* find_entry(std::string_view name) {
  for (const CatalogueEntry& row : catalogue()) {
    if (row.name == name) return &row;
    for (const Alias& alias : row.aliases) {
      if (alias.plain && alias.name == name) return &row;
    }
  }
  return nullptr;
}

const CatalogueEntry* find_entry(std::string_view name, std::string_view stack) {
  for (const CatalogueEntry& row : catalogue()) {
    for (const Alias& alias : row.aliases) {
      if (alias.stack == stack && alias.name == name) return &row;
    }
  }
  return stack == "transformers" ? find_entry(name) : nullptr;
}

const CatalogueEntry* find_entry(int id) {
  for (const CatalogueEntry& row : catalogue()) {
    if (row.id == id) return &row;
  }
  return nullptr;
}

const std::vector<std::string>& stacks() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> found;
    for (const CatalogueEntry& row : catalogue()) {
      for (const Alias& alias : row.aliases) {
        if (std::find(found.begin(), found.end(), alias.stack) == found.end()) {
          found.push_back(alias.stack);
        }
      }
    }
    std::sort(found.begin(), found.end());
    return found;
  }();
  return names;
}

}  // namespace flexact::activation
