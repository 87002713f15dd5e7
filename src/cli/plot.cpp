// A plot of a function in a terminal, two by four dots a character.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cli/commands.hpp"

namespace flexact::cli {

namespace {

constexpr int kColumns = 60;
constexpr int kRows = 12;
constexpr int kWide = 2 * kColumns;
constexpr int kHigh = 4 * kRows;
constexpr double kFrom = -6;
constexpr double kTo = 6;

// Bits of a braille character, by dot column and row.
constexpr unsigned char kDots[2][4] = {{0x01, 0x02, 0x04, 0x40}, {0x08, 0x10, 0x20, 0x80}};

std::string braille(unsigned char bits) {
  // U+2800 + bits in UTF-8.
  return {static_cast<char>(0xe2), static_cast<char>(0xa0 | (bits >> 6)),
          static_cast<char>(0x80 | (bits & 0x3f))};
}

}  // namespace

std::string plot(const Function& function, const std::vector<double>& parameters) {
  std::vector<double> values(kWide);
  for (int i = 0; i < kWide; ++i) {
    const double at = kFrom + (kTo - kFrom) * i / (kWide - 1);
    values[static_cast<std::size_t>(i)] = function.arity() == Arity::Gated
                                              ? function.reference(at, 1.0, parameters)
                                              : function.reference(at, parameters);
  }
  double low = 0;
  double high = 0;
  for (double v : values) {
    if (!std::isfinite(v)) continue;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  if (high == low) high = low + 1;

  std::vector<std::vector<unsigned char>> cells(kRows, std::vector<unsigned char>(kColumns, 0));
  const auto row_of = [&](double v) {
    return std::clamp(static_cast<int>(std::lround((high - v) / (high - low) * (kHigh - 1))), 0,
                      kHigh - 1);
  };
  const auto mark = [&](int column, int row) {
    cells[static_cast<std::size_t>(row / 4)][static_cast<std::size_t>(column / 2)] |=
        kDots[column % 2][row % 4];
  };
  for (int i = 0; i < kWide; ++i) {
    if (i % 4 == 0) mark(i, row_of(0));
    const double v = values[static_cast<std::size_t>(i)];
    if (!std::isfinite(v)) continue;
    // Steep parts stay connected.
    const double before = i > 0 ? values[static_cast<std::size_t>(i - 1)] : v;
    const int to = row_of(v);
    const int from = std::isfinite(before) ? row_of(before) : to;
    for (int row = std::min(from, to); row <= std::max(from, to); ++row) mark(i, row);
  }

  std::string text;
  for (int r = 0; r < kRows; ++r) {
    std::string label;
    if (r == 0) label = fmt::format("{:.4g}", high);
    if (r == kRows - 1) label = fmt::format("{:.4g}", low);
    text += fmt::format("{:>10} ", label);
    for (unsigned char bits : cells[static_cast<std::size_t>(r)]) text += braille(bits);
    text += "\n";
  }
  return text;
}

}  // namespace flexact::cli
