// The printers: source text of a function for other compilers. They read the graph alone; names
// that a user chose appear in comments and nowhere else.
#pragma once

#include <string>

#include "flexact/activation.hpp"

namespace flexact::activation {

// A CUDA C++ translation unit without headers, for NVRTC or nvcc, sm_80 and newer. It defines
//   void flexact_act2(const float g[2], const float u[2], const float* parameters, float y[2])
// (unary: flexact_act2_unary(const float x[2], const float* parameters, float y[2])) with C
// linkage. FLEXACT_ACT may be defined to other qualifiers, FLEXACT_PRECISE to slower forms of a few
// ulp.
std::string print_cuda(const Function& function);

// A Python module with a @triton.jit function flexact_act(g, u, p0, …) or (x, p0, …) on fp32
// values, in core Triton operations only.
std::string print_triton(const Function& function);

// A Python module with forward(g, u, p0, …) or (x, p0, …) and gradient_VARIABLE(…) for every input
// and parameter, in eager torch operations of the inputs' own dtype.
std::string print_torch(const Function& function);

}  // namespace flexact::activation
