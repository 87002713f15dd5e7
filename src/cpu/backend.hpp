// The CPU backend, and how tests make a plan with every choice in their hands.
#pragma once

#include <memory>

#include "cpu/isa.hpp"
#include "flexact/backend.hpp"

namespace flexact::cpu {

class Pool;

// FLEXACT_NUMERICS.
enum class Numerics {
  Fast,     // the activation in fp32
  Precise,  // the activation in fp64, rounded to fp32
  Exact,    // gate and up are rounded to the io type before the activation, as unfused hosts do
};
// Throws InvalidArgument for any other word.
Numerics selected_numerics();

struct PlanOptions {
  Isa isa = Isa::Scalar;
  Numerics numerics = Numerics::Fast;
  Pool* pool = nullptr;  // null: the process's own
};

// What Backend::plan does, with the choices given.
std::unique_ptr<Plan> make_moe_plan(const MoeProblem& problem, const Function& function,
                                    const MoeWeights& weights, const PlanOptions& options);

const Backend& backend();

}  // namespace flexact::cpu
