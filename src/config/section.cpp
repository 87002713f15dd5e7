#include "config/section.hpp"

#include <algorithm>
#include <charconv>

namespace flexact::config {

using Kind = Condition::Kind;

Error config_error(std::string message, std::string where, std::string hint) {
  return Error(ErrorCode::ConfigError, std::move(message), std::move(where), std::move(hint));
}

namespace {

Error wrong_type(const Found& found, std::string_view expected) {
  return config_error(
      "expected " + std::string(expected) + ", found " + json::described(*found.value),
      found.pointer);
}

std::int64_t to_integer(const Found& found) {
  const json::Number* n = found.value->number();
  if (n == nullptr || !n->integral) throw wrong_type(found, "an integer");
  if (!n->fits) throw config_error("the integer is too large", found.pointer);
  return n->integer;
}

Found element(const Found& list, std::size_t index) {
  return {&(*list.value->array())[index], json::join(list.pointer, index)};
}

}  // namespace

void Warnings::add(std::string_view where, std::string_view text) {
  std::string line(where);
  if (!line.empty()) line += ": ";
  line += text;
  if (constexpr std::size_t kLongest = 4096; line.size() > kLongest) {
    std::size_t cut = kLongest;
    while (cut > 0 && (static_cast<unsigned char>(line[cut]) & 0xC0u) == 0x80u) --cut;
    line.replace(cut, std::string::npos, "…");
  }
  if (seen_.insert(line).second) list_.push_back(std::move(line));
}

Section::Section(const json::Value& object, std::string pointer)
    : object_(&object), pointer_(std::move(pointer)) {
  check_members(object, pointer_);
}

void check_members(const json::Value& object, const std::string& pointer) {
  const std::size_t count = object.object()->size();
  if (count > kMaxMembers) {
    throw config_error("has " + std::to_string(count) + " keys", pointer,
                       "a model's config has at most " + std::to_string(kMaxMembers));
  }
}

Found Section::find(std::string_view path) const {
  const json::Value* at = object_;
  std::string pointer = pointer_;
  while (true) {
    const std::size_t slash = path.find('/');
    const std::string_view key = path.substr(0, slash);
    const json::Value* next = at->find(key);
    pointer = json::join(pointer, key);
    if (next == nullptr) return {nullptr, std::move(pointer)};
    if (slash == std::string_view::npos) return {next, std::move(pointer)};
    if (next->is_null()) return {nullptr, std::move(pointer)};
    if (next->object() == nullptr) throw wrong_type({next, pointer}, "an object");
    at = next;
    path.remove_prefix(slash + 1);
  }
}

Found Section::find_first(const std::vector<std::string_view>& names) const {
  Found null;
  for (std::string_view name : names) {
    Found found = find(name);
    if (found && !found.value->is_null()) return found;
    if (found && !null) null = std::move(found);
  }
  if (null || names.empty()) return null;
  return {nullptr, find(names.front()).pointer};
}

std::optional<std::int64_t> Section::integer(const std::vector<std::string_view>& names,
                                             bool nullable) const {
  const Found found = find_first(names);
  if (!found || (nullable && found.value->is_null())) return std::nullopt;
  return to_integer(found);
}

std::optional<bool> Section::boolean(const std::vector<std::string_view>& names,
                                     bool nullable) const {
  const Found found = find_first(names);
  if (!found || (nullable && found.value->is_null())) return std::nullopt;
  const bool* value = found.value->boolean();
  if (value == nullptr) throw wrong_type(found, "true or false");
  return *value;
}

void check_layer_list(std::size_t length, std::int64_t layers, const Section& section,
                      const std::string& pointer, Warnings& warnings) {
  const auto size = static_cast<std::int64_t>(length);
  if (size < layers) {
    throw config_error("the list has " + std::to_string(size) + " entries for " +
                           std::to_string(layers) + " layers",
                       pointer, "one entry for each layer, from layer 0");
  }
  if (size == layers) return;
  const auto mtp = section.integer({"num_nextn_predict_layers", "num_mtp_layers"}, true);
  if (mtp.value_or(0) == size - layers) return;
  warnings.add(pointer, "the list has " + std::to_string(size) + " entries for " +
                            std::to_string(layers) + " layers; the last " +
                            std::to_string(size - layers) + " are not used");
}

std::optional<std::int64_t> layer_count(const LayerCount& rule, const Section& section) {
  const auto checked = [](std::int64_t n, const std::string& pointer) {
    if (n < 0 || n > kMaxLayers) {
      throw config_error("the model cannot have " + std::to_string(n) + " layers", pointer,
                         "0 to " + std::to_string(kMaxLayers));
    }
    return n;
  };
  const Found list = section.find_first(rule.length_of);
  if (list && !list.value->is_null()) {
    if (const json::Array* a = list.value->array()) {
      return checked(static_cast<std::int64_t>(a->size()), list.pointer);
    }
    if (const std::string* s = list.value->string()) {
      return checked(static_cast<std::int64_t>(s->size()), list.pointer);
    }
    throw wrong_type(list, "a list or a string with one entry for each layer");
  }
  if (rule.names.empty()) return rule.fallback;
  const Found found = section.find_first(rule.names);
  // Only a later spelling's default can stand for null (num_decoder_layers in T5).
  if (!found || (found.value->is_null() && rule.names.size() > 1)) return rule.fallback;
  return checked(to_integer(found), found.pointer);
}

namespace {

class Evaluator {
 public:
  Evaluator(std::int64_t layers, const Section& section, Warnings& warnings)
      : layers_(layers), section_(section), warnings_(warnings) {}

