// Families that SGLang runs and transformers does not know cannot be run here; their rows were read
// from the published code. Each row's formula, layout and layers are checked against what that code
// says, written out by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

double silu(double x) {
  return x / (1 + std::exp(-x));
}

double evaluate(const ResolvedActivation& role, double g, double u) {
  return role.activation.function().reference(g, u, role.activation.values(0, {0, 1}).data);
}

std::vector<std::int64_t> layers_with(const ModelActivations& model, Role role) {
  std::vector<std::int64_t> layers;
  for (const LayerActivations& layer : model.layers) {
    if (layer.role(role)) layers.push_back(layer.index);
  }
  return layers;
}

using Layers = std::vector<std::int64_t>;

TEST(PublishedFamilies, qwen_and_chatglm_have_no_key_and_compute_silu) {
  for (const char* config :
       {R"({"model_type":"qwen"})", R"({"model_type":"chatglm","add_bias_linear":false})"}) {
    const ModelActivations model = resolve_config_text(config);
    EXPECT_NEAR(evaluate(*model.layers.at(0).dense, 1.5, -2), silu(1.5) * -2, 1e-12);
  }
  const ModelActivations glm = resolve_config_text(R"({"model_type":"chatglm","num_layers":40})");
  EXPECT_EQ(glm.layers.size(), 40U);
  EXPECT_EQ(glm.layers[0].dense->pairing, Pairing::Concat);
}

TEST(PublishedFamilies, phi3small_clamps_pairs_as_its_gegelu_does) {
  const ModelActivations model = resolve_config_text(
      R"({"model_type":"phi3small","hidden_act":"gegelu","gegelu_limit":20.0,"num_hidden_layers":2})");
  const ResolvedActivation& dense = *model.layers.at(1).dense;
  EXPECT_EQ(dense.pairing, Pairing::Interleaved);
  EXPECT_TRUE(dense.bias);
  const auto gegelu = [](double g, double u) {
    g = std::min(g, 20.0);
    u = std::clamp(u, -20.0, 20.0);
    return g / (1 + std::exp(-1.702 * g)) * (u + 1);
  };
  for (double g : {-3.0, 0.5, 25.0}) {
    for (double u : {-30.0, 0.25, 30.0}) EXPECT_NEAR(evaluate(dense, g, u), gegelu(g, u), 1e-12);
  }
}

TEST(PublishedFamilies, spark_computes_the_tanh_form_of_gelu) {
  const ModelActivations model = resolve_config_text(R"({"model_type":"spark2_5"})");
  EXPECT_EQ(model.layers.size(), 28U);
  const double g = 0.75;
  const double tanh_form =
      0.5 * g * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g)));
  EXPECT_NEAR(evaluate(*model.layers[0].dense, g, 2), tanh_form * 2, 1e-12);
}

TEST(PublishedFamilies, deepseek_v1_places_experts_by_depth_and_frequency) {
  const ModelActivations model = resolve_config_text(
      R"({"model_type":"deepseek","hidden_act":"silu","num_hidden_layers":6,"n_routed_experts":8,
          "n_shared_experts":2,"first_k_dense_replace":1,"moe_layer_freq":2})");
  EXPECT_EQ(layers_with(model, Role::Routed), (Layers{2, 4}));
  EXPECT_EQ(layers_with(model, Role::Shared), (Layers{2, 4}));
  EXPECT_EQ(layers_with(model, Role::Dense), (Layers{0, 1, 3, 5}));
  const ModelActivations dense =
      resolve_config_text(R"({"model_type":"deepseek","hidden_act":"silu","num_hidden_layers":3})");
  EXPECT_EQ(layers_with(dense, Role::Dense), (Layers{0, 1, 2}));
}

TEST(PublishedFamilies, step3_lists_its_expert_layers_in_a_string) {
  const ModelActivations model = resolve_config_text(
      R"({"model_type":"step3_vl","text_config":{"model_type":"step3_text","num_hidden_layers":6,
          "moe_layers_enum":"2,4"}})");
  EXPECT_EQ(layers_with(model, Role::Routed), (Layers{2, 4}));
  EXPECT_EQ(layers_with(model, Role::Dense), (Layers{0, 1, 3, 5}));
}

TEST(PublishedFamilies, a_frequency_that_only_the_published_code_reads_is_followed_with_a_warning) {
  const ModelActivations model = resolve_config_text(
      R"({"model_type":"deepseek_v3","num_hidden_layers":6,"first_k_dense_replace":1,
          "moe_layer_freq":2})");
  EXPECT_EQ(layers_with(model, Role::Routed), (Layers{2, 4}));
  ASSERT_FALSE(model.warnings.empty());
  EXPECT_NE(model.warnings[0].find("/moe_layer_freq"), std::string::npos);
  const ModelActivations usual = resolve_config_text(
      R"({"model_type":"deepseek_v3","num_hidden_layers":3,"first_k_dense_replace":1,
          "moe_layer_freq":1})");
  EXPECT_TRUE(usual.warnings.empty());
}

TEST(PublishedFamilies, mimo_places_experts_by_a_list_of_frequencies) {
  const ModelActivations model = resolve_config_text(
      R"({"model_type":"mimo_v2_flash","num_hidden_layers":4,"moe_layer_freq":[0,1,0,1]})");
  EXPECT_EQ(layers_with(model, Role::Routed), (Layers{1, 3}));
  EXPECT_EQ(layers_with(model, Role::Dense), (Layers{0, 2}));
}

TEST(PublishedFamilies, wrappers_find_the_language_model_under_their_own_key) {
  for (const char* config :
       {R"({"model_type":"kimi_vl","text_config":{"num_hidden_layers":4}})",
        R"({"model_type":"deepseek_vl_v2","language_config":{"num_hidden_layers":4}})",
        R"({"model_type":"multi_modality","language_config":{"num_hidden_layers":4}})"}) {
    EXPECT_EQ(resolve_config_text(config).layers.size(), 4U) << config;
  }
}

TEST(PublishedFamilies, limits_are_read_where_the_code_has_one_meaning_for_them) {
  const ModelActivations model = resolve_config_text(
      R"({"model_type":"deepseek_v41","num_hidden_layers":2,"n_routed_experts":8,
          "swiglu_limit":10.0})");
  const double clamped = silu(10.0) * -10;
  EXPECT_NEAR(evaluate(*model.layers.at(0).routed, 50, -50), clamped, 1e-12);
  EXPECT_NEAR(evaluate(*model.layers.at(0).shared, 50, -50), clamped, 1e-12);
  const ModelActivations off = resolve_config_text(
      R"({"model_type":"deepseek_v41","num_hidden_layers":2,"n_routed_experts":8})");
  EXPECT_NEAR(evaluate(*off.layers.at(0).routed, 50, -50), silu(50.0) * -50, 1e-9);
  EXPECT_NO_THROW(resolve_config_text(R"({"model_type":"gigachat3_5"})"));
  EXPECT_THROW(resolve_config_text(R"({"model_type":"gigachat3_5","swiglu_limit":7.0})"), Error);
}

TEST(PublishedFamilies, xlm_reads_a_boolean) {
  const auto dense = [](const char* config) {
    return resolve_config_text(config).layers.at(0).dense->activation.function().name();
  };
  EXPECT_EQ(dense(R"({"model_type":"xlm"})"), "gelu");
  EXPECT_EQ(dense(R"({"model_type":"xlm","gelu_activation":false})"), "relu");
}

}  // namespace
}  // namespace flexact
