#include "config/json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "activation/utf8.hpp"
#include "flexact/error.hpp"

namespace flexact::config::json {

using activation::utf8_length;

const Value* Value::find(std::string_view key) const noexcept {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  for (const auto& [name, value] : *members) {
    if (name == key) return &value;
  }
  return nullptr;
}

Value* Value::find(std::string_view key) noexcept {
  return const_cast<Value*>(static_cast<const Value*>(this)->find(key));
}

void Value::set(std::string_view key, Value value) {
  if (Value* present = find(key)) {
    *present = std::move(value);
  } else {
    std::get<Object>(data_).emplace_back(std::string(key), std::move(value));
  }
}

std::string_view Value::type_name() const noexcept {
  if (is_null()) return "null";
  if (boolean()) return "a boolean";
  if (const Number* n = number()) return n->integral ? "an integer" : "a number";
  if (string()) return "a string";
  return array() ? "a list" : "an object";
}

bool operator==(const Value& a, const Value& b) {
  if (a.data_.index() != b.data_.index()) return false;
  if (const bool* x = a.boolean()) return *x == *b.boolean();
  if (const Number* x = a.number()) {
    const Number* y = b.number();
    return x->fits && y->fits ? x->integer == y->integer : x->value == y->value;
  }
  if (const std::string* x = a.string()) return *x == *b.string();
  if (const Array* x = a.array()) return *x == *b.array();
  if (const Object* x = a.object()) {
    const Object* y = b.object();
    if (x->size() != y->size()) return false;
    // Large objects are rare; an index keeps the comparison from being quadratic.
    std::unordered_map<std::string_view, const Value*> index;
    for (const auto& [key, value] : *y) index.emplace(key, &value);
    for (const auto& [key, value] : *x) {
      const auto found = index.find(key);
      if (found == index.end() || !(*found->second == value)) return false;
    }
  }
  return true;
}

std::string join(std::string_view pointer, std::string_view key) {
  std::string result(pointer);
  result += '/';
  for (char c : key) {
    if (c == '~') {
      result += "~0";
    } else if (c == '/') {
      result += "~1";
    } else {
      result += c;
    }
  }
  return result;
}

std::string join(std::string_view pointer, std::size_t index) {
  return std::string(pointer) + '/' + std::to_string(index);
}

namespace {

constexpr std::size_t kBriefLength = 60;
constexpr std::string_view kInfinity = "Infinity";

void append_utf8(std::string& out, unsigned code) {
  const auto put = [&](unsigned byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

// Of keys that occur twice, so many are named one by one.
constexpr std::size_t kMaxRepeated = 20;

class Parser {
 public:
  Parser(std::string_view text, std::string_view what) : text_(text), what_(what) {}

  Document run() {
    Document document;
    if (text_.size() > kMaxBytes) throw error("is larger than 256 MiB", 0);
    if (text_.substr(0, 3) == "\xEF\xBB\xBF") {
      at_ = 3;
      warn("the " + what_ + " begins with a byte-order mark, which transformers refuses");
    }
    skip_space();
    if (at_ == text_.size()) throw error("is empty", at_);
    if (text_[at_] != '{') throw error("is not a JSON object", at_);
    document.root = value();
    if (repeated_ > kMaxRepeated) {
      warn(std::to_string(repeated_ - kMaxRepeated) + " more keys occur twice with the same value");
    }
    skip_space();
    if (at_ != text_.size()) throw error("has text after the JSON object", at_);
    document.warnings = std::move(warnings_);
    return document;
  }

 private:
  Error error(const std::string& message, std::size_t offset, std::string hint = {}) const {
    std::size_t line = 1;
    std::size_t start = 0;
    for (std::size_t i = 0; i < offset && i < text_.size(); ++i) {
      if (text_[i] == '\n') {
        ++line;
        start = i + 1;
      }
    }
    return Error(ErrorCode::ConfigError, "the " + what_ + ' ' + message,
                 "line " + std::to_string(line) + ", column " + std::to_string(offset - start + 1),
                 std::move(hint));
  }

  void warn(std::string text) { warnings_.push_back(std::move(text)); }

  void skip_space() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c != ' ' && c != '\n' && c != '\t' && c != '\r') break;
      ++at_;
    }
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  Error unexpected() const {
    if (at_ >= text_.size()) return error("ends in the middle of a value", at_);
    if (peek() == '/') return error("has a comment, which JSON does not have", at_);
    return error("is not JSON here: unexpected " + quote(text_.substr(at_, 12)), at_);
  }

  Value value() {
    if (++values_ > kMaxValues) {
      throw error("has more than " + std::to_string(kMaxValues) + " values", at_);
    }
    switch (peek()) {
      case '{':
        return nested([&] { return object(); });
      case '[':
        return nested([&] { return array(); });
      case '"':
        return Value(string());
      case 't':
        return literal("true", Value(true));
      case 'f':
        return literal("false", Value(false));
      case 'n':
        return text_.substr(at_, 3) == "nan" ? number() : literal("null", Value());
      default:
        return number();
    }
  }

  template <typename Body>
  Value nested(Body body) {
    if (++depth_ > kMaxDepth) {
      throw error("nests deeper than " + std::to_string(kMaxDepth) + " levels", at_);
    }
    Value result = body();
    --depth_;
    return result;
  }

  Value literal(std::string_view word, Value result) {
    if (text_.substr(at_, word.size()) != word) throw unexpected();
    at_ += word.size();
    return result;
  }

  Value array() {
    Array elements;
    ++at_;
    skip_space();
    if (peek() == ']') {
      ++at_;
      return Value(std::move(elements));
    }
    while (true) {
      path_.push_back({nullptr, elements.size()});
      elements.push_back(value());
      path_.pop_back();
      skip_space();
      if (peek() == ',') {
        ++at_;
        skip_space();
        if (peek() == ']') throw error("has a trailing comma", at_ - 1);
      } else if (peek() == ']') {
        ++at_;
        return Value(std::move(elements));
      } else {
        throw unexpected();
      }
    }
  }

  Value object() {
    Object members;
    std::unordered_map<std::string, std::size_t> index;
    ++at_;
    skip_space();
    if (peek() == '}') {
      ++at_;
      return Value(std::move(members));
    }
    while (true) {
      if (peek() != '"') throw unexpected();
      const std::size_t start = at_;
      std::string key = string();
      skip_space();
      if (peek() != ':') throw unexpected();
      ++at_;
      skip_space();
      path_.push_back({&key, 0});
      Value member = value();
      const auto [place, fresh] = index.emplace(key, members.size());
      if (fresh) {
        path_.pop_back();
        if (members.size() == kMaxObjectMembers) {
          throw error("has an object of more than " + std::to_string(kMaxObjectMembers) + " keys",
                      start);
        }
        members.emplace_back(std::move(key), std::move(member));
      } else {
        Value& before = members[place->second].second;
        const bool equal = before == member;
        // Pointers may be long, and repetitions many.
        const std::string where = equal && repeated_ >= kMaxRepeated ? std::string() : pointer();
        path_.pop_back();
        if (!equal) {
          throw Error(ErrorCode::ConfigError,
                      "the key occurs twice with different values: " + brief(before) + " and " +
                          brief(member) + " (the second at offset " + std::to_string(start) + ')',
                      where, "keep one of them");
        }
        if (++repeated_ <= kMaxRepeated) warn(where + ": the key occurs twice with the same value");
        before = std::move(member);
      }
      skip_space();
      if (peek() == ',') {
        ++at_;
        skip_space();
        if (peek() == '}') throw error("has a trailing comma", at_ - 1);
      } else if (peek() == '}') {
        ++at_;
        return Value(std::move(members));
      } else {
        throw unexpected();
      }
    }
  }

  std::string string() {
    const std::size_t start = at_++;
    std::string out;
    while (true) {
      const std::size_t run = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\') {
        const auto c = static_cast<unsigned char>(text_[at_]);
        if (c < 0x20) throw error("has a control character inside a string", at_);
        if (c < 0x80) {
          ++at_;
          continue;
        }
        const std::size_t length = utf8_length(text_, at_);
        if (length == 0) throw error("is not valid UTF-8", at_);
        at_ += length;
      }
      out.append(text_, run, at_ - run);
      if (at_ >= text_.size()) throw error("has a string that does not end", start);
      if (text_[at_] == '"') break;
      escape(out);
    }
    ++at_;
    return out;
  }

