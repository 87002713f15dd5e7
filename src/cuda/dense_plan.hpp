// act_and_mul of dense and shared MLPs on a GPU: plans of it, with every choice in a test's hands.
#pragma once

#include <memory>
#include <optional>

#include "flexact/backend.hpp"
#include "moe/numerics.hpp"

namespace flexact::cuda {

// Why no machine computes the problem; nullopt where it has a meaning.
std::optional<Refusal> refuse_meaningless(const DenseProblem& problem, const Function& function);

// What Backend::plan_dense does, without asking whether the kernels have run on hardware.
std::unique_ptr<DensePlan> make_dense_plan(const DenseProblem& problem, const Function& function,
                                           moe::Numerics numerics);

}  // namespace flexact::cuda
