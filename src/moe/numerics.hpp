// FLEXACT_NUMERICS: how much arithmetic an activation gets.
#pragma once

namespace flexact::moe {

enum class Numerics {
  Fast,     // the activation in fp32; on a GPU in cheap forms within the contract
  Precise,  // on the CPU in fp64, rounded to fp32; on a GPU to a few fp32 ulp
  Exact,    // gate and up are rounded to the io type before the activation, as unfused hosts do
};
// Throws InvalidArgument for any other word.
Numerics selected_numerics();

}  // namespace flexact::moe
