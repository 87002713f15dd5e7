#include "config/keys.hpp"

#include <algorithm>
#include <array>

#include "config/names.hpp"

namespace flexact::config {

namespace {

template <std::size_t N>
bool among(const std::array<std::string_view, N>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Formula keys that the patterns below would not catch.
constexpr std::array<std::string_view, 2> kFormulaKeys = {"activation_params",
                                                          "activation_sparsity_pattern"};
// A key with one of these words is about an activation …
constexpr std::array<std::string_view, 13> kActivationWords = {
    "act",   "activation", "swiglu", "swigluoai", "geglu", "reglu", "silu",
    "swish", "gelu",       "relu",   "leaky",     "situ",  "gemm1"};
// … or, with a limit, about the MLP that has one.
constexpr std::array<std::string_view, 8> kMlpWords = {"mlp",    "ffn",     "gate", "up",
                                                       "expert", "experts", "moe",  "glu"};
constexpr std::array<std::string_view, 9> kLimitWords = {
    "limit", "limits", "clamp", "clip", "softcap", "softcaps", "softcapping", "cap", "threshold"};
constexpr std::array<std::string_view, 9> kNumberWords = {
    "alpha", "beta", "slope", "sparsity", "params", "alphas", "betas", "gamma", "temperature"};
// Words of other parts of a model, and of training and quantisation.
constexpr std::array<std::string_view, 46> kOtherParts = {
    "mamba",         "vision",     "visual",     "image",    "audio",   "speech",  "video",
    "projector",     "projection", "multimodal", "mm",       "adapter", "attn",    "attention",
    "router",        "routed",     "aux",        "loss",     "lora",    "logit",   "logits",
    "final",         "ssm",        "conv",       "dt",       "time",    "rope",    "norm",
    "topk",          "group",      "capacity",   "query",    "pooler",  "summary", "classifier",
    "head",          "talker",     "token2wav",  "code2wav", "dropout", "quant",   "scale",
    "checkpointing", "offload",    "qk",         "kv"};

std::vector<std::string_view> words_of(std::string_view key) {
  std::vector<std::string_view> words;
  while (true) {
    const std::size_t end = key.find('_');
    words.push_back(key.substr(0, end));
    if (end == std::string_view::npos) return words;
    key.remove_prefix(end + 1);
  }
}

template <std::size_t N>
bool any_of(const std::vector<std::string_view>& words,
            const std::array<std::string_view, N>& set) {
  return std::any_of(words.begin(), words.end(),
                     [&](std::string_view word) { return among(set, word); });
}

}  // namespace

const std::vector<std::string_view>& name_keys() {
  static const std::vector<std::string_view> keys = {"hidden_act",
                                                     "hidden_activation",
                                                     "activation_function",
                                                     "mlp_hidden_act",
                                                     "activation",
                                                     "activation_fn",
                                                     "act_fn",
                                                     "afn",
                                                     "dense_act_fn",
                                                     "ffn_act_fn",
                                                     "hidden_act_fn",
                                                     "ffn_activation",
                                                     "mlp_activation",
                                                     "mlp_act",
                                                     "ffn_hidden_act",
                                                     "expert_act",
                                                     "expert_activation",
                                                     "moe_activation",
                                                     "hidden_activation_function",
                                                     "ff_activation"};
  return keys;
}

bool is_limit_key(std::string_view key) {
  return any_of(words_of(key), kLimitWords);
}

KeyKind classify_key(std::string_view key, const json::Value& value) {
  if (among(kFormulaKeys, key)) return KeyKind::Formula;
  if (key == "feed_forward_proj") return KeyKind::Name;
  if (std::find(name_keys().begin(), name_keys().end(), key) != name_keys().end())
    return KeyKind::Name;
  const std::vector<std::string_view> words = words_of(key);
  // "share_expert_swiglu_limit_list" is a limit although "routed" and "expert" are everywhere.
  const bool about_activation = any_of(words, kActivationWords);
  if (any_of(words, kOtherParts)) return KeyKind::Other;
  if (about_activation && (any_of(words, kLimitWords) || any_of(words, kNumberWords)))
    return KeyKind::Formula;
  if (any_of(words, kMlpWords) && any_of(words, kLimitWords)) return KeyKind::Formula;
  // An unknown spelling of the name's key shows itself by its value.
  const std::string* text = value.string();
  if (about_activation && text != nullptr && looks_like_activation(*text)) return KeyKind::Name;
  return KeyKind::Other;
}

}  // namespace flexact::config
