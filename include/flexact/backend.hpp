// Backends compute a MoeProblem with a Function, or say why they do not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flexact/activation.hpp"
#include "flexact/moe.hpp"

namespace flexact {

// Why a backend does not take a problem: one sentence, and what would change it.
struct Refusal {
  std::string reason;
  std::string hint;
};

// A layer made ready: weights packed, function compiled. Built once per layer at model load.
// run() allocates nothing and reads nothing back; one plan may run on one stream at a time. On a
// GPU every pointer (tensors, values, workspace, output) is memory of that GPU; run() only
// launches.
class Plan {
 public:
  virtual ~Plan() = default;
  // Scratch bytes that run() needs for up to `tokens` tokens (64-byte aligned).
  virtual std::size_t workspace_bytes(std::int64_t tokens) const = 0;
  // Throws InvalidArgument where the inputs contradict the problem. `stream` is a cudaStream_t,
  // null on the CPU.
  virtual void run(const MoeInputs& inputs, const ParameterTable& values, void* workspace,
                   std::size_t workspace_size, void* stream) const = 0;
  // Bytes of weights that this plan owns (its packed copy).
  virtual std::size_t resident_bytes() const = 0;
  // One line: backend, kernel, tile, function.
  virtual std::string describe() const = 0;
  // Writes the weights back as they were given: contiguous w13 [E, 2I, H] ([E, I, H]) and w2
  // [E, H, I] in the format's own dtype. Throws Unsupported where the packed form does not hold
  // every bit of them; that is the default.
  virtual void unpack(void* w13, void* w2) const;
};

// What act_and_mul writes.
enum class DenseResult {
  Plain,      // x's own type, rounded once
  Fp8Groups,  // E4M3 codes, and one fp32 scale for each 128 results of a row
  Fp8Rows,    // E4M3 codes, and one fp32 scale a row
};

// act_and_mul of dense and shared MLPs on a GPU: act(x[:, :I], x[:, I:]) → out.
struct DenseProblem {
  Pairing pairing = Pairing::Concat;  // any but Separate; None: x is [rows, I]
  DType dtype = DType::BFloat16;      // of x: Float32, BFloat16 or Float16
  DenseResult result = DenseResult::Plain;
};

// One call. Strides are in elements of what they belong to. out must not overlap x.
struct DenseCall {
  std::int64_t rows = 0;
  std::int64_t intermediate = 0;  // I
  const void* x = nullptr;        // [rows, 2I], last stride 1
  std::int64_t x_stride = 0;
  void* out = nullptr;  // [rows, I], last stride 1: x's type, or E4M3 codes
  std::int64_t out_stride = 0;
  float* scales = nullptr;  // [rows, ceil(I / 128)], or [rows]; of E4M3 codes alone
  std::int64_t scale_row_stride = 0;
  std::int64_t scale_group_stride = 0;
};

// The function compiled for one kind of x, whatever its size. run() only launches; `values` is one
// row, and all pointers are memory of one GPU, on which it runs. Any number of threads and streams
// may run one plan.
class DensePlan {
 public:
  virtual ~DensePlan() = default;
  // Throws InvalidArgument where the call contradicts itself or the problem.
  virtual void run(const DenseCall& call, const ParameterTable& values, void* stream) const = 0;
  // One line: backend, kernel, function.
  virtual std::string describe() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;
  // Where its tensors are: "cpu" or "cuda". The backend "triton" makes plans from Python alone.
  virtual std::string device() const { return "cpu"; }
  // nullopt: this backend computes exactly this. Touches no weight. Throws InvalidArgument for a
  // problem with values outside their documented ranges.
  virtual std::optional<Refusal> refuse(const MoeProblem& problem,
                                        const Function& function) const = 0;
  // Packs the weights into a copy that the plan owns; the caller may free its tensors afterwards.
  // On "cuda" the plan reads the caller's own w13 and w2, which must outlive it; biases are copied.
  // Throws Unsupported with the refusal's reason, InvalidArgument for shapes that contradict.
  virtual std::unique_ptr<Plan> plan(const MoeProblem& problem, const Function& function,
                                     const MoeWeights& weights) const = 0;
  // The same for act_and_mul on a GPU. A unary f with a gate means f(g) * u. Backends that leave it
  // to others refuse it; that is the default.
  virtual std::optional<Refusal> refuse_dense(const DenseProblem& problem,
                                              const Function& function) const;
  // Throws Unsupported with the refusal's reason.
  virtual std::unique_ptr<DensePlan> plan_dense(const DenseProblem& problem,
                                                const Function& function) const;
};

// The backends of this build in order of preference; they live as long as the process.
const std::vector<const Backend*>& backends();
// Throws InvalidArgument naming the known ones.
const Backend& backend(const std::string& name);

// act(x[:, :I], x[:, I:]) → out for dense and shared MLPs, on the CPU. x is [M, 2I] (pairing None:
// [M, I]), out [M, I]; both `dtype` (Float32, BFloat16 or Float16), row strides in elements. A
// unary f with a gate means f(g) * u. `values` is one row. out may be x with the same stride, else
// they must not overlap. Arithmetic is fp32, rounded once. Throws InvalidArgument.
void act_and_mul(const Function& function, const ParameterTable& values, Pairing pairing,
                 DType dtype, std::int64_t rows, std::int64_t intermediate, const void* x,
                 std::int64_t x_stride, void* out, std::int64_t out_stride);

}  // namespace flexact
