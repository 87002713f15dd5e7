// Wrappers as text; the linker inlines them away.
#include "cuda/jit/function_source.hpp"

#include "activation/printers.hpp"

namespace flexact::cuda {

std::string function_source(const Function& function, Pairing pairing, moe::Numerics numerics) {
  const bool gated = function.arity() == Arity::Gated;
  const bool exact = numerics == moe::Numerics::Exact;
  const bool swapped = gated && pairing == Pairing::UpFirst;
  std::string text = numerics == moe::Numerics::Precise ? "#define FLEXACT_PRECISE\n" : "";
  const std::string printed = activation::print_cuda(function);
  if (!exact && !swapped) return text + printed;

  const std::string name = gated ? "flexact_act2" : "flexact_act2_unary";
  text += "#define FLEXACT_ACT static __device__ __forceinline__\n#define " + name +
          " flexact_inner\n" + printed + "#undef " + name +
          "\n\nstatic __device__ __forceinline__ float flexact_input(float a) {\n";
  text += exact ? "  unsigned short bits;\n"
                  "  asm(\"cvt.rn.bf16.f32 %0, %1;\" : \"=h\"(bits) : \"f\"(a));\n"
                  "  return __int_as_float(static_cast<int>(bits) << 16);\n}\n\n"
                : "  return a;\n}\n\n";
  const auto local = [](const char* to, const char* from) {
    return std::string("  const float ") + to + "[2] = {flexact_input(" + from +
           "[0]), flexact_input(" + from + "[1])};\n";
  };
  if (!gated) {
    return text + "extern \"C\" __device__ void " + name +
           "(const float x[2], const float* parameters, float y[2]) {\n" + local("a", "x") +
           "  flexact_inner(a, parameters, y);\n}\n";
  }
  return text + "extern \"C\" __device__ void " + name +
         "(const float first[2], const float second[2], const float* parameters, float y[2]) {\n" +
         local("g", swapped ? "second" : "first") + local("u", swapped ? "first" : "second") +
         "  flexact_inner(g, u, parameters, y);\n}\n";
}

}  // namespace flexact::cuda
