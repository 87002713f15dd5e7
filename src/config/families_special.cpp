// Families with a rule of their own: a formula fixed by the class, limits, keys with other names,
// names with another meaning, nested configs, encoder-decoder pairs, and layers of several kinds.
#include "config/family.hpp"

namespace flexact::config {
namespace {

using Kind = Condition::Kind;

// The gate is clamped from above, up on both sides, one is added to up (gpt-oss's reference code).
Keyed swiglu_oai_keys() {
  return {
      .function = "swiglu_oai",
      .values = {
          {.names = {"swiglu_alpha"}, .parameter = "alpha", .fallback = 1.702},
          {.names = {"swiglu_limit"}, .parameter = "limit", .fallback = 7.0, .is_limit = true}}};
}

Keyed inkling2_keys() {
  return {
      .function = "situ",
      .values = {
          {.names = {"mlp_gate_softcap"}, .parameter = "beta", .fallback = 4.0, .is_limit = true},
          {.names = {"mlp_up_softcap"},
           .parameter = "linear_beta",
           .fallback = 25.0,
           .is_limit = true}}};
}

Keyed kimi_situ_keys() {
  return {.function = "situ",
          .values = {{.names = {"activation_situ_beta"}, .parameter = "beta"},
                     {.names = {"activation_situ_linear_beta"},
                      .parameter = "linear_beta",
                      .off = Off::Allowed}},
          .without = "situ_nolinear",
          .caution = "situ is Kimi K3's own activation; transformers 5.23 cannot build it",
          .reference_pairing = Pairing::Separate};
}

// One number for all layers, clamped before the activation; 0 or null: off.
Limit limit_before(double fallback, bool around_any) {
  return {.value = {.names = {"swiglu_limit"},
                    .parameter = "limit",
                    .fallback = fallback,
                    .is_limit = true,
                    .off = Off::Allowed},
          .form = LimitForm::Before,
          .around_any = around_any};
}

// One number for each layer, clamped after the activation; 0 or null: off in that layer.
Limit limit_after(std::string_view key, Reader reader, std::string_view note) {
  Limit limit{.value = {.names = {key},
                        .parameter = "limit",
                        .is_limit = true,
                        .per_layer = true,
                        .off = Off::Allowed,
                        .reader = reader,
                        .note = note},
              .form = LimitForm::After};
  if (reader == Reader::ReferenceOnly) limit.reference_pairing = Pairing::Separate;
  return limit;
}

constexpr std::string_view kLing3 =
    "Ling 3's published code clamps; transformers 5.23 ignores the list";

RoleRule geglu_mlp() {
  return mlp().reads("hidden_activation", "gelu_pytorch_tanh");
}

// T5: feed_forward_proj says name and gate; dense_act_fn and is_gated_act repeat it.
Family t5_family(std::vector<std::string_view> names, std::int64_t layers, std::string_view proj,
                 NameStyle style = NameStyle::FeedForwardProj) {
  RoleRule dense = mlp().reads("feed_forward_proj", proj);
  dense.style = style;
  return {
      .model_types = std::move(names),
      .dense = dense,
      .stacks = {
          {.name = "encoder", .layers = count(layers, {"num_hidden_layers", "num_layers"})},
          {.name = "decoder",
           .layers = count(layers, {"num_decoder_layers", "num_layers", "num_hidden_layers"})}}};
}

Family inkling2_family(std::string_view name, std::int64_t layers, std::int64_t expert_count) {
  return {.model_types = {name},
          .layers = count(layers),
          .sparse = every_layer(),
          .routed = experts().always("situ").with_keys(inkling2_keys()),
          .experts = {{"n_routed_experts", "num_local_experts"}, expert_count},
          .published = {"silu"}};
}

// The limit is around the routed experts alone, which compute silu whatever hidden_act says.
Family hy_v4_family(std::string_view name, std::int64_t layers) {
  return {.model_types = {name},
          .layers = count(layers),
          .sparse = {sparse_types(from_layer(1))},
          .routed = experts().always("silu").with_limit(limit_before(10.0, false)),
          .shared = shared_mlp().when({positive("n_shared_experts", 1)}),
          .dense = mlp(),
          .experts = {{"n_routed_experts", "num_local_experts"}, 256}};
}

std::vector<Family> rows() {
  const RoleRule oai = experts().always("swiglu_oai").with_keys(swiglu_oai_keys());
  const RoleRule oai_mlp =
      mlp().always("swiglu_oai").with_keys(swiglu_oai_keys()).with(Pairing::Concat);
  const RoleRule situ_mlp = mlp().with_keys(kimi_situ_keys());
  return {
      // --- formulas fixed by the class -----------------------------------------------------------
      {.model_types = {"gpt_oss"},
       .layers = count(36),
       .sparse = every_layer(),
       .routed =
           [&] {
             RoleRule r = oai.with(Pairing::Interleaved, true).with_bias();
             r.keyed->values[0] = {.names = {"swiglu_alpha", "hidden_act_alpha"},
                                   .parameter = "alpha",
                                   .fallback = 1.702,
                                   .reader = Reader::ClassOnly,
                                   .note =
                                       "transformers reads swiglu_alpha, SGLang hidden_act_alpha, "
                                       "and the published code neither: there alpha is 1.702"};
             return r;
           }(),
       .experts = {{"num_local_experts", "num_experts"}, 128},
       .published = {"silu"}},
      {.model_types = {"openai_privacy_filter"},
       .layers = count(8),
       .sparse = every_layer(),
       .routed = oai.with(Pairing::Concat, true).with_bias(),
       .experts = {{"num_local_experts", "num_experts"}, 128},
       .published = {"silu"}},
      // published files call the text model minimax_m2, and the class asks nobody
      {.model_types = {"minimax_m3_vl"},
       .text = {"text_config"},
       .inner = "minimax_m3_vl_text",
       .inner_always = true},
      {.model_types = {"minimax_m3_vl_text", "minimax_m3"},
       .layers = count(60),
       .sparse = {typed("mlp_layer_types", {"sparse"},
                        {typed("moe_layer_freq", {"1", "true"}, every_layer())})},
       .routed = oai,
       .shared = oai_mlp.in(Where::Sparse).when({positive("shared_intermediate_size", 3072)}),
       .dense = oai_mlp,
       .experts = {{"num_local_experts", "num_experts"}, 128},
       .published = {"silu", "swigluoai"}},
      {.model_types = {"inkling2"}, .text = {"text_config"}, .inner = "inkling2_text"},
      {.model_types = {"inkling2_loop"}, .text = {"text_config"}, .inner = "inkling2_loop_text"},
      inkling2_family("inkling2_text", 48, 384),
      // Some layers are passed three times; they are the same layers.
      inkling2_family("inkling2_loop_text", 24, 128),
      {.model_types = {"lfm2"}, .layers = count(32), .dense = mlp().always("silu")},
      {.model_types = {"lfm2_moe"},
       .layers = count(32),
       .sparse = {from("num_dense_layers", 2)},
       .routed = experts().always("silu"),
       .dense = mlp().always("silu"),
       .experts = {{"num_experts"}, 32}},
      {.model_types = {"xlstm"},
       .layers = count(32, {"num_blocks", "num_hidden_layers"}),
       .dense = mlp().always("silu").with_bias("use_bias"),
       .other_parts = {"gate_soft_cap"}},
      {.model_types = {"bloom"},
       .layers = count(2, {"num_hidden_layers", "n_layer"}),
       .dense = plain_mlp().always("gelu_bloom").with_bias()},
      {.model_types = {"mpt"},
       .layers = count(24, {"num_hidden_layers", "n_layers"}),
       .dense = plain_mlp().always("gelu")},
      {.model_types = {"rwkv"}, .layers = count(32), .dense = plain_mlp().always("relu2")},

      // --- limits --------------------------------------------------------------------------------
      {.model_types = {"deepseek_v4"},
       .layers = count(43),
       .sparse = every_layer(),
       .routed = experts().with_limit(limit_before(10.0, true)),
       .shared = shared_mlp().with_bias("mlp_bias").with_limit(limit_before(10.0, true)),
       .experts = {{"n_routed_experts", "num_local_experts"}, 256}},
      {.model_types = {"glm5_next"},
       .text = {"text_config"},
       .inner = "glm5_next_text",
       .flat = true},
      {.model_types = {"glm5_next_text"},
       .layers = count(45),
       .sparse = {sparse_types(from_layer(3))},
       .routed = experts().always("silu").with_limit(limit_before(10.0, false)),
       .shared = shared_mlp()
                     .when({positive("n_shared_experts", 1)})
                     .with_limit(limit_before(10.0, false)),
       .dense = mlp().with_limit(limit_before(10.0, false)),
       .experts = {{"n_routed_experts", "num_local_experts"}, 288}},
      hy_v4_family("hy_v4", 34),
      {.model_types = {"hy_v4_vl"}, .text = {"text_config"}, .inner = "hy_v4_vl_text"},
      hy_v4_family("hy_v4_vl_text", 78),
      {.model_types = {"step3p7"}, .text = {"text_config"}, .inner = "step3p5"},
      {.model_types = {"step3p5"},
       .layers = count(45),
       .sparse = {sparse_types(listed("moe_layers_enum", {from_layer(3)}))},
       .routed =
           experts().always("silu").with_limit(limit_after("swiglu_limits", Reader::Both, {})),
       .shared = shared_mlp()
                     .always("silu")
                     .with_bias("mlp_bias")
                     .with_limit(limit_after("swiglu_limits_shared", Reader::Both, {})),
       .dense = mlp()
                    .always("silu")
                    .with_bias("mlp_bias")
                    .with_limit(limit_after("swiglu_limits_shared", Reader::Both, {})),
       .experts = {{"n_routed_experts", "moe_num_experts", "num_local_experts"}, 288},
       .published = {"silu"}},
      {.model_types = {"bailing_hybrid", "bailing_moe_v3"},
       .layers = count(42),
       .sparse = {sparse_types(from("first_k_dense_replace", 2))},
       .routed = experts().with_limit(
           limit_after("expert_swiglu_limit_list", Reader::ReferenceOnly, kLing3)),
       .shared = shared_mlp()
                     .when({positive_any({"n_shared_experts", "num_shared_experts"}, 1)})
                     .with_limit(limit_after("share_expert_swiglu_limit_list",
                                             Reader::ReferenceOnly, kLing3)),
       .dense = mlp(),
       .experts = {{"num_experts", "num_local_experts"}, 512}},
      {.model_types = {"kimi_linear"},
       .layers = count(27),
       .sparse = {sparse_types(from("first_k_dense_replace", 1))},
       .routed = experts().with_keys(kimi_situ_keys()),
       .shared = situ_mlp.in(Where::Sparse)
                     .when({positive_any({"n_shared_experts", "num_shared_experts"}, 1)}),
       .dense = situ_mlp,
       .experts = {{"num_experts", "num_local_experts"}, 256}},
      {.model_types = {"kimi_k3"},
       .text = {"text_config"},
       .inner = "kimi_k3_text",
       .inner_always = true},
      {.model_types = {"kimi_k3_text"},
       .sparse = {sparse_types(from("first_k_dense_replace", 1))},
       .routed = experts().with_keys(kimi_situ_keys()).with(Pairing::Separate),
       .shared = situ_mlp.in(Where::Sparse),
       .dense = situ_mlp,
       .experts = {{"num_experts", "num_local_experts"}},
       .reference = "published config and SGLang 0.5.23"},

      // --- the Gemma line: which of two keys is read, and what gelu means
      // --------------------------
      {.model_types = {"gemma"},
       .layers = count(28),
       .dense = mlp().reads("hidden_act", "gelu_pytorch_tanh"),
       .renames = {{"gelu", "gelu_tanh", true}},
       .nullable_names = {"hidden_activation", "hidden_act"}},
      {.model_types = {"gemma2"}, .layers = count(26), .dense = geglu_mlp()},
      {.model_types = {"gemma3"}, .text = {"text_config"}, .inner = "gemma3_text"},
      {.model_types = {"gemma3_text"}, .layers = count(26), .dense = geglu_mlp()},
      {.model_types = {"gemma3n"}, .text = {"text_config"}, .inner = "gemma3n_text"},
      {.model_types = {"gemma3n_text"},
       .layers = count(35),
       .dense = geglu_mlp(),
       .zero_keys = {"activation_sparsity_pattern"},
       .zero_keys_default_from = 11},
      {.model_types = {"gemma4"}, .text = {"text_config"}, .inner = "gemma4_text"},
      {.model_types = {"gemma4_text"},
       .layers = count(30),
       .sparse = {flag("enable_moe_block", false)},
       .routed = experts().reads("hidden_activation", "gelu_pytorch_tanh"),
       .dense = geglu_mlp().in(Where::Every),
       .experts = {{"num_experts"}, std::nullopt, true}},
      {.model_types = {"diffusion_gemma"},
       .text = {"text_config"},
       .inner = "diffusion_gemma_text"},
      {.model_types = {"diffusion_gemma_text"},
       .layers = count(30),
       .sparse = every_layer(),
       .routed = experts().reads("hidden_activation", "gelu_pytorch_tanh"),
       .dense = geglu_mlp().in(Where::Every),
       .experts = {{"num_experts"}, std::nullopt, true}},
      {.model_types = {"vaultgemma"}, .layers = count(26), .dense = geglu_mlp()},
      {.model_types = {"recurrent_gemma"}, .layers = count(26), .dense = geglu_mlp().with_bias()},
      {.model_types = {"t5gemma"},
       .dense = geglu_mlp(),
       .stacks = {{.name = "encoder", .path = {"encoder"}, .layers = count(26)},
                  {.name = "decoder", .path = {"decoder"}, .layers = count(26)}}},

      // --- the T5 line
      // -----------------------------------------------------------------------------
      t5_family({"t5"}, 6, "relu"),
      t5_family({"mt5"}, 8, "gated-gelu"),
      t5_family({"umt5"}, 8, "gated-gelu"),
      t5_family({"longt5"}, 6, "relu"),
      t5_family({"udop"}, 24, "relu", NameStyle::FeedForwardProjExact),
      [] {
        Family family = t5_family({"pop2piano"}, 6, {}, NameStyle::FeedForwardGate);
        family.dense.keys = {"dense_act_fn"};
        family.dense.default_name = "relu";
        return family;
      }(),
      {.model_types = {"switch_transformers"},
       .routed = plain_experts().reads("dense_act_fn", "relu").when({positive("num_experts", 8)}),
       .dense = plain_mlp().reads("dense_act_fn", "relu"),
       .experts = {{"num_experts"}, 8},
       .stacks = {{.name = "encoder",
                   .layers = count(12, {"num_hidden_layers", "num_layers"}),
                   .sparse = {{.kind = Kind::Step,
                               .keys = {"num_sparse_encoder_layers"},
                               .fallback = 3,
                               .other = {"encoder_sparse_step"}}}},
                  {.name = "decoder",
                   .layers = count(12, {"num_decoder_layers"}),
                   .sparse = {{.kind = Kind::Step,
                               .keys = {"num_sparse_decoder_layers"},
                               .fallback = 3,
                               .other = {"decoder_sparse_step"}}}}}},
      {.model_types = {"nllb-moe", "nllb_moe"},
       .routed = plain_experts()
                     .reads("activation_function", "relu")
                     .with_bias()
                     .when({positive("num_experts", 128)}),
       .dense = plain_mlp().reads("activation_function", "relu").with_bias(),
       .experts = {{"num_experts"}, 128},
       .stacks = {{.name = "encoder",
                   .layers = count(12, {"num_hidden_layers", "encoder_layers"}),
                   .sparse = {multiple("encoder_sparse_step", 4, 1)}},
                  {.name = "decoder",
                   .layers = count(12, {"decoder_layers"}),
                   .sparse = {multiple("decoder_sparse_step", 4, 1)}}}},

      // --- other spellings of the key
      // --------------------------------------------------------------
      {.model_types = {"openai-gpt"},
       .layers = count(12, {"num_hidden_layers", "n_layer"}),
       .dense = plain_mlp().reads("afn", "gelu").with_bias(),
       .renames = {{"gelu", "gelu_tanh"}}},
      {.model_types = {"falcon"},
       .layers = count(32),
       .dense = plain_mlp().reads("activation", "gelu").with_bias_or_null("bias")},
      {.model_types = {"jetmoe"},
       .layers = count(12),
       .sparse = every_layer(),
       .routed = experts().reads("activation_function", "silu"),
       .experts = {{"num_local_experts"}, 8}},
      {.model_types = {"dbrx"},
       .layers = count(24, {"num_hidden_layers", "n_layers"}),
       .sparse = every_layer(),
       .routed = experts().reads("ffn_config/ffn_act_fn/name", "silu").with(Pairing::Separate),
       .experts = {{"ffn_config/moe_num_experts"}, 4}},
      {.model_types = {"nemotron_h"},
       .layers = {.names = {},
                  .fallback = 4,
                  .length_of = {"layers_block_type", "layer_types", "hybrid_override_pattern"}},
       .routed = plain_experts().reads("mlp_hidden_act", "relu2").in(Where::Only).when({[] {
         Condition c = typed("layers_block_type", {"moe"},
                             {letter("hybrid_override_pattern", {"E"}, {exactly({1})})});
         c.keys = {"layers_block_type", "layer_types"};
         return c;
       }()}),
       .shared = plain_mlp()
                     .reads("mlp_hidden_act", "relu2")
                     .with_bias("mlp_bias")
                     .in(Where::Only)
                     .when({[] {
                       Condition c =
                           typed("layers_block_type", {"moe"},
                                 {letter("hybrid_override_pattern", {"E"}, {exactly({1})})});
                       c.keys = {"layers_block_type", "layer_types"};
                       return c;
                     }()}),
       .dense = plain_mlp()
                    .reads("mlp_hidden_act", "relu2")
                    .with_bias("mlp_bias")
                    .in(Where::Only)
                    .when({[] {
                      Condition c =
                          typed("layers_block_type", {"mlp"},
                                {letter("hybrid_override_pattern", {"-"}, {exactly({3})})});
                      c.keys = {"layers_block_type", "layer_types"};
                      return c;
                    }()}),
       .experts = {{"n_routed_experts", "num_local_experts"}, 8}},

      // --- layouts and roles of their own
      // ------------------------------------------------------------
      {.model_types = {"apertus"},
       .layers = count(32),
       .dense = plain_mlp()
                    .reads("hidden_act", "xielu")
                    .with_learned("model.layers.{layer}.mlp.act_fn.")},
      {.model_types = {"aria"}, .text = {"text_config"}, .inner = "aria_text"},
      {.model_types = {"aria_text"},
       .layers = count(32),
       .sparse = every_layer(),
       .routed = experts().always("silu").with(Pairing::Concat, true),
       .shared = shared_mlp().with_bias("mlp_bias").when({positive("moe_num_shared_experts", 2)}),
       .experts = {{"moe_num_experts"}, 8}},
      {.model_types = {"llama4"}, .text = {"text_config"}, .inner = "llama4_text"},
      {.model_types = {"llama4_text"},
       .layers = count(48),
       .sparse = {listed("moe_layers", {multiple("interleave_moe_layer_step", 1, 1)})},
       .routed = experts().with(Pairing::Concat, true),
       .shared = shared_mlp(),
       .dense = mlp(),
       .experts = {{"num_local_experts"}, 16}},
      {.model_types = {"longcat_flash"},
       .layers = count(28, {"num_layers"}),
       .sparse = every_layer(),
       .routed = experts().when({positive_any({"num_local_experts", "n_routed_experts"}, 512)}),
       .dense = mlp().in(Where::Every),
       .experts = {{"n_routed_experts", "num_local_experts"}, 512}},
      {.model_types = {"hunyuan_v1_moe"},
       .layers = count(32),
       .sparse = every_layer(),
       .routed = experts(),
       .shared = shared_mlp(),
       .experts = {{"num_experts", "num_local_experts"}, 1, false, true}},
      {.model_types = {"granitemoeshared", "granitemoe_swa"},
       .layers = count(32),
       .sparse = every_layer(),
       .routed = experts(),
       .shared = shared_mlp().with(Pairing::Concat).when({positive("shared_intermediate_size", 0)}),
       .experts = {{"num_local_experts"}, 8, true}},
      {.model_types = {"granitemoehybrid"},
       .layers = count(32),
       .sparse = {positive("num_local_experts", 8)},
       .routed = experts(),
       .shared = shared_mlp()
                     .with(Pairing::Concat)
                     .in(Where::Every)
                     .when({positive("shared_intermediate_size", 1024)}),
       .experts = {{"num_local_experts"}, 8, true}},
      {.model_types = {"qwen3_omni_moe"},
       .text = {"thinker_config", "text_config"},
       .inner = "qwen3_omni_moe_text"},
      {.model_types = {"qwen3_omni_moe_thinker"},
       .text = {"text_config"},
       .inner = "qwen3_omni_moe_text"},
      {.model_types = {"qwen3_omni_moe_text"},
       .layers = count(28),
       .sparse = {not_listed("mlp_only_layers"), positive("num_experts", 128),
                  multiple("decoder_sparse_step", 1, 1)},
       .routed = experts(),
       .dense = mlp(),
       .experts = {{"num_experts"}, 128}},
      {.model_types = {"jamba"},
       .layers = count(32),
       .sparse = {[] {
                    Condition c = above("num_experts", 1, 16);
                    c.keys = {"num_local_experts", "num_experts"};
                    return c;
                  }(),
                  phase("expert_layer_period", 2, "expert_layer_offset", 1)},
       .routed = experts(),
       .dense = mlp(),
       .experts = {{"num_experts"}, 16}},

      // --- not in transformers: published notes
      // --------------------------------------------------------
      {.model_types = {"arctic"},
       .layers = {},
       .sparse = {multiple("moe_layer_frequency", 2, 1)},
       .routed = experts().with(Pairing::Separate),
       .dense = mlp().in(Where::Every),
       .experts = {{"num_local_experts"}, 8},
       .caution =
           "arctic is known from its published code only; a residual MLP stands beside the experts",
       .reference = "published code"},
      {.model_types = {"bailing_moe", "bailing_moe_v2", "bailing_moe_linear"},
       .layers = {},
       .sparse = {from("first_k_dense_replace", 0)},
       .routed = experts().with(Pairing::Separate),
       .shared = shared_mlp().when({positive("num_shared_experts", 1, true)}),
       .dense = mlp(),
       .experts = {{"num_experts"}},
       .reference = "published code"},
      {.model_types = {"grok-1", "grok", "grok1", "grok-2", "grok2"},
       .architectures = {"Grok1ForCausalLM", "Grok1ModelForCausalLM"},
       .refusal = "the published references of Grok disagree about its gelu (tanh or erf form)"},
  };
}

}  // namespace

const std::vector<Family>& special_families() {
  static const std::vector<Family> table = rows();
  return table;
}

}  // namespace flexact::config