  std::vector<bool> all(const std::vector<Condition>& conditions) const {
    std::vector<bool> result(static_cast<std::size_t>(layers_), true);
    for (const Condition& condition : conditions) {
      const std::vector<bool> holds = one(condition);
      for (std::size_t i = 0; i < result.size(); ++i) result[i] = result[i] && holds[i];
    }
    return result;
  }

 private:
  std::vector<bool> one(const Condition& c) const {
    std::vector<bool> holds = positive(c);
    if (c.negated) holds.flip();
    return holds;
  }

  template <typename Test>
  std::vector<bool> each(Test test) const {
    std::vector<bool> result(static_cast<std::size_t>(layers_));
    for (std::int64_t i = 0; i < layers_; ++i) result[static_cast<std::size_t>(i)] = test(i);
    return result;
  }

  std::vector<bool> positive(const Condition& c) const {
    if (c.kind == Kind::Any) return any(c.otherwise);
    const Found found = section_.find_first(c.keys);
    const bool absent = !found || (c.nullable && found.value->is_null());
    if (!absent && !c.note.empty() &&
        !(found.value->number() &&
          found.value->number()->value == static_cast<double>(c.fallback.value_or(0)))) {
      warnings_.add(found.pointer, c.note);
    }
    if (absent && !c.otherwise.empty()) return all(c.otherwise);
    switch (c.kind) {
      case Kind::From: {
        const std::int64_t first = number(c, found, absent);
        return each([&](std::int64_t i) { return i >= first; });
      }
      case Kind::Before: {
        const std::int64_t end = number(c, found, absent);
        return each([&](std::int64_t i) { return i < end; });
      }
      case Kind::UpTo: {
        const std::int64_t last = number(c, found, absent);
        return each([&](std::int64_t i) { return i <= last || last == -1; });
      }
      case Kind::Multiple: {
        if (!absent && found.value->array()) return flags(found);
        const std::int64_t step = counted(c, found, absent);
        return each([&](std::int64_t i) { return step > 0 && (i + c.shift) % step == 0; });
      }
      case Kind::Phase: {
        const std::int64_t period = counted(c, found, absent);
        const std::int64_t offset = section_.integer(c.other, true).value_or(c.other_fallback);
        return each([&](std::int64_t i) {
          return period > 0 && i >= c.shift && (i - c.shift) % period == offset;
        });
      }
      case Kind::Step: {
        const std::int64_t sparse = counted(c, found, absent);
        const std::int64_t step =
            section_.integer(c.other, false).value_or(sparse > 0 ? layers_ / sparse : layers_);
        return each([&](std::int64_t i) { return step == 1 || (step > 0 && i % step == 1); });
      }
      case Kind::Listed:
        return absent ? each([](std::int64_t) { return false; }) : listed(found);
      case Kind::Typed:
        return absent ? each([](std::int64_t) { return false; }) : typed(c, found);
      case Kind::Letter:
        return absent ? each([](std::int64_t) { return false; }) : letter(c, found);
      case Kind::Above: {
        if (!absent && found.value->array()) return above_list(c, found);
        const bool is_null = found && absent;  // says "none", whatever the default is
        const std::int64_t n = is_null ? 0 : number(c, found, absent);
        return std::vector<bool>(static_cast<std::size_t>(layers_), n > c.shift);
      }
      case Kind::Flag: {
        const bool set = absent ? c.fallback.value_or(0) != 0 : section_.boolean(c.keys).value();
        return std::vector<bool>(static_cast<std::size_t>(layers_), set);
      }
      case Kind::Exactly:
        return each([&](std::int64_t i) {
          return std::find(c.layers.begin(), c.layers.end(), i) != c.layers.end();
        });
      case Kind::Any:
        break;
    }
    return {};
  }

  std::vector<bool> any(const std::vector<Condition>& alternatives) const {
    std::vector<bool> result(static_cast<std::size_t>(layers_), false);
    for (const Condition& alternative : alternatives) {
      const std::vector<bool> holds = one(alternative);
      for (std::size_t i = 0; i < result.size(); ++i) result[i] = result[i] || holds[i];
    }
    return result;
  }

