// What the CPU backend takes, and with which choices it makes its plans.
#include "cpu/backend.hpp"

#include <string>

#include "cpu/isa.hpp"
#include "moe/problem.hpp"
#include "moe/quantised.hpp"

namespace flexact::cpu {

namespace {

class CpuBackend final : public Backend {
 public:
  std::string name() const override { return "cpu"; }

  std::optional<Refusal> refuse(const MoeProblem& problem,
                                const Function& function) const override {
    moe::validate(problem);
    if (moe::is_quantised(problem.format)) {
      // Unpacking them here would hold two to four times the bytes that the host holds.
      return Refusal{"the CPU has no kernels for format " + std::string(to_string(problem.format)),
                     "dequantise the weights to bf16, fp16 or fp32 where two to four times the "
                     "bytes fit"};
    }
    return moe::refuse_meaningless(problem, function);
  }

  std::unique_ptr<Plan> plan(const MoeProblem& problem, const Function& function,
                             const MoeWeights& weights) const override {
    return make_moe_plan(problem, function, weights,
                         {selected_isa(), selected_numerics(), nullptr});
  }
};

}  // namespace

const Backend& backend() {
  static const CpuBackend instance;
  return instance;
}

}  // namespace flexact::cpu
