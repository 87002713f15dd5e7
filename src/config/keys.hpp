// What a key is that no rule has read: the name of an activation, a number that would change a
// formula, a part of another model, or none of our business.
#pragma once

#include <string_view>

#include "config/json.hpp"

namespace flexact::config {

enum class KeyKind {
  Other,
  Name,     // names an activation, or would in another family
  Formula,  // a limit, an alpha, a list: changes the formula where it is read
};

KeyKind classify_key(std::string_view key, const json::Value& value);
// The spellings under which some family reads a name, the usual one first.
const std::vector<std::string_view>& name_keys();
bool is_limit_key(std::string_view key);

}  // namespace flexact::config
