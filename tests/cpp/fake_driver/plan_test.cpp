// Plans of the backend "cutlass" on the driver beside this file, against the CPU backend: what the
// host passes to the kernels, and what it says when something is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <span>
#include <vector>

#include "cuda/backend.hpp"
#include "cuda/driver.hpp"
#include "cuda/jit/shared_library.hpp"
#include "device.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"
#include "runner.hpp"

namespace {

namespace conformance = flexact::conformance;

using flexact::DType;
using flexact::Error;
using flexact::ErrorCode;
using flexact::Function;
using flexact::MoeInputs;
using flexact::MoeProblem;
using flexact::MoeWeights;
using flexact::Pairing;
using flexact::ParameterTable;
using flexact::TensorView;
using flexact::conformance::Device;
using testing::HasSubstr;

#define NEED_MACHINE() \
  if (const auto refusal = flexact::cuda::refuse_machine()) GTEST_SKIP() << refusal->reason

std::uint16_t to_bf16(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return static_cast<std::uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}
float from_bf16(std::uint16_t bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

TensorView view(const void* data, DType dtype, std::vector<std::int64_t> shape,
                std::int64_t gap = 0) {
  TensorView v;
  v.data = data;
  v.dtype = dtype;
  v.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    if (i == 0) stride += gap;
    v.shape[static_cast<std::size_t>(i)] = shape[static_cast<std::size_t>(i)];
    v.strides[static_cast<std::size_t>(i)] = stride;
    stride *= shape[static_cast<std::size_t>(i)];
  }
  return v;
}

// A layer with numbers in it. Functions are those that the driver's kernels compute.
struct Layer {
  MoeProblem problem;
  Function function;
  std::int64_t tokens, gap;
  bool wide_ids;
  std::vector<std::uint16_t> hidden, w13, w2, bias2;
  std::vector<float> bias13, router, values;
  std::vector<std::int64_t> ids64;
  std::vector<std::int32_t> ids32;

  explicit Layer(Pairing pairing, unsigned choices, std::int64_t m = 9)
      : function(pairing == Pairing::None ? Function::expression("2*x+p")
                                          : Function::expression("g*u+p")),
        tokens(m),
        gap((choices & 1) != 0 ? 8 : 0),
        wide_ids((choices & 2) != 0) {
    problem.experts = 5;
    problem.top_k = 3;
    problem.hidden = 24;
    problem.intermediate = 16;
    problem.pairing = pairing;
    problem.bias13 = (choices & 4) != 0;
    problem.bias2 = problem.bias13;
    problem.router_weight_on_input = (choices & 8) != 0 && !problem.bias13;
    problem.combine = (choices & 16) == 0;
    problem.routed_scaling_factor = 2.5f;
    std::mt19937 random(choices);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const auto bf16 = [&](std::int64_t count) {
      std::vector<std::uint16_t> list(static_cast<std::size_t>(count));
      for (auto& each : list) each = to_bf16(uniform(random));
      return list;
    };
    const std::int64_t rows = pairing == Pairing::None ? 16 : 32;
    hidden = bf16(tokens * (24 + gap));
    w13 = bf16(5 * (rows * 24 + gap));
    w2 = bf16(5 * 24 * 16);
    bias2 = bf16(5 * 24);
    for (std::int64_t i = 0; i < 5 * rows; ++i) bias13.push_back(uniform(random));
    for (std::int64_t i = 0; i < tokens * 3; ++i) {
      router.push_back(uniform(random));
      ids64.push_back(static_cast<std::int64_t>(random() % 7) - 1);  // -1 and 5 are not here
    }
    ids32.assign(ids64.begin(), ids64.end());
    for (int i = 0; i < 5; ++i) values.push_back(uniform(random));
  }

  MoeWeights weights() const {
    MoeWeights w;
    const std::int64_t rows = problem.pairing == Pairing::None ? 16 : 32;
    w.w13 = view(w13.data(), DType::BFloat16, {5, rows, 24}, gap);
    w.w2 = view(w2.data(), DType::BFloat16, {5, 24, 16});
    if (problem.bias13) w.w13_bias = view(bias13.data(), DType::Float32, {5, rows});
    if (problem.bias2) w.w2_bias = view(bias2.data(), DType::BFloat16, {5, 24});
    return w;
  }
  MoeInputs inputs(void* output) const {
    MoeInputs in;
    in.tokens = tokens;
    in.hidden_states = view(hidden.data(), DType::BFloat16, {tokens, 24}, gap);
    in.topk_weights = view(router.data(), DType::Float32, {tokens, 3});
    in.topk_ids = wide_ids ? view(ids64.data(), DType::Int64, {tokens, 3})
                           : view(ids32.data(), DType::Int32, {tokens, 3});
    in.output = output;
    return in;
  }
  ParameterTable table() const { return {values.data(), 5, 1}; }
  std::size_t outputs() const {
    return static_cast<std::size_t>(tokens * (problem.combine ? 1 : problem.top_k) *
                                    problem.hidden);
  }
};

std::vector<float> on_cpu(const Layer& layer) {
  const auto plan = flexact::backend("cpu").plan(layer.problem, layer.function, layer.weights());
  std::vector<std::uint16_t> output(layer.outputs(), 0xffff);
  const std::size_t bytes = (plan->workspace_bytes(layer.tokens) + 63) / 64 * 64;
  const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, bytes + 64),
                                                              &std::free);
  plan->run(layer.inputs(output.data()), layer.table(), workspace.get(), bytes, nullptr);
  std::vector<float> result;
  for (const auto each : output) result.push_back(from_bf16(each));
  return result;
}