  void escape(std::string& out) {
    const std::size_t start = at_++;
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        out += c;
        return;
      case 'b':
        out += '\b';
        return;
      case 'f':
        out += '\f';
        return;
      case 'n':
        out += '\n';
        return;
      case 'r':
        out += '\r';
        return;
      case 't':
        out += '\t';
        return;
      case 'u':
        break;
      default:
        throw error("has an unknown escape in a string", start);
    }
    unsigned code = hex4(start);
    if (code >= 0xD800 && code <= 0xDBFF && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const unsigned low = hex4(start);
      if (low < 0xDC00 || low > 0xDFFF) throw error("has a lone surrogate in a string", start);
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xD800 && code <= 0xDFFF) {
      throw error("has a lone surrogate in a string", start);
    }
    append_utf8(out, code);
  }

  unsigned hex4(std::size_t start) {
    unsigned code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, failure] =
        std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (failure != std::errc() || digits.size() != 4 || end != digits.data() + 4) {
      throw error("has a broken \\u escape in a string", start);
    }
    at_ += 4;
    return code;
  }

  bool digit() const { return peek() >= '0' && peek() <= '9'; }
  void digits() {
    if (!digit()) throw unexpected();
    while (digit()) ++at_;
  }

  Value number() {
    const std::size_t start = at_;
    if (peek() == '-') ++at_;
    if (text_.substr(at_, kInfinity.size()) == kInfinity && at_ == start && may_be_infinite()) {
      at_ += kInfinity.size();
      warn(pointer() + ": Infinity is no JSON number; published files have it in this key");
      return Value(Number{.value = HUGE_VAL});
    }
    for (std::string_view word : {"NaN", "Infinity", "inf", "nan"}) {
      if (text_.substr(at_, word.size()) == word) {
        throw error("has " + std::string(word) + ", which is not a JSON number", start,
                    "all numbers must be finite");
      }
    }
    if (!digit()) {
      at_ = start;
      throw unexpected();
    }
    Number n;
    n.integral = true;
    if (peek() == '0') {
      ++at_;
      if (digit()) throw error("has a number with a leading zero", start);
    } else {
      digits();
    }
    if (peek() == '.') {
      ++at_;
      n.integral = false;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      n.integral = false;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    convert(n, start);
    return Value(n);
  }

  // Configs of models with Mamba-2 layers were published with a literal Infinity in this key, which
  // no activation reads; anywhere else it is refused.
  bool may_be_infinite() const {
    const auto member = std::find_if(path_.rbegin(), path_.rend(),
                                     [](const Step& step) { return step.key != nullptr; });
    return member != path_.rend() && *member->key == "time_step_limit";
  }

  void convert(Number& n, std::size_t start) {
    const char* first = text_.data() + start;
    const char* last = text_.data() + at_;
    if (n.integral) {
      n.fits = std::from_chars(first, last, n.integer).ec == std::errc();
      if (n.fits) {
        n.value = static_cast<double>(n.integer);
        if (n.integer == 0 && *first == '-') n.value = -0.0;
        return;
      }
    }
    const auto [end, failure] = std::from_chars(first, last, n.value);
    if (failure == std::errc::result_out_of_range) {
      // Too small is zero, as every reader has it; too large would silently be infinity.
      n.value = small(first, last) ? 0.0 : HUGE_VAL;
    }
    if (!std::isfinite(n.value)) {
      throw error("has a number that overflows fp64: " + quote(text_.substr(start, at_ - start)),
                  start, "all numbers must be finite");
    }
  }

  // Whether a number outside fp64's range is outside it at the small end.
  static bool small(const char* first, const char* last) {
    bool seen = false;        // a digit other than 0
    long long magnitude = 0;  // decimal exponent of the first such digit
    bool fraction = false;
    const char* p = first;
    for (; p != last && *p != 'e' && *p != 'E'; ++p) {
      if (*p == '.') {
        fraction = true;
      } else if (*p >= '0' && *p <= '9') {
        if (!seen && *p != '0') seen = true;
        if (seen && !fraction) ++magnitude;
        if (!seen && fraction) --magnitude;
      }
    }
    if (p != last) {
      ++p;
      if (*p == '+') ++p;
      long long exponent = 0;
      const auto failure = std::from_chars(p, last, exponent).ec;
      constexpr long long kFar = 1'000'000'000'000LL;  // beyond any number of digits of a file
      if (failure == std::errc::result_out_of_range) exponent = *p == '-' ? -kFar : kFar;
      magnitude += std::clamp(exponent, -kFar, kFar);
    }
    return !seen || magnitude < 0;
  }

  // Keys in messages; one may be as long as the file.
  static std::string shortened(const std::string& key) {
    constexpr std::size_t kLongest = 512;
    if (key.size() <= kLongest) return key;
    std::size_t cut = kLongest;
    while (cut > 0 && (static_cast<unsigned char>(key[cut]) & 0xC0u) == 0x80u) --cut;
    return key.substr(0, cut) + "…";
  }

  std::string pointer() const {
    std::string result;
    for (const Step& step : path_) {
      result = step.key ? join(result, shortened(*step.key)) : join(result, step.index);
    }
    return result;
  }

  struct Step {
    const std::string* key;
    std::size_t index;
  };

  std::string_view text_;
  std::string what_;
  std::size_t at_ = 0;
  int depth_ = 0;
  std::size_t values_ = 0;
  std::size_t repeated_ = 0;
  std::vector<Step> path_;
  std::vector<std::string> warnings_;
};

