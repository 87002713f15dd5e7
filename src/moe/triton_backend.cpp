// Refusals of the Triton backend.
#include "moe/triton_backend.hpp"

#include <string>

#include "flexact/error.hpp"
#include "moe/problem.hpp"

namespace flexact::moe {

namespace {

// A program counts every expert at once, in registers.
constexpr std::int64_t kMaxTritonExperts = 4095;

class TritonBackend final : public Backend {
 public:
  std::string name() const override { return "triton"; }
  std::string device() const override { return "cuda"; }

  std::optional<Refusal> refuse(const MoeProblem& problem,
                                const Function& function) const override {
    validate(problem);
    if (auto refusal = refuse_meaningless(problem, function)) return refusal;
    if (problem.experts > kMaxTritonExperts) {
      return Refusal{std::to_string(problem.experts) + " experts on one device",
                     "at most " + std::to_string(kMaxTritonExperts)};
    }
    switch (problem.format) {
      case Format::Bf16:
        return same_type(problem, DType::BFloat16);
      case Format::Fp16:
        return same_type(problem, DType::Float16);
      default:
        break;
    }
    return Refusal{
        "there are no Triton kernels for format " + std::string(to_string(problem.format)),
        "bf16 or fp16"};
  }

  std::unique_ptr<Plan> plan(const MoeProblem& problem, const Function& function,
                             const MoeWeights&) const override {
    if (const auto refusal = refuse(problem, function))
      throw Error(ErrorCode::Unsupported, refusal->reason, "triton", refusal->hint);
    throw Error(ErrorCode::Unsupported, "the Triton kernels run from Python", "triton",
                "flexact.fused_moe or flexact.moe.plan on CUDA tensors");
  }

 private:
  // Both operands of a tensor core have one type.
  static std::optional<Refusal> same_type(const MoeProblem& problem, DType weights) {
    if (problem.io_dtype == weights) return std::nullopt;
    return Refusal{"hidden states are " + std::string(to_string(problem.io_dtype)) + ", weights " +
                       std::string(to_string(weights)),
                   "convert the hidden states to " + std::string(to_string(weights))};
  }
};

}  // namespace

const Backend& triton_backend() {
  static const TritonBackend instance;
  return instance;
}

}  // namespace flexact::moe