std::vector<float> on_gpu(const Layer& layer, const flexact::cuda::PlanOptions& options = {}) {
  Device device;
  const auto plan = flexact::cuda::make_moe_plan(layer.problem, layer.function,
                                                 device.copy(layer.weights()), options);
  std::vector<std::uint16_t> output(layer.outputs(), 0xffff);
  MoeInputs inputs = device.copy(layer.inputs(nullptr));
  inputs.output = device.copy(output.data(), output.size() * 2);
  const std::size_t bytes = plan->workspace_bytes(layer.tokens);
  const std::vector<std::byte> poison(bytes, std::byte{0xff});
  plan->run(inputs, device.copy(layer.table()), device.copy(poison.data(), bytes), bytes, nullptr);
  device.read(reinterpret_cast<std::byte*>(output.data()), inputs.output, output.size() * 2);
  std::vector<float> result;
  for (const auto each : output) result.push_back(from_bf16(each));
  return result;
}

void expect_equal(const std::vector<float>& actual, const std::vector<float>& expected,
                  const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size());
  double largest = 0;
  for (const float each : expected) largest = std::fmax(largest, std::fabs(each));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], 0.02 * largest) << what << " at " << i;
  }
}

TEST(CutlassPlan, passes_every_layout_and_option_to_the_kernels) {
  NEED_MACHINE();
  for (const Pairing pairing :
       {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
    for (unsigned choices = 0; choices < 32; ++choices) {
      const Layer layer(pairing, choices);
      expect_equal(on_gpu(layer), on_cpu(layer),
                   std::string(to_string(pairing)) + " " + std::to_string(choices));
    }
  }
}

// The kernels that were launched since the last call.
std::string launched() {
  const char* (*list)() = nullptr;
  flexact::cuda::load_library("libcuda.so.1").load("fake_launches", list);
  return list();
}

TEST(CutlassPlan, few_tokens_stream_in_every_layout_and_option) {
  NEED_MACHINE();
  for (const Pairing pairing :
       {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
    for (unsigned choices = 0; choices < 32; ++choices) {
      const std::int64_t tokens = 1 + choices % 9;
      const Layer layer(pairing, choices, tokens);
      flexact::cuda::PlanOptions options;
      options.wish.path = flexact::cuda::Path::Stream;
      options.wish.row_warps = 1 << choices % 4;
      options.wish.row_warps2 = 1 << choices / 4 % 4;
      if (choices % 3 != 0) options.wish.sum = static_cast<int>(choices % 3) - 1;
      launched();
      expect_equal(on_gpu(layer, options), on_cpu(layer),
                   std::string(to_string(pairing)) + " " + std::to_string(choices));
      EXPECT_THAT(launched(), testing::AllOf(HasSubstr("flexact_stream_down"),
                                             testing::Not(HasSubstr("gemm"))));
    }
  }
}

TEST(CutlassPlan, one_token_is_two_launches_and_eight_are_three) {
  NEED_MACHINE();
  flexact::cuda::PlanOptions options;
  options.wish.path = flexact::cuda::Path::Stream;
  options.wish.dependent_launches = 1;
  launched();
  on_gpu(Layer(Pairing::Concat, 0, 1), options);
  EXPECT_EQ(launched(), "flexact_stream_gated dependent\nflexact_stream_down dependent\n");
  on_gpu(Layer(Pairing::None, 0, 8), options);
  EXPECT_EQ(launched(),
            "flexact_stream_unary dependent\nflexact_stream_down dependent\n"
            "flexact_combine dependent\n");
}

TEST(CutlassPlan, the_stream_path_gives_way_where_it_cannot_read) {
  NEED_MACHINE();
  flexact::cuda::PlanOptions options;
  options.wish.path = flexact::cuda::Path::Stream;
  launched();
  const Layer many(Pairing::Concat, 1, 90);  // 270 slots
  expect_equal(on_gpu(many, options), on_cpu(many), "many");
  EXPECT_THAT(launched(), HasSubstr("flexact_gemm_bf16_gated dependent\n"));
}

TEST(CutlassPlan, by_default_takes_what_was_measured_best) {
  NEED_MACHINE();
  launched();
  on_gpu(Layer(Pairing::Concat, 0, 2));
  EXPECT_EQ(launched(), "flexact_stream_gated dependent\nflexact_stream_down dependent\n");
  on_gpu(Layer(Pairing::Concat, 0, 4));
  EXPECT_EQ(launched(),
            "flexact_stream_gated dependent\nflexact_stream_down dependent\n"
            "flexact_combine dependent\n");
  on_gpu(Layer(Pairing::Concat, 0, 5));
  EXPECT_EQ(launched(),
            "flexact_gather_counted dependent\nflexact_gemm_bf16_gated dependent\n"
            "flexact_gemm_bf16_plain dependent\nflexact_combine dependent\n");
}

TEST(CutlassPlan, many_slots_are_routed_before_they_are_gathered) {
  NEED_MACHINE();
  const Layer few(Pairing::Concat, 2, 1024 / 3);
  const Layer many(Pairing::Concat, 2, 1024 / 3 + 1);
  launched();
  expect_equal(on_gpu(few), on_cpu(few), "few");
  EXPECT_THAT(launched(), testing::StartsWith("flexact_gather_counted dependent\nflexact_gemm"));
  expect_equal(on_gpu(many), on_cpu(many), "many");
  EXPECT_THAT(launched(),
              testing::StartsWith("flexact_route dependent\nflexact_gather dependent\n"));
  flexact::cuda::PlanOptions options;
  options.wish.counted_rows = 1;
  expect_equal(on_gpu(many, options), on_cpu(many), "many, counted");
  EXPECT_THAT(launched(), testing::StartsWith("flexact_gather_counted dependent\nflexact_gemm"));
  options.wish.counted_rows = 0;
  expect_equal(on_gpu(few, options), on_cpu(few), "few, routed");
  EXPECT_THAT(launched(), testing::StartsWith("flexact_route dependent\n"));
}

TEST(CutlassPolicy, large_experts_stream_two_tokens_and_long_calls_wait_for_each_launch) {
  MoeProblem p;
  p.experts = 8;
  p.top_k = 2;
  p.hidden = 4096;
  p.intermediate = 14336;
  const auto choice = [&p](std::int64_t tokens) {
    return flexact::cuda::choose(p, tokens, true, 132, {});
  };
  EXPECT_EQ(choice(2).path, flexact::cuda::Path::Stream);
  EXPECT_EQ(choice(3).path, flexact::cuda::Path::Tiled);
  p.intermediate = 768;
  EXPECT_EQ(choice(4).path, flexact::cuda::Path::Stream);
  EXPECT_EQ(choice(5).path, flexact::cuda::Path::Tiled);
  EXPECT_TRUE(choice(4096).dependent_launches);
  EXPECT_FALSE(choice(4097).dependent_launches);
  p.format = flexact::Format::Mxfp4;
  EXPECT_EQ(choice(4).path, flexact::cuda::Path::Stream);
  EXPECT_EQ(choice(5).path, flexact::cuda::Path::Tiled);
  p.format = flexact::Format::Mxfp4Fp8;
  EXPECT_EQ(choice(1).path, flexact::cuda::Path::Tiled);
  p.format = flexact::Format::Fp8Channel;
  EXPECT_EQ(choice(2).path, flexact::cuda::Path::Tiled);
  EXPECT_EQ(choice(1).path, flexact::cuda::Path::Stream);
  p.hidden = 2048;
  EXPECT_EQ(choice(2).path, flexact::cuda::Path::Stream);
  EXPECT_EQ(choice(3).path, flexact::cuda::Path::Tiled);
  // Codes of eight such rows are more than a block's shared memory.
  p.intermediate = 28672;
  flexact::cuda::Wish stream;
  stream.path = flexact::cuda::Path::Stream;
  EXPECT_EQ(flexact::cuda::choose(p, 3, true, 132, stream).path, flexact::cuda::Path::Stream);
  EXPECT_EQ(flexact::cuda::choose(p, 4, true, 132, stream).path, flexact::cuda::Path::Tiled);
  EXPECT_TRUE(choice(1).dependent_launches);
}

TEST(CutlassPolicy, fp4_tiles_are_short_while_experts_have_few_rows) {
  MoeProblem p;
  p.experts = 32;
  p.top_k = 4;
  p.hidden = p.intermediate = 2880;
  p.format = flexact::Format::Mxfp4;
  const auto choice = [&p](std::int64_t tokens) {
    return flexact::cuda::choose(p, tokens, true, 132, {});
  };
  EXPECT_TRUE(choice(128).few_rows);
  EXPECT_EQ(choice(128).tile_rows, flexact::cuda::kFp4FewRows);
  EXPECT_LE(choice(128).box_rows, flexact::cuda::kFp4FewRows);
  EXPECT_FALSE(choice(136).few_rows);  // 17 rows in the mean
  EXPECT_EQ(choice(136).tile_rows, flexact::cuda::kTileRows);
  EXPECT_TRUE(choice(256).counted_rows);
  EXPECT_FALSE(choice(257).counted_rows);
  p.format = flexact::Format::Mxfp4Fp8;
  EXPECT_FALSE(choice(16).few_rows);
  p.experts = 2 * flexact::cuda::kCountedExperts;
  EXPECT_FALSE(choice(16).counted_rows);
}

TEST(CutlassPlan, takes_many_tokens_in_chunks_of_bounded_scratch) {
  NEED_MACHINE();
  const Layer layer(Pairing::Concat, 3, 50);
  flexact::cuda::PlanOptions options;
  options.most_scratch = 3 * (24 + 16) * 2 * 7;  // seven tokens
  expect_equal(on_gpu(layer, options), on_cpu(layer), "chunks");
  Device device;
  const auto whole =
      flexact::cuda::make_moe_plan(layer.problem, layer.function, device.copy(layer.weights()), {});
  const auto chunked = flexact::cuda::make_moe_plan(layer.problem, layer.function,
                                                    device.copy(layer.weights()), options);
  EXPECT_LT(chunked->workspace_bytes(5000), whole->workspace_bytes(5000));
  EXPECT_EQ(whole->workspace_bytes(0), 0u);
}

TEST(CutlassPlan, owns_its_biases_and_nothing_else) {
  NEED_MACHINE();
  Device device;
  const Layer with(Pairing::Concat, 4), without(Pairing::Concat, 0);
  const flexact::Backend& backend = flexact::backend("cutlass");
  EXPECT_EQ(
      backend.plan(with.problem, with.function, device.copy(with.weights()))->resident_bytes(),
      (5u * 32 + 5 * 24) * 4);
  const auto plan = backend.plan(without.problem, without.function, device.copy(without.weights()));
  EXPECT_EQ(plan->resident_bytes(), 0u);
  EXPECT_THAT(plan->describe(), HasSubstr("sm_90a"));
}

TEST(CutlassPlan, no_tokens_launch_nothing) {
  NEED_MACHINE();
  Device device;
  Layer layer(Pairing::Concat, 0, 1);
  const auto plan =
      flexact::cuda::make_moe_plan(layer.problem, layer.function, device.copy(layer.weights()), {});
  MoeInputs inputs = layer.inputs(nullptr);
  inputs.tokens = 0;
  EXPECT_NO_THROW(plan->run(inputs, layer.table(), nullptr, 0, nullptr));
}

// ---- FP8 and FP4: whole layers against fp64, with the conformance program's data, bounds and
// guards

constexpr flexact::Format kFp8Formats[] = {flexact::Format::Fp8Block, flexact::Format::Fp8Tensor,
                                           flexact::Format::Fp8Channel};
constexpr flexact::Format kFp4Formats[] = {flexact::Format::Mxfp4, flexact::Format::Nvfp4,
                                           flexact::Format::Mxfp4Fp8};

const conformance::Subject& subject_of(Pairing pairing) {
  static const conformance::Subject gated = {"gated", Function::expression("g*u+p")};
  static const conformance::Subject unary = {"unary", Function::expression("2*x+p")};
  return pairing == Pairing::None ? unary : gated;
}

// Calls visit(case) for each format and pairing with `count` rows of options, other ones for each.
template <typename Visit>
void for_each_case(std::span<const flexact::Format> formats, int count, Visit visit) {
  conformance::use_gpu_cases();
  const int rows = static_cast<int>(conformance::covering_options().size());
  int next = 0;
  for (const flexact::Format format : formats) {
    for (const Pairing pairing :
         {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
      for (int i = 0; i < count; ++i) {
        visit(conformance::Case{&subject_of(pairing), pairing, format, next++ * 7 % rows});
      }
    }
  }
}

void expect_agreement(std::span<const flexact::Format> formats, int rows = 2,
                      const char* name = "sm_90a") {
  const conformance::Variant variant = {&flexact::backend("cutlass"), name};
  int proofs = 0;
  for_each_case(formats, rows, [&](const conformance::Case& test) {
    const auto outcome = conformance::run(conformance::Prepared(test), variant);
    EXPECT_EQ(outcome.kind, conformance::Outcome::Kind::Passed)
        << test.id() << ": " << test.describe() << "\n"
        << outcome.message;
    proofs += outcome.proves ? 1 : 0;
  });
  // All but those without tokens.
  EXPECT_GT(proofs, static_cast<int>(formats.size()) * rows * 5 / 2);
}

void expect_mistakes_to_be_found(std::span<const flexact::Format> formats,
                                 const char* name = "sm_90a") {
  const conformance::Variant variant = {&flexact::backend("cutlass"), name};
  int found = 0;
  for_each_case(formats, 1, [&](const conformance::Case& test) {
    const conformance::Prepared prepared(test);
    for (const auto fault :
         {conformance::Fault::Zeros, conformance::Fault::GateAndUp, conformance::Fault::Expert}) {
      const auto outcome = conformance::run(prepared, variant, fault);
      EXPECT_NE(outcome.kind, conformance::Outcome::Kind::Passed) << test.id();
      found += outcome.kind == conformance::Outcome::Kind::Failed ? 1 : 0;
    }
  });
  EXPECT_GT(found, static_cast<int>(formats.size()) * 4);
}

TEST(CutlassPlan, fp16_layers_agree_with_fp64) {
  NEED_MACHINE();
  constexpr flexact::Format kFp16[] = {flexact::Format::Fp16};
  launched();
  expect_agreement(kFp16);
  const std::string kernels = launched();
  EXPECT_THAT(kernels, HasSubstr("flexact_gemm_fp16_plain"));
  EXPECT_THAT(kernels, HasSubstr("flexact_combine_fp16"));
  EXPECT_THAT(kernels, testing::Not(HasSubstr("flexact_gemm_bf16_gated")));
}

TEST(CutlassPlan, fp16_layers_with_a_mistake_do_not) {
  NEED_MACHINE();
  constexpr flexact::Format kFp16[] = {flexact::Format::Fp16};
  expect_mistakes_to_be_found(kFp16);
}

TEST(CutlassPlan, fp8_layers_agree_with_fp64) {
  NEED_MACHINE();
  expect_agreement(kFp8Formats);
}

TEST(CutlassPlan, fp8_layers_with_a_mistake_do_not) {
  NEED_MACHINE();
  expect_mistakes_to_be_found(kFp8Formats);
}

TEST(CutlassPlan, fp4_layers_agree_with_fp64) {
  NEED_MACHINE();
  expect_agreement(kFp4Formats);
}

TEST(CutlassPlan, fp4_layers_agree_on_either_way_of_few_rows) {
  NEED_MACHINE();
  constexpr flexact::Format kFormats[] = {flexact::Format::Mxfp4, flexact::Format::Nvfp4};
  launched();
  expect_agreement(kFormats, 1, "sm_90a_few");
  EXPECT_THAT(launched(), testing::AllOf(HasSubstr("flexact_gemm_mxfp4_gated_few dependent\n"),
                                         HasSubstr("flexact_gemm_nvfp4_plain_few dependent\n"),
                                         testing::Not(HasSubstr("gated dependent\n"))));
  expect_agreement(kFormats, 1, "sm_90a_routed");
  EXPECT_THAT(launched(),
              testing::AllOf(HasSubstr("flexact_route dependent\n"),
                             testing::Not(HasSubstr("_few")), testing::Not(HasSubstr("_counted"))));
}

TEST(CutlassPlan, fp4_layers_with_a_mistake_do_not) {
  NEED_MACHINE();
  expect_mistakes_to_be_found(kFp4Formats);
}

constexpr flexact::Format kStreamFormats[] = {flexact::Format::Mxfp4, flexact::Format::Nvfp4,
                                              flexact::Format::Fp8Block, flexact::Format::Fp8Tensor,
                                              flexact::Format::Fp8Channel};

TEST(CutlassPlan, quantised_layers_of_few_tokens_agree_with_fp64) {
  NEED_MACHINE();
  for (const char* name : {"sm_90a_stream", "sm_90a_stream_sum"}) {
    launched();
    expect_agreement(kStreamFormats, 1, name);
    const std::string list = launched();
    for (const std::string kernels : {"mxfp4", "nvfp4", "fp8_block", "fp8_whole"}) {
      EXPECT_THAT(list, HasSubstr("flexact_stream_" + kernels + "_gated"));
      EXPECT_THAT(list, HasSubstr("flexact_stream_" + kernels + "_down"));
    }
    EXPECT_THAT(list, HasSubstr("_unary"));
  }
  conformance::select({&flexact::backend("cutlass"), "sm_90a"});
}

TEST(CutlassPlan, more_tokens_never_need_less_workspace) {
  NEED_MACHINE();
  conformance::use_gpu_cases();
  for (const flexact::Format format : kStreamFormats) {
    const conformance::Case test{&subject_of(Pairing::Concat), Pairing::Concat, format, 0};
    const conformance::CaseData data(test);
    Device device;
    const auto plan = flexact::cuda::make_moe_plan(data.problem(), test.function(),
                                                   device.copy(data.weights()), {});
    for (std::int64_t tokens = 1; tokens < 400; ++tokens) {
      EXPECT_LE(plan->workspace_bytes(tokens), plan->workspace_bytes(tokens + 1))
          << to_string(format) << " " << tokens;
    }
  }
}

TEST(CutlassPlan, quantised_layers_of_few_tokens_with_a_mistake_do_not) {
  NEED_MACHINE();
  expect_mistakes_to_be_found(kStreamFormats, "sm_90a_stream");
  conformance::select({&flexact::backend("cutlass"), "sm_90a"});
}

// The bits of a layer's result, with as much scratch as given.
std::vector<std::uint16_t> bits_of(const conformance::Case& test, std::int64_t most_scratch) {
  const conformance::CaseData data(test);
  Device device;
  flexact::cuda::PlanOptions options;
  options.most_scratch = most_scratch;
  const auto plan = flexact::cuda::make_moe_plan(data.problem(), test.function(),
                                                 device.copy(data.weights()), options);
  EXPECT_THAT(plan->describe(), HasSubstr(std::string(to_string(test.format))));
  MoeInputs inputs = device.copy(data.inputs(nullptr));
  std::vector<std::uint16_t> output(static_cast<std::size_t>(data.output_count()), 0xffff);
  inputs.output = device.copy(output.data(), output.size() * 2);
  const std::size_t bytes = plan->workspace_bytes(inputs.tokens);
  const std::vector<std::byte> poison(bytes, std::byte{0xff});
  plan->run(inputs, device.copy(data.values()), device.copy(poison.data(), bytes), bytes, nullptr);
  device.read(reinterpret_cast<std::byte*>(output.data()), inputs.output, output.size() * 2);
  return output;
}

TEST(CutlassPlan, chunks_change_no_bit_where_scales_are_of_tokens) {
  NEED_MACHINE();
  conformance::use_gpu_cases();
  const auto& options = conformance::covering_options();
  for (const flexact::Format format :
       {flexact::Format::Fp8Block, flexact::Format::Fp8Channel, flexact::Format::Mxfp4,
        flexact::Format::Nvfp4, flexact::Format::Mxfp4Fp8}) {
    for (std::size_t row = 0; row < options.size(); ++row) {
      if (conformance::sizes()[static_cast<std::size_t>(options[row].size)].tokens != 33) continue;
      const conformance::Case test{&subject_of(Pairing::Concat), Pairing::Concat, format,
                                   static_cast<int>(row)};
      EXPECT_EQ(bits_of(test, std::int64_t{1} << 30), bits_of(test, 40000)) << test.id();
      break;
    }
  }
}

TEST(CutlassPlan, fp4_plans_own_scales_in_an_order_of_their_own_and_no_codes) {
  NEED_MACHINE();
  conformance::use_gpu_cases();
  const conformance::Case test{&subject_of(Pairing::Concat), Pairing::Concat,
                               flexact::Format::Mxfp4, 0};
  const conformance::CaseData data(test);
  const MoeProblem& p = data.problem();
  MoeProblem without = p;
  without.bias13 = without.bias2 = false;
  MoeWeights weights = data.weights();
  weights.w13_bias = weights.w2_bias = {};
  Device device;
  const auto plan =
      flexact::cuda::make_moe_plan(without, test.function(), device.copy(weights), {});
  const auto blocks = [](std::int64_t size, std::int64_t block) {
    return (size + block - 1) / block;
  };
  EXPECT_EQ(static_cast<std::int64_t>(plan->resident_bytes()),
            p.experts * 1024 *
                (blocks(p.intermediate, 128) * blocks(p.hidden, 128) +
                 blocks(p.hidden, 256) * blocks(p.intermediate, 128)));
}

TEST(CutlassPlan, groups_out_of_range_of_e4m3_are_counted) {
  NEED_MACHINE();
  conformance::use_gpu_cases();
  for (int row = 0;; ++row) {
    const conformance::Case test{&subject_of(Pairing::Interleaved), Pairing::Interleaved,
                                 flexact::Format::Mxfp4Fp8, row};
    const conformance::CaseData data(test);
    if (data.problem().hidden < 64 || data.problem().intermediate < 64) continue;
    Device device;
    const MoeWeights weights = device.copy(data.weights());
    const auto plan = [&] {
      return flexact::cuda::make_moe_plan(data.problem(), test.function(), weights, {})->describe();
    };
    EXPECT_THAT(plan(), testing::Not(HasSubstr("out of E4M3's range")));
    // A row of gates, one of ups and one of w2; NaNs do not count, and are no row's largest scale.
    auto* const of13 = static_cast<std::uint8_t*>(const_cast<void*>(weights.w13_scale.data));
    auto* const of2 = static_cast<std::uint8_t*>(const_cast<void*>(weights.w2_scale.data));
    of13[0] = of13[weights.w13_scale.strides[1]] = of2[0] = 1;
    of2[weights.w2_scale.strides[1]] = 255;
    EXPECT_THAT(plan(), HasSubstr(", 3 groups of weights out of E4M3's range,"));
    break;
  }
}

TEST(CutlassPlan, scales_it_cannot_read_are_refused_by_name) {
  NEED_MACHINE();
  conformance::use_gpu_cases();
  const conformance::Case test{&subject_of(Pairing::Concat), Pairing::Concat,
                               flexact::Format::Fp8Block, 0};
  const conformance::CaseData data(test);
  Device device;
  const MoeWeights good = device.copy(data.weights());
  MoeWeights weights = good;
  const auto plan = [&] {
    flexact::cuda::make_moe_plan(data.problem(), test.function(), weights, {});
  };
  EXPECT_NO_THROW(plan());
  const auto expect_error = [&](const char* what) {
    try {
      plan();
      ADD_FAILURE() << "no error instead of " << what;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
      EXPECT_THAT(error.what(), HasSubstr(what));
    }
    weights = good;
  };
  weights.w13_scale.data = nullptr;
  expect_error("w13_scale: missing");
  weights.w2_scale.shape[2] += 1;
  expect_error("w2_scale: shape");
  weights.w2_scale.data = data.weights().w2_scale.data;
  expect_error("w2_scale: is no device memory");
  weights.a13_scale = weights.w2_scale;
  expect_error("a13_scale: a scale is given");
  weights.w13.dtype = DType::BFloat16;
  expect_error("w13: dtype bfloat16");
}

std::string message_of(const std::function<void()>& call, ErrorCode code) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "no error";
}

// The driver's device is of this compute capability while it lives.
class OnCapability {
 public:
  OnCapability(int major, int minor) { set(major, minor); }
  ~OnCapability() {
    set(9, 0);
    ::unsetenv(kSwitch);
  }
  static void run_untried() { ::setenv(kSwitch, "run", 1); }
  static constexpr const char* kSwitch = "FLEXACT_UNTRIED_KERNELS";

 private:
  static void set(int major, int minor) {
    void (*function)(int, int) = nullptr;
    flexact::cuda::load_library("libcuda.so.1").load("fake_capability", function);
    function(major, minor);
  }
};

std::string reason_of(const std::optional<flexact::Refusal>& refusal) {
  return refusal ? refusal->reason + "; " + refusal->hint : "";
}

TEST(CutlassArchitectures, what_has_not_run_on_hardware_is_refused_until_it_is_asked_for) {
  NEED_MACHINE();
  const Layer layer(Pairing::Concat, 0);
  const flexact::Backend& backend = flexact::backend("cutlass");
  const OnCapability device(10, 0);
  const std::string why = reason_of(backend.refuse(layer.problem, layer.function));
  EXPECT_THAT(why, HasSubstr("sm_100a are compiled and linked, but have not run on hardware yet"));
  EXPECT_THAT(why, HasSubstr("FLEXACT_UNTRIED_KERNELS=run"));
  EXPECT_EQ(reason_of(backend.refuse_dense({}, layer.function)), why);
  try {
    on_gpu(layer);  // past refuse()
    ADD_FAILURE() << "a plan for sm_100a";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
    EXPECT_THAT(error.what(), HasSubstr("have not run on hardware"));
  }
  ::setenv(OnCapability::kSwitch, "yes", 1);
  try {
    backend.refuse(layer.problem, layer.function);
    ADD_FAILURE() << "a word that means nothing";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("FLEXACT_UNTRIED_KERNELS"),
                                             HasSubstr("'yes'"), HasSubstr("refuse or run")));
  }
  OnCapability::run_untried();
  EXPECT_EQ(reason_of(backend.refuse(layer.problem, layer.function)), "");
  EXPECT_EQ(reason_of(backend.refuse_dense({}, layer.function)), "");
}

