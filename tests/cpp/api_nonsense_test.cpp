// Every function of the public headers, called with what nobody should call it with: an Error comes
// out, or a defined value, and never anything that a sanitizer would see.
#include <gtest/gtest.h>

#include <array>
#include <climits>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "flexact/activation.hpp"
#include "flexact/backend.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"
#include "flexact/moe.hpp"
#include "flexact/version.hpp"

namespace flexact {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

// Text of every bad kind: empty, with NUL, not UTF-8, a surrogate, long, a path, a format string.
const std::vector<std::string>& bad_texts() {
  static const std::vector<std::string> texts = {
      "",
      std::string(1, '\0'),
      std::string("sil\0u", 5),
      "\xff\xfe",
      "\xed\xa0\x80",
      "\xc0\xaf",
      "../../etc/passwd",
      "%s%n%n",
      std::string(1 << 20, 'a'),
      std::string(1 << 20, '('),
      "\x1b[2J",
  };
  return texts;
}

// Calls and returns the error's code; what() can always be shown.
template <typename Call>
ErrorCode code_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    const std::string_view text = error.what();
    EXPECT_FALSE(text.empty());
    EXPECT_LT(text.size(), 40'000u);
    for (char c : text)
      EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t');
    EXPECT_EQ(text.find('\xff'), std::string_view::npos);
    EXPECT_NE(to_string(error.code()), "unknown");
    return error.code();
  }
  ADD_FAILURE() << "accepted";
  return ErrorCode::InternalError;
}

#define EXPECT_CODE(code, ...) EXPECT_EQ(ErrorCode::code, code_of([&] { __VA_ARGS__; }))

// ---- activation.hpp

TEST(Nonsense, function_texts_are_refused) {
  for (const std::string& text : bad_texts()) {
    EXPECT_CODE(ConfigError, Function::named(text));
    EXPECT_CODE(ExpressionError, Function::from_canonical(text));
    EXPECT_CODE(ExpressionError, Function::from_canonical("unary(" + text));
    EXPECT_CODE(ExpressionError, Function::from_canonical("gated(" + text + "): g*u*("));
    EXPECT_CODE(ConfigError, Activation::from_json(text));
    EXPECT_CODE(InvalidArgument, Function::named("silu").gradient(text));
    EXPECT_CODE(ConfigError, ActivationRegistry::instance().get_function(text));
    EXPECT_CODE(ConfigError, ActivationRegistry::instance().get_activation(text));
    if (text != std::string(1 << 20, 'a')) {
      EXPECT_CODE(ExpressionError, Function::expression(text));
    }
    EXPECT_CODE(InvalidArgument, ActivationRegistry::instance().register_function(text, "x"));
  }
}

