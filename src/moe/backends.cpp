// The table of backends, in order of preference.
#include <string>
#include <vector>

#include "cpu/backend.hpp"
#include "cuda/backend.hpp"
#include "flexact/backend.hpp"
#include "flexact/error.hpp"
#include "moe/triton_backend.hpp"

namespace flexact {

const std::vector<const Backend*>& backends() {
  static const std::vector<const Backend*> table = {&cpu::backend(), &moe::triton_backend(),
                                                    &cuda::backend()};
  return table;
}

const Backend& backend(const std::string& name) {
  std::string known;
  for (const Backend* candidate : backends()) {
    if (candidate->name() == name) return *candidate;
    known += (known.empty() ? "" : ", ") + candidate->name();
  }
  throw Error(ErrorCode::InvalidArgument, "unknown backend '" + name + "'", "backend",
              "one of " + known);
}

std::optional<Refusal> Backend::refuse_dense(const DenseProblem&, const Function&) const {
  return Refusal{"the backend " + name() + " makes no plans of act_and_mul",
                 "the function act_and_mul on the CPU, the backend cutlass on a GPU"};
}

std::unique_ptr<DensePlan> Backend::plan_dense(const DenseProblem& problem,
                                               const Function& function) const {
  const auto refusal = refuse_dense(problem, function);
  throw Error(ErrorCode::Unsupported, refusal ? refusal->reason : "there is no plan", name(),
              refusal ? refusal->hint : "");
}

void Plan::unpack(void*, void*) const {
  throw Error(ErrorCode::Unsupported, "the packed weights do not hold the original ones", "",
              describe());
}

}  // namespace flexact
