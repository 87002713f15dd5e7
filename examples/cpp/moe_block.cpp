// A small MoE block with the activation that a config.json names, from configuration to result, and
// the same numbers computed by hand in double precision.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "flexact/activation.hpp"
#include "flexact/backend.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"
#include "flexact/moe.hpp"
#include "flexact/version.hpp"

namespace {

constexpr int kExperts = 4, kTopK = 2, kHidden = 24, kIntermediate = 40, kTokens = 3;

constexpr const char* kConfig = R"({
  "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 4,
  "hidden_act": "swish", "activation_params": {"beta": 1.7}})";

// Any numbers will do: a fixed sequence in -0.5 … 0.5.
std::vector<float> numbers(std::size_t count) {
  static unsigned state = 1;
  std::vector<float> values(count);
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
  }
  return values;
}

flexact::TensorView matrix(const void* data, flexact::DType dtype, std::int64_t rows,
                           std::int64_t columns) {
  return {data, dtype, 2, {rows, columns}, {columns, 1}};
}

flexact::TensorView stack(const std::vector<float>& data, std::int64_t rows, std::int64_t columns) {
  return {data.data(),
          flexact::DType::Float32,
          3,
          {kExperts, rows, columns},
          {rows * columns, columns, 1}};
}

double dot(const float* a, const float* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace

int main() try {
  // What does the model's file ask for?
  const flexact::ModelActivations model = flexact::resolve_config_text(kConfig);
  const flexact::ResolvedActivation& routed = model.layers.at(0).routed.value();
  const flexact::Function& function = routed.activation.function();
  const flexact::ValueTable values = routed.activation.values(0, {0, kExperts});
  std::printf("flexact %s: layer 0 runs %s, from %s\n", flexact::version(),
              function.formula().c_str(), routed.from.c_str());

  // Make the layer ready, once, at model load.
  const std::vector<float> w13 = numbers(kExperts * 2 * kIntermediate * kHidden);
  const std::vector<float> w2 = numbers(kExperts * kHidden * kIntermediate);
  flexact::MoeProblem problem;
  problem.experts = kExperts;
  problem.top_k = kTopK;
  problem.hidden = kHidden;
  problem.intermediate = kIntermediate;
  problem.format = flexact::Format::Fp32;
  problem.io_dtype = flexact::DType::Float32;
  problem.pairing =
      routed.pairing == flexact::Pairing::Separate ? flexact::Pairing::Concat : routed.pairing;
  flexact::MoeWeights weights;
  weights.w13 = stack(w13, 2 * kIntermediate, kHidden);
  weights.w2 = stack(w2, kHidden, kIntermediate);
  const flexact::Backend& cpu = flexact::backend("cpu");
  if (const auto refusal = cpu.refuse(problem, function)) {
    std::printf("refused: %s\n", refusal->reason.c_str());
    return EXIT_FAILURE;
  }
  const std::unique_ptr<flexact::Plan> plan = cpu.plan(problem, function, weights);
  std::printf("%s\n", plan->describe().c_str());

  // Run it. The last id is not on this rank: it contributes nothing.
  const std::vector<float> x = numbers(kTokens * kHidden);
  const std::vector<float> router = {0.75f, 0.25f, 0.5f, 0.5f, 1.0f, 1.0f};
  const std::vector<std::int32_t> ids = {0, 3, 2, 1, 3, -1};
  std::vector<float> y(kTokens * kHidden, std::nanf(""));
  flexact::MoeInputs inputs;
  inputs.tokens = kTokens;
  inputs.hidden_states = matrix(x.data(), flexact::DType::Float32, kTokens, kHidden);
  inputs.topk_weights = matrix(router.data(), flexact::DType::Float32, kTokens, kTopK);
  inputs.topk_ids = matrix(ids.data(), flexact::DType::Int32, kTokens, kTopK);
  inputs.output = y.data();
  const std::vector<float> table = values.to_float();
  const std::size_t bytes = (plan->workspace_bytes(kTokens) + 63) / 64 * 64;
  const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, bytes),
                                                              &std::free);
  plan->run(inputs, {table.data(), values.rows, values.columns}, workspace.get(), bytes, nullptr);

  // The same by hand.
  double worst = 0;
  for (int token = 0; token < kTokens; ++token) {
    std::vector<double> expected(kHidden, 0.0);
    for (int slot = 0; slot < kTopK; ++slot) {
      const int expert = ids[token * kTopK + slot];
      if (expert < 0) continue;
      std::vector<float> inner(kIntermediate);
      for (int i = 0; i < kIntermediate; ++i) {
        const float* gate = w13.data() + (expert * 2 * kIntermediate + i) * kHidden;
        const double g = dot(gate, x.data() + token * kHidden, kHidden);
        const double u = dot(gate + kIntermediate * kHidden, x.data() + token * kHidden, kHidden);
        inner[i] = static_cast<float>(function.reference(g, u, values.data));
      }
      for (int h = 0; h < kHidden; ++h) {
        expected[h] +=
            static_cast<double>(router[token * kTopK + slot]) *
            dot(w2.data() + (expert * kHidden + h) * kIntermediate, inner.data(), kIntermediate);
      }
    }
    for (int h = 0; h < kHidden; ++h) {
      const double difference = std::abs(expected[h] - static_cast<double>(y[token * kHidden + h]));
      worst = std::isnan(difference) ? HUGE_VAL : std::max(worst, difference);
    }
  }
  std::printf("largest difference from double precision: %.1e\n", worst);
  return worst < 1e-5 ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const flexact::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return EXIT_FAILURE;
}