TEST(CutlassArchitectures, sm_100a_refuses_formats_that_it_has_no_gemm_of) {
  NEED_MACHINE();
  Layer layer(Pairing::Concat, 0);
  layer.problem.hidden = layer.problem.intermediate = 128;
  const OnCapability device(10, 0);
  OnCapability::run_untried();
  const auto reason = [&](flexact::Format format) {
    layer.problem.format = format;
    layer.problem.io_dtype = format == flexact::Format::Fp16 ? DType::Float16 : DType::BFloat16;
    return reason_of(flexact::backend("cutlass").refuse(layer.problem, layer.function));
  };
  for (const flexact::Format format :
       {flexact::Format::Bf16, flexact::Format::Fp16, flexact::Format::Fp8Block,
        flexact::Format::Fp8Tensor, flexact::Format::Fp8Channel}) {
    EXPECT_EQ(reason(format), "");
  }
  for (const flexact::Format format :
       {flexact::Format::Mxfp4, flexact::Format::Nvfp4, flexact::Format::Mxfp4Fp8}) {
    EXPECT_THAT(
        reason(format),
        testing::AllOf(HasSubstr("no CUDA kernels for format"), HasSubstr("on sm_100a"),
                       HasSubstr("has bf16, fp16, fp8_block, fp8_tensor, fp8_channel there")));
  }
}

