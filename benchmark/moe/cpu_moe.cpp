// Speed of the MoE block on the CPU beside the machine's limits, measured in the same run.
//
//   bench_cpu_moe [--variants ISA[xTHREADS],…] [--shape NAME] [--tokens T,T…] [--rounds N]
//                 [--processor N] [--clock wall|processor] [--out FILE]
//
// Each shape has several layers and every call takes the next one, so weights come from memory as
// they do in a model. A round measures arithmetic, memory and every number of tokens for all
// variants in turn, with the same routing; medians are over the rounds, and variants are compared
// round by round. The roof of a call is max(bytes of the experts hit / read bandwidth, operations /
// peak).
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

// Qwen3-30B-A3B, a quarter of Mixtral 8x7B as one of four ranks has it, half the experts of
// Nemotron 3 Nano.
constexpr Shape kShapes[] = {
    {"qwen3_30b", "swiglu", 128, 8, 2048, 768, true, 3},
    {"mixtral_8x7b", "swiglu", 8, 2, 4096, 3584, true, 3},
    {"relu2", "relu2", 64, 6, 2688, 1856, false, 3},
};

// One way to run the block: an instruction set and a number of threads.
struct Variant {
  cpu::Isa isa;
  int threads;

  std::string name() const {
    return std::string(cpu::to_string(isa)) + (threads > 1 ? "x" + std::to_string(threads) : "");
  }
  Peak peak() const {
    if (isa == cpu::Isa::Avx512Bf16) return Peak::Dot512;
    return isa == cpu::Isa::Avx512 ? Peak::Fma512 : Peak::Fma256;
  }
};

struct Options {
  std::vector<Variant> variants;
  std::string shape;
  std::string out;
  int rounds = 7;
  int processor = 1;
  bool processor_time = false;
  std::vector<std::int64_t> tokens = {1, 4, 16, 64, 128, 512};
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

// What a variant did with one number of tokens: the median of each round's calls.
struct Series {
  std::vector<double> seconds;
  std::vector<double> bytes;
  double operations = 0;
};

// The calls of one round: the same routing for every variant.
struct Call {
  std::int64_t tokens;
  std::vector<std::int32_t> ids;
};

// All layers of one shape, made for one variant.
class Subject {
 public:
  Subject(const Shape& shape, const Options& options, const Variant& variant)
      : shape_(shape), options_(options), variant_(variant), pool_(variant.threads) {
    problem_.experts = shape.experts;
    problem_.top_k = shape.top_k;
    problem_.hidden = shape.hidden;
    problem_.intermediate = shape.intermediate;
    problem_.pairing = shape.gated ? Pairing::Concat : Pairing::None;
    const std::int64_t rows = (shape.gated ? 2 : 1) * shape.intermediate;
    const auto w13 =
        random_bf16(static_cast<std::size_t>(shape.experts * rows * shape.hidden), 0.05f, 1);
    const auto w2 = random_bf16(
        static_cast<std::size_t>(shape.experts * shape.hidden * shape.intermediate), 0.05f, 2);
    MoeWeights weights;
    weights.w13 = view(w13.data(), DType::BFloat16, {shape.experts, rows, shape.hidden});
    weights.w2 =
        view(w2.data(), DType::BFloat16, {shape.experts, shape.hidden, shape.intermediate});
    for (int i = 0; i < shape.layers; ++i) {
      layers_.push_back(cpu::make_moe_plan(problem_, Function::named(shape.function), weights,
                                           {variant.isa, cpu::Numerics::Fast, &pool_}));
    }
    std::cerr << shape.name << ": " << layers_[0]->describe() << "\n";
    const std::int64_t most = *std::max_element(options.tokens.begin(), options.tokens.end());
    hidden_ = random_bf16(static_cast<std::size_t>(most * shape.hidden), 1.0f, 3);
    output_.resize(static_cast<std::size_t>(most * shape.hidden));
    weights_.assign(static_cast<std::size_t>(most * shape.top_k), 0.125f);
    workspace_.resize(layers_[0]->workspace_bytes(most) + 64);
    expert_bytes_ = 2.0 * static_cast<double>((rows + shape.intermediate) * shape.hidden);
  }

  const Variant& variant() const { return variant_; }
  std::string describe() const { return layers_[0]->describe(); }
  const std::map<std::int64_t, Series>& series() const { return series_; }
  void forget() { series_.clear(); }

