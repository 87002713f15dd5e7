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
      case Format::Fp8Block:
      case Format::Fp8Tensor:
      case Format::Fp8Channel:
      case Format::Mxfp4Fp8:
        // Both operands become E4M3; the hidden states may be either half type.
        if (problem.io_dtype != DType::Float32) return std::nullopt;
        return same_type(problem, DType::BFloat16);
      case Format::Mxfp4:
      case Format::Nvfp4:
        // Weights are decoded to bf16.
        return same_type(problem, DType::BFloat16);
      default:
        break;
    }
    return Refusal{
        "there are no Triton kernels for format " + std::string(to_string(problem.format)),
        "any format but fp32"};
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
    return Refusal{"hidden states are " + std::string(to_string(problem.io_dtype)) +
                       ", and format " + std::string(to_string(problem.format)) + " multiplies " +
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