TEST(Nonsense, parameter_lists_are_refused) {
  const auto with = [](Parameter parameter) {
    return [parameter = std::move(parameter)] { Function::expression("b*x", {parameter}); };
  };
  for (const std::string& text : bad_texts()) {
    EXPECT_EQ(code_of(with({text})), ErrorCode::InvalidArgument);
    EXPECT_EQ(code_of(with({"b", 1.0, {}, {text}})), ErrorCode::InvalidArgument);
  }
  EXPECT_EQ(code_of(with({"c"})), ErrorCode::ExpressionError);
  EXPECT_EQ(code_of(with({"x"})), ErrorCode::InvalidArgument);
  EXPECT_EQ(code_of(with({"b", 1.0, {}, {"b"}})), ErrorCode::InvalidArgument);
  for (double bad : {kInfinity, -kInfinity, std::nan("")}) {
    EXPECT_EQ(code_of(with({"b", bad})), ErrorCode::InvalidArgument);
    EXPECT_EQ(code_of(with({"b", std::nullopt, {}, {}, bad})), ErrorCode::InvalidArgument);
    EXPECT_EQ(code_of(with({"b", 1.0, {bad, bad}})), ErrorCode::InvalidArgument);
  }
  EXPECT_EQ(code_of(with({"b", 1.0, {2, 0}})), ErrorCode::InvalidArgument);
  const std::vector<Parameter> many(100'000, Parameter{"b"});
  EXPECT_CODE(InvalidArgument, Function::expression("b*x", many));
  EXPECT_CODE(InvalidArgument, ActivationRegistry::instance().register_function("silu", "x"));
  EXPECT_CODE(ExpressionError, ActivationRegistry::instance().register_function("mine", "x+"));
}

TEST(Nonsense, reference_values_need_the_right_arguments) {
  const Function silu = Function::named("silu");
  const Function swiglu = Function::named("swiglu");
  const Function swish = Function::named("swish");
  const std::vector<double> values(1000, std::nan(""));
  EXPECT_CODE(InvalidArgument, silu.reference(1, values));
  EXPECT_CODE(InvalidArgument, swish.reference(1));
  EXPECT_CODE(InvalidArgument, silu.reference(1, 2, {}));
  EXPECT_CODE(InvalidArgument, swiglu.reference(1));
  EXPECT_CODE(InvalidArgument, swish.reference(1, std::span<const double>()));
  // NaN is a number that a formula answers with NaN.
  EXPECT_TRUE(std::isnan(swish.reference(1, std::span(values).first(1))));
  EXPECT_TRUE(std::isnan(silu.reference(std::nan(""))));
}

TEST(Nonsense, a_target_out_of_range_is_refused) {
  for (int target : {-1, 4, 99, INT_MAX})
    EXPECT_CODE(InvalidArgument, Function::named("silu").emit(static_cast<Target>(target)));
}

TEST(Nonsense, moved_from_objects_still_answer) {
  Function silu = Function::named("silu");
  const Function taken = std::move(silu);
  EXPECT_EQ(silu, taken);  // NOLINT: this is the point
  EXPECT_EQ(silu.reference(0.0), 0.0);
  EXPECT_EQ(silu.gated().arity(), Arity::Gated);

  Activation swish(Function::named("swish"), {{"beta", 2.0}});
  const Activation other = std::move(swish);
  EXPECT_EQ(other.values(0, {0, 1}).data, std::vector<double>{2.0});
  EXPECT_EQ(swish.function().name(), "swish");  // NOLINT
  EXPECT_CODE(ConfigError, swish.values(0, {0, 1}));
  swish = other;
  EXPECT_EQ(swish, other);

  ParameterValue list = ParameterValue::per_layer({1.0, 2.0});
  const ParameterValue kept = std::move(list);
  EXPECT_EQ(kept.elements().size(), 2u);
  EXPECT_CODE(ConfigError, Activation(Function::named("swish"), {{"beta", list}}));  // NOLINT

  ModelActivations model = resolve_config_text(R"({"model_type": "llama"})");
  const ModelActivations gone = std::move(model);
  EXPECT_NO_THROW(model.to_json());  // NOLINT
  EXPECT_FALSE(gone.layers.empty());
}

TEST(Nonsense, bindings_are_refused) {
  const Function swish = Function::named("swish");
  for (const std::string& text : bad_texts()) {
    EXPECT_CODE(ConfigError, Activation(swish, {{text, 1.0}}));
    EXPECT_CODE(ConfigError, Activation(swish, {{"beta", ParameterValue::tensor(text)}}));
  }
  for (double bad : {kInfinity, -kInfinity, std::nan("")})
    EXPECT_CODE(ConfigError, Activation(swish, {{"beta", bad}}));
  EXPECT_CODE(ConfigError, Activation(swish, {{"beta", ParameterValue::per_layer({})}}));
  EXPECT_CODE(ConfigError, Activation(swish, {{"beta", ParameterValue::per_expert({})}}));
  ParameterValue nest = 1.0;
  EXPECT_CODE(ConfigError, while (true) nest = ParameterValue::per_expert({nest}));
  EXPECT_CODE(ConfigError, Activation(swish, {{"beta", nest}}));
}

TEST(Nonsense, layers_and_experts_out_of_range_are_refused) {
  const Activation layered(Function::named("swish"), {{"beta", ParameterValue::per_layer({1.0})}});
  for (std::int64_t layer : {std::int64_t{-1}, std::int64_t{1}, kMost, kLeast})
    EXPECT_CODE(ConfigError, layered.values(layer, {0, 1}));
  const Activation experts(Function::named("swish"),
                           {{"beta", ParameterValue::per_expert({1.0, 2.0})}});
  for (const ExpertRange range : {ExpertRange{0, 0}, {-1, 1}, {2, 1}, {kLeast, kMost}, {0, kLeast}})
    EXPECT_CODE(InvalidArgument, experts.values(0, range));
  for (const ExpertRange range : {ExpertRange{0, 3}, {2, 3}, {0, kMost}, {kMost - 1, kMost}})
    EXPECT_CODE(ConfigError, experts.values(0, range));
  // One value for all experts needs no table of that length.
  EXPECT_EQ(Activation(Function::named("swish")).values(0, {0, kMost}).rows, 1);
}

TEST(Nonsense, tensor_readers_that_lie_are_refused) {
  const Activation learned(Function::named("swish"),
                           {{"beta", ParameterValue::tensor("m.{layer}.beta")}});
  const auto read = [&](std::vector<double> values, ExpertRange experts = {0, 2}) {
    return [=] { learned.values(0, experts, [&](const std::string&) { return values; }); };
  };
  EXPECT_EQ(code_of(read({})), ErrorCode::ConfigError);
  EXPECT_EQ(code_of(read({std::nan("")})), ErrorCode::ConfigError);
  EXPECT_EQ(code_of(read({1, kInfinity})), ErrorCode::ConfigError);
  EXPECT_EQ(code_of(read({1, 2}, {0, 3})), ErrorCode::ConfigError);
  EXPECT_CODE(ConfigError, learned.values(0, {0, 1}));  // no reader, no initial value
  EXPECT_CODE(IoError, learned.values(0, {0, 1}, [](const std::string&) -> std::vector<double> {
    throw Error(ErrorCode::IoError, "gone");
  }));
}

TEST(Nonsense, domains_with_odd_ends_contain_nothing_odd) {
  for (double odd : {kInfinity, -kInfinity, std::nan("")}) {
    EXPECT_FALSE(Domain{}.contains(odd));
    const Domain domain{odd, odd, true, true};
    EXPECT_FALSE(domain.contains(0) && domain.contains(1) && std::isnan(odd));
    EXPECT_FALSE(domain.to_string().empty());
  }
}

// ---- config.hpp

TEST(Nonsense, config_texts_and_paths_are_refused) {
  for (const std::string& text : bad_texts()) {
    EXPECT_CODE(ConfigError, resolve_config_text(text));
    if (!text.empty()) {
      EXPECT_CODE(ConfigError, resolve_config_text(R"({"model_type": "llama"})", {text, ""}));
      EXPECT_CODE(InvalidArgument, resolve_config_text(R"({"model_type": "llama"})", {"", text}));
    }
    EXPECT_CODE(InvalidArgument, parse_pairing(text));
    EXPECT_CODE(InvalidArgument, parse_role(text));
    EXPECT_CODE(InvalidArgument, parse_format(text));
    EXPECT_CODE(InvalidArgument, backend(text));
    if (text != "../../etc/passwd") {
      EXPECT_CODE(IoError, resolve_config(text));
    }
  }
  for (const char* path : {"/dev/zero", "/dev/null", "/", "/nonexistent/x"})
    EXPECT_CODE(IoError, resolve_config(path));
}

TEST(Nonsense, enumerators_out_of_range_are_named_so_or_refused) {
  for (int value : {-1, 9, 1000, INT_MAX, INT_MIN}) {
    EXPECT_EQ(to_string(static_cast<Pairing>(value)), "unknown");
    EXPECT_EQ(to_string(static_cast<Role>(value)), "unknown");
    EXPECT_EQ(to_string(static_cast<DType>(value)), "unknown");
    EXPECT_EQ(to_string(static_cast<Format>(value)), "unknown");
    EXPECT_EQ(to_string(static_cast<ErrorCode>(value)), "unknown");
    EXPECT_EQ(size_of(static_cast<DType>(value)), 0);
    LayerActivations layer = resolve_config_text(R"({"model_type": "llama"})").layers.front();
    EXPECT_FALSE(layer.role(static_cast<Role>(value)).has_value());
    const Error odd(static_cast<ErrorCode>(value), "x");
    EXPECT_STREQ(odd.what(), "x");
  }
}

// ---- moe.hpp and backend.hpp

constexpr std::int64_t kExperts = 2, kTopK = 2, kHidden = 8, kWidth = 4, kTokens = 3;

// A small block that is right, to be spoiled in one place.
struct Block {
  MoeProblem problem;
  std::vector<float> w13 = std::vector<float>(kExperts * 2 * kWidth * kHidden, 0.01f);
  std::vector<float> w2 = std::vector<float>(kExperts * kHidden * kWidth, 0.01f);
  std::vector<float> hidden = std::vector<float>(kTokens * kHidden, 0.5f);
  std::vector<float> router = std::vector<float>(kTokens * kTopK, 0.5f);
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(kTokens * kTopK, 1);
  std::vector<float> output = std::vector<float>(kTokens * kHidden, -1.0f);
  std::vector<float> parameters = {1.5f};
  MoeWeights weights;
  MoeInputs inputs;
  ParameterTable values;

  Block() {
    problem.experts = kExperts;
    problem.top_k = kTopK;
    problem.hidden = kHidden;
    problem.intermediate = kWidth;
    problem.format = Format::Fp32;
    problem.io_dtype = DType::Float32;
    weights.w13 = view(w13.data(), DType::Float32, {kExperts, 2 * kWidth, kHidden});
    weights.w2 = view(w2.data(), DType::Float32, {kExperts, kHidden, kWidth});
    inputs.tokens = kTokens;
    inputs.hidden_states = view(hidden.data(), DType::Float32, {kTokens, kHidden});
    inputs.topk_weights = view(router.data(), DType::Float32, {kTokens, kTopK});
    inputs.topk_ids = view(ids.data(), DType::Int32, {kTokens, kTopK});
    inputs.output = output.data();
    values = {parameters.data(), 1, 1};
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  static TensorView view(const void* data, DType dtype, std::vector<std::int64_t> shape) {
    TensorView v{data, dtype, static_cast<int>(shape.size()), {}, {}};
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) {
      v.shape[i] = shape[i];
      v.strides[i] = stride;
    }
    return v;
  }
  static Function function() { return Function::named("swish_glu"); }

  std::unique_ptr<Plan> plan() const { return backend("cpu").plan(problem, function(), weights); }
};

class Aligned {
 public:
  explicit Aligned(std::size_t bytes) : memory_(bytes + 64) {}
  void* data() {
    void* p = memory_.data();
    std::size_t room = memory_.size();
    return std::align(64, 1, p, room);
  }

 private:
  std::vector<std::byte> memory_;
};

TEST(Nonsense, problems_out_of_range_are_refused_by_every_backend) {
  using Spoil = void (*)(MoeProblem&, std::int64_t);
  const Spoil counts[] = {
      [](MoeProblem& p, std::int64_t n) { p.experts = n; },
      [](MoeProblem& p, std::int64_t n) { p.top_k = n; },
      [](MoeProblem& p, std::int64_t n) { p.hidden = n; },
      [](MoeProblem& p, std::int64_t n) { p.intermediate = n; },
  };
  const Spoil kinds[] = {
      [](MoeProblem& p, std::int64_t n) { p.format = static_cast<Format>(n); },
      [](MoeProblem& p, std::int64_t n) { p.io_dtype = static_cast<DType>(n); },
      [](MoeProblem& p, std::int64_t n) { p.pairing = static_cast<Pairing>(n); },
  };
  for (const Backend* each : backends()) {
    const auto refused = [&](Spoil spoil, std::int64_t n) {
      Block block;
      spoil(block.problem, n);
      EXPECT_CODE(InvalidArgument, each->refuse(block.problem, Block::function()));
      EXPECT_THROW(each->plan(block.problem, Block::function(), block.weights), Error);
    };
    for (Spoil spoil : counts) {
      for (std::int64_t n : {std::int64_t{0}, std::int64_t{-1}, kMost, kLeast, kMost / 2})
        refused(spoil, n);
    }
    for (Spoil spoil : kinds) {
      for (std::int64_t n : {-1, 100, INT_MAX}) refused(spoil, n);
    }
    for (float odd : {NAN, INFINITY, -INFINITY}) {
      Block block;
      block.problem.routed_scaling_factor = odd;
      EXPECT_CODE(InvalidArgument, each->refuse(block.problem, Block::function()));
    }
  }
}

TEST(Nonsense, meaningless_problems_are_refused_with_a_reason) {
  Block block;
  const auto reason = [&](const Function& function) {
    const auto refusal = backend("cpu").refuse(block.problem, function);
    EXPECT_TRUE(refusal && !refusal->reason.empty());
    EXPECT_CODE(Unsupported, backend("cpu").plan(block.problem, function, block.weights));
  };
  reason(Function::named("silu"));  // unary in a gated layer
  block.problem.pairing = Pairing::None;
  reason(Function::named("swiglu"));
  block.problem.pairing = Pairing::Separate;
  reason(Function::named("swiglu"));
}

TEST(Nonsense, weights_that_contradict_the_problem_are_refused) {
  using Spoil = void (*)(TensorView&);
  const Spoil spoils[] = {
      [](TensorView& v) { v.data = nullptr; },
      [](TensorView& v) { v.data = static_cast<const std::byte*>(v.data) + 1; },
      [](TensorView& v) { v.dtype = DType::Int64; },
      [](TensorView& v) { v.dtype = static_cast<DType>(77); },
      [](TensorView& v) { v.rank = 0; },
      [](TensorView& v) { v.rank = -1; },
      [](TensorView& v) { v.rank = INT_MAX; },
      [](TensorView& v) { v.shape[0] = kMost; },
      [](TensorView& v) { v.shape[1] = -1; },
      [](TensorView& v) { v.strides[0] = -1; },
      [](TensorView& v) { v.strides[1] = kMost; },
      [](TensorView& v) { v.strides[0] = kLeast; },
  };
  TensorView MoeWeights::*const wanted[] = {&MoeWeights::w13, &MoeWeights::w2};
  for (TensorView MoeWeights::*tensor : wanted) {
    for (Spoil spoil : spoils) {
      Block block;
      spoil(block.weights.*tensor);
      EXPECT_CODE(InvalidArgument, block.plan());
    }
  }
  TensorView MoeWeights::*const unwanted[] = {
      &MoeWeights::w13_bias,  &MoeWeights::w2_bias,          &MoeWeights::w13_scale,
      &MoeWeights::w2_scale,  &MoeWeights::w13_global_scale, &MoeWeights::w2_global_scale,
      &MoeWeights::a13_scale, &MoeWeights::a2_scale};
  for (TensorView MoeWeights::*tensor : unwanted) {
    Block block;
    block.weights.*tensor = block.weights.w13;
    EXPECT_CODE(InvalidArgument, block.plan());
  }
  Block biased;
  biased.problem.bias13 = true;
  EXPECT_CODE(InvalidArgument, biased.plan());
}

TEST(Nonsense, more_weights_than_memory_is_an_error) {
  Block block;
  block.problem.experts = 1 << 16;
  block.problem.hidden = 1 << 20;
  block.problem.intermediate = 1 << 20;
  const float zero = 0;
  const std::int64_t h = block.problem.hidden, i = block.problem.intermediate;
  block.weights.w13 = Block::view(&zero, DType::Float32, {1 << 16, 2 * i, h});
  block.weights.w2 = Block::view(&zero, DType::Float32, {1 << 16, h, i});
  // Every element is the same one.
  block.weights.w13.strides = block.weights.w2.strides = {};
  EXPECT_CODE(DeviceError, block.plan());
}

TEST(Nonsense, inputs_that_contradict_the_problem_are_refused) {
  Block good;
  const std::unique_ptr<Plan> plan = good.plan();
  const std::size_t bytes = plan->workspace_bytes(kTokens);
  Aligned memory(bytes);
  const auto run = [&](const Block& block) {
    plan->run(block.inputs, block.values, memory.data(), bytes, nullptr);
  };
  ASSERT_NO_THROW(run(good));

  using Spoil = void (*)(Block&);
  const Spoil spoils[] = {
      [](Block& b) { b.inputs.tokens = -1; },
      [](Block& b) { b.inputs.tokens = kMost; },
      [](Block& b) { b.inputs.tokens = kTokens + 1; },
      [](Block& b) { b.inputs.hidden_states.data = nullptr; },
      [](Block& b) { b.inputs.hidden_states.dtype = DType::BFloat16; },
      [](Block& b) { b.inputs.hidden_states.strides[1] = 2; },
      [](Block& b) { b.inputs.hidden_states.strides[0] = -kHidden; },
      [](Block& b) { b.inputs.hidden_states.rank = 3; },
      [](Block& b) { b.inputs.topk_weights = {}; },
      [](Block& b) { b.inputs.topk_weights.shape[1] = 99; },
      [](Block& b) { b.inputs.topk_weights.dtype = DType::BFloat16; },
      [](Block& b) { b.inputs.topk_ids = {}; },
      [](Block& b) { b.inputs.topk_ids.dtype = DType::Float32; },
      [](Block& b) { b.inputs.topk_ids.strides[1] = kMost; },
      [](Block& b) { b.inputs.output = nullptr; },
      [](Block& b) { b.inputs.output = reinterpret_cast<char*>(b.output.data()) + 1; },
      [](Block& b) { b.values.columns = 0; },
      [](Block& b) { b.values.columns = kMost; },
      [](Block& b) { b.values.rows = 0; },
      [](Block& b) { b.values.rows = kMost; },
      [](Block& b) { b.values.data = nullptr; },
  };
  for (Spoil spoil : spoils) {
    Block block;
    spoil(block);
    EXPECT_CODE(InvalidArgument, run(block));
  }
  EXPECT_CODE(InvalidArgument, plan->workspace_bytes(-1));
  EXPECT_CODE(InvalidArgument, plan->workspace_bytes(kMost));
  void* base = memory.data();
  EXPECT_CODE(InvalidArgument, plan->run(good.inputs, good.values, nullptr, bytes, nullptr));
  EXPECT_CODE(InvalidArgument, plan->run(good.inputs, good.values, base, bytes - 1, nullptr));
  EXPECT_CODE(InvalidArgument, plan->run(good.inputs, good.values, base, 0, nullptr));
  EXPECT_CODE(InvalidArgument, plan->run(good.inputs, good.values, base, bytes, base));
  EXPECT_CODE(InvalidArgument, plan->run(good.inputs, good.values,
                                         static_cast<std::byte*>(base) + 1, bytes, nullptr));
  EXPECT_GT(plan->resident_bytes(), 0u);
  EXPECT_FALSE(plan->describe().empty());
}

TEST(Nonsense, odd_numbers_in_tensors_are_only_numbers) {
  Block block;
  const std::unique_ptr<Plan> plan = block.plan();
  const std::size_t bytes = plan->workspace_bytes(kTokens);
  Aligned memory(bytes);
  block.ids = {INT_MIN, INT_MAX, -1, 2, 0, 1};
  block.router = {NAN, INFINITY, -INFINITY, NAN, 0.5f, 0.5f};
  block.parameters = {NAN};
  block.hidden.assign(block.hidden.size(), INFINITY);
  plan->run(block.inputs, block.values, memory.data(), bytes, nullptr);
  // Ids of other ranks contribute nothing, whatever their weight; NaN parameters give NaN.
  for (std::int64_t i = 0; i < 2 * kHidden; ++i) EXPECT_EQ(block.output[i], 0.0f);
  for (std::int64_t i = 2 * kHidden; i < 3 * kHidden; ++i) EXPECT_TRUE(std::isnan(block.output[i]));
}

TEST(Nonsense, act_and_mul_refuses_what_it_cannot_do) {
  const Function swiglu = Function::named("swiglu");
  const Function swish = Function::named("swish");
  std::vector<float> x(64, 1.0f), out(64, 0.0f);
  const float beta = 1;
  const ParameterTable none{nullptr, 1, 0};
  const auto call = [&](const Function& f, ParameterTable table, Pairing pairing, DType dtype,
                        std::int64_t rows, std::int64_t width, const void* in, std::int64_t xs,
                        void* to, std::int64_t ys) {
    return code_of([&] { act_and_mul(f, table, pairing, dtype, rows, width, in, xs, to, ys); });
  };
  const auto bad = ErrorCode::InvalidArgument;
  const auto f32 = DType::Float32;
  for (int value : {-1, 99, INT_MAX}) {
    EXPECT_EQ(bad, call(swiglu, none, static_cast<Pairing>(value), f32, 2, 8, x.data(), 16,
                        out.data(), 8));
    EXPECT_EQ(bad, call(swiglu, none, Pairing::Concat, static_cast<DType>(value), 2, 8, x.data(),
                        16, out.data(), 8));
  }
  for (std::int64_t odd : {std::int64_t{-1}, kLeast, kMost, kMost / 2 + 1, std::int64_t{1} << 62}) {
    EXPECT_EQ(bad, call(swiglu, none, Pairing::Concat, f32, odd, 8, x.data(), 16, out.data(), 8));
    EXPECT_EQ(bad, call(swiglu, none, Pairing::Concat, f32, 2, odd, x.data(), 16, out.data(), 8));
    EXPECT_EQ(bad, call(swiglu, none, Pairing::Concat, f32, 2, 8, x.data(), odd, out.data(), 8));
    EXPECT_EQ(bad, call(swiglu, none, Pairing::Concat, f32, 2, 8, x.data(), 16, out.data(), odd));
  }
  const auto refused = [&](const Function& f, ParameterTable table, Pairing pairing, const void* in,
                           void* to) {
    EXPECT_EQ(bad, call(f, table, pairing, f32, 2, 8, in, 16, to, 8));
  };
  refused(swiglu, none, Pairing::Concat, nullptr, out.data());
  refused(swiglu, none, Pairing::Concat, x.data(), nullptr);
  refused(swiglu, none, Pairing::None, x.data(), out.data());
  refused(swiglu, none, Pairing::Separate, x.data(), out.data());
  refused(swiglu, none, Pairing::Concat, x.data(), x.data());
  refused(swiglu, none, Pairing::Concat, reinterpret_cast<char*>(x.data()) + 1, out.data());
  refused(swiglu, {&beta, 1, 1}, Pairing::Concat, x.data(), out.data());
  refused(swish, none, Pairing::Concat, x.data(), out.data());
  refused(swish, {nullptr, 1, 1}, Pairing::Concat, x.data(), out.data());
  refused(swish, {&beta, 2, 1}, Pairing::Concat, x.data(), out.data());
  refused(swish, {&beta, kLeast, kMost}, Pairing::Concat, x.data(), out.data());
  EXPECT_EQ(out, std::vector<float>(64, 0.0f));
  // Nothing to do is no error, wherever the pointers go.
  act_and_mul(swiglu, none, Pairing::Concat, f32, 0, 8, nullptr, 0, nullptr, 0);
  act_and_mul(swiglu, none, Pairing::Concat, f32, 2, 0, nullptr, 0, nullptr, 0);
}

// ---- from many threads at once

TEST(Nonsense, concurrent_use_of_shared_values_is_safe) {
  Block shared;
  const std::unique_ptr<Plan> plan = shared.plan();
  const Function swish = Function::named("swish");
  const Activation activation(swish, {{"beta", 2.0}});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string mine = "concurrent_" + std::to_string(t);
      for (int i = 0; i < 20; ++i) {
        const std::string name = mine + "_" + std::to_string(i);
        ActivationRegistry::instance().register_function(name, "x*" + std::to_string(i + 2));
        EXPECT_EQ(Function::named(name).reference(1.0), i + 2);
        EXPECT_THROW(ActivationRegistry::instance().register_function("silu", "x"), Error);
        EXPECT_FALSE(ActivationRegistry::instance().list().empty());
        EXPECT_EQ(activation.gated().values(0, {0, 1}).data, std::vector<double>{2.0});
        EXPECT_EQ(Function(swish).fingerprint(), swish.fingerprint());
        EXPECT_FALSE(resolve_config_text(R"({"model_type": "mixtral"})").layers.empty());
      }
      Block own;
      const std::size_t bytes = plan->workspace_bytes(kTokens);
      Aligned memory(bytes);
      for (int i = 0; i < 20; ++i) plan->run(own.inputs, own.values, memory.data(), bytes, nullptr);
      for (float y : own.output) EXPECT_TRUE(std::isfinite(y));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Nonsense, the_version_is_a_text) {
  EXPECT_STREQ(version(), FLEXACT_VERSION_STRING);
}

}  // namespace
}  // namespace flexact
