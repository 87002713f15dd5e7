// The CUDA text that is linked into a kernel: the printed function, and around it what a numerics
// mode asks for. A kernel knows no mode.
#pragma once

#include <string>

#include "flexact/activation.hpp"
#include "moe/numerics.hpp"

namespace flexact::cuda {

// Defines flexact_act2, or flexact_act2_unary for a unary function: see activation/printers.hpp.
std::string function_source(const Function& function, moe::Numerics numerics);

}  // namespace flexact::cuda
