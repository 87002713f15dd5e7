// The block with one function after another, round after round, each beside the identity: cost is
// the median over the rounds of the two times' ratio, which a slow second of the machine leaves
// alone.
#include "bench.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "case.hpp"
#include "flexact/error.hpp"
#include "matrix.hpp"
#include "sample_values.hpp"

namespace flexact::conformance {

namespace {

using Json = nlohmann::ordered_json;

struct Entry {
  std::string name;
  Function function;
  std::vector<float> values;
  std::unique_ptr<Plan> plan;
  // The identity of the same arity with weights of its own, which are as cold as the function's.
  std::unique_ptr<Plan> identity;
  std::vector<double> milliseconds;
  std::vector<double> ratios;  // to the identity's time in the same moment
};

// The middle value, and half the width of its 95 % interval by the values' own spread.
struct Middle {
  double value;
  double uncertainty;
};
Middle middle_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  const double spread = values[3 * n / 4] - values[n / 4];
  return {values[n / 2], 1.57 * spread / std::sqrt(static_cast<double>(n))};
}

// bf16 numbers near ±scale.
std::vector<std::uint16_t> random_bf16(std::int64_t count, float scale, std::mt19937& random) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  std::uniform_real_distribution<float> uniform(-scale, scale);
  for (std::uint16_t& value : values) {
    value = static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, uniform(random)) >> 16);
  }
  return values;
}

TensorView tensor(const void* data, DType dtype, std::vector<std::int64_t> shape) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[static_cast<std::size_t>(i)] = shape[static_cast<std::size_t>(i)];
    view.strides[static_cast<std::size_t>(i)] = stride;
    stride *= shape[static_cast<std::size_t>(i)];
  }
  return view;
}

// Processor time of all threads: on a machine that others use as well, a preempted run is not a
// slow one.
double processor_milliseconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

}  // namespace

int bench(const BenchOptions& options) {
  std::vector<Variant> all = variants();
  const auto chosen = std::find_if(all.begin(), all.end(), [&](const Variant& variant) {
    return variant.name == options.variant;
  });
  if (!options.variant.empty() && chosen == all.end()) {
    throw Error(ErrorCode::InvalidArgument, "no variant '" + options.variant + "' here");
  }
  const Variant variant = options.variant.empty() ? all.back() : *chosen;
  select(variant);

  MoeProblem p;
  p.experts = options.experts;
  p.top_k = options.top_k;
  p.hidden = options.hidden;
  p.intermediate = options.intermediate;
  std::mt19937 random(1);
  const std::vector<std::uint16_t> hidden = random_bf16(options.tokens * p.hidden, 1.7f, random);
  const float scale13 = 2.6f / std::sqrt(static_cast<float>(p.hidden));
  const std::vector<std::uint16_t> w13 =
      random_bf16(p.experts * 2 * p.intermediate * p.hidden, scale13, random);
  const std::vector<std::uint16_t> w2 =
      random_bf16(p.experts * p.hidden * p.intermediate, 0.05f, random);
  std::vector<float> router(static_cast<std::size_t>(options.tokens * p.top_k), 0.5f);
  std::vector<std::int64_t> ids(router.size());
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i) % p.experts;

  std::vector<Entry> entries;
  for (const Subject& subject : subjects()) {
    if (!options.function.empty() && subject.name != options.function) continue;
    const bool unary = subject.function.arity() == Arity::Unary;
    p.pairing = unary ? Pairing::None : Pairing::Concat;
    MoeWeights weights;
    weights.w13 = tensor(w13.data(), DType::BFloat16,
                         {p.experts, unary ? p.intermediate : 2 * p.intermediate, p.hidden});
    weights.w2 = tensor(w2.data(), DType::BFloat16, {p.experts, p.hidden, p.intermediate});
    const Function identity = Function::named(unary ? "linear" : "bilinear");
    entries.push_back({subject.name,
                       subject.function,
                       test::sample_parameters(subject.function, 1)[0],
                       variant.backend->plan(p, subject.function, weights),
                       variant.backend->plan(p, identity, weights),
                       {},
                       {}});
  }

  std::vector<std::uint16_t> output(hidden.size());
  MoeInputs inputs;
  inputs.tokens = options.tokens;
  inputs.hidden_states = tensor(hidden.data(), DType::BFloat16, {options.tokens, p.hidden});
  inputs.topk_weights = tensor(router.data(), DType::Float32, {options.tokens, p.top_k});
  inputs.topk_ids = tensor(ids.data(), DType::Int64, {options.tokens, p.top_k});
  inputs.output = output.data();
  std::vector<std::byte> memory;
  const auto time = [&](const Plan& plan, const std::vector<float>& row) {
    const std::size_t bytes = plan.workspace_bytes(inputs.tokens);
    memory.resize(std::max(memory.size(), bytes + 64));
    void* workspace = memory.data();
    std::size_t space = memory.size();
    std::align(64, bytes, workspace, space);
    const ParameterTable values{row.data(), 1, static_cast<std::int64_t>(row.size())};
    const double begin = processor_milliseconds();
    plan.run(inputs, values, workspace, bytes, nullptr);
    return processor_milliseconds() - begin;
  };
  for (int round = -1; round < options.rounds; ++round) {  // the first one warms up
    for (Entry& entry : entries) {
      // Who comes first changes, since the second one finds warmer inputs.
      const bool identity_first = round % 2 == 0;
      double beside = identity_first ? time(*entry.identity, {}) : 0;
      const double taken = time(*entry.plan, entry.values);
      if (!identity_first) beside = time(*entry.identity, {});
      if (round < 0) continue;
      entry.milliseconds.push_back(taken);
      entry.ratios.push_back(taken / beside);
    }
  }

  std::printf("%s %s, %s\n", variant.backend->name().c_str(), variant.name.c_str(),
              device_name().c_str());
  std::printf("%-24s %10s %10s %18s\n", "function", "median ms", "GFLOP/s", "over identity");
  Json rows = Json::object();
  for (const Entry& entry : entries) {
    const double median = middle_of(entry.milliseconds).value;
    const double matrices = entry.function.arity() == Arity::Gated ? 3 : 2;
    const double flops = 2.0 * matrices * static_cast<double>(options.tokens * p.top_k) *
                         static_cast<double>(p.hidden * p.intermediate);
    const Middle ratio = middle_of(entry.ratios);
    std::printf("%-24s %10.3f %10.1f %10.2f +- %.2f %%\n", entry.name.c_str(), median,
                flops / median * 1e-6, 100 * (ratio.value - 1), 100 * ratio.uncertainty);
    rows[entry.name] = {{"arity", entry.function.arity() == Arity::Gated ? "gated" : "unary"},
                        {"median_ms", median},
                        {"gflops", flops / median * 1e-6},
                        {"over_identity", ratio.value - 1},
                        {"uncertainty", ratio.uncertainty}};
  }
  if (!options.output.empty()) {
    Json json;
    json["device"] = device_name();
    json["commit"] = commit();
    json["variant"] = variant.backend->name() + " " + variant.name;
    json["plan"] = entries.front().plan->describe();
    json["problem"] = {{"experts", p.experts},     {"top_k", p.top_k},
                       {"hidden", p.hidden},       {"intermediate", p.intermediate},
                       {"tokens", options.tokens}, {"format", "bf16"}};
    json["rounds"] = options.rounds;
    json["unit"] = "milliseconds of processor time, all threads";
    json["results"] = rows;
    std::ofstream(options.output) << json.dump(1) << "\n";
  }
  return 0;
}

}  // namespace flexact::conformance
