// The CUDA text that is linked into a kernel: the printed function, and around it what a numerics
// mode asks for. A kernel knows no mode.
#pragma once

#include <string>

#include "flexact/activation.hpp"
#include "flexact/moe.hpp"
#include "moe/numerics.hpp"

namespace flexact::cuda {

// Defines flexact_act2, or flexact_act2_unary for a unary function: see activation/printers.hpp.
// `io`: what the exact mode rounds inputs to, as a host does whose projection writes that type.
std::string function_source(const Function& function, moe::Numerics numerics,
                            DType io = DType::BFloat16);

}  // namespace flexact::cuda
