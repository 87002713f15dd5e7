// config.json → exactly one activation for each layer and role, with the key each fact came from;
// or an error that names the key, the value and what is allowed. docs/configuration.md states the
// rules.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flexact/activation.hpp"

namespace flexact {

// How the gate and up projections lie in memory.
enum class Pairing {
  Concat,       // gate rows, then up rows
  UpFirst,      // up rows, then gate rows
  Interleaved,  // g0, u0, g1, u1, …
  Separate,     // two tensors
  None,         // unary: there is no gate
};

enum class Role { Routed, Shared, Dense };

// "concat", "up_first", "interleaved", "separate", "none"; "routed", "shared", "dense"; "unknown"
// for a value that is none of them.
std::string_view to_string(Pairing pairing) noexcept;
std::string_view to_string(Role role) noexcept;
// The inverse. Throws InvalidArgument naming what is allowed.
Pairing parse_pairing(std::string_view text);
Role parse_role(std::string_view text);

// What one role of one layer computes.
struct ResolvedActivation {
  Activation activation;  // lifted to f(g) * u where the layer is gated
  std::string name;       // catalogue name ("swiglu", "swish_glu", …) or "expr"
  bool gated = true;
  Pairing pairing = Pairing::Concat;
  bool transposed = false;  // weights stored [E, H, 2I] and [E, I, H]
  bool bias = false;
  std::string from;  // JSON pointers and defaults that decided, e.g. "/hidden_act"
};

struct LayerActivations {
  std::int64_t index = 0;
  std::optional<ResolvedActivation> routed;
  std::optional<ResolvedActivation> shared;
  std::optional<ResolvedActivation> dense;

  const std::optional<ResolvedActivation>& role(Role role) const noexcept;
};

struct ModelActivations {
  std::string model_type;
  std::vector<LayerActivations> layers;
  std::vector<std::string> warnings;
  // False where the config does not say how many layers there are or which have which role; then
  // layers[0] stands for every layer.
  bool layers_known = true;

  // The JSON of `flexact explain --json`.
  std::string to_json(int indent = -1) const;
};

struct ResolveOptions {
  // JSON object merged over the file, as a serving engine's override argument is. Empty: none.
  std::string overrides;
  // Another stack whose names are meant ("vllm", "ggml", "flashinfer", "sglang", …). Empty:
  // transformers' names.
  std::string from_stack;
};

// `path` is a model folder or a config file. Throws ConfigError with a JSON pointer, IoError.
ModelActivations resolve_config(const std::filesystem::path& path,
                                const ResolveOptions& options = {});
// The same for JSON text: strict UTF-8 JSON, one object, depth ≤ 128.
ModelActivations resolve_config_text(std::string_view json, const ResolveOptions& options = {});

// The stacks that `from_stack` admits.
std::vector<std::string> known_stacks();
// The catalogue function that `stack` means by `name`, or by its own names where `stack` is empty.
Function function_from_stack(std::string_view name, std::string_view stack);

}  // namespace flexact
