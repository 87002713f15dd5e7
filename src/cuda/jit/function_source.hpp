// The CUDA text that is linked into a kernel: the printed function, and around it what a pairing or
// a numerics mode asks for. A kernel hands over its columns in the order in which they are stored
// and knows neither.
#pragma once

#include <string>

#include "flexact/activation.hpp"
#include "flexact/config.hpp"
#include "moe/numerics.hpp"

namespace flexact::cuda {

// Defines flexact_act2(first, second, parameters, y), or flexact_act2_unary without a gate. With
// UpFirst the first of a pair is the up projection.
std::string function_source(const Function& function, Pairing pairing, moe::Numerics numerics);

}  // namespace flexact::cuda
