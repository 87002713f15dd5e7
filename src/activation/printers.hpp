// The printers: source text of a function for other compilers. They read the graph alone; names
// that a user chose appear in comments and nowhere else.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "flexact/activation.hpp"

namespace flexact::activation {

// A CUDA C++ translation unit without headers, for NVRTC or nvcc, sm_80 and newer. It defines
//   void flexact_act2(const float g[2], const float u[2], const float* parameters, float y[2])
// (unary: flexact_act2_unary(const float x[2], const float* parameters, float y[2])) with C
// linkage. FLEXACT_ACT may be defined to other qualifiers, FLEXACT_PRECISE to slower forms of a few
// ulp, or FLEXACT_BF16 where results are rounded to bf16 or to fewer bits: to quicker forms that
// such a rounding hides.
std::string print_cuda(const Function& function);

// A Python module with a @triton.jit function flexact_act(g, u, p0, …) or (x, p0, …) on fp32
// values, in core Triton operations only.
std::string print_triton(const Function& function);

// A Python module with forward(g, u, p0, …) or (x, p0, …) and gradient_VARIABLE(…) for every input
// and parameter, in eager torch operations of the inputs' own dtype.
std::string print_torch(const Function& function);

// What printers share.

// A number as Python source: always a float, in parentheses where it is negative.
std::string python_literal(double value);

// value^|exponent| by squaring from the lowest bit, as the reference does.
std::string power_text(const std::string& value, int exponent);

// A function that printed text may call, and the helpers that it calls itself.
struct Helper {
  std::string_view name;
  std::vector<std::string_view> needs;
  std::string_view text;
};

// Which helpers a printed text uses, of a list where each stands after what it needs.
class UsedHelpers {
 public:
  // Both must outlive this.
  UsedHelpers(const std::vector<Helper>& all, std::string_view prefix)
      : all_(all), prefix_(prefix) {}

  // The name to call it by; what it needs is used too.
  std::string use(std::string_view name);
  // Their texts in the list's order, each after `before`.
  std::string text(std::string_view before = {}) const;

 private:
  const std::vector<Helper>& all_;
  std::string_view prefix_;
  std::set<std::string_view> used_;
};

}  // namespace flexact::activation
