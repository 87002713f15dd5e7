// One MoE layer of bf16 weights on a Hopper GPU, with the activation that a config.json names, and
// the same layer on the CPU beside it. The activation is compiled and linked into the kernel as
// this runs.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "flexact/activation.hpp"
#include "flexact/backend.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"
#include "flexact/moe.hpp"

namespace {

constexpr int kExperts = 8, kTopK = 2, kHidden = 512, kIntermediate = 768, kTokens = 200;

constexpr const char* kConfig = R"({
  "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 8,
  "hidden_act": "swish", "activation_params": {"beta": 1.7}})";

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Device memory with the elements of a vector.
template <typename T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& values) : OnGpu(values.size()) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  explicit OnGpu(std::size_t count) { check(cudaMalloc(&data_, count * sizeof(T))); }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
  ~OnGpu() { cudaFree(data_); }
  T* get() const { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
};

using Bf16 = std::uint16_t;

float to_float(Bf16 bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// Any numbers will do: a fixed sequence in -scale … scale, cut to bf16.
std::vector<Bf16> numbers(std::size_t count, float scale) {
  static unsigned state = 1;
  std::vector<Bf16> values(count);
  for (Bf16& each : values) {
    state = state * 1664525u + 1013904223u;
    const float value = scale * (static_cast<float>(state >> 8) / 8388608.0f - 1.0f);
    std::uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    each = static_cast<Bf16>(word >> 16);
  }
  return values;
}

flexact::TensorView view(const void* data, flexact::DType dtype, std::int64_t a, std::int64_t b,
                         std::int64_t c = 0) {
  if (c == 0) return {data, dtype, 2, {a, b}, {b, 1}};
  return {data, dtype, 3, {a, b, c}, {b * c, c, 1}};
}

flexact::MoeWeights weights_at(const Bf16* w13, const Bf16* w2) {
  flexact::MoeWeights weights;
  weights.w13 = view(w13, flexact::DType::BFloat16, kExperts, 2 * kIntermediate, kHidden);
  weights.w2 = view(w2, flexact::DType::BFloat16, kExperts, kHidden, kIntermediate);
  return weights;
}

flexact::MoeInputs inputs_at(const Bf16* x, const float* router, const std::int32_t* ids, Bf16* y) {
  flexact::MoeInputs inputs;
  inputs.tokens = kTokens;
  inputs.hidden_states = view(x, flexact::DType::BFloat16, kTokens, kHidden);
  inputs.topk_weights = view(router, flexact::DType::Float32, kTokens, kTopK);
  inputs.topk_ids = view(ids, flexact::DType::Int32, kTokens, kTopK);
  inputs.output = y;
  return inputs;
}

}  // namespace

int main() try {
  const flexact::ModelActivations model = flexact::resolve_config_text(kConfig);
  const flexact::ResolvedActivation& routed = model.layers.at(0).routed.value();
  const flexact::Function& function = routed.activation.function();
  const std::vector<float> values = routed.activation.values(0, {0, kExperts}).to_float();
  const auto columns = static_cast<std::int64_t>(function.parameters().size());
  const auto rows = static_cast<std::int64_t>(values.size()) / columns;
  std::printf("layer 0 runs %s\n", function.formula().c_str());

  flexact::MoeProblem problem;
  problem.experts = kExperts;
  problem.top_k = kTopK;
  problem.hidden = kHidden;
  problem.intermediate = kIntermediate;
  const flexact::Backend& gpu = flexact::backend("cutlass");
  if (const auto refusal = gpu.refuse(problem, function)) {
    std::printf("refused: %s (%s)\n", refusal->reason.c_str(), refusal->hint.c_str());
    return EXIT_FAILURE;
  }

  // Weights live on the GPU in the checkpoint's own layout; the plan reads them there.
  const auto w13 = numbers(std::size_t{kExperts} * 2 * kIntermediate * kHidden, 0.1f);
  const auto w2 = numbers(std::size_t{kExperts} * kHidden * kIntermediate, 0.1f);
  const OnGpu<Bf16> gpu_w13(w13), gpu_w2(w2);
  const std::unique_ptr<flexact::Plan> plan =
      gpu.plan(problem, function, weights_at(gpu_w13.get(), gpu_w2.get()));
  std::printf("%s\n", plan->describe().c_str());

  const auto x = numbers(std::size_t{kTokens} * kHidden, 1.0f);
  std::vector<float> router(kTokens * kTopK, 0.5f);
  std::vector<std::int32_t> ids(kTokens * kTopK);
  for (int i = 0; i < kTokens * kTopK; ++i)
    ids[static_cast<std::size_t>(i)] = i * 5 % 9 - 1;  // -1: not here
  const OnGpu<Bf16> gpu_x(x), gpu_y(std::size_t{kTokens} * kHidden);
  const OnGpu<float> gpu_router(router), gpu_values(values);
  const OnGpu<std::int32_t> gpu_ids(ids);
  const std::size_t bytes = plan->workspace_bytes(kTokens);
  const OnGpu<char> workspace(bytes);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  plan->run(inputs_at(gpu_x.get(), gpu_router.get(), gpu_ids.get(), gpu_y.get()),
            {gpu_values.get(), rows, columns}, workspace.get(), bytes, stream);
  check(cudaStreamSynchronize(stream));
  std::vector<Bf16> y(std::size_t{kTokens} * kHidden), expected(y.size());
  check(cudaMemcpy(y.data(), gpu_y.get(), y.size() * sizeof(Bf16), cudaMemcpyDeviceToHost));

  // The same on the CPU.
  const std::unique_ptr<flexact::Plan> reference =
      flexact::backend("cpu").plan(problem, function, weights_at(w13.data(), w2.data()));
  std::vector<char> scratch(reference->workspace_bytes(kTokens) + 64);
  auto* const aligned =
      reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(scratch.data()) + 63) / 64 * 64);
  reference->run(inputs_at(x.data(), router.data(), ids.data(), expected.data()),
                 {values.data(), rows, columns}, aligned, scratch.size() - 64, nullptr);
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    difference += std::pow(to_float(y[i]) - to_float(expected[i]), 2.0);
    size += std::pow(to_float(expected[i]), 2.0);
  }
  std::printf("GPU and CPU differ by %.2g of the result\n", std::sqrt(difference / size));
  return size > 0 && difference < 1e-4 * size ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return EXIT_FAILURE;
}
