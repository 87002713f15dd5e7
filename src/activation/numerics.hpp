// The meaning of every operation in fp64, including infinities, NaN and signed zeros. The reference
// interpreter and constant folding use these; every other target is tested against them.
#pragma once

#include "activation/graph.hpp"

namespace flexact::activation {

// The value of `op` on its operands. Comparisons give 1 or 0. `exponent` is Powi's.
//   sigmoid, softplus, gelu and gelu_tanh keep full relative accuracy on both tails.
//   silu(-inf), gelu(-inf) and gelu_tanh(-inf) are NaN (-inf times 0), as in torch.
//   min, max, clamp and relu give NaN where an operand is NaN; the sign of a zero that they choose
//   among zeros of either sign is not specified. clamp is min(max(a, b), c).
double apply(Op op, double a, double b, double c, int exponent) noexcept;

// 1 + erf(z) and 1 + tanh(z) without cancellation.
double one_plus_erf(double z) noexcept;
double one_plus_tanh(double z) noexcept;

}  // namespace flexact::activation
