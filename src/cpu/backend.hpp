// The CPU backend, and how tests make a plan with every choice in their hands.
#pragma once

#include <memory>

#include "cpu/isa.hpp"
#include "flexact/backend.hpp"
#include "moe/numerics.hpp"

namespace flexact::cpu {

class Pool;

using moe::Numerics;
using moe::selected_numerics;

struct PlanOptions {
  Isa isa = Isa::Scalar;
  Numerics numerics = Numerics::Fast;
  Pool* pool = nullptr;  // null: the process's own
  Prefetch prefetch = preferred_prefetch();
};

// What Backend::plan does, with the choices given.
std::unique_ptr<Plan> make_moe_plan(const MoeProblem& problem, const Function& function,
                                    const MoeWeights& weights, const PlanOptions& options);

const Backend& backend();

}  // namespace flexact::cpu