void append_brief(std::string& out, const Value& value) {
  if (out.size() > kBriefLength) return;
  if (value.is_null()) {
    out += "null";
  } else if (const bool* b = value.boolean()) {
    out += *b ? "true" : "false";
  } else if (const Number* n = value.number()) {
    char buffer[32];
    const auto end = n->fits ? std::to_chars(buffer, buffer + sizeof buffer, n->integer)
                             : std::to_chars(buffer, buffer + sizeof buffer, n->value);
    std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
    out += text;
    if (!n->integral && text.find_first_of(".e") == std::string_view::npos) out += ".0";
  } else if (const std::string* s = value.string()) {
    out += quote(*s);
  } else if (const Array* a = value.array()) {
    out += '[';
    for (std::size_t i = 0; i < a->size() && out.size() <= kBriefLength; ++i) {
      if (i > 0) out += ", ";
      append_brief(out, (*a)[i]);
    }
    out += ']';
  } else if (const Object* o = value.object()) {
    out += '{';
    for (std::size_t i = 0; i < o->size() && out.size() <= kBriefLength; ++i) {
      if (i > 0) out += ", ";
      out += quote((*o)[i].first) + ": ";
      append_brief(out, (*o)[i].second);
    }
    out += '}';
  }
}

}  // namespace

