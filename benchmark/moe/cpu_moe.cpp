// Speed of the MoE block on the CPU beside the machine's limits, measured in the same run.
//
//   bench_cpu_moe [--isa NAME] [--threads N] [--shape NAME] [--tokens T,T…] [--rounds N]
//                 [--processor N] [--out FILE]
//
// Each shape has several layers and every run takes the next one, so weights come from memory as
// they do in a model. One thread: fixed to a processor, and processor time is counted, so what
// others do on the machine shows little. A round measures arithmetic, memory and every token count
// once; medians are over the rounds. The roof of a run is max(bytes of the experts hit / read
// bandwidth, operations / peak).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/backend.hpp"
#include "cpu/pool.hpp"
#include "cpu_limits.hpp"
#include "flexact/error.hpp"

namespace {

using namespace flexact;
using namespace flexact::benchmark;

struct Shape {
  const char* name;
  const char* function;
  std::int64_t experts, top_k, hidden, intermediate;
  bool gated;
  int layers;
};

// Qwen3-30B-A3B, Mixtral 8x7B, half the experts of Nemotron 3 Nano.
constexpr Shape kShapes[] = {
    {"qwen3_30b", "swiglu", 128, 8, 2048, 768, true, 3},
    {"mixtral_8x7b", "swiglu", 8, 2, 4096, 14336, true, 2},
    {"relu2", "relu2", 64, 6, 2688, 1856, false, 3},
};

struct Options {
  std::string isa;
  std::string shape;
  std::string out;
  int threads = 1;
  int rounds = 7;
  int processor = 1;
  std::vector<std::int64_t> tokens = {1, 4, 16, 64, 128, 512, 2048};
};

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

TensorView view(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
  TensorView v;
  v.data = data;
  v.dtype = dtype;
  v.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), v.shape.begin());
  std::int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    v.strides[static_cast<std::size_t>(i)] = stride;
    stride *= v.shape[static_cast<std::size_t>(i)];
  }
  return v;
}

// bf16 values between -scale and scale.
std::vector<std::uint16_t> random_bf16(std::size_t count, float scale, std::uint64_t seed) {
  std::vector<std::uint16_t> values(count);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (auto& value : values) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const float x = (static_cast<float>(state >> 40) * 0x1p-23f - 1.0f) * scale;
    value = static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, x) >> 16);
  }
  return values;
}

// `tokens` tokens with `top_k` different experts each, as a router gives them.
std::vector<std::int32_t> random_ids(const Shape& shape, std::int64_t tokens,
                                     std::mt19937& random) {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> all(static_cast<std::size_t>(shape.experts));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
  for (std::int64_t m = 0; m < tokens; ++m) {
    for (std::int64_t k = 0; k < shape.top_k; ++k) {
      const auto place = static_cast<std::size_t>(k);
      std::swap(all[place], all[place + random() % (all.size() - place)]);
      ids.push_back(all[place]);
    }
  }
  return ids;
}

struct Series {
  std::vector<double> seconds;
  std::vector<double> bytes;
  double operations = 0;
};

