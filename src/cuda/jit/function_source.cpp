// A wrapper as text; the linker inlines it away.
#include "cuda/jit/function_source.hpp"

#include "activation/printers.hpp"

namespace flexact::cuda {

namespace {

constexpr const char* kRoundBFloat16 = R"(
static __device__ __forceinline__ float flexact_rounded(float a) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(a));
  return __int_as_float(static_cast<int>(bits) << 16);
}
)";
constexpr const char* kRoundFloat16 = R"(
static __device__ __forceinline__ float flexact_rounded(float a) {
  unsigned short bits;
  float rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(a));
  asm("cvt.f32.f16 %0, %1;" : "=f"(rounded) : "h"(bits));
  return rounded;
}
)";
constexpr const char* kGated = R"(
extern "C" __device__ void flexact_act2(const float g[2], const float u[2], const float* parameters,
                                        float y[2]) {
  const float rounded_g[2] = {flexact_rounded(g[0]), flexact_rounded(g[1])};
  const float rounded_u[2] = {flexact_rounded(u[0]), flexact_rounded(u[1])};
  flexact_inner(rounded_g, rounded_u, parameters, y);
}
)";
constexpr const char* kUnary = R"(
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]) {
  const float rounded[2] = {flexact_rounded(x[0]), flexact_rounded(x[1])};
  flexact_inner(rounded, parameters, y);
}
)";

}  // namespace

std::string function_source(const Function& function, moe::Numerics numerics, DType io) {
  const std::string printed = activation::print_cuda(function);
  // Results are rounded to bf16, or to fewer bits, where hidden states are bf16.
  if (numerics == moe::Numerics::Fast && io == DType::BFloat16) {
    return "#define FLEXACT_BF16\n" + printed;
  }
  // What is fp32 in memory already needs no rounding.
  if (numerics == moe::Numerics::Fast ||
      (numerics == moe::Numerics::Exact && io == DType::Float32)) {
    return printed;
  }
  if (numerics == moe::Numerics::Precise) return "#define FLEXACT_PRECISE\n" + printed;
  const bool gated = function.arity() == Arity::Gated;
  const std::string name = gated ? "flexact_act2" : "flexact_act2_unary";
  return "#define FLEXACT_ACT static __device__ __forceinline__\n#define " + name +
         " flexact_inner\n" + printed + "#undef " + name + "\n" +
         (io == DType::Float16 ? kRoundFloat16 : kRoundBFloat16) + (gated ? kGated : kUnary);
}

}  // namespace flexact::cuda
