// A strict JSON reader for configs: UTF-8, one object, limited depth and size, every duplicate key
// noticed. A file that two readers could understand differently is refused or warned about.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace flexact::config::json {

// Objects and arrays within one another, the outermost included.
inline constexpr int kMaxDepth = 128;
// Published configs have less than 10^6 values; more is an attack or another kind of file.
inline constexpr std::size_t kMaxValues = 2'000'000;
// Keys of one object; lists of quantised modules have some ten thousand.
inline constexpr std::size_t kMaxObjectMembers = 200'000;
inline constexpr std::size_t kMaxBytes = std::size_t{256} << 20;

class Value;
using Array = std::vector<Value>;
// Members in the order of the file; a key occurs once.
using Object = std::vector<std::pair<std::string, Value>>;

// A number as it was written: 7 and 7.0 are different types to the classes that read configs.
struct Number {
  double value = 0;
  bool integral = false;     // no fraction and no exponent
  bool fits = false;         // integral and within int64
  std::int64_t integer = 0;  // where it fits
};

class Value {
 public:
  Value() = default;
  explicit Value(bool b) : data_(b) {}
  explicit Value(Number n) : data_(n) {}
  explicit Value(std::string s) : data_(std::move(s)) {}
  explicit Value(Array a) : data_(std::move(a)) {}
  explicit Value(Object o) : data_(std::move(o)) {}

  bool is_null() const noexcept { return std::holds_alternative<std::monostate>(data_); }
  const bool* boolean() const noexcept { return std::get_if<bool>(&data_); }
  const Number* number() const noexcept { return std::get_if<Number>(&data_); }
  const std::string* string() const noexcept { return std::get_if<std::string>(&data_); }
  const Array* array() const noexcept { return std::get_if<Array>(&data_); }
  const Object* object() const noexcept { return std::get_if<Object>(&data_); }
  Array* array() noexcept { return std::get_if<Array>(&data_); }
  Object* object() noexcept { return std::get_if<Object>(&data_); }

  // The member of an object; null where this is no object or has no such key.
  const Value* find(std::string_view key) const noexcept;
  Value* find(std::string_view key) noexcept;
  // Sets or adds a member of an object.
  void set(std::string_view key, Value value);

  // "an object", "a number", …, for messages.
  std::string_view type_name() const noexcept;

  // Numbers compare by value (7 equals 7.0), objects without regard to order.
  friend bool operator==(const Value& a, const Value& b);

 private:
  std::variant<std::monostate, bool, Number, std::string, Array, Object> data_;
};

struct Document {
  Value root;
  std::vector<std::string> warnings;
};

// Reads one object. Throws ConfigError with "line L, column C", or with the JSON pointer of a key
// that occurs twice with different values. `what` names the text in messages ("config",
// "override").
Document parse(std::string_view text, std::string_view what);

// `pointer`/`key`, escaped as RFC 6901 says.
std::string join(std::string_view pointer, std::string_view key);
std::string join(std::string_view pointer, std::size_t index);
// The value as short JSON for a message: long text is cut, control characters are escaped.
std::string brief(const Value& value);
// Its type and the value, "a number 1.5", for "expected …, found …".
std::string described(const Value& value);
// Text in quotes, cut and escaped likewise.
std::string quote(std::string_view text);

}  // namespace flexact::config::json
