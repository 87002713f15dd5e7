// Codes and scales of four-bit weights.
#include "fp4_data.hpp"

#include <algorithm>
#include <cmath>

namespace flexact::conformance {

namespace {

// The nearest of E2M1's magnitudes, ties to the even code; what is larger than 6 becomes 6.
std::uint8_t code_of(double value) {
  constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const double magnitude = std::abs(value);
  int best = 0;
  for (int i = 1; i < 8; ++i) {
    const double closer = std::abs(magnitude - kMagnitudes[best]);
    const double distance = std::abs(magnitude - kMagnitudes[i]);
    if (distance < closer || (distance == closer && i % 2 == 0)) best = i;
  }
  return static_cast<std::uint8_t>(best + (std::signbit(value) ? 8 : 0));
}
double value_of(std::uint8_t code) {
  constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return (code & 8) != 0 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7];
}

Tensor bytes_of(std::vector<std::int64_t> shape, const std::vector<std::uint8_t>& bytes) {
  Tensor tensor;
  tensor.dtype = DType::UInt8;
  tensor.shape = std::move(shape);
  tensor.strides = {tensor.shape[1] * tensor.shape[2], tensor.shape[2], 1};
  for (const std::uint8_t byte : bytes) tensor.bytes.push_back(std::byte{byte});
  return tensor;
}

}  // namespace

bool is_fp4(Format format) {
  return format == Format::Mxfp4 || format == Format::Nvfp4 || format == Format::Mxfp4Fp8;
}

std::tuple<Tensor, Tensor, Tensor> quantise_fp4(std::vector<double> values, std::int64_t experts,
                                                std::int64_t rows, std::int64_t k, Format format,
                                                Pairing pairing, std::int64_t halves) {
  const bool mx = format != Format::Nvfp4;
  const std::int64_t group = mx ? 32 : 16, groups = k / group;
  std::vector<double> scales, globals;
  std::vector<std::uint8_t> exponents, codes(values.size() / 2);
  for (std::int64_t i = 0; i < experts * halves; ++i) {
    globals.push_back(static_cast<float>(0x1p-10 * static_cast<double>(1 + i % 3)));
  }
  // The gate's, then the up's.
  const auto global_of = [&](std::int64_t expert, std::int64_t row) {
    if (halves == 1) return globals[static_cast<std::size_t>(expert)];
    const std::int64_t half = pairing == Pairing::Interleaved ? row % 2
                              : pairing == Pairing::UpFirst   ? 1 - row / (rows / 2)
                                                              : row / (rows / 2);
    return globals[static_cast<std::size_t>(expert * 2 + half)];
  };
  for (std::int64_t i = 0; i < experts * rows * groups; ++i) {
    double* const of_group = &values[static_cast<std::size_t>(i * group)];
    double largest = 0;
    for (std::int64_t j = 0; j < group; ++j) {
      of_group[j] *= 0.5 * static_cast<double>(1 + i * 3 % 4);
      if (!(std::abs(of_group[j]) <= largest)) largest = std::abs(of_group[j]);
    }
    double scale = NAN;
    if (mx) {
      const int exponent = largest > 0 ? std::ilogb(largest) - 2 : 0;
      if (!std::isnan(largest)) scale = std::ldexp(1.0, exponent);
      exponents.push_back(std::isnan(scale) ? std::uint8_t{255}
                                            : static_cast<std::uint8_t>(exponent + 127));
    } else {
      const double global = global_of(i / (rows * groups), i / groups % rows);
      const double stored = round_to(largest / 6 / global, DType::Float8E4M3);
      scales.push_back(stored);
      scale = stored * global;
    }
    for (std::int64_t j = 0; j < group; ++j) {
      const bool any = std::isfinite(scale) && scale != 0;
      const std::uint8_t code = any ? code_of(of_group[j] / scale) : std::uint8_t{0};
      of_group[j] = value_of(code) * scale;
      std::uint8_t& byte = codes[static_cast<std::size_t>((i * group + j) / 2)];
      byte = static_cast<std::uint8_t>(byte | code << (j % 2 * 4));
    }
  }
  Tensor packed = bytes_of({experts, rows, k / 2}, codes);
  packed.exact = std::move(values);
  Tensor of_groups = mx ? bytes_of({experts, rows, groups}, exponents)
                        : Tensor(DType::Float8E4M3, {experts, rows, groups}, scales);
  std::vector<std::int64_t> shape = {experts};
  if (halves == 2) shape.push_back(2);
  return {std::move(packed), std::move(of_groups), Tensor(DType::Float32, shape, globals)};
}

}  // namespace flexact::conformance
