// The catalogue: the one list of activations in this project. A new activation is a new row.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flexact/activation.hpp"

namespace flexact::activation {

// Another spelling of a function's name.
struct Alias {
  std::string name;
  // Who spells it so: "transformers", "torch", "vllm", "sglang", "flashinfer", "ggml", "kt-kernel".
  std::string stack;
  // Accepted everywhere. Otherwise only where that stack's names are asked for: the same word means
  // something else, or differs only in letter case, elsewhere.
  bool plain = true;
};

struct CatalogueEntry {
  std::string name;
  // In the expression language; reads g and u where the function is natively gated.
  std::string formula;
  std::vector<Parameter> parameters;
  std::vector<Alias> aliases;
  // One line for people.
  std::string summary;
  // Where the formula comes from: a class, a paper, a model.
  std::string source;
  // Never renumbered: what a plugin of another stack may pass as an integer.
  std::optional<int> id = std::nullopt;
  // Where this parameter is left out, the named function is meant.
  std::string optional_parameter = {};
  std::string without_it = {};
};

// Every row, in the order in which `flexact list` shows them.
const std::vector<CatalogueEntry>& catalogue();

// The row of this name or plain alias; null where there is none. Letter case matters.
const CatalogueEntry* find_entry(std::string_view name);
// The row that `stack` means by `name`; null where it has none.
const CatalogueEntry* find_entry(std::string_view name, std::string_view stack);
// The row with this frozen id; null where there is none.
const CatalogueEntry* find_entry(int id);
// The stacks that have names of their own here, each once.
const std::vector<std::string>& stacks();

}  // namespace flexact::activation