  // One round's calls with one number of tokens, each on the next layer.
  void run(const std::vector<Call>& calls) {
    std::vector<double> seconds, bytes;
    for (const Call& call : calls) {
      seconds.push_back(time(call));
      const std::set<std::int32_t> hit(call.ids.begin(), call.ids.end());
      bytes.push_back(expert_bytes_ * static_cast<double>(hit.size()));
    }
    Series& s = series_[calls[0].tokens];
    s.seconds.push_back(median(seconds));
    s.bytes.push_back(median(bytes));
    s.operations = static_cast<double>(calls[0].tokens * shape_.top_k) * expert_bytes_;
  }

 private:
  double time(const Call& call) {
    MoeInputs in;
    in.tokens = call.tokens;
    in.hidden_states = view(hidden_.data(), DType::BFloat16, {call.tokens, shape_.hidden});
    in.topk_weights = view(weights_.data(), DType::Float32, {call.tokens, shape_.top_k});
    in.topk_ids = view(call.ids.data(), DType::Int32, {call.tokens, shape_.top_k});
    in.output = output_.data();
    void* workspace = workspace_.data();
    std::size_t room = workspace_.size();
    std::align(64, room - 64, workspace, room);
    const Plan& plan = *layers_[layer_++ % layers_.size()];
    const bool processor_time = options_.processor_time && variant_.threads == 1;
    const auto now = processor_time ? thread_seconds : wall_seconds;
    const double begin = now();
    plan.run(in, ParameterTable{}, workspace, room, nullptr);
    return now() - begin;
  }

  Shape shape_;
  Options options_;
  Variant variant_;
  cpu::Pool pool_;
  MoeProblem problem_;
  std::vector<std::unique_ptr<Plan>> layers_;
  std::size_t layer_ = 0;
  std::vector<std::uint16_t> hidden_, output_;
  std::vector<float> weights_;
  std::vector<std::byte> workspace_;
  double expert_bytes_ = 0;
  std::map<std::int64_t, Series> series_;
};

// The machine's limits for one variant, a value a round.
struct Limits {
  std::vector<double> gflops, read_gbs;
};

double best(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

double middle_ratio(const std::vector<double>& above, const std::vector<double>& below) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < above.size(); ++i) ratios.push_back(above[i] / below[i]);
  return median(ratios);
}

nlohmann::ordered_json report(const Subject& subject, const Limits& limits, const Subject& first,
                              const Limits& first_limits) {
  // A limit is what the machine did at its best; a slower round was somebody else's doing.
  const double peak = best(limits.gflops), bandwidth = best(limits.read_gbs);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::fprintf(stderr, "%s: %.0f GFLOP/s of %s, reads %.1f GB/s\n",
               subject.variant().name().c_str(), peak, to_string(subject.variant().peak()),
               bandwidth);
  for (const auto& [tokens, s] : subject.series()) {
    const double time = median(s.seconds), bytes = median(s.bytes);
    const double roof = std::max(bytes / (bandwidth * 1e9), s.operations / (peak * 1e9));
    const double over_first = middle_ratio(first.series().at(tokens).seconds, s.seconds);
    rows.push_back({{"tokens", tokens},
                    {"milliseconds", time * 1e3},
                    {"fastest", *std::min_element(s.seconds.begin(), s.seconds.end()) * 1e3},
                    {"slowest", best(s.seconds) * 1e3},
                    {"gflops", s.operations / time * 1e-9},
                    {"gbs", bytes / time * 1e-9},
                    {"percent_of_peak", 100 * s.operations / time / (peak * 1e9)},
                    {"percent_of_bandwidth", 100 * bytes / time / (bandwidth * 1e9)},
                    {"percent_of_roof", 100 * roof / time},
                    {"times_first_variant", over_first}});
    std::fprintf(
        stderr,
        "  T %5ld  %9.3f ms  %6.1f GFLOP/s  %5.1f GB/s  peak %5.1f %%  bandwidth %5.1f %%  "
        "roof %5.1f %%  x %.2f\n",
        static_cast<long>(tokens), time * 1e3, s.operations / time * 1e-9, bytes / time * 1e-9,
        100 * s.operations / time / (peak * 1e9), 100 * bytes / time / (bandwidth * 1e9),
        100 * roof / time, over_first);
  }
  return {{"variant", subject.variant().name()},
          {"plan", subject.describe()},
          {"threads", subject.variant().threads},
          {"peak", to_string(subject.variant().peak())},
          {"peak_gflops", peak},
          {"peak_times_first_variant", middle_ratio(limits.gflops, first_limits.gflops)},
          {"read_gbs", bandwidth},
          {"read_times_first_variant", middle_ratio(limits.read_gbs, first_limits.read_gbs)},
          {"runs", rows}};
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> items;
  std::istringstream list(text);
  for (std::string item; std::getline(list, item, ',');) items.push_back(item);
  return items;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    const std::string value = argv[i + 1];
    if (key == "--variants") {
      for (const std::string& item : split(value)) {
        const std::size_t times = item.find('x', 3);  // not the one in "avx"
        const int threads =
            times == std::string::npos ? 1 : std::atoi(item.substr(times + 1).c_str());
        options.variants.push_back({cpu::parse_isa(item.substr(0, times)), threads});
      }
    } else if (key == "--tokens") {
      options.tokens.clear();
      for (const std::string& item : split(value)) options.tokens.push_back(std::stoll(item));
    } else if (key == "--shape") {
      options.shape = value;
    } else if (key == "--out") {
      options.out = value;
    } else if (key == "--rounds") {
      options.rounds = std::atoi(value.c_str());
    } else if (key == "--processor") {
      options.processor = std::atoi(value.c_str());
    } else if (key == "--clock" && (value == "wall" || value == "processor")) {
      options.processor_time = value == "processor";
    } else {
      throw Error(ErrorCode::InvalidArgument, "unknown option " + key + " " + value);
    }
  }
  if (options.variants.empty()) options.variants.push_back({cpu::selected_isa(), 1});
  return options;
}

