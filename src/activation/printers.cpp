// What the printers share: numbers and powers as source text, and the choice of helpers.
#include "activation/printers.hpp"

#include <cmath>

#include "activation/language.hpp"

namespace flexact::activation {

std::string python_literal(double value) {
  if (std::isnan(value)) return "float(\"nan\")";
  if (std::isinf(value)) return value > 0 ? "float(\"inf\")" : "float(\"-inf\")";
  std::string text = number_text(value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text[0] == '-' ? "(" + text + ")" : text;
}

std::string power_text(const std::string& value, int exponent) {
  std::string square = value;
  std::string product;
  for (int e = exponent < 0 ? -exponent : exponent; e != 0; e >>= 1) {
    if (e & 1) product = product.empty() ? square : "(" + product + " * " + square + ")";
    square = "(" + square + " * " + square + ")";
  }
  return product;
}

std::string UsedHelpers::use(std::string_view name) {
  for (const Helper& helper : all_) {
    if (helper.name != name) continue;
    used_.insert(helper.name);
    for (std::string_view needed : helper.needs) use(needed);
  }
  return std::string(prefix_) + std::string(name);
}

std::string UsedHelpers::text(std::string_view before) const {
  std::string text;
  for (const Helper& helper : all_) {
    if (used_.contains(helper.name)) text += std::string(before) + std::string(helper.text);
  }
  return text;
}

}  // namespace flexact::activation
