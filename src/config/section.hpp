// One object of a config and typed access to its keys. Every read states the type that the family
// declares; another type is an error with the key's JSON pointer.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/family.hpp"
#include "config/json.hpp"
#include "flexact/error.hpp"

namespace flexact::config {

// Layers of a model; more is no model, and would only cost memory.
inline constexpr std::int64_t kMaxLayers = 16384;

// Keys of one level of a config; published ones have less than 200. Every reader of a key looks
// through all of them.
inline constexpr std::size_t kMaxMembers = 4096;

// Throws where `object` has more of them.
void check_members(const json::Value& object, const std::string& pointer);

Error config_error(std::string message, std::string where, std::string hint = {});

// Warnings in order of discovery, each once.
class Warnings {
 public:
  void add(std::string_view where, std::string_view text);
  const std::vector<std::string>& list() const noexcept { return list_; }

 private:
  std::vector<std::string> list_;
  std::set<std::string> seen_;
};

struct Found {
  const json::Value* value = nullptr;  // null: absent
  std::string pointer;
  explicit operator bool() const noexcept { return value != nullptr; }
};

class Section {
 public:
  // Throws where the object has more keys than any model's config.
  Section(const json::Value& object, std::string pointer);

  const json::Value& object() const noexcept { return *object_; }
  const std::string& pointer() const noexcept { return pointer_; }

  // `path` is a key or a path into nested objects ("ffn_config/ffn_act_fn/name").
  Found find(std::string_view path) const;
  // The first of several spellings that is present.
  Found find_first(const std::vector<std::string_view>& names) const;

  // Absent: nullopt. null: nullopt where `nullable`, else an error.
  std::optional<std::int64_t> integer(const std::vector<std::string_view>& names,
                                      bool nullable) const;
  std::optional<bool> boolean(const std::vector<std::string_view>& names,
                              bool nullable = false) const;

 private:
  const json::Value* object_;
  std::string pointer_;
};

// Where a per-layer list is longer than the model: a warning, unless the excess is the number of
// multi-token-prediction layers. Shorter: an error.
void check_layer_list(std::size_t length, std::int64_t layers, const Section& section,
                      const std::string& pointer, Warnings& warnings);

// The number of layers; nullopt where neither the config nor the class says.
std::optional<std::int64_t> layer_count(const LayerCount& rule, const Section& section);
// In which of `layers` layers all conditions hold.
std::vector<bool> layers_where(const std::vector<Condition>& conditions, std::int64_t layers,
                               const Section& section, Warnings& warnings);
// Whether the conditions could hold in some layer of a model whose layers are unknown.
bool could_hold(const std::vector<Condition>& conditions, const Section& section,
                Warnings& warnings);

}  // namespace flexact::config