TEST(CutlassArchitectures, other_gpus_are_refused_by_what_there_is) {
  NEED_MACHINE();
  const Layer layer(Pairing::Concat, 0);
  for (const auto& [major, minor] :
       {std::pair{8, 0}, std::pair{9, 1}, std::pair{10, 3}, std::pair{12, 0}}) {
    const OnCapability device(major, minor);
    OnCapability::run_untried();
    const std::string why =
        reason_of(flexact::backend("cutlass").refuse(layer.problem, layer.function));
    EXPECT_THAT(why, HasSubstr("compute capability 9.0 (sm_90a) or 10.0 (sm_100a)")) << major;
    EXPECT_EQ(message_of([&] { on_gpu(layer); }, ErrorCode::Unsupported).substr(0, 4), "w13:");
  }
}

// The driver loads no code of another architecture.
TEST(CutlassArchitectures, a_gpu_of_capability_10_0_gets_kernels_of_its_own_and_the_same_launches) {
  NEED_MACHINE();
  const OnCapability device(10, 0);
  OnCapability::run_untried();
  launched();
  for (const Pairing pairing :
       {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
    for (const unsigned choices : {0u, 5u, 11u, 22u}) {
      const Layer layer(pairing, choices, choices == 0 ? 700 : 9);
      expect_equal(on_gpu(layer), on_cpu(layer),
                   std::string(to_string(pairing)) + " " + std::to_string(choices));
    }
  }
  const std::string tiled = launched();
  for (const char* kernel :
       {"flexact_route dependent\nflexact_gather dependent\nflexact_gemm_bf16_gated",
        "flexact_gather_counted", "flexact_gemm_bf16_unary", "flexact_gemm_bf16_plain",
        "flexact_combine dependent"}) {
    EXPECT_THAT(tiled, HasSubstr(kernel));
  }
  on_gpu(Layer(Pairing::Concat, 0, 2));
  EXPECT_EQ(launched(), "flexact_stream_gated dependent\nflexact_stream_down dependent\n");
  constexpr flexact::Format kFp16[] = {flexact::Format::Fp16};
  expect_agreement(kFp16, 1, "sm_100a");
  expect_agreement(kFp8Formats, 1, "sm_100a");
  expect_agreement(kFp8Formats, 1, "sm_100a_stream");

  Device memory;
  const Layer layer(Pairing::Concat, 0);
  const auto plan =
      flexact::backend("cutlass").plan(layer.problem, layer.function, memory.copy(layer.weights()));
  EXPECT_THAT(plan->describe(), HasSubstr("sm_100a"));
  const auto dense = flexact::backend("cutlass").plan_dense({}, Function::named("swiglu"));
  EXPECT_THAT(dense->describe(), HasSubstr("sm_100a"));
}

TEST(CutlassPlan, tensors_it_cannot_read_are_refused_by_name) {
  NEED_MACHINE();
  Device device;
  const Layer layer(Pairing::Concat, 0);
  const auto plan_of = [&](const MoeWeights& weights) {
    return [&layer, weights] {
      flexact::cuda::make_moe_plan(layer.problem, layer.function, weights, {});
    };
  };
  MoeWeights weights = device.copy(layer.weights());
  weights.w2 = layer.weights().w2;
  EXPECT_THAT(message_of(plan_of(weights), ErrorCode::InvalidArgument),
              HasSubstr("w2: is no device memory"));
  EXPECT_THAT(message_of(plan_of(layer.weights()), ErrorCode::InvalidArgument),
              HasSubstr("w13: is no device"));
  weights = device.copy(layer.weights());
  weights.w13.strides[1] = 25;
  EXPECT_THAT(message_of(plan_of(weights), ErrorCode::InvalidArgument),
              HasSubstr("multiple of 16 bytes"));
  weights = device.copy(layer.weights());
  weights.w13.strides[2] = 2;
  EXPECT_THAT(message_of(plan_of(weights), ErrorCode::InvalidArgument), HasSubstr("last stride"));
  weights = device.copy(layer.weights());
  weights.w13.data = static_cast<const char*>(weights.w13.data) + 2;
  EXPECT_THAT(message_of(plan_of(weights), ErrorCode::InvalidArgument),
              HasSubstr("aligned to 16 bytes"));
}

TEST(CutlassPlan, a_workspace_that_is_too_small_is_an_error) {
  NEED_MACHINE();
  Device device;
  const Layer layer(Pairing::Concat, 0);
  const auto plan =
      flexact::cuda::make_moe_plan(layer.problem, layer.function, device.copy(layer.weights()), {});
  MoeInputs inputs = device.copy(layer.inputs(nullptr));
  inputs.output = device.copy(layer.hidden.data(), layer.hidden.size() * 2);
  char small = 0;
  EXPECT_THAT(message_of([&] { plan->run(inputs, layer.table(), &small, 1, nullptr); },
                         ErrorCode::InvalidArgument),
              HasSubstr("workspace"));
}

TEST(CutlassPlan, a_failed_call_of_the_driver_names_the_error_and_what_was_being_done) {
  NEED_MACHINE();
  const flexact::cuda::Driver& driver = flexact::cuda::Driver::instance();
  EXPECT_NO_THROW(driver.check(0, "nothing"));
  EXPECT_THAT(message_of([&] { driver.check(2, "allocating"); }, ErrorCode::DeviceError),
              HasSubstr("CUDA_ERROR_OUT_OF_MEMORY while allocating"));
  // A context other than the tensors' is current: the launch must still find its own.
  const Layer layer(Pairing::Concat, 0);
  EXPECT_NO_THROW(on_gpu(layer));
}

}  // namespace

int main(int argc, char** argv) {
  std::string pattern = (std::filesystem::temp_directory_path() / "flexact-plan-XXXXXX").string();
  const std::string cache = ::mkdtemp(pattern.data());
  ::setenv("FLEXACT_CUDA_PATH", FAKE_DRIVER_FOLDER, 1);
  ::setenv("FLEXACT_CACHE_DIR", cache.c_str(), 1);
  testing::InitGoogleTest(&argc, argv);
  const int status = RUN_ALL_TESTS();
  std::filesystem::remove_all(cache);
  return status;
}
