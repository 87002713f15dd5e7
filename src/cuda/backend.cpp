// What the CUDA backend takes. Problems are judged before the machine is, so that a matrix of what
// is supported says the same everywhere.
#include "cuda/backend.hpp"

#include <string>

#include "cuda/architecture.hpp"
#include "cuda/dense_plan.hpp"
#include "cuda/driver.hpp"
#include "cuda/fp8_layer.hpp"
#include "cuda/jit/kernel_images.hpp"
#include "flexact/error.hpp"
#include "moe/problem.hpp"
#include "moe/quantised.hpp"

namespace flexact::cuda {

namespace {

// Experts are counted in one block's shared memory.
constexpr std::int64_t kMostExperts = 16384;

class CutlassBackend final : public Backend {
 public:
  std::string name() const override { return "cutlass"; }
  std::string device() const override { return "cuda"; }

  std::optional<Refusal> refuse(const MoeProblem& problem,
                                const Function& function) const override {
    moe::validate(problem);
    if (auto refusal = moe::refuse_meaningless(problem, function)) return refusal;
    const bool fp8 = is_fp8(problem.format);
    const bool fp4 = moe::is_fp4(problem.format);
    const bool fp16 = problem.format == Format::Fp16;
    if (problem.format != Format::Bf16 && !fp16 && !fp8 && !fp4) {
      return Refusal{
          "there are no CUDA kernels for format " + std::string(to_string(problem.format)),
          "bf16, fp16, the FP8 and the FP4 formats are what there is"};
    }
    const DType io = fp16 ? DType::Float16 : DType::BFloat16;
    if (problem.io_dtype != io) {
      return Refusal{"the CUDA kernels take " + std::string(to_string(io)) +
                         " hidden states beside " + std::string(to_string(problem.format)) +
                         " weights, not " + std::string(to_string(problem.io_dtype)),
                     "convert the hidden states"};
    }
    const std::int64_t piece = fp4 ? 32 : fp8 ? 16 : 8;
    if (problem.hidden % piece != 0 || problem.intermediate % piece != 0) {
      return Refusal{"the copy engine reads rows of whole 16-byte pieces, and hidden " +
                         std::to_string(problem.hidden) + " or intermediate " +
                         std::to_string(problem.intermediate) + " is not a multiple of " +
                         std::to_string(piece),
                     "pad the weights with zeros"};
    }
    if (problem.experts > kMostExperts) {
      return Refusal{"more than " + std::to_string(kMostExperts) + " experts", "fewer a rank"};
    }
    if (auto refusal = refuse_machine()) return refusal;
    return refuse_format(*machine_architecture(Driver::instance()), problem.format);
  }

  std::unique_ptr<Plan> plan(const MoeProblem& problem, const Function& function,
                             const MoeWeights& weights) const override {
    if (const auto refusal = refuse(problem, function)) {
      throw Error(ErrorCode::Unsupported, refusal->reason, "cutlass", refusal->hint);
    }
    PlanOptions options;
    options.numerics = moe::selected_numerics();
    options.wish = standing_wish();
    return make_moe_plan(problem, function, weights, options);
  }

  std::optional<Refusal> refuse_dense(const DenseProblem& problem,
                                      const Function& function) const override {
    if (auto refusal = refuse_meaningless(problem, function)) return refusal;
    return refuse_machine();
  }

  std::unique_ptr<DensePlan> plan_dense(const DenseProblem& problem,
                                        const Function& function) const override {
    if (const auto refusal = refuse_dense(problem, function)) {
      throw Error(ErrorCode::Unsupported, refusal->reason, "cutlass", refusal->hint);
    }
    return make_dense_plan(problem, function, moe::selected_numerics());
  }
};

}  // namespace

Wish& standing_wish() {
  static Wish wish;
  return wish;
}

std::optional<Refusal> refuse_machine() {
  if (kernel_images().empty()) {
    return Refusal{"this build of flexact has no CUDA kernels",
                   "build it where nvcc 13 and nvidia-cutlass are (docs/cuda.md)"};
  }
  std::string why;
  const Driver* driver = Driver::find(why);
  if (driver == nullptr) return Refusal{why, "a machine with an NVIDIA GPU"};
  const Architecture* const architecture = machine_architecture(*driver);
  if (architecture == nullptr) {
    return Refusal{"there is no GPU that there are CUDA kernels for", wanted_capabilities()};
  }
  if (auto refusal = refuse_untried(*architecture)) return refusal;
  try {
    Toolchain::instance();
  } catch (const Error& error) {
    return Refusal{error.where() + ": " + error.message(), error.hint()};
  }
  return std::nullopt;
}

const Backend& backend() {
  static const CutlassBackend instance;
  return instance;
}

}  // namespace flexact::cuda