nlohmann::ordered_json measure(const Shape& shape, const Options& options,
                               const ReadBandwidth& memory) {
  std::vector<std::unique_ptr<Subject>> subjects;
  for (const Variant& variant : options.variants) {
    subjects.push_back(std::make_unique<Subject>(shape, options, variant));
  }
  // Pools took their processors from the whole mask; now the calling thread stays on one.
  const Pinned pinned(options.processor);
  std::vector<Limits> limits(subjects.size());
  std::mt19937 random(7);
  for (int round = -1; round < options.rounds; ++round) {  // the first one warms up
    for (std::size_t i = 0; i < subjects.size() && round >= 0; ++i) {
      const Variant& variant = subjects[i]->variant();
      const int threads = variant.threads;
      limits[i].gflops.push_back(
          together(threads, options.processor, [&](int) { return peak_gflops(variant.peak()); }));
      limits[i].read_gbs.push_back(together(
          threads, options.processor, [&](int part) { return memory.measure(part, threads); }));
    }
    for (const std::int64_t tokens : options.tokens) {
      std::vector<Call> calls;
      for (int i = 0; i < (tokens <= 4 ? 9 : tokens <= 64 ? 3 : 1); ++i) {
        calls.push_back({tokens, random_ids(shape, tokens, random)});
      }
      for (const auto& subject : subjects) subject->run(calls);
    }
    if (round < 0) {
      for (const auto& subject : subjects) subject->forget();
    }
  }
  nlohmann::ordered_json variants = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < subjects.size(); ++i) {
    variants.push_back(report(*subjects[i], limits[i], *subjects[0], limits[0]));
  }
  return {{"shape", shape.name},      {"function", shape.function},
          {"experts", shape.experts}, {"top_k", shape.top_k},
          {"hidden", shape.hidden},   {"intermediate", shape.intermediate},
          {"layers", shape.layers},   {"variants", variants}};
}

int run(const Options& options) {
  const ReadBandwidth memory(std::size_t{1} << 29);
  nlohmann::ordered_json shapes = nlohmann::ordered_json::array();
  for (const Shape& shape : kShapes) {
    if (options.shape.empty() || options.shape == shape.name) {
      shapes.push_back(measure(shape, options, memory));
    }
  }
  const nlohmann::ordered_json result = {
      {"benchmark", "cpu_moe"},
      {"clock", options.processor_time ? "processor time; wall with several threads" : "wall"},
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
