// Families whose rows need no rule of their own: a gated or plain MLP, routed and shared experts,
// and the layers in which they stand. Measured by scripts/derive_families.py on transformers 5.23.0
// (tests/data/families_transformers.json) unless the row names another reference.
#include "config/family.hpp"

namespace flexact::config {
namespace {

using Names = std::vector<std::string_view>;

// ---- dense models -------------------------------------------------------------------------------

// Every layer has a gated MLP that reads hidden_act, silu where it is missing.
void add_gated(std::vector<Family>& out) {
  const RoleRule biased = mlp().with_bias("mlp_bias");
  const RoleRule joined = mlp().with(Pairing::Concat);
  const std::vector<Family> rows = {
      // gate, up and down are three matrices without biases
      {.model_types = {"diffllama"}, .layers = count(16), .dense = mlp()},
      {.model_types = {"voxtral_realtime_text"}, .layers = count(26), .dense = mlp()},
      {.model_types = {"qwen2_5_omni_text"}, .layers = count(28), .dense = mlp()},
      {.model_types = {"emu3_text_model"},
       .layers = count(32),
       .dense = biased},  // mlp_bias is not declared but read
      {.model_types = {"exaone4", "hunyuan_v1_dense", "hunyuan_vl_text", "idefics", "ministral",
                       "mistral", "olmo", "olmo2", "olmo3", "olmo_hybrid", "qwen2", "qwen3",
                       "qwen3_5_text", "qwen3_vl_text", "stablelm", "youtu"},
       .layers = count(32),
       .dense = mlp()},
      {.model_types = {"ministral3"}, .layers = count(34), .dense = mlp()},
      {.model_types = {"molmo2_text"}, .layers = count(36), .dense = mlp()},
      {.model_types = {"cohere", "cohere2", "cohere_compass_text", "mllama_text_model"},
       .layers = count(40),
       .dense = mlp()},
      {.model_types = {"internlm3"}, .layers = count(48), .dense = mlp()},
      {.model_types = {"qwen2_5_vl_text", "qwen2_vl_text"}, .layers = count(80), .dense = mlp()},
      {.model_types = {"bitnet"}, .layers = count(30), .dense = mlp().defaults_to("relu2")},
      // the same with biases as mlp_bias or use_bias says
      {.model_types = {"granite_swa", "helium"}, .layers = count(24), .dense = biased},
      {.model_types = {"granite_docling_text"}, .layers = count(28), .dense = biased},
      {.model_types = {"bamba", "chameleon", "evolla", "falcon_h1", "granite", "hyperclovax",
                       "llama"},
       .layers = count(32),
       .dense = biased},
      {.model_types = {"smollm3"}, .layers = count(36), .dense = biased},
      {.model_types = {"granite4_vision_text", "ultrabert"}, .layers = count(32), .dense = biased},
      {.model_types = {"eurobert"}, .layers = count(12), .dense = biased},
      {.model_types = {"esmc"}, .layers = count(80), .dense = biased},
      {.model_types = {"nomic_bert"}, .layers = count(12), .dense = mlp()},
      {.model_types = {"gte"}, .layers = count(12), .dense = mlp().defaults_to("gelu").with_bias()},
      {.model_types = {"minicpm3"}, .layers = count(62), .dense = biased},
      {.model_types = {"cwm", "seed_oss"}, .layers = count(64), .dense = biased},
      {.model_types = {"iquestcoder"}, .layers = count(80), .dense = biased},
      {.model_types = {"ernie4_5", "paddleocr_vl_text"},
       .layers = count(18),
       .dense = mlp().with_bias_or_null("use_bias")},
      // gate rows, then up rows in one matrix
      {.model_types = {"glm_ocr_text"}, .layers = count(16), .dense = joined},
      {.model_types = {"moshi", "phi3", "phi4_multimodal"}, .layers = count(32), .dense = joined},
      {.model_types = {"glm", "glm4", "glm4v_text"}, .layers = count(40), .dense = joined},
      {.model_types = {"kyutai_speech_to_text"}, .layers = count(48), .dense = joined},
      // the two stacks of hrm_text are alike; a file written by the class carries both counts
      {.model_types = {"hrm_text"},
       .layers = count(16, {"num_layers_per_stack", "num_hidden_layers"}),
       .dense = biased},
      // no key: silu, gelu
      {.model_types = {"lfm3"}, .layers = count(24), .dense = mlp().always("silu")},
      {.model_types = {"cpmant"}, .layers = count(48), .dense = mlp().always("gelu")},
      // other spellings of the key
      {.model_types = {"gemma4_unified_text"},
       .layers = count(30),
       .dense = mlp().reads("hidden_activation", "gelu_pytorch_tanh")},
      {.model_types = {"muse_glimmer_text"},
       .layers = count(52),
       .dense = mlp().reads("hidden_activation", "silu")},
      {.model_types = {"modernbert", "modernbert-decoder"},
       .layers = count(22),
       .dense = joined.reads("hidden_activation", "gelu").with_bias("mlp_bias")},
      {.model_types = {"pix2struct_text_model"},
       .layers = count(12, {"num_hidden_layers", "num_layers"}),
       .dense = mlp().reads("dense_act_fn", "gelu_new")},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

// Every layer has an MLP without a gate.
void add_plain(std::vector<Family>& out) {
  const RoleRule gelu = plain_mlp().defaults_to("gelu").with_bias();
  const RoleRule relu2 = plain_mlp().defaults_to("relu2");
  const RoleRule by_function = plain_mlp().reads("activation_function", "gelu").with_bias();
  const RoleRule gpt = plain_mlp().reads("activation_function", "gelu_new").with_bias();
  const Names n_layer = {"num_hidden_layers", "n_layer"};
  const std::vector<Family> rows = {
      // the BERT line
      {.model_types = {"git"}, .layers = count(6), .dense = gelu},
      {.model_types =
           {"bert",          "blip_text_model", "bros",        "canine",     "convbert",
            "deberta",       "ibert",           "layoutlm",    "layoutlmv2", "layoutlmv3",
            "lilt",          "longformer",      "luke",        "markuplm",   "mpnet",
            "mra",           "squeezebert",     "tapas",       "yoso",       "camembert",
            "data2vec-text", "electra",         "ernie",       "roberta",    "roberta-prelayernorm",
            "roc_bert",      "roformer",        "xlm-roberta", "xmod"},
       .layers = count(12),
       .dense = gelu},
      {.model_types = {"bert-generation", "deberta-v2", "jina_embeddings_v3", "biogpt",
                       "megatron-bert"},
       .layers = count(24),
       .dense = gelu},
      {.model_types = {"rembert"}, .layers = count(32), .dense = gelu},
      {.model_types = {"xlm-roberta-xl"}, .layers = count(36), .dense = gelu},
      {.model_types = {"albert", "big_bird", "fnet", "nystromformer"},
       .layers = count(12),
       .dense = gelu.defaults_to("gelu_new")},
      {.model_types = {"clip_text_model"},
       .layers = count(12),
       .dense = gelu.defaults_to("quick_gelu")},
      {.model_types = {"tipsv2_text_model"},
       .layers = count(12),
       .dense = gelu.defaults_to("relu")},
      {.model_types = {"mobilebert"}, .layers = count(24), .dense = gelu.defaults_to("relu")},
      {.model_types = {"distilbert"},
       .layers = count(6, {"num_hidden_layers", "n_layers"}),
       .dense = gelu.reads("activation", "gelu")},
      {.model_types = {"esm"},
       .layers = count(12),
       .dense = plain_mlp().always("gelu").with_bias()},
      // layers in blocks; the first stands for all
      {.model_types = {"funnel"}, .layers = {.names = {}}, .dense = gelu.defaults_to("gelu_new")},
      {.model_types = {"reformer"},
       .layers = {.names = {"num_hidden_layers"}, .fallback = 6, .length_of = {"attn_layers"}},
       .dense = gelu.defaults_to("relu")},
      {.model_types = {"xlnet"},
       .layers = count(24, n_layer),
       .dense = gelu.reads("ff_activation", "gelu")},
      // the GPT line
      {.model_types = {"gpt2", "gpt-sw3"}, .layers = count(12, n_layer), .dense = gpt},
      {.model_types = {"gpt_bigcode"},
       .layers = count(12, n_layer),
       .dense = gpt.defaults_to("gelu_pytorch_tanh")},
      {.model_types = {"gpt_neo"},
       .layers = count(24, {"num_hidden_layers", "num_layers"}),
       .dense = gpt},
      {.model_types = {"codegen", "gptj"}, .layers = count(28, n_layer), .dense = gpt},
      {.model_types = {"gpt_neox"}, .layers = count(44), .dense = gelu},
      {.model_types = {"gpt_neox_japanese"},
       .layers = count(32),
       .dense = plain_mlp().defaults_to("gelu")},
      {.model_types = {"phi"}, .layers = count(24), .dense = gelu.defaults_to("gelu_new")},
      {.model_types = {"starcoder2"},
       .layers = count(30),
       .dense = plain_mlp().defaults_to("gelu_pytorch_tanh").with_bias("use_bias", true)},
      {.model_types = {"xlm", "flaubert"},
       .layers = count(12, {"num_hidden_layers", "n_layers"}),
       .dense =
           [&] {
             RoleRule r = gelu.reads("gelu_activation", "gelu");
             r.when_true = "gelu";
             r.when_false = "relu";
             return r;
           }()},
      {.model_types = {"ctrl"},
       .layers = count(48, n_layer),
       .dense = plain_mlp().always("relu").with_bias()},
      {.model_types = {"opt"},
       .layers = count(12),
       .dense = plain_mlp().reads("activation_function", "relu").with_bias("enable_bias", true)},
      // squared relu
      {.model_types = {"neomme"},
       .layers = count(17),
       .dense = plain_mlp().always("relu2").with_bias("mlp_bias")},
      {.model_types = {"nanochat"}, .layers = count(12), .dense = relu2},
      {.model_types = {"cosmos3_edge_text"},
       .layers = count(28),
       .dense = relu2.with_bias("mlp_bias")},
      {.model_types = {"arcee", "nemotron"},
       .layers = count(32),
       .dense = relu2.with_bias("mlp_bias")},
      {.model_types = {"jais2"}, .layers = count(32), .dense = relu2.with_bias("mlp_bias", true)},
      {.model_types = {"persimmon"}, .layers = count(36), .dense = relu2.with_bias()},
      // text decoders of multimodal and speech models
      {.model_types = {"whisper"}, .layers = count(4, {"decoder_layers"}), .dense = by_function},
      {.model_types = {"pp_formulanet_text"},
       .layers = count(8, {"decoder_layers"}),
       .dense = by_function},
      {.model_types = {"trocr"},
       .layers = count(12, {"num_hidden_layers", "decoder_layers"}),
       .dense = by_function},
      {.model_types = {"xglm"},
       .layers = count(24, {"num_hidden_layers", "num_layers"}),
       .dense = by_function},
      {.model_types = {"kosmos_2_text_model", "kosmos_2_5_text_model"},
       .layers = count(24, {"num_hidden_layers", "layers"}),
       .dense = by_function},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

// ---- encoder-decoder models ---------------------------------------------------------------------

// Both stacks have MLPs with biases and without a gate, and read activation_function.
Family encoder_decoder(Names types, std::int64_t encoder, std::int64_t decoder,
                       std::string_view function) {
  return {.model_types = std::move(types),
          .dense = plain_mlp().reads("activation_function", function).with_bias(),
          .stacks = {{.name = "encoder",
                      .layers = count(encoder, {"num_hidden_layers", "encoder_layers"})},
                     {.name = "decoder", .layers = count(decoder, {"decoder_layers"})}}};
}

void add_encoder_decoders(std::vector<Family>& out) {
  const std::vector<Family> rows = {
      encoder_decoder({"plbart"}, 6, 6, "gelu"),
      encoder_decoder({"blenderbot-small"}, 8, 8, "gelu"),
      encoder_decoder({"bart", "led", "marian", "mbart", "mvp", "pegasus"}, 12, 12, "gelu"),
      encoder_decoder({"pegasus_x"}, 16, 16, "gelu"),
      encoder_decoder({"bigbird_pegasus"}, 16, 16, "gelu_new"),
      encoder_decoder({"blenderbot"}, 2, 24, "gelu"),
      encoder_decoder({"fsmt", "m2m_100"}, 12, 12, "relu"),
      {.model_types = {"seamless_m4t", "seamless_m4t_v2"},
       .dense = plain_mlp().reads("activation_function", "relu").with_bias(),
       .stacks = {{.name = "text encoder", .layers = count(24, {"encoder_layers"})},
                  {.name = "text decoder",
                   .layers = count(24, {"num_hidden_layers", "decoder_layers"})}}},
      {.model_types = {"prophetnet"},
       .dense = plain_mlp().reads("activation_function", "gelu").with_bias(),
       .stacks = {{.name = "encoder", .layers = count(12, {"num_encoder_layers"})},
                  {.name = "decoder", .layers = count(12, {"num_decoder_layers"})}}},
      {.model_types = {"t5gemma2"},
       .dense = mlp().reads("hidden_activation", "gelu_pytorch_tanh"),
       .stacks = {{.name = "encoder", .path = {"encoder", "text_config"}, .layers = count(26)},
                  {.name = "decoder", .path = {"decoder"}, .layers = count(26)}}},
      // byte-level encoder, global transformer and decoder; each has a config of its own
      {.model_types = {"blt"},
       .dense = mlp(),
       .stacks = {{.name = "global transformer", .path = {"global_config"}, .layers = count(25)},
                  {.name = "local encoder", .path = {"encoder_config"}, .layers = count(1)},
                  {.name = "local decoder", .path = {"decoder_config"}, .layers = count(9)}}},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

// ---- some layers only ---------------------------------------------------------------------------

void add_hybrids(std::vector<Family>& out) {
  const auto hybrid = [](std::vector<Condition> otherwise) {
    Condition c = typed("layers_block_type", {"hybrid"}, std::move(otherwise));
    c.keys = {"layer_types", "layers_block_type"};
    return std::vector<Condition>{c};
  };
  const std::vector<Family> rows = {
      // a transformer block that all "hybrid" layers share
      {.model_types = {"zamba"},
       .layers = count(76),
       .dense = mlp()
                    .defaults_to("gelu")
                    .in(Where::Only)
                    .when(hybrid({any_of({exactly({2}), phase("attn_layer_period", 6,
                                                              "attn_layer_offset", 4, 3)})}))},
      {.model_types = {"zamba2"},
       .layers = count(54),
       .dense = mlp()
                    .defaults_to("gelu")
                    .with(Pairing::Concat)
                    .with_bias("add_bias_linear")
                    .in(Where::Only)
                    .when(hybrid({exactly({6, 12, 18, 24, 30, 36, 42, 47, 51})}))},
      // no MLP at all
      {.model_types = {"mamba", "falcon_mamba"},
       .layers = count(32),
       .other_parts = {"hidden_act"}},
      {.model_types = {"mamba2"}, .layers = count(64), .other_parts = {"hidden_act"}},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

// ---- mixtures of experts ------------------------------------------------------------------------

// Experts in every layer and no other role.
Family all_experts(Names types, std::int64_t layers, IntKey experts_key) {
  return {.model_types = std::move(types),
          .layers = count(layers),
          .sparse = every_layer(),
          .routed = experts(),
          .experts = std::move(experts_key)};
}

// Qwen: experts in every decoder_sparse_step-th layer that is not in mlp_only_layers.
std::vector<Condition> qwen_sparse(Names counts, std::int64_t experts, Condition dense_layers) {
  Condition some = positive("num_experts", experts);
  some.keys = std::move(counts);
  return {std::move(dense_layers), some, multiple("decoder_sparse_step", 1, 1)};
}

constexpr std::string_view kFreq =
    "is read by the published code and SGLang; transformers 5.23 ignores it";

// Only the published code and SGLang leave experts out of layers that this does not divide.
Condition published_frequency() {
  Condition c = multiple("moe_layer_freq", 1);
  c.note = kFreq;
  return c;
}

void add_experts(std::vector<Family>& out) {
  const IntKey local = {{"num_local_experts", "num_experts"}};
  const auto with_default = [](Names names, std::int64_t n) { return IntKey{std::move(names), n}; };
  const Names num = {"num_experts", "num_local_experts"};
  const Names routed_names = {"n_routed_experts", "num_local_experts", "num_experts"};
  // DeepSeek's code, and what follows it, says "none" by null too, of routed experts as of shared
  // ones; transformers' classes fail where the former are null.
  const auto any_routed = [&](std::int64_t fallback) {
    Condition c = positive_any(routed_names, fallback);
    c.nullable = true;
    return c;
  };
  const auto or_null = [&](std::int64_t fallback) { return IntKey{routed_names, fallback, true}; };
  const auto shared_if = [](std::string_view key, std::int64_t fallback) {
    return shared_mlp().when({positive(key, fallback, key == "n_shared_experts")});
  };

  const std::vector<Family> rows = {
      // experts everywhere
      all_experts({"olmoe"}, 16, with_default(num, 64)),
      all_experts({"flex_olmo"}, 32, with_default(num, 7)),
      all_experts({"granitemoe"}, 32, with_default({"num_local_experts"}, 8)),
      all_experts({"minimax", "mixtral"}, 32, with_default(local.names, 8)),
      all_experts({"phimoe"}, 32, with_default(local.names, 16)),
      all_experts({"minimax_m2"}, 62, with_default(local.names, 256)),
      // the published file lists its layers: "a" for attention, or the number of experts
      {.model_types = {"zaya"},
       .layers = {.fallback = 40, .length_of = {"zaya_layers"}},
       .sparse = {{.kind = Condition::Kind::Typed,
                   .keys = {"zaya_layers"},
                   .values = {"a"},
                   .negated = true,
                   .nullable = true}},
       .routed = experts(),
       .experts = with_default(num, 16)},
      {.model_types = {"qwen3_5_moe_text"},
       .layers = count(40),
       .sparse = every_layer(),
       .routed = experts(),
       .shared = shared_if("shared_expert_intermediate_size", 512),
       .experts = with_default(num, 256)},
      {.model_types = {"qwen4_exp_text"},
       .layers = count(40),
       .sparse = every_layer(),
       .routed = experts(),
       .shared = shared_mlp(),
       .experts = with_default(num, 512)},
      {.model_types = {"kolibri1"},
       .layers = count(50),
       .sparse = every_layer(),
       .routed = experts(),
       .shared = shared_if("shared_expert_intermediate_size", 512),
       .experts = with_default(local.names, 384)},
      {.model_types = {"solar_open"},
       .layers = count(48),
       .sparse = every_layer(),
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .experts = with_default(routed_names, 128)},

      // a number of leading dense layers
      {.model_types = {"afmoe"},
       .layers = count(32),
       .sparse = {from("num_dense_layers", 1)},
       .routed = experts(),
       .shared = shared_if("num_shared_experts", 2),
       .dense = mlp(),
       .experts = with_default(num, 64)},
      {.model_types = {"deepseek_v2"},
       .layers = count(32),
       .sparse = {any_routed(64), from("first_k_dense_replace", 0), published_frequency()},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 2).with_bias("mlp_bias"),
       .dense = mlp().with_bias("mlp_bias"),
       .experts = or_null(64)},
      {.model_types = {"deepseek_v3", "kimi_k2"},
       .layers = count(61),
       .sparse = {any_routed(256), from("first_k_dense_replace", 3), published_frequency()},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = or_null(256)},
      {.model_types = {"dots1"},
       .layers = count(62),
       .sparse = {from("first_k_dense_replace", 0), published_frequency()},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 0),
       .dense = mlp(),
       .experts = {routed_names, std::nullopt, true}},
      {.model_types = {"glm4_moe", "glm4v_moe_text"},
       .layers = count(46),
       .sparse = {any_routed(128), from("first_k_dense_replace", 1)},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = or_null(128)},
      {.model_types = {"mistral4"},
       .layers = count(36),
       .sparse = {from("first_k_dense_replace", 0)},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(routed_names, 128)},
      {.model_types = {"ernie4_5_moe"},
       .layers = count(28),
       .sparse = {from("moe_layer_start_index", 1), up_to("moe_layer_end_index", -1),
                  multiple("moe_layer_interval", 1, 1)},
       .routed = experts(),
       .shared = shared_if("moe_num_shared_experts", 2).with_bias_or_null("use_bias"),
       .dense = mlp().with_bias_or_null("use_bias"),
       .experts = with_default({"moe_num_experts", "num_experts"}, 64)},

      // mlp_layer_types, and what stands for it where it is missing
      {.model_types = {"axk1"},
       .layers = count(61),
       .sparse = {sparse_types(std::vector<Condition>{from("first_k_dense_replace", 1),
                                                      multiple("moe_layer_freq", 1)})},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(routed_names, 192)},
      {.model_types = {"axk2"},
       .layers = count(48),
       .sparse = {sparse_types(std::vector<Condition>{from("first_k_dense_replace", 1),
                                                      multiple("moe_layer_freq", 1)})},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(routed_names, 128)},
      {.model_types = {"dots3_note_text"},
       .layers = count(46),
       .sparse = {sparse_types(std::vector<Condition>{from("first_k_dense_replace", 1),
                                                      multiple("moe_layer_freq", 1)})},
       .routed = experts(),
       .shared = shared_if("shared_experts_intermediate_size", 1536),
       .dense = mlp(),
       .experts = with_default(routed_names, 256)},
      {.model_types = {"deepseek_v32"},
       .layers = count(61),
       .sparse = {any_routed(256), sparse_types(from("first_k_dense_replace", 3))},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = or_null(256)},
      {.model_types = {"glm_moe_dsa"},
       .layers = count(78),
       .sparse = {sparse_types(from("first_k_dense_replace", 3))},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(routed_names, 256)},
      {.model_types = {"glm4_moe_lite"},
       .layers = count(47),
       .sparse = {sparse_types([] {
         Condition c = from("first_k_dense_replace", 1);
         c.note = kFreq;
         return c;
       }())},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(routed_names, 64)},
      {.model_types = {"exaone_moe"},
       .layers = count(32),
       .sparse = {sparse_types(from("first_k_dense_replace", 1))},
       .routed = experts(),
       .shared = shared_if("num_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(num, 64)},
      {.model_types = {"mistral_large4_text"},
       .layers = count(72),
       .sparse = {sparse_types(from("first_k_dense_replace", 1))},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 1),
       .dense = mlp(),
       .experts = with_default(routed_names, 128)},
      {.model_types = {"unlimited_ocr_text"},
       .layers = count(12),
       .sparse = {sparse_types(from("first_k_dense_replace", 1))},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 2).with_bias("mlp_bias"),
       .dense = mlp().with_bias("mlp_bias"),
       .experts = with_default(routed_names, 64)},
      // the class has no default for the list
      {.model_types = {"deepseek_ocr2_text"},
       .layers = count(32),
       .sparse = {sparse_types(from_layer(0))},
       .routed = experts(),
       .shared = shared_if("n_shared_experts", 2).with_bias("mlp_bias"),
       .dense = mlp().with_bias("mlp_bias"),
       .experts = with_default(routed_names, 64)},
      {.model_types = {"cohere2_moe"},
       .layers = count(40),
       .sparse = {sparse_types(from("first_k_dense_replace", 0))},
       .routed = experts(),
       .shared = shared_if("num_shared_experts", 0),
       .dense = mlp(),
       .experts = with_default(num, 8)},
      {.model_types = {"beam"},
       .layers = count(52),
       .sparse = {sparse_types(from_layer(3))},
       .routed = experts(),
       .dense = mlp(),
       .experts = with_default(num, 256)},
      {.model_types = {"hy_v3"},
       .layers = count(80),
       .sparse = {sparse_types([] {
         Condition c = from("first_k_dense_replace", 1);
         c.note = kFreq;
         return c;
       }())},
       .routed = experts(),
       .shared = shared_mlp().with_bias("mlp_bias"),
       .dense = mlp().with_bias("mlp_bias"),
       .experts = with_default(num, 192)},
      {.model_types = {"laguna"},
       .layers = count(40),
       .sparse = {sparse_types(from_layer(1))},
       .routed = experts(),
       .shared = shared_if("shared_expert_intermediate_size", 512),
       .dense = mlp(),
       .experts = with_default(num, 256)},
      // SGLang and the published files have moe_layer_freq, one entry for each layer
      {.model_types = {"mimo_v2_flash", "mimo_v2"},
       .layers = count(48),
       .sparse = {sparse_types([] {
         Condition c = typed("moe_layer_freq", {"1", "true"}, {from_layer(1)});
         c.note = kFreq;
         return c;
       }())},
       .routed = experts(),
       .dense = mlp(),
       .experts = with_default(routed_names, 256)},
      {.model_types = {"ernie4_5_vl_moe_text"},
       .layers = count(28),
       .sparse = {sparse_types(from_layer(1))},
       .routed = experts(),
       .shared = shared_if("moe_num_shared_experts", 2).with_bias_or_null("use_bias"),
       .dense = mlp().with_bias_or_null("use_bias"),
       // published files list the experts for text and for images
       .experts = {{"moe_num_experts", "num_experts"}, 64, false, true}},
      {.model_types = {"inkling_mm_model"}, .text = {"text_config"}, .inner = "inkling_text"},
      {.model_types = {"inkling_text"},
       .layers = count(66),
       .sparse = {sparse_types(from("dense_mlp_idx", 0))},
       .routed = experts(),
       .shared = shared_mlp(),
       .dense = mlp(),
       .experts = with_default(routed_names, 256)},
      {.model_types = {"mellum"},
       .layers = count(28),
       .sparse = {sparse_types(from_layer(0))},
       .routed = experts(),
       .dense = mlp(),
       .experts = with_default(local.names, 64)},
      {.model_types = {"muse_spark_text"},
       .layers = count(62),
       .sparse = {sparse_types(from_layer(0))},
       .routed = experts(),
       .dense = mlp(),
       .experts = with_default(num, 256)},

      // Qwen's rule
      {.model_types = {"qwen2_moe"},
       .layers = count(24),
       .sparse = qwen_sparse({"num_experts"}, 60, not_listed("mlp_only_layers")),
       .routed = experts(),
       .shared = shared_if("shared_expert_intermediate_size", 5632),
       .dense = mlp(),
       .experts = with_default(num, 60)},
      {.model_types = {"qwen3_moe"},
       .layers = count(24),
       .sparse = qwen_sparse(num, 128, not_listed("mlp_only_layers")),
       .routed = experts(),
       .dense = mlp(),
       .experts = with_default(num, 128)},
      {.model_types = {"qwen3_next"},
       .layers = count(48),
       .sparse = qwen_sparse({"num_experts"}, 512, not_listed("mlp_only_layers")),
       .routed = experts(),
       .shared = shared_if("shared_expert_intermediate_size", 512),
       .dense = mlp(),
       .experts = with_default(num, 512)},
      {.model_types = {"qwen3_vl_moe_text"},
       .layers = count(24),
       .sparse = qwen_sparse(num, 60, not_listed("mlp_only_layers")),
       .routed = experts(),
       .dense = mlp(),
       .experts = with_default(num, 60)},
      {.model_types = {"flint"},
       .layers = count(49),
       .sparse = qwen_sparse({"num_experts"}, 256,
                             [] {
                               Condition c = not_listed("mlp_only_layers");
                               c.otherwise = {exactly({0, 1})};
                               return c;
                             }()),
       .routed = experts(),
       .shared = shared_if("shared_expert_intermediate_size", 1024),
       .dense = mlp(),
       .experts = with_default(num, 256)},

      // beside its MLP, experts of one row each and without a gate
      {.model_types = {"doge"},
       .layers = count(32),
       .sparse = {flag("is_moe", false)},
       .routed = plain_experts(),
       .dense = mlp().with_bias("mlp_bias").in(Where::Every),
       .experts = with_default({"num_experts"}, 16384)},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

// ---- models around a text model -----------------------------------------------------------------

Family wrapper(Names types, std::string_view inner, bool flat = false) {
  return {.model_types = std::move(types), .text = {"text_config"}, .inner = inner, .flat = flat};
}

// The class has a text model of its own size where the file has none.
Family sized_wrapper(Names types, std::string_view inner, std::int64_t layers) {
  Family row = wrapper(std::move(types), inner);
  row.layers = count(layers);
  return row;
}

void add_wrappers(std::vector<Family>& out) {
  const std::vector<Family> rows = {
      wrapper({"deepseek_vl", "deepseek_vl_hybrid", "idefics3", "janus", "llava", "llava_next",
               "llava_next_video", "perception_lm", "smolvlm", "video_llava", "vipllava"},
              "llama"),
      wrapper({"audioflamingo3", "fast_vlm", "internvl", "llava_onevision", "musicflamingo",
               "ovis2", "qwen2_audio", "vibevoice_asr", "video_llama_3"},
              "qwen2"),
      wrapper({"qianfan_ocr"}, "qwen3"),
      wrapper({"idefics2"}, "mistral"),
      wrapper({"blip-2", "instructblip", "instructblipvideo"}, "opt"),
      wrapper({"aya_vision", "cohere2_vision"}, "cohere2"),
      wrapper({"glm46v", "glm4v", "glmga"}, "glm4v_text"),
      wrapper({"granite_speech", "granite_speech_plus"}, "granite"),
      wrapper({"minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "qwen3_5"}, "qwen3_5_text"),
      wrapper({"cosmos3_omni", "qwen3_vl"}, "qwen3_vl_text"),
      wrapper({"nemo_speechlm", "nemotron_h_omni"}, "nemotron_h"),
      sized_wrapper({"glmasr"}, "llama", 28),
      sized_wrapper({"voxtral"}, "llama", 30),
      wrapper({"modernvbert"}, "modernbert"),
      wrapper({"ultravbert"}, "ultrabert"),
      sized_wrapper({"mistral3"}, "mistral", 40),
      sized_wrapper({"got_ocr2", "pp_chart2table"}, "qwen2", 24),
      sized_wrapper({"fun_asr_nano", "lighton_ocr", "moss_transcribe_diarize", "qwen3_asr"},
                    "qwen3", 28),
      sized_wrapper({"paligemma"}, "gemma", 18),
      wrapper({"blip"}, "blip_text_model"),
      wrapper({"cohere_compass"}, "cohere_compass_text"),
      wrapper({"cosmos3_edge"}, "cosmos3_edge_text"),
      wrapper({"deepseek_ocr2"}, "deepseek_ocr2_text"),
      wrapper({"dots3_note"}, "dots3_note_text", true),
      wrapper({"emu3"}, "emu3_text_model"),
      wrapper({"ernie4_5_vl_moe"}, "ernie4_5_vl_moe_text"),
      wrapper({"exaone4_5"}, "exaone4"),
      wrapper({"florence2"}, "bart"),
      wrapper({"fuyu"}, "persimmon", true),
      wrapper({"gemma4_assistant"}, "gemma4_text"),
      wrapper({"gemma4_unified", "gemma4_unified_assistant"}, "gemma4_unified_text"),
      wrapper({"glm4v_moe"}, "glm4v_moe_text"),
      wrapper({"glm_ocr"}, "glm_ocr_text"),
      wrapper({"granite4_vision"}, "granite4_vision_text"),
      wrapper({"granite_docling"}, "granite_docling_text"),
      wrapper({"hunyuan_vl"}, "hunyuan_vl_text"),
      wrapper({"hyperclovax_vision_v2"}, "hyperclovax"),
      wrapper({"kimi_k25"}, "deepseek_v3"),
      wrapper({"kosmos-2"}, "kosmos_2_text_model"),
      wrapper({"kosmos-2.5"}, "kosmos_2_5_text_model"),
      wrapper({"lfm2_vl"}, "lfm2"),
      wrapper({"lfm3_vl"}, "lfm3"),
      wrapper({"mistral_large4"}, "mistral_large4_text"),
      wrapper({"mllama"}, "mllama_text_model"),
      wrapper({"molmo2"}, "molmo2_text"),
      wrapper({"muse_glimmer"}, "muse_glimmer_text"),
      wrapper({"muse_spark"}, "muse_spark_text"),
      wrapper({"paddleocr_vl"}, "paddleocr_vl_text", true),
      wrapper({"pix2struct"}, "pix2struct_text_model"),
      wrapper({"pp_formulanet"}, "pp_formulanet_text"),
      wrapper({"qwen2_5_omni_thinker"}, "qwen2_5_omni_text"),
      wrapper({"qwen2_5_vl"}, "qwen2_5_vl_text", true),
      wrapper({"qwen2_vl"}, "qwen2_vl_text", true),
      wrapper({"qwen3_5_moe"}, "qwen3_5_moe_text"),
      wrapper({"qwen3_vl_moe"}, "qwen3_vl_moe_text"),
      wrapper({"qwen4_exp"}, "qwen4_exp_text"),
      wrapper({"shieldgemma2"}, "gemma3_text"),
      wrapper({"unlimited_ocr"}, "unlimited_ocr_text"),
      wrapper({"voxtral_realtime"}, "voxtral_realtime_text"),
      {.model_types = {"qwen2_5_omni"},
       .text = {"thinker_config", "text_config"},
       .inner = "qwen2_5_omni_text"},
      {.model_types = {"pi0"},
       .text = {"vlm_config", "text_config"},
       .inner = "gemma",
       .layers = count(18)},
      {.model_types = {"vision-encoder-decoder", "speech-encoder-decoder"},
       .text = {"decoder"},
       .inner = "bert"},
      {.model_types = {"encoder-decoder"},
       .inner = "bert",
       .stacks = {{.name = "encoder", .path = {"encoder"}},
                  {.name = "decoder", .path = {"decoder"}}}},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

// ---- families that SGLang runs and transformers does not know -----------------------------------

// Read in SGLang 0.5.23 and in the models' published code; none of these was run. Where the rows
// give no number of layers, no default is known: the first layer stands for all.
void add_published(std::vector<Family>& out) {
  const std::string_view sglang = "published code, SGLang 0.5.23";
  const RoleRule separate_experts = experts().with(Pairing::Separate);
  // Absent, 0 or null: no limit.
  const Limit limit{.value = {.names = {"swiglu_limit"},
                              .parameter = "limit",
                              .is_limit = true,
                              .off = Off::Allowed},
                    .form = LimitForm::Before};
  const std::vector<Family> rows = {
      {.model_types = {"baichuan", "internlm2", "minicpm", "minicpm_sala", "orion", "xverse"},
       .layers = count(32),
       .dense = mlp(),
       .reference = sglang},
      {.model_types = {"mimo", "sdar", "iquestloopcoder", "jet_nemotron", "telechat2", "TeleFLM"},
       .layers = {},
       .dense = mlp(),
       .reference = sglang},
      {.model_types = {"nanbeige"}, .layers = count(22), .dense = mlp(), .reference = sglang},
      {.model_types = {"solar"},
       .layers = {},
       .dense = mlp().with_bias("mlp_bias"),
       .reference = sglang},
      {.model_types = {"exaone"},
       .layers = count(32, {"num_hidden_layers", "num_layers"}),
       .dense = mlp().reads("activation_function", "silu"),
       .reference = sglang},
      // no key: silu
      {.model_types = {"qwen"},
       .layers = count(32),
       .dense = mlp().always("silu"),
       .reference = sglang},
      {.model_types = {"chatglm"},
       .layers = count(28, {"num_hidden_layers", "num_layers"}),
       .dense = mlp().always("silu").with(Pairing::Concat).with_bias("add_bias_linear"),
       .reference = sglang},
      {.model_types = {"spark2_5"},
       .layers = count(28),
       .dense = mlp().always("gelu_tanh").with(Pairing::Concat),
       .reference = sglang},
      // quick gelu, clamped as in gpt-oss, under the name gegelu
      {.model_types = {"phi3small"},
       .layers = count(32),
       .dense = mlp()
                    .always("swiglu_oai")
                    .with(Pairing::Interleaved)
                    .with_bias()
                    .with_keys({.function = "swiglu_oai",
                                .values = {{.names = {"gegelu_limit"},
                                            .parameter = "limit",
                                            .fallback = 20.0,
                                            .is_limit = true,
                                            .reader = Reader::ReferenceOnly,
                                            .note = "SGLang 0.5.23 applies no limit"}}}),
       .published = {"gegelu"},
       .reference = sglang},
      {.model_types = {"nemotron-nas"},
       .layers = count(32),
       .dense = mlp(),
       .caution = "layers whose block_configs say ffn.no_op have no MLP; this is not resolved",
       .reference = sglang},

      // dots_vlm carries DeepSeek's keys at its top level
      {.model_types = {"deepseek", "dots_vlm"},
       .layers = count(30),
       .sparse = {positive("n_routed_experts", 0, true), from("first_k_dense_replace", 0),
                  multiple("moe_layer_freq", 1)},
       .routed = separate_experts,
       .shared = shared_mlp().when({positive("n_shared_experts", 0, true)}),
       .dense = mlp(),
       .experts = {{"n_routed_experts"}, std::nullopt, true},
       .reference = sglang},
      {.model_types = {"deepseek_v41"},
       .text = {"text_config"},
       .inner = "deepseek_v41_text",
       .inner_always = true,
       .flat = true,
       .reference = sglang},
      {.model_types = {"deepseek_v41_text"},
       .layers = {},
       .sparse = every_layer(),
       .routed = separate_experts.with_limit(limit),
       .shared = shared_mlp().with_limit(limit),
       .experts = {{"n_routed_experts"}, std::nullopt, true},
       .reference = sglang},
      // SGLang applies a swiglu_limit in some runners only, so a config that has one is refused
      {.model_types = {"gigachat3_5"},
       .layers = count(12),
       .sparse = {from("first_k_dense_replace", 1), multiple("moe_layer_freq", 1)},
       .routed = separate_experts,
       .shared = shared_mlp().when({positive("n_shared_experts", 2, true)}),
       .dense = mlp(),
       .experts = {{"n_routed_experts"}, 64, true},
       .reference = sglang},
      {.model_types = {"llada2_moe"},
       .layers = {},
       .sparse = {from("first_k_dense_replace", 0)},
       .routed = separate_experts,
       .shared = shared_mlp().when({positive("num_shared_experts", 0, true)}).with_bias("use_bias"),
       .dense = mlp().with_bias("use_bias"),
       .experts = {{"num_experts"}, std::nullopt, true},
       .reference = sglang},
      {.model_types = {"sarvam_moe", "sarvam_mla_moe"},
       .layers = {},
       .sparse = {from("first_k_dense_replace", 1)},
       .routed = separate_experts,
       .shared = shared_mlp().when({positive("num_shared_experts", 0, true)}),
       .dense = mlp(),
       .experts = {{"num_experts"}, std::nullopt, true},
       .reference = sglang},
      {.model_types = {"xverse_moe"},
       .layers = {},
       .sparse = every_layer(),
       .routed = separate_experts,
       .shared = shared_mlp().when({positive("num_shared_experts", 0, true)}),
       .experts = {{"num_experts"}, std::nullopt, true},
       .reference = sglang},
      {.model_types = {"sdar_moe"},
       .layers = {},
       .sparse = qwen_sparse({"num_experts"}, 128, not_listed("mlp_only_layers")),
       .routed = separate_experts,
       .dense = mlp(),
       .experts = {{"num_experts"}, 128},
       .reference = sglang},
      {.model_types = {"xllm", "k2_horizon"},
       .layers = {},
       .sparse = qwen_sparse({"num_experts"}, 0, not_listed("mlp_only_layers")),
       .routed = separate_experts,
       .shared = shared_mlp().when({positive("num_shared_experts", 0, true)}),
       .dense = mlp(),
       .experts = {{"num_experts"}, std::nullopt, true},
       .reference = sglang},
      {.model_types = {"iquest_q1"},
       .layers = count(88),
       .sparse = {[] {
         Condition c = not_listed("mlp_only_layers");
         c.otherwise = {exactly({0})};
         return c;
       }()},
       .routed = separate_experts,
       .dense = mlp(),
       .experts = {{"num_experts"}, 256},
       .reference = sglang},
      {.model_types = {"interns2_mobius_text"},
       .layers = {},
       .sparse = every_layer(),
       .routed = separate_experts,
       .shared = shared_mlp(),
       .experts = {{"num_experts"}, std::nullopt, true},
       .reference = sglang},
      {.model_types = {"step3_text"},
       .layers = count(61),
       .sparse = {listed("moe_layers_enum",
                         {from_layer(4), {.kind = Condition::Kind::Before, .fallback = 60}})},
       .routed = experts().always("silu").with(Pairing::Separate),
       .shared = shared_mlp().always("silu"),
       .dense = mlp().always("silu"),
       .experts = {{"moe_num_experts"}, 48},
       .reference = sglang},

      {.model_types = {"step3_vl"},
       .text = {"text_config"},
       .inner = "step3_text",
       .reference = sglang},
      {.model_types = {"interns2_mobius"},
       .text = {"text_config"},
       .inner = "interns2_mobius_text",
       .reference = sglang},
      {.model_types = {"kimi_vl"},
       .text = {"text_config"},
       .inner = "deepseek_v3",
       .reference = sglang},
      {.model_types = {"deepseek_vl_v2", "deepseek-ocr"},
       .text = {"language_config"},
       .inner = "deepseek_v2",
       .reference = sglang},
      {.model_types = {"multi_modality"},
       .text = {"language_config"},
       .inner = "llama",
       .reference = sglang},
      {.model_types = {"NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3"},
       .text = {"llm_config"},
       .inner = "nemotron_h",
       .reference = sglang},
  };
  out.insert(out.end(), rows.begin(), rows.end());
}

}  // namespace

const std::vector<Family>& plain_families() {
  static const std::vector<Family> table = [] {
    std::vector<Family> rows;
    for (auto* add : {add_gated, add_plain, add_encoder_decoders, add_hybrids, add_experts,
                      add_wrappers, add_published}) {
      add(rows);
    }
    return rows;
  }();
  return table;
}

}  // namespace flexact::config