class Bench {
 public:
  Bench(const Shape& shape, const Options& options, cpu::Isa isa, cpu::Pool& pool)
      : shape_(shape), options_(options) {
    problem_.experts = shape.experts;
    problem_.top_k = shape.top_k;
    problem_.hidden = shape.hidden;
    problem_.intermediate = shape.intermediate;
    problem_.pairing = shape.gated ? Pairing::Concat : Pairing::None;
    const std::int64_t rows = (shape.gated ? 2 : 1) * shape.intermediate;
    {
      const auto w13 =
          random_bf16(static_cast<std::size_t>(shape.experts * rows * shape.hidden), 0.05f, 1);
      const auto w2 = random_bf16(
          static_cast<std::size_t>(shape.experts * shape.hidden * shape.intermediate), 0.05f, 2);
      MoeWeights weights;
      weights.w13 = view(w13.data(), DType::BFloat16, {shape.experts, rows, shape.hidden});
      weights.w2 =
          view(w2.data(), DType::BFloat16, {shape.experts, shape.hidden, shape.intermediate});
      const double begin = wall_seconds();
      for (int i = 0; i < shape.layers; ++i) {
        layers_.push_back(cpu::make_moe_plan(problem_, Function::named(shape.function), weights,
                                             {isa, cpu::Numerics::Fast, &pool}));
      }
      pack_gbs_ = static_cast<double>(layers_[0]->resident_bytes()) * shape.layers /
                  (wall_seconds() - begin) * 1e-9;
      std::cerr << layers_[0]->describe() << "\n";
    }
    const std::int64_t most = *std::max_element(options.tokens.begin(), options.tokens.end());
    hidden_ = random_bf16(static_cast<std::size_t>(most * shape.hidden), 1.0f, 3);
    output_.resize(static_cast<std::size_t>(most * shape.hidden));
    weights_.assign(static_cast<std::size_t>(most * shape.top_k), 0.125f);
    workspace_.resize(layers_[0]->workspace_bytes(most) + 64);
    expert_bytes_ = 2.0 * static_cast<double>((rows + shape.intermediate) * shape.hidden);
  }

  // One call on the next layer with fresh routing.
  void run(std::int64_t tokens) {
    const auto ids = random_ids(shape_, tokens, random_);
    MoeInputs in;
    in.tokens = tokens;
    in.hidden_states = view(hidden_.data(), DType::BFloat16, {tokens, shape_.hidden});
    in.topk_weights = view(weights_.data(), DType::Float32, {tokens, shape_.top_k});
    in.topk_ids = view(ids.data(), DType::Int32, {tokens, shape_.top_k});
    in.output = output_.data();
    void* workspace = workspace_.data();
    std::size_t room = workspace_.size();
    std::align(64, room - 64, workspace, room);
    const Plan& plan = *layers_[layer_++ % layers_.size()];
    const double begin = options_.threads == 1 ? thread_seconds() : wall_seconds();
    plan.run(in, ParameterTable{}, workspace, room, nullptr);
    Series& s = series_[tokens];
    s.seconds.push_back((options_.threads == 1 ? thread_seconds() : wall_seconds()) - begin);
    s.bytes.push_back(expert_bytes_ * static_cast<double>(std::set(ids.begin(), ids.end()).size()));
    s.operations = static_cast<double>(tokens * shape_.top_k) * expert_bytes_;
  }

  void warm_up() {
    for (const std::int64_t t : options_.tokens) run(t);
    series_.clear();
  }