Document parse(std::string_view text, std::string_view what) {
  return Parser(text, what).run();
}

std::string quote(std::string_view text) {
  std::string out = "\"";
  std::size_t i = 0;
  while (i < text.size() && out.size() < kBriefLength) {
    const auto c = static_cast<unsigned char>(text[i]);
    const std::size_t length = utf8_length(text, i);
    if (c < 0x20 || c == 0x7F || length == 0) {
      constexpr std::string_view hex = "0123456789abcdef";
      out += c < 0x80 ? "\\u00" : "\\x";
      out += hex[c >> 4];
      out += hex[c & 15];
      ++i;
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out.append(text, i, length);
      i += length;
    }
  }
  if (i < text.size()) out += "…";
  return out + '"';
}

std::string brief(const Value& value) {
  std::string out;
  append_brief(out, value);
  if (out.size() > kBriefLength + 40) {
    std::size_t cut = kBriefLength;
    while (cut > 0 && (static_cast<unsigned char>(out[cut]) & 0xC0u) == 0x80u) --cut;
    out.resize(cut);
    out += "…";
  }
  return out;
}

std::string described(const Value& value) {
  if (value.is_null()) return "null";
  return std::string(value.type_name()) + ' ' + brief(value);
}

}  // namespace flexact::config::json