  // A list with a boolean, or an integer that stands for one, for each layer.
  std::vector<bool> flags(const Found& found) const {
    check_layer_list(found.value->array()->size(), layers_, section_, found.pointer, warnings_);
    return each([&](std::int64_t i) {
      const Found entry = element(found, static_cast<std::size_t>(i));
      if (const bool* b = entry.value->boolean()) return *b;
      return to_integer(entry) != 0;
    });
  }

  std::int64_t number(const Condition& c, const Found& found, bool absent) const {
    return absent ? c.fallback.value_or(0) : to_integer(found);
  }
  std::int64_t counted(const Condition& c, const Found& found, bool absent) const {
    const std::int64_t n = number(c, found, absent);
    if (n < 0) throw config_error("must not be negative", found.pointer);
    return n;
  }

  // A list of layer numbers, or their text with commas between.
  std::vector<bool> listed(const Found& found) const {
    std::vector<bool> holds(static_cast<std::size_t>(layers_), false);
    const auto mark = [&](std::int64_t layer) {
      if (layer >= 0 && layer < layers_) holds[static_cast<std::size_t>(layer)] = true;
    };
    if (const json::Array* list = found.value->array()) {
      for (std::size_t i = 0; i < list->size(); ++i) mark(to_integer(element(found, i)));
      return holds;
    }
    const std::string* text = found.value->string();
    if (text == nullptr) throw wrong_type(found, "a list of layer numbers");
    std::string_view rest = *text;
    while (!rest.empty()) {
      std::string_view part = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(rest.size(), part.size() + 1));
      while (!part.empty() && part.front() == ' ') part.remove_prefix(1);
      while (!part.empty() && part.back() == ' ') part.remove_suffix(1);
      if (part.empty()) continue;
      std::int64_t layer = -1;
      const auto [end, failure] = std::from_chars(part.data(), part.data() + part.size(), layer);
      if (failure != std::errc() || end != part.data() + part.size() || layer < 0) {
        throw config_error("is not a list of layer numbers: " + json::quote(part), found.pointer);
      }
      mark(layer);
    }
    return holds;
  }

  static bool among(const std::vector<std::string_view>& words, std::string_view word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  }

  bool matches(const Condition& c, std::string_view word, const std::string& pointer) const {
    if (among(c.values, word)) return true;
    if (!c.others.empty() && !among(c.others, word)) {
      std::string allowed;
      for (const auto* words : {&c.values, &c.others}) {
        for (std::string_view w : *words) allowed += (allowed.empty() ? "" : ", ") + std::string(w);
      }
      throw config_error("unknown kind of layer " + json::quote(word), pointer,
                         "one of " + allowed);
    }
    return false;
  }

  std::vector<bool> typed(const Condition& c, const Found& found) const {
    const json::Array* list = found.value->array();
    if (list == nullptr) throw wrong_type(found, "a list with one entry for each layer");
    check_layer_list(list->size(), layers_, section_, found.pointer, warnings_);
    return each([&](std::int64_t i) {
      const Found entry = element(found, static_cast<std::size_t>(i));
      if (const std::string* s = entry.value->string()) return matches(c, *s, entry.pointer);
      if (const bool* b = entry.value->boolean())
        return matches(c, *b ? "true" : "false", entry.pointer);
      return matches(c, std::to_string(to_integer(entry)), entry.pointer);
    });
  }

  std::vector<bool> letter(const Condition& c, const Found& found) const {
    const std::string* text = found.value->string();
    if (text == nullptr) throw wrong_type(found, "a string with one character for each layer");
    check_layer_list(text->size(), layers_, section_, found.pointer, warnings_);
    return each([&](std::int64_t i) {
      return matches(c, std::string_view(*text).substr(static_cast<std::size_t>(i), 1),
                     found.pointer);
    });
  }

  std::vector<bool> above_list(const Condition& c, const Found& found) const {
    check_layer_list(found.value->array()->size(), layers_, section_, found.pointer, warnings_);
    return each([&](std::int64_t i) {
      return to_integer(element(found, static_cast<std::size_t>(i))) > c.shift;
    });
  }

  std::int64_t layers_;
  const Section& section_;
  Warnings& warnings_;
};

}  // namespace

std::vector<bool> layers_where(const std::vector<Condition>& conditions, std::int64_t layers,
                               const Section& section, Warnings& warnings) {
  return Evaluator(layers, section, warnings).all(conditions);
}

bool could_hold(const std::vector<Condition>& conditions, const Section& section,
                Warnings& warnings) {
  for (const Condition& c : conditions) {
    // These two do not depend on the layer; of the others some layer may be true.
    const bool fixed = c.kind == Kind::Flag || c.kind == Kind::Above;
    if (fixed && !layers_where({c}, 1, section, warnings).front()) return false;
  }
  return true;
}

}  // namespace flexact::config
