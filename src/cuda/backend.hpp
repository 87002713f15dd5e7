// The CUDA backend "cutlass", and how tests make a plan with every choice in their hands.
#pragma once

#include <cstdint>
#include <memory>

#include "cuda/policy.hpp"
#include "flexact/backend.hpp"
#include "moe/numerics.hpp"

namespace flexact::cuda {

// The launches of a call, for measurements of each.
enum Launches : unsigned {
  kRoute = 1,
  kGather = 2,
  kGemm1 = 4,
  kGemm2 = 8,
  kCombine = 16,
  kSort = kRoute | kGather,
  kAllLaunches = 31
};

struct PlanOptions {
  moe::Numerics numerics = moe::Numerics::Fast;
  Wish wish{};
  unsigned launches = kAllLaunches;
  // Bytes of scratch; calls that would need more are taken in chunks.
  std::int64_t most_scratch = std::int64_t{2} << 30;
};

// What Backend::plan does, with the choices given. All tensors are device memory of one GPU.
std::unique_ptr<Plan> make_moe_plan(const MoeProblem& problem, const Function& function,
                                    const MoeWeights& weights, const PlanOptions& options);

// What plans of backend() wish; tests of choices that are not the default set it.
Wish& standing_wish();

// Why this machine or this build runs no CUDA kernel; nullopt: it does.
std::optional<Refusal> refuse_machine();

const Backend& backend();

}  // namespace flexact::cuda
