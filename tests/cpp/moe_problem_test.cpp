// Nonsense is an error that names what is wrong; a problem without a meaning is refused with a
// reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "cpu_moe_case.hpp"
#include "flexact/error.hpp"
#include "moe/problem.hpp"

namespace {

using namespace flexact;
using namespace flexact::testing;
using ::testing::HasSubstr;

MoeProblem good_problem() {
  MoeProblem p;
  p.experts = 4;
  p.top_k = 2;
  p.hidden = 8;
  p.intermediate = 6;
  return p;
}

// The message of the Error that `call` throws.
std::string error_of(ErrorCode code, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), to_string(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(MoeProblem, names_round_trip) {
  for (int i = 0; i <= static_cast<int>(Format::Mxfp4Fp8); ++i) {
    const auto format = static_cast<Format>(i);
    EXPECT_EQ(parse_format(to_string(format)), format);
  }
  EXPECT_THAT(error_of(ErrorCode::InvalidArgument, [] { parse_format("BF16"); }),
              HasSubstr("bf16, fp16, fp32"));
  EXPECT_EQ(to_string(DType::Float8E4M3), "float8_e4m3");
  EXPECT_EQ(size_of(DType::Int64), 8);
  EXPECT_EQ(size_of(static_cast<DType>(99)), 0);
  EXPECT_EQ(to_string(static_cast<DType>(99)), "unknown");
}

TEST(MoeProblem, rejects_sizes_and_enums_out_of_range) {
  const std::pair<const char*, std::function<void(MoeProblem&)>> cases[] = {
      {"experts", [](MoeProblem& p) { p.experts = 0; }},
      {"experts", [](MoeProblem& p) { p.experts = INT64_MAX; }},
      {"top_k", [](MoeProblem& p) { p.top_k = 33; }},
      {"top_k", [](MoeProblem& p) { p.top_k = 0; }},
      {"hidden", [](MoeProblem& p) { p.hidden = -8; }},
      {"intermediate", [](MoeProblem& p) { p.intermediate = INT64_MAX / 2; }},
      {"format", [](MoeProblem& p) { p.format = static_cast<Format>(77); }},
      {"pairing", [](MoeProblem& p) { p.pairing = static_cast<Pairing>(77); }},
      {"io_dtype", [](MoeProblem& p) { p.io_dtype = DType::Int32; }},
      {"io_dtype", [](MoeProblem& p) { p.io_dtype = static_cast<DType>(-1); }},
      {"routed_scaling_factor", [](MoeProblem& p) { p.routed_scaling_factor = NAN; }},
      {"routed_scaling_factor", [](MoeProblem& p) { p.routed_scaling_factor = INFINITY; }},
  };
  moe::validate(good_problem());
  for (const auto& [name, spoil] : cases) {
    MoeProblem p = good_problem();
    spoil(p);
    EXPECT_THAT(error_of(ErrorCode::InvalidArgument, [&] { moe::validate(p); }), HasSubstr(name));
  }
}

TEST(MoeProblem, the_cpu_refuses_what_has_no_meaning_or_no_kernel) {
  const Backend& cpu = backend("cpu");
  const Function gated = Function::named("swiglu");
  const Function unary = Function::named("relu2");
  EXPECT_FALSE(cpu.refuse(good_problem(), gated));

  const auto reason = [&](const Function& function,
                          const std::function<void(MoeProblem&)>& change) {
    MoeProblem p = good_problem();
    change(p);
    const auto refusal = cpu.refuse(p, function);
    const MoeCase c(good_problem(), gated, 1);
    // Refused before any weight is touched: these would be rejected as well.
    EXPECT_THAT(error_of(ErrorCode::Unsupported, [&] { cpu.plan(p, function, MoeWeights{}); }),
                HasSubstr(refusal ? refusal->reason : "no refusal"));
    return refusal ? refusal->reason : "";
  };
  EXPECT_THAT(reason(gated, [](MoeProblem& p) { p.bias2 = p.router_weight_on_input = true; }),
              HasSubstr("bias"));
  EXPECT_THAT(reason(gated, [](MoeProblem& p) { p.bias13 = p.router_weight_on_input = true; }),
              HasSubstr("bias"));
  EXPECT_THAT(reason(unary, [](MoeProblem&) {}), HasSubstr("unary"));
  EXPECT_THAT(reason(gated, [](MoeProblem& p) { p.pairing = Pairing::None; }), HasSubstr("gated"));
  EXPECT_THAT(reason(gated, [](MoeProblem& p) { p.pairing = Pairing::Separate; }),
              HasSubstr("two tensors"));
  for (const Format format : {Format::Fp8Block, Format::Fp8Tensor, Format::Fp8Channel,
                              Format::Mxfp4, Format::Nvfp4, Format::Mxfp4Fp8}) {
    EXPECT_THAT(reason(gated,
                       [&](MoeProblem& p) {
                         p.format = format;
                         p.hidden = p.intermediate = 64;
                       }),
                HasSubstr("no kernels for format " + std::string(to_string(format))));
  }
  EXPECT_FALSE(cpu.refuse(
      [] {
        MoeProblem p = good_problem();
        p.pairing = Pairing::Concat;
        return p;
      }(),
      unary.gated()));
}

TEST(MoeProblem, backends_are_found_by_name) {
  EXPECT_EQ(backend("cpu").name(), "cpu");
  EXPECT_EQ(backends().front(), &backend("cpu"));
  EXPECT_THAT(error_of(ErrorCode::InvalidArgument, [] { backend("gpu"); }),
              HasSubstr("one of cpu"));
}

TEST(MoeWeights, rejects_tensors_that_contradict_the_problem) {
  MoeProblem p = good_problem();
  p.bias13 = true;
  const MoeCase c(p, Function::named("swiglu"), 3);
  const std::pair<const char*, std::function<void(MoeWeights&)>> cases[] = {
      {"w13", [](MoeWeights& w) { w.w13.data = nullptr; }},
      {"w13: shape [4, 12, 9]", [](MoeWeights& w) { w.w13.shape[2] = 9; }},
      {"w13: rank", [](MoeWeights& w) { w.w13.rank = 2; }},
      {"w13: rank", [](MoeWeights& w) { w.w13.rank = 1000; }},
      {"w13: dtype float32", [](MoeWeights& w) { w.w13.dtype = DType::Float32; }},
      {"w13: stride", [](MoeWeights& w) { w.w13.strides[1] = -1; }},
      {"w13: stride", [](MoeWeights& w) { w.w13.strides[0] = INT64_MAX; }},
      {"w13: the data pointer",
       [](MoeWeights& w) { w.w13.data = static_cast<const char*>(w.w13.data) + 1; }},
      {"w2: shape", [](MoeWeights& w) { std::swap(w.w2.shape[1], w.w2.shape[2]); }},
      {"w2", [](MoeWeights& w) { w.w2 = {}; }},
      {"w13_bias: missing", [](MoeWeights& w) { w.w13_bias = {}; }},
      {"w13_bias: dtype int64", [](MoeWeights& w) { w.w13_bias.dtype = DType::Int64; }},
      {"w2_bias: a bias is given", [](MoeWeights& w) { w.w2_bias = w.w13_bias; }},
      {"w2_scale: a scale is given", [](MoeWeights& w) { w.w2_scale = w.w13_bias; }},
      {"a13_scale", [](MoeWeights& w) { w.a13_scale = w.w13_bias; }},
  };
  EXPECT_NE(backend("cpu").plan(p, c.function, c.moe_weights()), nullptr);
  for (const auto& [text, spoil] : cases) {
    MoeWeights weights = c.moe_weights();
    spoil(weights);
    EXPECT_THAT(
        error_of(ErrorCode::InvalidArgument, [&] { backend("cpu").plan(p, c.function, weights); }),
        HasSubstr(text));
  }
}

TEST(MoeInputs, rejects_inputs_that_contradict_the_problem) {
  const MoeCase c(good_problem(), Function::named("swish_glu"), 3);
  const auto plan = backend("cpu").plan(c.problem, c.function, c.moe_weights());
  std::vector<std::uint16_t> output(3 * 8, 0x1234);
  alignas(64) static std::byte memory[1 << 16];
  ASSERT_LE(plan->workspace_bytes(3), sizeof memory - 1);
  struct Call {
    MoeInputs inputs;
    ParameterTable values;
    std::byte* workspace = memory;
    std::size_t bytes = sizeof memory - 1;
    void* stream = nullptr;
  };
  const std::pair<const char*, std::function<void(Call&)>> cases[] = {
      {"tokens", [](Call& a) { a.inputs.tokens = -1; }},
      {"tokens", [](Call& a) { a.inputs.tokens = INT64_MAX; }},
      {"hidden_states: shape", [](Call& a) { a.inputs.tokens = 2; }},
      {"hidden_states: missing", [](Call& a) { a.inputs.hidden_states = {}; }},
      {"hidden_states: dtype", [](Call& a) { a.inputs.hidden_states.dtype = DType::Float16; }},
      {"hidden_states: rows are not", [](Call& a) { a.inputs.hidden_states.strides[1] = 2; }},
      {"topk_weights: dtype", [](Call& a) { a.inputs.topk_weights.dtype = DType::BFloat16; }},
      {"topk_weights: shape", [](Call& a) { a.inputs.topk_weights.shape[1] = 3; }},
      {"topk_ids: dtype", [](Call& a) { a.inputs.topk_ids.dtype = DType::UInt8; }},
      {"topk_ids: dtype unknown",
       [](Call& a) { a.inputs.topk_ids.dtype = static_cast<DType>(50); }},
      {"topk_ids: missing", [](Call& a) { a.inputs.topk_ids.data = nullptr; }},
      {"output: missing", [](Call& a) { a.inputs.output = nullptr; }},
      {"output: the pointer",
       [](Call& a) { a.inputs.output = static_cast<char*>(a.inputs.output) + 1; }},
      {"values: 0 columns", [](Call& a) { a.values.columns = 0; }},
      {"values: 3 rows", [](Call& a) { a.values.rows = 3; }},
      {"values: missing", [](Call& a) { a.values.data = nullptr; }},
      {"workspace: 0 bytes", [](Call& a) { a.workspace = nullptr; }},
      {"workspace", [](Call& a) { a.bytes = 64; }},
      {"workspace: not aligned", [](Call& a) { a.workspace += 1; }},
      {"stream", [](Call& a) { a.stream = a.workspace; }},
  };
  for (const auto& [text, spoil] : cases) {
    Call call{c.inputs(output.data()), c.table()};
    spoil(call);
    EXPECT_THAT(
        error_of(
            ErrorCode::InvalidArgument,
            [&] { plan->run(call.inputs, call.values, call.workspace, call.bytes, call.stream); }),
        HasSubstr(text));
  }
  // None of them wrote anything.
  for (const std::uint16_t half : output) EXPECT_EQ(half, 0x1234);
  error_of(ErrorCode::InvalidArgument, [&] { static_cast<void>(plan->workspace_bytes(-5)); });
  error_of(ErrorCode::InvalidArgument,
           [&] { static_cast<void>(plan->workspace_bytes(INT64_MAX)); });
}

}  // namespace
