// activation_params: values, domains, aliases, and the forms that give a value a scope.
#include <cmath>

#include "config_support.hpp"

namespace flexact::config_test {
namespace {

// A two-layer Mixtral with eight experts that computes swish.
std::string mixtral(std::string_view beta, std::string_view rest = {}) {
  return config(
      "mixtral",
      "\"num_hidden_layers\": 2, \"hidden_act\": \"swish\", \"activation_params\": {\"beta\": " +
          std::string(beta) + "}" + std::string(rest));
}
// One dense layer, then one with routed and shared experts.
std::string kimi(std::string_view params) {
  return config("kimi_linear",
                "\"num_hidden_layers\": 2, \"num_experts\": 4, \"hidden_act\": \"swish\", "
                "\"activation_params\": " +
                    std::string(params));
}

void expect_beta(const ModelActivations& model, std::int64_t layer, Role which, double beta,
                 std::int64_t expert = 0) {
  EXPECT_NEAR(value(model, layer, which, 0.75, 2.0, expert), swish(0.75, beta) * 2, kTolerance)
      << "layer " << layer << ' ' << to_string(which);
}

TEST(Params, a_scalar_holds_for_all_roles_and_layers) {
  const auto model = resolve(kimi(R"({"beta": 1.5})"));
  expect_quiet(model);
  expect_beta(model, 0, Role::Dense, 1.5);
  expect_beta(model, 1, Role::Routed, 1.5);
  expect_beta(model, 1, Role::Shared, 1.5);
  expect_beta(resolve(mixtral("-0.5")), 1, Role::Routed, -0.5);
  expect_beta(resolve(mixtral("2")), 1, Role::Routed, 2);
}

TEST(Params, per_layer_is_indexed_by_absolute_layer_number) {
  const auto model = resolve(kimi(R"({"beta": {"per_layer": [1.25, 1.5]}})"));
  expect_quiet(model);
  expect_beta(model, 0, Role::Dense, 1.25);
  expect_beta(model, 1, Role::Routed, 1.5);
  expect_beta(model, 1, Role::Shared, 1.5);
}

TEST(Params, per_layer_must_cover_the_layers) {
  expect_refused(mixtral(R"({"per_layer": [1.0]})"), "/activation_params/beta/per_layer",
                 "1 entries for 2 layers");
  EXPECT_TRUE(warns(resolve(mixtral(R"({"per_layer": [1, 2, 3]})")), "3 entries for 2 layers"));
  expect_quiet(
      resolve(mixtral(R"({"per_layer": [1, 2, 3]})", R"(, "num_nextn_predict_layers": 1)")));
  EXPECT_TRUE(
      warns(resolve(mixtral(R"({"per_layer": [1, 2, 3]})", R"(, "num_nextn_predict_layers": 2)")),
            "3 entries for 2 layers"));
  expect_refused(mixtral(R"({"per_layer": []})"), "/activation_params/beta/per_layer", "empty");
  expect_refused(mixtral(R"({"per_layer": [1, null]})"), "/activation_params/beta/per_layer/1");
  expect_refused(mixtral(R"({"per_layer": 1.5})"), "/activation_params/beta/per_layer",
                 "expected a list");
}

TEST(Params, per_expert_has_one_value_for_each_logical_expert) {
  const auto model = resolve(mixtral(R"({"per_expert": [1, 2, 3, 4, 5, 6, 7, 8]})"));
  expect_quiet(model);
  for (std::int64_t expert = 0; expert < 8; ++expert)
    expect_beta(model, 1, Role::Routed, static_cast<double>(expert + 1), expert);
  // A rank's slice of the experts.
  const ValueTable table = role(model, 0, Role::Routed).activation.values(0, {2, 5});
  EXPECT_EQ(table.data, (std::vector<double>{3, 4, 5}));
  expect_refused(mixtral(R"({"per_expert": [1, 2]})"), "/activation_params/beta/per_expert",
                 "2 entries for 8 experts");
  expect_refused(mixtral(R"({"per_expert": [1, 2]})", R"(, "num_local_experts": 4)"),
                 "/activation_params/beta/per_expert", "4 experts");
  expect_quiet(resolve(mixtral(R"({"per_expert": [1, 2]})", R"(, "num_local_experts": 2)")));
}

TEST(Params, per_expert_holds_for_routed_experts_only) {
  const auto model = resolve(kimi(R"({"beta": {"per_expert": [2, 3, 4, 5]}})"));
  EXPECT_TRUE(warns(model, "says nothing about the shared layers; they use beta = 1.0"));
  EXPECT_TRUE(warns(model, "says nothing about the dense layers"));
  expect_beta(model, 1, Role::Routed, 4, 2);
  expect_beta(model, 1, Role::Shared, 1);
  expect_beta(model, 0, Role::Dense, 1);
  expect_refused(
      config("llama",
             R"("hidden_act": "swish", "activation_params": {"beta": {"per_expert": [1]}})"),
      "/activation_params/beta/per_expert", "no routed experts");
  expect_refused(
      kimi(R"({"beta": {"routed": 1, "shared": {"per_expert": [1, 2, 3, 4]}, "dense": 1}})"),
      "/activation_params/beta/shared/per_expert");
  // Without a default there is nothing to fall back on.
  expect_refused(
      config(
          "kimi_linear",
          R"("num_hidden_layers": 2, "num_experts": 2, "activation_params": {"name": "clamped_relu2", "scale": {"per_expert": [1, 2]}})"),
      "/activation_params/scale", "no default");
}

TEST(Params, a_tensor_is_named_never_a_path) {
  const auto model = resolve(mixtral(R"({"tensor": "model.layers.{layer}.experts.beta"})"));
  EXPECT_TRUE(warns(model, "tensor of the checkpoint"));
  const auto& binding = role(model, 1, Role::Routed).activation.binding();
  EXPECT_EQ(binding.at("beta").tensor_name(), "model.layers.1.experts.beta");
  const ValueTable table =
      role(model, 1, Role::Routed).activation.values(1, {0, 2}, [](const std::string& name) {
        EXPECT_EQ(name, "model.layers.1.experts.beta");
        return std::vector<double>{1.5, 2.5, 1, 1, 1, 1, 1, 1};
      });
  EXPECT_EQ(table.data, (std::vector<double>{1.5, 2.5}));
  for (std::string_view bad : {"\"\"", "5", "null", "\"/etc/passwd\"", "\"../x\"", "\"a\\\\b\"",
                               "\"a b\"", "\"a.{expert}\"", "\"a.{layer\"", "\"a\\u0000\""}) {
    expect_refused(mixtral("{\"tensor\": " + std::string(bad) + "}"),
                   "/activation_params/beta/tensor");
  }
}

TEST(Params, learned_parameters_are_the_classs_tensors) {
  const auto model = resolve(config("apertus", R"("num_hidden_layers": 2)"));
  EXPECT_TRUE(warns(model, "alpha_p of xielu is a tensor of the checkpoint"));
  EXPECT_EQ(role(model, 1, Role::Dense).activation.binding().at("alpha_p").tensor_name(),
            "model.layers.1.mlp.act_fn.alpha_p");
  const auto bound = resolve(
      config("apertus",
             R"("num_hidden_layers": 1, "activation_params": {"alpha_p": 0.1, "alpha_n": 0.2})"));
  expect_quiet(bound);
  const double slope = std::log1p(std::exp(0.1));
  EXPECT_NEAR(value(bound, 0, Role::Dense, 2.0, 0), slope * 4 + 0.5 * 2, kTolerance);
  expect_quiet(
      resolve(config("llama", R"("hidden_act": "prelu", "activation_params": {"a": 0.25})")));
}

TEST(Params, a_split_by_role) {
  const auto model = resolve(
      kimi(R"({"beta": {"routed": 1.5, "shared": {"per_layer": [9, 2.5]}, "dense": 3.5}})"));
  expect_quiet(model);
  expect_beta(model, 1, Role::Routed, 1.5);
  expect_beta(model, 1, Role::Shared, 2.5);
  expect_beta(model, 0, Role::Dense, 3.5);
  const auto partial = resolve(kimi(R"({"beta": {"routed": 1.5}})"));
  EXPECT_TRUE(warns(partial, "dense layers; they use beta = 1.0"));
  expect_beta(partial, 0, Role::Dense, 1);
}

TEST(Params, whole_functions_may_be_split_by_role) {
  const auto model = resolve(kimi(
      R"({"routed": {"name": "leaky_relu", "alpha": 0.5}, "shared": {"beta": 2.5}, "dense": {"name": "relu"}})"));
  EXPECT_NEAR(value(model, 1, Role::Routed, -2, 3), -3, kTolerance);
  expect_beta(model, 1, Role::Shared, 2.5);
  EXPECT_NEAR(value(model, 0, Role::Dense, 2, 3), 6, kTolerance);
}

TEST(Params, what_all_roles_and_one_role_say_may_not_collide) {
  expect_refused(kimi(R"({"beta": 1.5, "routed": {"beta": 2}})"), "/activation_params/routed/beta");
  expect_refused(kimi(R"({"name": "swish", "routed": {"name": "relu"}})"),
                 "/activation_params/routed/name");
  expect_refused(kimi(R"({"routed": {"shared": {"beta": 1}}})"),
                 "/activation_params/routed/shared");
  expect_refused(kimi(R"({"routed": 1.5})"), "/activation_params/routed", "expected an object");
}

TEST(Params, forms_nest) {
  const auto layers =
      resolve(mixtral(R"({"per_layer": [1.5, {"per_expert": [1, 2, 3, 4, 5, 6, 7, 8]}]})"));
  expect_beta(layers, 0, Role::Routed, 1.5, 3);
  expect_beta(layers, 1, Role::Routed, 4, 3);
  const auto experts =
      resolve(mixtral(R"({"per_expert": [{"per_layer": [11, 12]}, 2, 3, 4, 5, 6, 7, 8]})"));
  expect_beta(experts, 0, Role::Routed, 11, 0);
  expect_beta(experts, 1, Role::Routed, 12, 0);
  expect_beta(experts, 1, Role::Routed, 2, 1);
  const auto roles = resolve(kimi(
      R"({"beta": {"per_layer": [{"dense": 7}, {"routed": {"per_expert": [1, 2, 3, 4]}, "shared": 5}]}})"));
  expect_beta(roles, 0, Role::Dense, 7);
  expect_beta(roles, 1, Role::Routed, 3, 2);
  expect_beta(roles, 1, Role::Shared, 5);
  for (std::string_view bad :
       {R"({"per_layer": [{"per_layer": [1, 2]}, 1]})",
        R"({"per_expert": [{"per_expert": [1]}, 2, 3, 4, 5, 6, 7, 8]})",
        R"({"routed": {"routed": 1}})", R"({"per_layer": [1, 2], "per_expert": [1]})",
        R"({"routed": 1, "tensor": "x"})", "{}", R"({"per_token": [1]})", "[1, 2]"}) {
    EXPECT_THROW(resolve(mixtral(bad)), Error) << bad;
  }
}

TEST(Params, explain_shows_the_values_of_the_layer) {
  const auto json = [](std::string_view beta) { return resolve(mixtral(beta)).to_json(); };
  EXPECT_NE(json(R"({"per_layer": [1.5, 2.5]})").find(R"("params":{"beta":2.5})"),
            std::string::npos);
  EXPECT_NE(json(R"({"per_expert": [1, 2, 3, 4, 5, 6, 7, 8]})")
                .find(R"("params":{"beta":[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]})"),
            std::string::npos);
  EXPECT_NE(json(R"({"tensor": "t.{layer}"})").find(R"("params":{"beta":{"tensor":"t.1"}})"),
            std::string::npos);
  // No layer count: one layer stands for all, and the forms are kept.
  const auto unknown = resolve(config(
      "new", R"("hidden_act": "swish", "activation_params": {"beta": {"per_layer": [1, 2, 3]}})"));
  EXPECT_FALSE(unknown.layers_known);
  EXPECT_NE(unknown.to_json().find(R"("params":{"beta":1.0})"), std::string::npos);
  EXPECT_EQ(role(unknown, 0, Role::Dense).activation.values(2, {0, 1}).data,
            (std::vector<double>{3}));
}

TEST(Params, values_are_finite_numbers_inside_the_domain) {
  for (std::string_view bad : {"\"1.5\"", "true", "null", "[1.5]"})
    expect_refused(mixtral(bad), "/activation_params/beta");
  expect_refused(mixtral("NaN"), "line 1, column 104", "NaN");
  expect_refused(mixtral("1e999"), "line 1, column 104", "overflows");
  const auto leaky = [](std::string_view alpha) {
    return config("llama", R"("hidden_act": "leaky_relu", "activation_params": {"alpha": )" +
                               std::string(alpha) + "}");
  };
  for (std::string_view good : {"0", "1", "0.3"}) EXPECT_NO_THROW(resolve(leaky(good)));
  for (std::string_view bad : {"-0.1", "1.1"})
    expect_refused(leaky(bad), "/activation_params/alpha", "0 to 1");
  expect_refused(
      config("llama", R"("hidden_act": "swiglu_clamp", "activation_params": {"limit": 0})"),
      "/activation_params/limit", "> 0");
  expect_refused(config("llama", R"("hidden_act": "swiglu_clamp")"), "/hidden_act",
                 "needs a value for limit");
  expect_refused(mixtral(R"({"per_layer": [1, {"per_expert": [1, 2, 3, 4, 5, 6, 7, false]}]})"),
                 "/activation_params/beta/per_layer/1/per_expert/7");
}

TEST(Params, that_the_function_lacks_are_errors) {
  expect_refused(config("llama", R"("hidden_act": "silu", "activation_params": {"beta": 1.5})"),
                 "/activation_params/beta", "no parameter");
  expect_refused(mixtral(R"(1.5, "gamma": 2)"), "/activation_params/gamma", "swish has beta");
  expect_refused(
      config(
          "llama",
          R"json("hidden_act": "expr", "activation_params": {"expr": "silu(x)", "beta": 1})json"),
      "/activation_params/beta");
}

TEST(Params, aliases_are_accepted_but_not_beside_the_name) {
  const auto model = resolve(config(
      "llama", R"("hidden_act": "leaky_relu", "activation_params": {"negative_slope": 0.5})"));
  EXPECT_NEAR(value(model, 0, Role::Dense, -2, 3), -3, kTolerance);
  EXPECT_NEAR(value(resolve(config(
                        "llama", R"("hidden_act": "swiglu_step", "activation_params": {"L": 2})")),
                    0, Role::Dense, 50, -50),
              -4, kTolerance);
  expect_refused(
      config(
          "llama",
          R"("hidden_act": "leaky_relu", "activation_params": {"alpha": 0.5, "negative_slope": 0.5})"),
      "/activation_params/negative_slope", "twice");
}

}  // namespace
}  // namespace flexact::config_test
