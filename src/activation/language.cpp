// The word lists of the expression language.
#include "activation/language.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace flexact::activation {

namespace {

struct NamedFunction {
  std::string_view name;
  Op op;
};

constexpr std::array<NamedFunction, 22> kFunctions = {{
    {"exp", Op::Exp},     {"exp2", Op::Exp2},
    {"expm1", Op::Expm1}, {"log", Op::Log},
    {"log1p", Op::Log1p}, {"sqrt", Op::Sqrt},
    {"rsqrt", Op::Rsqrt}, {"abs", Op::Abs},
    {"sign", Op::Sign},   {"floor", Op::Floor},
    {"tanh", Op::Tanh},   {"sigmoid", Op::Sigmoid},
    {"erf", Op::Erf},     {"softplus", Op::Softplus},
    {"relu", Op::Relu},   {"min", Op::Min},
    {"max", Op::Max},     {"clamp", Op::Clamp},
    {"where", Op::Where}, {"silu", Op::Silu},
    {"gelu", Op::Gelu},   {"gelu_tanh", Op::GeluTanh},
}};
constexpr std::size_t kFunctionCount = kFunctions.size();

// Names of variables, constants, and keys of activation_params that are not parameters.
constexpr std::array<std::string_view, 14> kReserved = {
    "g",    "u",         "x",          "pi",     "e",      "inf",    "name",
    "expr", "per_layer", "per_expert", "tensor", "routed", "shared", "dense"};

char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool equal_but_for_case(std::string_view a, std::string_view b) noexcept {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char p, char q) { return lower(p) == lower(q); });
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (lower(a[i - 1]) != lower(b[j - 1]));
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::optional<Op> find_function(std::string_view name) noexcept {
  for (std::size_t i = 0; i < kFunctionCount; ++i) {
    if (kFunctions[i].name == name) return kFunctions[i].op;
  }
  return std::nullopt;
}

std::span<const std::string_view> function_names() noexcept {
  static const auto names = [] {
    std::array<std::string_view, kFunctionCount> list{};
    for (std::size_t i = 0; i < kFunctionCount; ++i) list[i] = kFunctions[i].name;
    return list;
  }();
  return names;
}

bool is_reserved(std::string_view name) noexcept {
  return find_function(name).has_value() ||
         std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end();
}

bool is_identifier(std::string_view name) noexcept {
  const auto letter = [](char c) { return (lower(c) >= 'a' && lower(c) <= 'z') || c == '_'; };
  if (name.empty() || name.size() > 64 || !letter(name[0])) return false;
  return std::all_of(name.begin(), name.end(),
                     [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

std::string closest(std::string_view name, std::span<const std::string> candidates) {
  if (name.size() > 64) return {};
  const std::string* best = nullptr;
  std::size_t best_distance = std::min<std::size_t>(3, name.size());
  for (const std::string& candidate : candidates) {
    if (equal_but_for_case(name, candidate)) return candidate;
    const std::size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) best = &candidate, best_distance = distance;
  }
  return best ? *best : std::string();
}

std::string join(std::span<const std::string> parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 32> buffer{};
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return {buffer.data(), result.ptr};
}

}  // namespace flexact::activation
