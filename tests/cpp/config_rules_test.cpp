// The semantics of configs, one sentence a test: what a name means, what is read, warned about and
// refused, and what the defaults are. docs/configuration.md states the same rules for people.
#include <cmath>

#include "config_support.hpp"

namespace flexact::config_test {
namespace {

// ---- the shape of the answer ------------------------------------------------------------------

TEST(Shape, a_unary_function_in_a_gated_layer_is_multiplied_by_up) {
  const auto model = resolve(config("mixtral", R"("hidden_act": "mish")"));
  const double g = 1.25;
  EXPECT_NEAR(value(model, 0, Role::Routed, g, 3.0), g * std::tanh(std::log1p(std::exp(g))) * 3.0,
              kTolerance);
  EXPECT_TRUE(role(model, 0, Role::Routed).gated);
  EXPECT_EQ(role(model, 0, Role::Routed).name, "mish");
}

TEST(Shape, a_unary_function_stays_unary_where_there_is_no_gate) {
  const auto model = resolve(config("falcon", R"("activation": "relu2")"));
  const auto& dense = role(model, 0, Role::Dense);
  EXPECT_FALSE(dense.gated);
  EXPECT_EQ(dense.pairing, Pairing::None);
  EXPECT_EQ(value(model, 0, Role::Dense, 3.0, 0), 9.0);
}

TEST(Shape, a_natively_gated_function_needs_a_gate) {
  EXPECT_EQ(role(resolve(config("llama", R"("hidden_act": "swiglu")")), 0, Role::Dense).name,
            "swiglu");
  expect_refused(config("falcon", R"("activation": "swiglu")"), "/activation", "natively gated");
  expect_refused(config("falcon", R"("activation": "expr", "activation_params": {"expr": "g*u"})"),
                 "/activation", "natively gated");
}

TEST(Shape, expressions_read_x_alone_or_both_g_and_u) {
  const auto with = [](std::string_view expr) {
    return config("llama", "\"hidden_act\": \"expr\", \"activation_params\": {\"expr\": \"" +
                               std::string(expr) + "\"}");
  };
  EXPECT_NEAR(value(resolve(with("sigmoid(x)")), 0, Role::Dense, 0.5, 2.0), sigmoid(0.5) * 2,
              kTolerance);
  EXPECT_NEAR(value(resolve(with("g*u+1")), 0, Role::Dense, 0.5, 2.0), 2.0, kTolerance);
  for (std::string_view bad : {"u", "g", "x*u", "x*g", "sigmoid(g)"})
    expect_refused(with(bad), "/activation_params/expr");
}

TEST(Shape, both_stacks_of_an_encoder_decoder_must_agree) {
  EXPECT_EQ(resolve(config("t5", R"("num_layers": 2, "num_decoder_layers": 5)")).layers.size(), 5u);
  expect_refused(
      config(
          "t5gemma",
          R"("encoder": {"hidden_activation": "silu"}, "decoder": {"hidden_activation": "gelu"})"),
      "/decoder", "differ");
  expect_refused(
      config(
          "nllb-moe",
          R"("encoder_layers": 4, "decoder_layers": 4, "encoder_sparse_step": 4, "decoder_sparse_step": 2)"),
      "", "differ");
  const auto model = resolve(config(
      "t5gemma",
      R"("encoder": {"hidden_activation": "silu"}, "decoder": {"hidden_activation": "silu"})"));
  EXPECT_EQ(role(model, 0, Role::Dense).name, "silu");
}

TEST(Shape, explain_json_has_the_documented_form) {
  const auto model = resolve(config(
      "mixtral",
      R"("num_hidden_layers": 1, "hidden_act": "swish", "activation_params": {"beta": 1.5})"));
  EXPECT_EQ(
      model.to_json(),
      R"({"model_type":"mixtral","layers":[{"index":0,"routed":{"name":"swish","formula":"g*sigmoid(beta*g)*u","params":{"beta":1.5},)"
      R"("gated":true,"pairing":"concat","transposed":false,"from":"/hidden_act; /activation_params/beta"},"shared":null,"dense":null}],"warnings":[]})");
  EXPECT_NE(model.to_json(2).find("\n  \"model_type\""), std::string::npos);
}

TEST(Shape, words_of_pairings_and_roles_round_trip) {
  for (Pairing pairing : {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved,
                          Pairing::Separate, Pairing::None}) {
    EXPECT_EQ(parse_pairing(to_string(pairing)), pairing);
  }
  for (Role which : {Role::Routed, Role::Shared, Role::Dense})
    EXPECT_EQ(parse_role(to_string(which)), which);
  EXPECT_THROW(parse_pairing("Concat"), Error);
  EXPECT_THROW(parse_role(""), Error);
}

// ---- what a name means -------------------------------------------------------------------------

TEST(Names, are_case_sensitive_with_a_suggestion) {
  for (const auto& [wrong, right] : {std::pair{"SiLU", "silu"},
                                     {"GELU", "gelu"},
                                     {"Gelu_New", "gelu_new"},
                                     {"ReLU2", "relu2"}}) {
    expect_refused(config("llama", "\"hidden_act\": \"" + std::string(wrong) + '"'), "/hidden_act",
                   "'" + std::string(right) + "'");
  }
  expect_refused(config("llama", R"("hidden_act": "silu\u0000")"), "/hidden_act");
  expect_refused(config("llama", R"("hidden_act": " silu")"), "/hidden_act");
  expect_refused(config("llama", R"("hidden_act": "swoosh")"), "/hidden_act", "unknown activation");
}

TEST(Names, all_24_of_transformers_are_known) {
  for (std::string_view name : {"gelu",
                                "gelu_10",
                                "gelu_fast",
                                "gelu_new",
                                "gelu_python",
                                "gelu_pytorch_tanh",
                                "gelu_python_tanh",
                                "gelu_accurate",
                                "hardswish",
                                "laplace",
                                "leaky_relu",
                                "linear",
                                "mish",
                                "quick_gelu",
                                "relu",
                                "relu2",
                                "relu6",
                                "sigmoid",
                                "silu",
                                "sqrtsoftplus",
                                "swish",
                                "tanh"}) {
    expect_quiet(resolve(config("llama", "\"hidden_act\": \"" + std::string(name) + '"')));
  }
  expect_refused(config("llama", R"("hidden_act": "prelu")"), "/hidden_act", "needs a value for a");
  EXPECT_TRUE(
      warns(resolve(config("llama", R"("hidden_act": "xielu")")), "tensor of the checkpoint"));
}

TEST(Names, gelu_is_the_familys) {
  EXPECT_NEAR(value(resolve(config("llama", R"("hidden_act": "gelu")")), 0, Role::Dense, 1.5, 1),
              gelu(1.5), kTolerance);
  const auto gemma = resolve(config("gemma", R"("hidden_act": "gelu")"));
  EXPECT_NEAR(value(gemma, 0, Role::Dense, 1.5, 1), gelu_tanh(1.5), kTolerance);
  EXPECT_TRUE(warns(gemma, "means gelu_tanh"));
  const auto openai = resolve(config("openai-gpt", R"("afn": "gelu")"));
  EXPECT_NEAR(value(openai, 0, Role::Dense, 1.5, 0), gelu_tanh(1.5), kTolerance);
  expect_quiet(openai);
  const auto t5 = resolve(config("t5", R"("feed_forward_proj": "gated-gelu")"));
  EXPECT_NEAR(value(t5, 0, Role::Dense, 1.5, 2), gelu_tanh(1.5) * 2, kTolerance);
  EXPECT_NEAR(
      value(resolve(config("t5", R"("feed_forward_proj": "gelu")")), 0, Role::Dense, 1.5, 0),
      gelu(1.5), kTolerance);
}

TEST(Names, inside_activation_params_have_their_catalogue_meaning) {
  const auto model = resolve(config("gemma", R"("activation_params": {"name": "gelu"})"));
  EXPECT_NEAR(value(model, 0, Role::Dense, 1.5, 1), gelu(1.5), kTolerance);
  const auto vllm =
      resolve(config("llama", R"("activation_params": {"name": "relu2"})"), {}, "vllm");
  EXPECT_NEAR(value(vllm, 0, Role::Dense, 3.0, 2.0), 18.0, kTolerance);
}

TEST(Names, other_stacks_names_need_from_where_they_could_be_confused) {
  // ggml's GELU is the tanh form.
  expect_refused(config("llama", R"("hidden_act": "GELU")"), "/hidden_act", "--from ggml");
  const auto ggml = resolve(config("llama", R"("hidden_act": "GELU")"), {}, "ggml");
  EXPECT_NEAR(value(ggml, 0, Role::Dense, 1.5, 1), gelu_tanh(1.5), kTolerance);
  // vLLM's relu2 is gated by itself; transformers' is not.
  expect_refused(config("falcon", R"("activation": "relu2")"), "/activation", "natively gated", {},
                 "vllm");
  expect_refused(config("llama", R"("hidden_act": "mish")"), "/hidden_act", "no activation of vllm",
                 {}, "vllm");
  EXPECT_EQ(role(resolve(config("llama", R"("hidden_act": "silu_and_mul")")), 0, Role::Dense).name,
            "swiglu");
}

TEST(Names, known_stacks_answer_and_unknown_ones_are_refused) {
  for (const std::string& stack : known_stacks())
    EXPECT_NO_THROW(resolve(config("gpt_oss"), {}, stack));
  try {
    resolve(config("llama"), {}, "caffe");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    EXPECT_NE(std::string(error.what()).find("vllm"), std::string::npos);
  }
  EXPECT_EQ(function_from_stack("gelu", "").name(), "gelu");
  EXPECT_EQ(function_from_stack("gelu_pytorch_tanh", "vllm").name(), "geglu_tanh");
  EXPECT_EQ(function_from_stack("gelu_new", "transformers").name(), "gelu_tanh");
  EXPECT_THROW(function_from_stack("gelu_new", "ggml"), Error);
}

TEST(Names, null_and_empty_are_errors_except_where_published) {
  expect_refused(config("llama", R"("hidden_act": null)"), "/hidden_act", "null");
  expect_refused(config("llama", R"("hidden_act": "")"), "/hidden_act", "empty");
  expect_refused(config("llama", R"("activation_params": {"name": ""})"), "/activation_params/name",
                 "empty");
  expect_refused(config("llama", R"("activation_params": {"name": null})"),
                 "/activation_params/name");
  expect_quiet(resolve(config("gemma", R"("hidden_act": null)")));
  expect_quiet(
      resolve(config("gemma", R"("hidden_act": "gelu_pytorch_tanh", "hidden_activation": null)")));
}

TEST(Names, of_another_type_are_errors) {
  for (std::string_view bad : {"7", "1.5", "true", "[\"silu\"]", "{\"name\": \"silu\"}"}) {
    expect_refused(config("llama", "\"hidden_act\": " + std::string(bad)), "/hidden_act",
                   "expected the name");
  }
  expect_refused(config("dbrx", R"("ffn_config": {"ffn_act_fn": "silu"})"),
                 "/ffn_config/ffn_act_fn", "expected an object");
}

// ---- the key that the family reads --------------------------------------------------------------

TEST(Spelling, activation_params_goes_with_the_key_that_the_family_reads) {
  const auto beta = [](std::string_view type, std::string_view rest) {
    return value(resolve(config(type, rest)), 0, Role::Dense, 0.75, 2.0);
  };
  EXPECT_NEAR(beta("llama", R"("hidden_act": "swish", "activation_params": {"beta": 1.5})"),
              swish(0.75, 1.5) * 2, kTolerance);
  EXPECT_NEAR(beta("gemma2", R"("hidden_activation": "swish", "activation_params": {"beta": 1.5})"),
              swish(0.75, 1.5) * 2, kTolerance);
  EXPECT_NEAR(
      beta("nllb-moe", R"("activation_function": "swish", "activation_params": {"beta": 1.5})"),
      swish(0.75, 1.5), kTolerance);
  EXPECT_NEAR(beta("falcon", R"("activation": "swish", "activation_params": {"beta": 1.5})"),
              swish(0.75, 1.5), kTolerance);
  EXPECT_NEAR(beta("openai-gpt", R"("afn": "swish", "activation_params": {"beta": 1.5})"),
              swish(0.75, 1.5), kTolerance);
  EXPECT_NEAR(
      beta("t5", R"("feed_forward_proj": "gated-swish", "activation_params": {"beta": 1.5})"),
      swish(0.75, 1.5) * 2, kTolerance);
  const auto dbrx = resolve(config(
      "dbrx",
      R"("ffn_config": {"ffn_act_fn": {"name": "swish"}}, "activation_params": {"beta": 1.5})"));
  EXPECT_NEAR(value(dbrx, 0, Role::Routed, 0.75, 2.0), swish(0.75, 1.5) * 2, kTolerance);
}

TEST(Spelling, of_two_the_one_that_the_family_reads_wins_with_a_warning) {
  const auto model =
      resolve(config("gemma2", R"("hidden_activation": "silu", "hidden_act": "relu")"));
  EXPECT_EQ(role(model, 0, Role::Dense).name, "silu");
  EXPECT_TRUE(warns(model, "/hidden_act: \"relu\" is not read"));
  expect_quiet(resolve(config("gemma2", R"("hidden_activation": "silu", "hidden_act": "silu")")));
  // The same function by another name is the same.
  expect_quiet(resolve(
      config("gemma2", R"("hidden_activation": "gelu_new", "hidden_act": "gelu_pytorch_tanh")")));
}

TEST(Spelling, two_different_ones_beside_activation_params_are_an_error) {
  expect_refused(
      config(
          "gemma2",
          R"("hidden_activation": "swish", "hidden_act": "relu", "activation_params": {"beta": 1.5})"),
      "/hidden_act");
  expect_refused(config("gemma2", R"("hidden_act": "swish", "activation_params": {"beta": 1.5})"),
                 "/hidden_act");
  const auto model = resolve(config(
      "gemma2",
      R"("hidden_activation": "swish", "hidden_act": "swish", "activation_params": {"beta": 1.5})"));
  expect_quiet(model);
}

TEST(Spelling, empty_activation_params_are_absent) {
  for (std::string_view absent : {"{}", "null"}) {
    expect_quiet(resolve(
        config("gpt_oss", "\"swiglu_limit\": 7.0, \"activation_params\": " + std::string(absent))));
  }
  for (std::string_view bad : {"[]", "1.5", "\"swish\"", "true"}) {
    expect_refused(config("llama", "\"activation_params\": " + std::string(bad)),
                   "/activation_params", "expected an object");
  }
}

// ---- formulas fixed by the class
// ------------------------------------------------------------------

TEST(Fixed, parameters_without_a_name_are_an_error) {
  for (std::string_view type : {"gpt_oss", "minimax_m3_vl_text", "inkling2_text",
                                "inkling2_loop_text", "lfm2_moe", "xlstm", "bloom"}) {
    expect_refused(config(type, R"("activation_params": {"beta": 1.5})"), "/activation_params",
                   "fixed by its class");
  }
}

TEST(Fixed, a_name_replaces_the_formula_in_any_family_and_role) {
  struct Case {
    const char* type;
    const char* rest;
    Role role;
    std::int64_t layer;
  };
  const std::string params = R"("activation_params": {"name": "swish", "beta": 1.5})";
  for (const Case& c :
       {Case{"gpt_oss", R"("swiglu_limit": 7.0, )", Role::Routed, 0},
        Case{"minimax_m3_vl_text", "", Role::Shared, 0}, Case{"inkling2_text", "", Role::Routed, 0},
        Case{"lfm2_moe", "", Role::Routed, 2}, Case{"lfm2_moe", "", Role::Dense, 0},
        Case{"hy_v4", "", Role::Routed, 1}, Case{"step3p5", "", Role::Shared, 3},
        Case{"llama", R"("hidden_act": "silu", )", Role::Dense, 0},
        Case{"aria_text", "", Role::Shared, 0}}) {
    const auto model = resolve(config(c.type, c.rest + params));
    EXPECT_NEAR(value(model, c.layer, c.role, 0.75, 2.0), swish(0.75, 1.5) * 2, kTolerance)
        << c.type;
    EXPECT_EQ(role(model, c.layer, c.role).name, "swish");
  }
  const auto unary = resolve(config("bloom", params));
  EXPECT_NEAR(value(unary, 0, Role::Dense, 0.75, 0), swish(0.75, 1.5), kTolerance);
}

TEST(Fixed, a_replaced_formulas_keys_are_warned_about) {
  const auto model = resolve(config(
      "gpt_oss", R"("swiglu_limit": 7.0, "activation_params": {"name": "swish", "beta": 1.5})"));
  EXPECT_TRUE(warns(model, "/swiglu_limit: is not used"));
}

TEST(Fixed, an_expression_replaces_it_as_well) {
  const auto model = resolve(config(
      "gpt_oss",
      R"("activation_params": {"name": "expr", "expr": "g*sigmoid(beta*g)*u", "beta": 1.1})"));
  EXPECT_NEAR(value(model, 0, Role::Routed, 0.75, 2.0), swish(0.75, 1.1) * 2, kTolerance);
  expect_refused(config("gpt_oss", R"("activation_params": {"name": "swish", "expr": "g*u"})"),
                 "/activation_params/expr");
  expect_refused(config("llama", R"("hidden_act": "silu", "activation_params": {"expr": "g*u"})"),
                 "/activation_params/expr");
  expect_refused(config("llama", R"("hidden_act": "expr")"), "/hidden_act", "needs an expression");
  expect_refused(config("llama", R"("hidden_act": "expr", "activation_params": {"expr": 5})"),
                 "/activation_params/expr");
  expect_refused(config("llama", R"("hidden_act": "expr", "activation_params": {"expr": "g*("})"),
                 "/activation_params/expr", "column");
}

TEST(Fixed, one_role_may_be_fixed_while_another_reads) {
  const auto model = resolve(config("aria_text", R"("hidden_act": "gelu")"));
  EXPECT_EQ(role(model, 0, Role::Routed).name, "silu");
  EXPECT_EQ(role(model, 0, Role::Shared).name, "gelu");
  EXPECT_TRUE(warns(model, "not read by the routed layers"));
  expect_refused(
      config("aria_text", R"("hidden_act": "swish", "activation_params": {"beta": 1.5})"),
      "/activation_params");
  const auto split = resolve(config(
      "aria_text", R"("hidden_act": "swish", "activation_params": {"shared": {"beta": 1.5}})"));
  EXPECT_NEAR(value(split, 0, Role::Shared, 0.75, 2.0), swish(0.75, 1.5) * 2, kTolerance);
  EXPECT_NEAR(value(split, 0, Role::Routed, 0.75, 2.0), silu(0.75) * 2, kTolerance);
}

// ---- limits
// ----------------------------------------------------------------------------------------

double clamp_before(double (*f)(double), double g, double u, double limit) {
  return f(std::fmin(g, limit)) * clamp(u, -limit, limit);
}

TEST(Limits, deepseek_v4_clamps_whatever_the_name_says) {
  for (Role which : {Role::Routed, Role::Shared}) {
    const auto plain = resolve(config("deepseek_v4", R"("swiglu_limit": 10.0)"));
    expect_quiet(plain);
    EXPECT_EQ(role(plain, 0, which).name, "swiglu_clamp");
    EXPECT_NEAR(value(plain, 0, which, 12.0, -20.0), clamp_before(silu, 12, -20, 10),
                kTolerance * 100);

    const auto with_gelu =
        resolve(config("deepseek_v4", R"("hidden_act": "gelu", "swiglu_limit": 10.0)"));
    EXPECT_TRUE(warns(with_gelu, "around any activation"));
    EXPECT_EQ(role(with_gelu, 0, which).name, "geglu_clamp");
    EXPECT_NEAR(value(with_gelu, 0, which, 12.0, -20.0), clamp_before(gelu, 12, -20, 10),
                kTolerance * 100);

    const auto tanh_form =
        resolve(config("deepseek_v4", R"("hidden_act": "gelu_new", "swiglu_limit": 10.0)"));
    EXPECT_TRUE(warns(tanh_form, "around any activation"));
    EXPECT_NEAR(value(tanh_form, 0, which, 12.0, -20.0), clamp_before(gelu_tanh, 12, -20, 10),
                kTolerance * 100);

    const auto with_beta = resolve(config(
        "deepseek_v4",
        R"("hidden_act": "swish", "swiglu_limit": 10.0, "activation_params": {"beta": 1.5})"));
    EXPECT_TRUE(warns(with_beta, "around any activation"));
    EXPECT_NEAR(value(with_beta, 0, which, 12.0, -20.0), swish(10, 1.5) * -10, kTolerance * 100);

    const auto expression = resolve(config(
        "deepseek_v4",
        R"("hidden_act": "expr", "swiglu_limit": 10.0, "activation_params": {"expr": "a = x*x; a*0.5"})"));
    EXPECT_TRUE(warns(expression, "around any activation"));
    EXPECT_NEAR(value(expression, 0, which, 12.0, -20.0), 50.0 * -10, kTolerance * 100);
  }
  // transformers' swish is its silu.
  expect_quiet(resolve(config("deepseek_v4", R"("hidden_act": "swish", "swiglu_limit": 10.0)")));
}

TEST(Limits, beside_another_activation_are_refused_with_an_expression) {
  expect_refused(config("hy_v4", R"("hidden_act": "gelu", "swiglu_limit": 10.0)"), "/swiglu_limit",
                 "gelu(min(g,10.0))");
  expect_refused(config("glm5_next_text", R"("hidden_act": "gelu", "swiglu_limit": 10.0)"),
                 "/swiglu_limit", "\"expr\"");
  expect_refused(
      config(
          "bailing_hybrid",
          R"("num_hidden_layers": 3, "hidden_act": "gelu", "expert_swiglu_limit_list": [0.0, 0.0, 4.0])"),
      "/expert_swiglu_limit_list/2", "min(gelu(g),4.0)*clamp(u,-4.0,4.0)");
  expect_refused(config("deepseek_v4", R"("hidden_act": "swiglu_oai", "swiglu_limit": 10.0)"),
                 "/swiglu_limit", "swiglu_oai");
  expect_refused(
      config("hy_v4",
             R"("hidden_act": "swish", "swiglu_limit": 10.0, "activation_params": {"beta": 1.5})"),
      "/activation_params", "expr");
}

TEST(Limits, the_suggested_expression_is_accepted_and_right) {
  const auto model = resolve(config(
      "bailing_hybrid",
      R"json("num_hidden_layers": 3, "hidden_act": "expr", "expert_swiglu_limit_list": [0.0, 0.0, 4.0],
                                       "activation_params": {"expr": "min(gelu(g),4.0)*clamp(u,-4.0,4.0)"})json"));
  EXPECT_NEAR(value(model, 2, Role::Routed, 5.0, -6.0), std::fmin(gelu(5), 4) * -4,
              kTolerance * 100);
  EXPECT_TRUE(warns(model, "limit is not applied"));
}

TEST(Limits, after_the_activation_by_layer_and_role) {
  const auto model = resolve(config(
      "step3p5",
      R"("num_hidden_layers": 5, "swiglu_limits": [0.0, 0, null, 7.0, 2], "swiglu_limits_shared": [0, 0, 0, 16, 0])"));
  expect_quiet(model);
  EXPECT_EQ(role(model, 3, Role::Routed).name, "swiglu_step");
  EXPECT_NEAR(value(model, 3, Role::Routed, 12.0, -20.0), 7.0 * -7.0, kTolerance * 100);
  EXPECT_NEAR(value(model, 4, Role::Routed, 12.0, -20.0), 2.0 * -2.0, kTolerance * 100);
  EXPECT_NEAR(value(model, 3, Role::Shared, 12.0, -20.0), silu(12) * -16.0, kTolerance * 1000);
  EXPECT_EQ(role(model, 4, Role::Shared).name, "silu");
  EXPECT_EQ(role(model, 0, Role::Dense).name, "silu");
  EXPECT_EQ(role(model, 3, Role::Routed).from, "fixed by step3p5; /swiglu_limits/3");
}

TEST(Limits, read_by_the_reference_alone_apply_with_a_warning) {
  const auto model = resolve(config(
      "bailing_hybrid", R"("num_hidden_layers": 3, "expert_swiglu_limit_list": [0, 0, 4.0])"));
  EXPECT_TRUE(warns(model, "transformers 5.23 ignores the list"));
  EXPECT_EQ(role(model, 2, Role::Routed).name, "swiglu_step");
  EXPECT_EQ(role(model, 2, Role::Shared).name, "silu");
}

TEST(Limits, zero_and_null_mean_off_only_where_the_reference_says_so) {
  for (std::string_view type : {"deepseek_v4", "hy_v4", "hy_v4_vl_text", "glm5_next_text"}) {
    for (std::string_view off : {"0.0", "null", "-0.0"}) {
      const auto model = resolve(config(type, "\"swiglu_limit\": " + std::string(off)));
      EXPECT_TRUE(warns(model, "/swiglu_limit")) << type;
      EXPECT_EQ(role(model, 5, Role::Routed).name, "silu") << type;
    }
  }
  for (std::string_view off : {"0.0", "null"}) {
    expect_refused(config("gpt_oss", "\"swiglu_limit\": " + std::string(off)), "/swiglu_limit");
    expect_refused(config("minimax_m3_vl_text", "\"swiglu_limit\": " + std::string(off)),
                   "/swiglu_limit");
    for (std::string_view type : {"inkling2_text", "inkling2_loop_text"}) {
      expect_refused(config(type, "\"mlp_gate_softcap\": " + std::string(off)),
                     "/mlp_gate_softcap");
    }
    expect_refused(config("llama", "\"swiglu_limit\": " + std::string(off)), "/swiglu_limit");
  }
  expect_quiet(
      resolve(config("step3p5", R"("num_hidden_layers": 2, "swiglu_limits": [0.0, null])")));
  EXPECT_TRUE(warns(resolve(config("step3p5", R"("swiglu_limits": null)")), "/swiglu_limits"));
}

TEST(Limits, of_the_wrong_type_or_sign_are_errors) {
  for (std::string_view bad : {"-10.0", "true", "\"10\"", "[10.0]", "{}"}) {
    expect_refused(config("deepseek_v4", "\"swiglu_limit\": " + std::string(bad)), "/swiglu_limit");
    expect_refused(config("gpt_oss", "\"swiglu_limit\": " + std::string(bad)), "/swiglu_limit");
  }
  expect_refused(config("step3p5", R"("num_hidden_layers": 2, "swiglu_limits": 7.0)"),
                 "/swiglu_limits", "expected a list");
  expect_refused(config("step3p5", R"("num_hidden_layers": 2, "swiglu_limits": [0.0, -7.0])"),
                 "/swiglu_limits/1");
  expect_refused(config("step3p5", R"("num_hidden_layers": 2, "swiglu_limits": [0.0, true])"),
                 "/swiglu_limits/1");
  expect_refused(config("step3p5", R"("num_hidden_layers": 2, "swiglu_limits": [7.0])"),
                 "/swiglu_limits", "1 entries for 2 layers");
}

TEST(Limits, warnings_tell_what_is_odd) {
  EXPECT_TRUE(warns(resolve(config("gpt_oss", R"("swiglu_limit": 7)")), "integer"));
  EXPECT_TRUE(warns(resolve(config("gpt_oss", R"("swiglu_limit": 65505.0)")), "no effect"));
  expect_quiet(resolve(config("gpt_oss", R"("swiglu_limit": 65504.0)")));
  EXPECT_TRUE(warns(resolve(config("step3p5", R"("num_hidden_layers": 1, "swiglu_limits": [1e6])")),
                    "no effect") ||
              resolve(config("step3p5", R"("num_hidden_layers": 1, "swiglu_limits": [1e6])"))
                  .layers[0]
                  .dense.has_value());
  EXPECT_TRUE(
      warns(resolve(config(
                "llama", R"("hidden_act": "swiglu_clamp", "activation_params": {"limit": 1e30})")),
            "no effect"));
  EXPECT_TRUE(warns(resolve(config("gpt_oss")), "default of gpt_oss, 7.0"));
  EXPECT_TRUE(warns(resolve(config("deepseek_v4")), "default of deepseek_v4, 10.0"));
}

TEST(Limits, a_list_longer_than_the_model_is_an_mtp_tail_or_warned_about) {
  const std::string list = R"("num_hidden_layers": 4, "swiglu_limits": [0, 0, 0, 0, 7.0])";
  EXPECT_TRUE(warns(resolve(config("step3p5", list)), "5 entries for 4 layers"));
  expect_quiet(resolve(config("step3p5", list + R"(, "num_nextn_predict_layers": 1)")));
  EXPECT_TRUE(warns(resolve(config("step3p5", list + R"(, "num_nextn_predict_layers": 2)")),
                    "5 entries for 4 layers"));
}

TEST(Limits, keyed_parameters_reach_the_function) {
  const auto oss = resolve(config("gpt_oss", R"("swiglu_limit": 5.0, "swiglu_alpha": 1.25)"));
  EXPECT_NEAR(value(oss, 0, Role::Routed, 9.0, -3.0), 5 * sigmoid(1.25 * 5) * (-3 + 1),
              kTolerance * 10);
  const auto inkling =
      resolve(config("inkling2_text", R"("mlp_gate_softcap": 3.0, "mlp_up_softcap": 20.0)"));
  EXPECT_NEAR(value(inkling, 0, Role::Routed, 2.0, -3.0),
              3 * std::tanh(2.0 / 3) * sigmoid(2) * 20 * std::tanh(-3.0 / 20), kTolerance * 10);
  const auto loop = resolve(
      config("inkling2_loop", R"("text_config": {"mlp_gate_softcap": 3.0, "mlp_up_softcap": 20})"));
  EXPECT_EQ(loop.layers.size(), 24u);
  EXPECT_NEAR(value(loop, 0, Role::Routed, 2.0, -3.0), value(inkling, 0, Role::Routed, 2.0, -3.0),
              kTolerance);
  const auto hy = resolve(config("hy_v4_vl", R"("text_config": {"swiglu_limit": 2.0})"));
  EXPECT_EQ(hy.layers.size(), 78u);
  EXPECT_NEAR(value(hy, 1, Role::Routed, 9.0, -3.0), 2 * sigmoid(2) * -2, kTolerance);
  EXPECT_NEAR(value(hy, 1, Role::Shared, 9.0, -3.0), 9 * sigmoid(9) * -3, kTolerance * 10);
  const auto kimi =
      resolve(config("kimi_linear", R"("hidden_act": "situ", "activation_situ_beta": 4.0)"));
  EXPECT_NEAR(value(kimi, 1, Role::Routed, 2.0, -3.0), 4 * std::tanh(0.5) * sigmoid(2) * -3,
              kTolerance * 10);
  for (std::string_view off : {"null", "0.0"}) {
    const auto same = resolve(config(
        "kimi_linear",
        R"("hidden_act": "situ", "activation_situ_beta": 4.0, "activation_situ_linear_beta": )" +
            std::string(off)));
    EXPECT_EQ(role(same, 1, Role::Routed).name, "situ_nolinear");
  }
  expect_refused(config("kimi_linear", R"("hidden_act": "situ")"), "/activation_situ_beta");
  expect_refused(config("kimi_linear", R"("hidden_act": "situ", "activation_situ_beta": 0.0)"),
                 "/activation_situ_beta");
  EXPECT_TRUE(
      warns(resolve(config("kimi_linear", R"("hidden_act": "silu", "activation_situ_beta": 4.0)")),
            "is not used"));
  expect_refused(config("gpt_oss", R"("swiglu_alpha": 1.5, "hidden_act_alpha": 1.7)"),
                 "/hidden_act_alpha", "contradicts");
}

// ---- keys that nobody reads
// -------------------------------------------------------------------------

TEST(Unread, keys_that_would_change_the_formula_are_refused) {
  for (std::string_view key :
       {"swiglu_limit", "swiglu_alpha", "swiglu_limits", "expert_swiglu_limit_list",
        "activation_situ_beta", "mlp_gate_softcap", "hidden_act_alpha",
        "activation_sparsity_pattern", "gemm1_clamp_limit", "swiglu_clamp_exp", "silu_beta",
        "expert_clamp"}) {
    for (std::string_view value : {"7.0", "[7.0, 7.0]"}) {
      const std::string rest = '"' + std::string(key) + "\": " + std::string(value);
      expect_refused(config("llama", rest), "/" + std::string(key), "would change the formula");
      expect_refused(
          config("deepseek_v4", "\"swiglu_limit\": 10.0, " +
                                    (key == "swiglu_limit" ? "\"swiglu_beta\": 1.0" : rest)),
          key == "swiglu_limit" ? "/swiglu_beta" : "/" + std::string(key));
    }
  }
}

TEST(Unread, numbers_of_other_parts_are_none_of_our_business) {
  expect_quiet(resolve(config(
      "llama",
      R"("final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "clip_qkv": 8.0, "router_aux_loss_coef": 0.1,
      "time_step_limit": [0.0, 1.0], "moe_aux_loss_alpha": 0.1, "activation_dropout": 0.1, "rope_scaling": {"beta_fast": 32}, "initializer_range": 0.02,
      "quantization_config": {"activation_scheme": "dynamic"}, "routed_scaling_factor": 2.5, "expert_capacity": 64, "lora_alpha": 16)")));
  expect_quiet(resolve(config("xlstm", R"("gate_soft_cap": 15.0)")));
}

TEST(Unread, names_are_warned_about) {
  EXPECT_TRUE(warns(resolve(config("bloom", R"("hidden_act": "silu")")),
                    "/hidden_act: \"silu\" is not read by bloom"));
  EXPECT_TRUE(warns(resolve(config("gpt_oss", R"("hidden_act": "gelu", "swiglu_limit": 7.0)")),
                    "/hidden_act"));
  EXPECT_TRUE(warns(resolve(config("llama", R"("hidden_act": "silu", "ffn_act_name": "gelu")")),
                    "/ffn_act_name"));
  EXPECT_TRUE(
      warns(resolve(config("jetmoe", R"("activation_function": "silu", "hidden_act": "gelu")")),
            "activation_function"));
  EXPECT_TRUE(warns(resolve(config("llama", R"("hidden_act": "silu", "is_gated_act": false)")),
                    "/is_gated_act"));
}

TEST(Unread, published_decoys_equal_names_and_other_parts_are_silent) {
  expect_quiet(resolve(config("gpt_oss", R"("hidden_act": "silu", "swiglu_limit": 7.0)")));
  expect_quiet(
      resolve(config("inkling2_text",
                     R"("hidden_act": "silu", "mlp_gate_softcap": 4.0, "mlp_up_softcap": 25.0)")));
  for (std::string_view name : {"silu", "swigluoai"}) {
    expect_quiet(resolve(config("minimax_m3_vl_text", "\"hidden_act\": \"" + std::string(name) +
                                                          R"(", "swiglu_limit": 7.0)")));
  }
  EXPECT_TRUE(
      warns(resolve(config("minimax_m3_vl_text", R"("hidden_act": "gelu", "swiglu_limit": 7.0)")),
            "/hidden_act"));
  expect_quiet(
      resolve(config("nemotron_h", R"("mlp_hidden_act": "relu2", "mamba_hidden_act": "silu")")));
  expect_quiet(resolve(config(
      "gemma3",
      R"("vision_config": {"hidden_act": "gelu"}, "projector_hidden_act": "gelu", "text_config": {"hidden_activation": "silu"})")));
  expect_quiet(resolve(config("llama", R"("hidden_act": "silu", "is_gated_act": true)")));
  expect_quiet(resolve(config("lfm2", R"("hidden_act": "silu")")));
}

TEST(Unread, whole_families_are_refused_where_references_disagree_or_rows_matter) {
  const auto refused = [](std::string_view text, std::string_view pointer,
                          std::string_view part = {}) {
    expect_refused(text, pointer, part, {}, {}, ErrorCode::Unsupported);
  };
  refused(config("grok-1", R"("hidden_act": "gelu")"), "/model_type", "disagree");
  refused(config("git", R"("architectures": ["Grok1ForCausalLM"])"), "/model_type", "disagree");
  refused(R"({"architectures": ["Grok1ModelForCausalLM"]})", "/model_type", "disagree");
  refused(config("gemma3n_text"), "/activation_sparsity_pattern", "its default is not");
  refused(
      config(
          "gemma3n",
          R"("text_config": {"activation_sparsity_pattern": [0.0, 0.95], "num_hidden_layers": 2})"),
      "/text_config/activation_sparsity_pattern");
  refused(config("gemma3n_text", R"("activation_sparsity_pattern": 0.5)"),
          "/activation_sparsity_pattern");
  EXPECT_NO_THROW(resolve(config(
      "gemma3n_text", R"("num_hidden_layers": 2, "activation_sparsity_pattern": [0.0, 0])")));
}

TEST(Layers, published_files_that_differ_from_the_class) {
  const auto zaya = resolve(config("zaya", R"("zaya_layers": ["a", 16, "a", 16])"));
  ASSERT_EQ(zaya.layers.size(), 4u);
  EXPECT_FALSE(zaya.layers[0].routed);
  EXPECT_TRUE(zaya.layers[1].routed);
  EXPECT_TRUE(resolve(config("zaya")).layers[0].routed);
  const auto asr = resolve(
      config("qwen3_asr", R"("thinker_config": {"text_config": {"num_hidden_layers": 3}})"));
  EXPECT_EQ(asr.layers.size(), 3u);
}

TEST(Layers, no_shared_experts_are_said_by_zero_or_null) {
  for (std::string_view type :
       {"deepseek_v2", "deepseek_v3", "glm4_moe", "glm_moe_dsa", "dots1", "gigachat3_5"}) {
    EXPECT_TRUE(resolve(config(type, R"("n_shared_experts": 1)")).layers[5].shared) << type;
    for (std::string_view none : {"0", "null"}) {
      const auto model = resolve(config(type, "\"n_shared_experts\": " + std::string(none)));
      EXPECT_TRUE(model.layers[5].routed) << type;
      EXPECT_FALSE(model.layers[5].shared) << type;
    }
  }
  const auto flat = resolve(config(
      "dots_vlm", R"("hidden_act": "silu", "n_routed_experts": 4, "n_shared_experts": null)"));
  ASSERT_EQ(flat.layers.size(), 30u);
  EXPECT_TRUE(flat.layers[5].routed);
  EXPECT_FALSE(flat.layers[5].shared);
}

TEST(Layers, no_routed_experts_are_said_by_null) {
  for (std::string_view type :
       {"deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe"}) {
    const auto with = [type](const std::string& key) {
      return resolve(config(type, R"("hidden_act": "silu", "num_hidden_layers": 6)" + key));
    };
    EXPECT_TRUE(with(R"(, "n_routed_experts": 4)").layers[5].routed) << type;
    const auto none = with(R"(, "n_routed_experts": null)");
    ASSERT_EQ(none.layers.size(), 6u) << type;
    for (const auto& layer : none.layers) {
      EXPECT_TRUE(layer.dense) << type;
      EXPECT_FALSE(layer.routed || layer.shared) << type;
    }
  }
}

// ---- overrides and nested models
// ----------------------------------------------------------------------

TEST(Overrides, replace_and_merge) {
  const auto model = resolve(config("llama", R"("hidden_act": "silu", "num_hidden_layers": 2)"),
                             R"({"hidden_act": "gelu"})");
  EXPECT_EQ(role(model, 0, Role::Dense).name, "gelu");
  const auto nested = resolve(
      config("gemma3", R"("text_config": {"num_hidden_layers": 3, "hidden_activation": "silu"})"),
      R"({"text_config": {"hidden_activation": "relu"}})");
  EXPECT_EQ(nested.layers.size(), 3u);
  EXPECT_EQ(role(nested, 0, Role::Dense).name, "relu");
  const auto params = resolve(
      config(
          "llama",
          R"("hidden_act": "swish", "activation_params": {"beta": {"per_layer": [1, 2]}}, "num_hidden_layers": 2)"),
      R"({"activation_params": {"beta": 3}})");
  EXPECT_NEAR(value(params, 0, Role::Dense, 0.75, 1.0), swish(0.75, 3), kTolerance);
  expect_quiet(resolve(config("llama"), "  \n"));
}

TEST(Overrides, are_read_as_strictly) {
  expect_refused(config("llama"), "line 1, column 8", "override", R"({"a": 1,})");
  expect_refused(config("llama"), "line 1, column 1", "override", "[]");
  expect_refused(config("llama"), "/a", "twice", R"({"a": 1, "a": 2})");
  expect_refused(config("llama", R"("hidden_act": "swish")"), "/activation_params/beta", {},
                 R"({"activation_params": {"beta": "1.5"}})");
}

TEST(Overrides, with_activation_params_reach_the_text_model) {
  const std::string over = R"({"hidden_act": "swish", "activation_params": {"beta": 1.2}})";
  for (const std::string& text :
       {config("qwen3_omni_moe", R"("thinker_config": {"text_config": {"hidden_act": "silu"}})"),
        config("qwen3_omni_moe", R"("thinker_config": {})"), config("qwen3_omni_moe"),
        config("qwen3_omni_moe_thinker", R"("text_config": {"hidden_act": "gelu"})"),
        config("brand_new_vlm",
               R"("text_config": {"model_type": "mixtral", "hidden_act": "gelu"})")}) {
    const auto model = resolve(text, over);
    EXPECT_NEAR(value(model, 0, Role::Routed, 0.75, 2.0), swish(0.75, 1.2) * 2, kTolerance) << text;
  }
  // A plain name at the top is the host's business and stays unread.
  const auto unread = resolve(config("gemma3", R"("text_config": {"hidden_activation": "silu"})"),
                              R"({"hidden_activation": "relu"})");
  EXPECT_EQ(role(unread, 0, Role::Dense).name, "silu");
  EXPECT_TRUE(warns(unread, "/hidden_activation"));
  const auto both = resolve(
      config("t5gemma"), R"({"hidden_activation": "swish", "activation_params": {"beta": 1.2}})");
  EXPECT_NEAR(value(both, 0, Role::Dense, 0.75, 2.0), swish(0.75, 1.2) * 2, kTolerance);
}

TEST(Overrides, that_cannot_reach_it_are_errors) {
  expect_refused(config("gemma3", R"("text_config": "text")"), "/text_config", "expected an object",
                 R"({"activation_params": {"beta": 1.2}})");
  expect_refused(
      config("gemma3", R"("text_config": {})"), "/text_config/activation_params",
      "different values",
      R"({"activation_params": {"beta": 1.2}, "text_config": {"activation_params": {"beta": 1.3}}})");
  expect_refused(config("gemma3", R"("text_config": {})"), "/text_config/hidden_act",
                 "reads hidden_activation",
                 R"({"hidden_act": "swish", "activation_params": {"beta": 1.2}})");
}

TEST(Nested, keys_above_the_text_model_are_not_read) {
  const auto model = resolve(config(
      "gemma3", R"("hidden_activation": "relu", "text_config": {"hidden_activation": "silu"})"));
  EXPECT_EQ(role(model, 0, Role::Dense).name, "silu");
  EXPECT_TRUE(warns(model, "/hidden_activation: \"relu\" is not read"));
  expect_quiet(resolve(config(
      "gemma3", R"("hidden_activation": "silu", "text_config": {"hidden_activation": "silu"})")));
  expect_refused(
      config(
          "gemma3",
          R"("activation_params": {"beta": 1.5}, "text_config": {"hidden_activation": "swish"})"),
      "/activation_params", "/text_config");
  expect_refused(
      config("glm5_next",
             R"("swiglu_limit": 7.0, "text_config": {"hidden_act": "silu", "swiglu_limit": 10.0})"),
      "/swiglu_limit");
  EXPECT_TRUE(warns(
      resolve(config(
          "glm5_next",
          R"("swiglu_limit": 10.0, "text_config": {"hidden_act": "silu", "swiglu_limit": 10.0})")),
      "same value"));
}

TEST(Nested, the_inner_model_type_decides_where_it_is_known) {
  EXPECT_EQ(resolve(config("step3p7", R"("text_config": {"model_type": "step3p5"})")).layers.size(),
            45u);
  EXPECT_EQ(resolve(config("step3p7", R"("text_config": {})")).layers.size(), 45u);
  EXPECT_EQ(resolve(config("step3p7", R"("text_config": null)")).layers.size(), 45u);
  EXPECT_EQ(resolve(config("step3p7")).model_type, "step3p7");
  // MiniMax M3's files name the text model of M2, which its class does not read.
  const auto m3 = resolve(config(
      "minimax_m3_vl",
      R"("text_config": {"model_type": "minimax_m2", "hidden_act": "swigluoai", "swiglu_alpha": 1.702, "swiglu_limit": 7.0})"));
  EXPECT_EQ(role(m3, 0, Role::Shared).name, "swiglu_oai");
  EXPECT_TRUE(warns(resolve(config("step3p7", R"("text_config": {"model_type": "step9"})")),
                    "\"step9\" is not known"));
  expect_refused(config("step3p7", R"("text_config": [])"), "/text_config", "expected an object");
  expect_refused(config("step3p7", R"("text_config": {"model_type": 5})"),
                 "/text_config/model_type");
}

// ---- defaults
// ---------------------------------------------------------------------------------------------

TEST(Defaults, a_missing_name_is_the_familys_default) {
  EXPECT_EQ(role(resolve(config("llama")), 0, Role::Dense).name, "silu");
  EXPECT_EQ(role(resolve(config("gemma2")), 0, Role::Dense).name, "gelu_tanh");
  EXPECT_EQ(role(resolve(config("nemotron_h")), 1, Role::Routed).name, "relu2");
  expect_quiet(resolve(config("llama")));
  EXPECT_EQ(role(resolve(config("llama")), 0, Role::Dense).from,
            "/hidden_act missing: llama default \"silu\"");
}

TEST(Defaults, an_unknown_family_with_a_known_name_is_accepted_with_a_warning) {
  const auto model =
      resolve(config("brand_new_moe", R"("hidden_act": "gelu", "num_hidden_layers": 3)"));
  EXPECT_TRUE(warns(model, "brand_new_moe"));
  ASSERT_EQ(model.layers.size(), 3u);
  for (Role which : {Role::Routed, Role::Shared, Role::Dense}) {
    EXPECT_TRUE(role(model, 2, which).gated);
    EXPECT_NEAR(value(model, 2, which, 1.5, 2), gelu(1.5) * 2, kTolerance);
  }
  const auto one = resolve(config("brand_new_moe", R"("hidden_act": "gelu")"));
  EXPECT_EQ(one.layers.size(), 1u);
  EXPECT_FALSE(one.layers_known);
  EXPECT_TRUE(warns(resolve(R"({"hidden_act": "silu"})"), "model type is missing"));
  expect_refused(config("brand_new_moe", R"("hidden_act": "swoosh")"), "/hidden_act");
}

TEST(Defaults, nothing_at_all_is_silu_and_gelu_for_the_gpt_family) {
  for (const std::string& text : {std::string("{}"), config("brand_new_moe"),
                                  config("brand_new_moe", R"("num_experts": 64)")}) {
    const auto model = resolve(text);
    EXPECT_FALSE(model.warnings.empty());
    EXPECT_NEAR(value(model, 0, Role::Routed, 1.5, 2), silu(1.5) * 2, kTolerance);
  }
  const auto gpt = resolve(config("gpt_next"));
  EXPECT_TRUE(warns(gpt, "gelu is assumed"));
  EXPECT_NEAR(value(gpt, 0, Role::Dense, 1.5, 2), gelu(1.5) * 2, kTolerance);
}

TEST(Defaults, an_unknown_family_with_keys_that_change_the_formula_is_refused) {
  expect_refused(config("brand_new_moe", R"("hidden_act": "silu", "swiglu_limit": 7.0)"),
                 "/swiglu_limit");
  expect_refused(config("brand_new_moe", R"("swiglu_alpha": 1.702)"), "/swiglu_alpha");
  expect_refused(config("brand_new_moe", R"("hidden_act": "silu", "activation_function": "gelu")"),
                 "/activation_function", "two keys");
  expect_refused(config("brand_new_t5", R"("feed_forward_proj": "gated-gelu")"),
                 "/feed_forward_proj");
  const auto own = resolve(
      config("brand_new_moe", R"("hidden_act": "swish", "activation_params": {"beta": 1.5})"));
  EXPECT_NEAR(value(own, 0, Role::Routed, 0.75, 2), swish(0.75, 1.5) * 2, kTolerance);
}

TEST(Defaults, model_type_must_be_a_string) {
  for (std::string_view bad : {"7", "true", "[]", "{}"}) {
    expect_refused("{\"model_type\": " + std::string(bad) + "}", "/model_type",
                   "expected a string");
  }
}

// ---- T5 and types
// -------------------------------------------------------------------------------------------

TEST(T5, feed_forward_proj_says_name_and_gate) {
  const auto with = [](std::string_view rest) {
    return config("t5", "\"num_layers\": 1, " + std::string(rest));
  };
  EXPECT_FALSE(role(resolve(with(R"("feed_forward_proj": "silu")")), 0, Role::Dense).gated);
  EXPECT_TRUE(role(resolve(with(R"("feed_forward_proj": "gated-silu")")), 0, Role::Dense).gated);
  for (std::string_view bad : {"gated-gelu-new", "relu-gated", "gated-", "-relu", "GATED-gelu"}) {
    expect_refused(with("\"feed_forward_proj\": \"" + std::string(bad) + '"'),
                   "/feed_forward_proj");
  }
}

TEST(T5, contradicting_keys_are_errors) {
  const auto with = [](std::string_view rest) {
    return config("t5",
                  R"("num_layers": 1, "feed_forward_proj": "gated-gelu", )" + std::string(rest));
  };
  expect_quiet(resolve(with(R"("dense_act_fn": "gelu_new", "is_gated_act": true)")));
  expect_quiet(resolve(with(R"("dense_act_fn": "gelu_pytorch_tanh")")));
  expect_refused(with(R"("dense_act_fn": "gelu")"), "/dense_act_fn", "contradicts");
  expect_refused(with(R"("dense_act_fn": "relu")"), "/dense_act_fn", "contradicts");
  expect_refused(with(R"("is_gated_act": false)"), "/is_gated_act", "contradicts");
  expect_refused(with(R"("is_gated_act": "true")"), "/is_gated_act", "true or false");
  EXPECT_TRUE(warns(resolve(with(R"("hidden_act": "silu")")), "/hidden_act"));
}

TEST(T5, switch_reads_dense_act_fn_alone) {
  const auto model = resolve(config(
      "switch_transformers", R"("feed_forward_proj": "gated-gelu", "dense_act_fn": "silu")"));
  EXPECT_FALSE(role(model, 0, Role::Dense).gated);
  EXPECT_EQ(role(model, 0, Role::Dense).name, "silu");
  EXPECT_TRUE(warns(model, "/feed_forward_proj"));
}

TEST(Types, of_keys_that_are_read_must_be_the_declared_ones) {
  for (std::string_view bad : {"\"2\"", "2.0", "true", "[2]", "null", "{}"}) {
    expect_refused(config("llama", "\"num_hidden_layers\": " + std::string(bad)),
                   "/num_hidden_layers");
    expect_refused(config("mixtral", "\"num_local_experts\": " + std::string(bad)),
                   "/num_local_experts");
  }
  expect_refused(config("llama", R"("num_hidden_layers": -1)"), "/num_hidden_layers");
  expect_refused(config("llama", R"("num_hidden_layers": 1000000000)"), "/num_hidden_layers");
  expect_refused(config("llama", R"("num_hidden_layers": 99999999999999999999)"),
                 "/num_hidden_layers");
  expect_refused(config("llama", R"("mlp_bias": "false")"), "/mlp_bias");
  expect_refused(config("jamba", R"("expert_layer_period": "2")"), "/expert_layer_period");
  expect_refused(config("kimi_linear", R"("mlp_layer_types": ["dense", 5])"), "/mlp_layer_types",
                 "2 entries for 27 layers");
  EXPECT_EQ(resolve(config("llama", R"("num_hidden_layers": 0)")).layers.size(), 0u);
}

}  // namespace
}  // namespace flexact::config_test