  nlohmann::ordered_json report(double peak, double bandwidth) const {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const auto& [tokens, s] : series_) {
      const double time = median(s.seconds);
      const double bytes = median(s.bytes);
      const double roof = std::max(bytes / (bandwidth * 1e9), s.operations / (peak * 1e9));
      rows.push_back({{"tokens", tokens},
                      {"milliseconds", time * 1e3},
                      {"fastest", *std::min_element(s.seconds.begin(), s.seconds.end()) * 1e3},
                      {"slowest", *std::max_element(s.seconds.begin(), s.seconds.end()) * 1e3},
                      {"runs", s.seconds.size()},
                      {"gflops", s.operations / time * 1e-9},
                      {"gbs", bytes / time * 1e-9},
                      {"percent_of_peak", 100 * s.operations / time / (peak * 1e9)},
                      {"percent_of_bandwidth", 100 * bytes / time / (bandwidth * 1e9)},
                      {"percent_of_roof", 100 * roof / time}});
      std::fprintf(stderr,
                   "  %-14s T %5ld  %9.3f ms  %6.1f GFLOP/s  %5.1f GB/s  peak %5.1f %%  bandwidth "
                   "%5.1f %%  roof %5.1f %%\n",
                   shape_.name, static_cast<long>(tokens), time * 1e3, s.operations / time * 1e-9,
                   bytes / time * 1e-9, 100 * s.operations / time / (peak * 1e9),
                   100 * bytes / time / (bandwidth * 1e9), 100 * roof / time);
    }
    return {{"shape", shape_.name},      {"function", shape_.function},
            {"experts", shape_.experts}, {"top_k", shape_.top_k},
            {"hidden", shape_.hidden},   {"intermediate", shape_.intermediate},
            {"layers", shape_.layers},   {"describe", layers_[0]->describe()},
            {"pack_gbs", pack_gbs_},     {"runs", rows}};
  }

 private:
  Shape shape_;
  Options options_;
  MoeProblem problem_;
  std::vector<std::unique_ptr<Plan>> layers_;
  std::size_t layer_ = 0;
  std::vector<std::uint16_t> hidden_, output_;
  std::vector<float> weights_;
  std::vector<std::byte> workspace_;
  double expert_bytes_ = 0;
  double pack_gbs_ = 0;
  std::map<std::int64_t, Series> series_;
  std::mt19937 random_{7};
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    const std::string value = argv[i + 1];
    if (key == "--isa")
      options.isa = value;
    else if (key == "--shape")
      options.shape = value;
    else if (key == "--out")
      options.out = value;
    else if (key == "--threads")
      options.threads = std::atoi(value.c_str());
    else if (key == "--rounds")
      options.rounds = std::atoi(value.c_str());
    else if (key == "--processor")
      options.processor = std::atoi(value.c_str());
    else if (key == "--tokens") {
      options.tokens.clear();
      std::istringstream list(value);
      for (std::string item; std::getline(list, item, ',');)
        options.tokens.push_back(std::atoll(item.c_str()));
    } else {
      throw Error(ErrorCode::InvalidArgument, "unknown option " + key);
    }
  }
  return options;
}

int run(const Options& options) {
  cpu::Pool pool(options.threads);
  if (options.threads == 1) pin_to(options.processor);
  const cpu::Isa isa = options.isa.empty() ? cpu::selected_isa() : cpu::parse_isa(options.isa);
  const bool dot = isa == cpu::Isa::Avx512Bf16;
  const ReadBandwidth memory(std::size_t{1} << 29);

  nlohmann::ordered_json shapes = nlohmann::ordered_json::array();
  for (const Shape& shape : kShapes) {
    if (!options.shape.empty() && options.shape != shape.name) continue;
    Bench bench(shape, options, isa, pool);
    std::vector<double> peaks, bandwidths;
    bench.warm_up();
    for (int round = 0; round < options.rounds; ++round) {
      peaks.push_back(peak_gflops(dot));
      bandwidths.push_back(memory.measure());
      for (const std::int64_t tokens : options.tokens) {
        for (int i = 0; i < (tokens <= 4 ? 6 : tokens <= 64 ? 2 : 1); ++i) bench.run(tokens);
      }
    }
    // A limit is what the machine did at its best; a slower round was somebody else's doing.
    const double peak = *std::max_element(peaks.begin(), peaks.end());
    const double bandwidth = *std::max_element(bandwidths.begin(), bandwidths.end());
    const double slowest = *std::min_element(bandwidths.begin(), bandwidths.end());
    std::fprintf(stderr, "%s: one thread: %.0f GFLOP/s, reads %.1f GB/s (slowest round %.1f)\n",
                 shape.name, peak, bandwidth, slowest);
    nlohmann::ordered_json entry = bench.report(peak * options.threads, bandwidth);
    entry["peak_gflops_per_thread"] = peak;
    entry["read_gbs_of_one_thread"] = bandwidth;
    entry["read_gbs_slowest_round"] = slowest;
    shapes.push_back(entry);
  }
  const nlohmann::ordered_json result = {
      {"benchmark", "cpu_moe"},
      {"processor", processor_name()},
      {"isa", std::string(cpu::to_string(isa))},
      {"threads", options.threads},
      {"clock", options.threads == 1 ? "processor time" : "wall"},
      {"rounds", options.rounds},
      {"shapes", shapes}};
  if (!options.out.empty()) std::ofstream(options.out) << result.dump(1) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
