// Rounding to the quantised formats and back, group by group.
#include "moe/quantised.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "flexact/error.hpp"
#include "moe/small_floats.hpp"

namespace flexact::moe {

namespace {

[[noreturn]] void not_this(Format format, const char* what) {
  throw Error(ErrorCode::InvalidArgument, std::string(to_string(format)) + " " + what, "format");
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept {
  return (a + b - 1) / b;
}

// The largest magnitude of a rectangle; NaN if it holds one.
float largest_of(const float* w, std::int64_t rows, std::int64_t columns,
                 std::int64_t stride) noexcept {
  float largest = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const float magnitude = std::fabs(w[r * stride + c]);
      largest = magnitude > largest || std::isnan(magnitude) ? magnitude : largest;
    }
  }
  return largest;
}

void encode_fp8(const float* w, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                float scale, std::uint8_t* codes) noexcept {
  const float inverse = 1.0f / scale;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      codes[r * stride + c] = encode_e4m3(w[r * stride + c] * inverse);
    }
  }
}

// The rectangle of values that share a scale.
struct Tile {
  std::int64_t rows;
  std::int64_t columns;
};

Tile tile_of(Format format, std::int64_t rows, std::int64_t k) noexcept {
  switch (format) {
    case Format::Fp8Block:
      return {kFp8Block, kFp8Block};
    case Format::Fp8Tensor:
      return {rows, k};
    default:
      return {1, group_of(format, k)};
  }
}

// Calls body(first row, rows, first column, columns, index of the scale) for each tile.
template <typename Body>
void for_each_tile(Format format, std::int64_t rows, std::int64_t k, const Body& body) {
  const Tile tile = tile_of(format, rows, k);
  std::int64_t index = 0;
  for (std::int64_t r = 0; r < rows; r += tile.rows) {
    for (std::int64_t c = 0; c < k; c += tile.columns) {
      body(r, std::min(tile.rows, rows - r), c, std::min(tile.columns, k - c), index++);
    }
  }
}

// Two values a byte. `scale` is not 0.
void encode_fp4(const float* w, std::int64_t count, float scale, std::uint8_t* codes) noexcept {
  for (std::int64_t i = 0; i < count; i += 2) {
    const int low = encode_e2m1(w[i] / scale);
    const int high = encode_e2m1(w[i + 1] / scale);
    codes[i / 2] = static_cast<std::uint8_t>(low | high << 4);
  }
}

void quantise_mxfp4_group(const float* w, std::uint8_t* codes, std::uint8_t& scale) noexcept {
  scale = e8m0_scale(largest_of(w, 1, kMxfp4Group, kMxfp4Group));
  if (scale == kE8m0Nan) {
    std::fill_n(codes, kMxfp4Group / 2, std::uint8_t{0});
  } else {
    encode_fp4(w, kMxfp4Group, decode_e8m0(scale), codes);
  }
}

void quantise_nvfp4_group(const float* w, float global_scale, std::uint8_t* codes,
                          std::uint8_t& scale) noexcept {
  const float largest = largest_of(w, 1, kNvfp4Group, kNvfp4Group);
  // The encoder saturates; an infinite group has no scale either.
  scale = std::isinf(largest) ? kE4m3Nan : encode_e4m3(largest / kE2m1Max / global_scale);
  const float step = decode_e4m3(scale) * global_scale;
  if (!(step > 0)) {
    std::fill_n(codes, kNvfp4Group / 2, std::uint8_t{0});
  } else {
    encode_fp4(w, kNvfp4Group, step, codes);
  }
}

}  // namespace

bool is_quantised(Format format) noexcept {
  return format != Format::Bf16 && format != Format::Fp16 && format != Format::Fp32;
}

bool is_fp4(Format format) noexcept {
  return format == Format::Mxfp4 || format == Format::Nvfp4 || format == Format::Mxfp4Fp8;
}

std::int64_t group_of(Format format, std::int64_t k) noexcept {
  switch (format) {
    case Format::Fp8Block:
      return kFp8Block;
    case Format::Mxfp4:
    case Format::Mxfp4Fp8:
      return kMxfp4Group;
    case Format::Nvfp4:
      return kNvfp4Group;
    default:
      return k;
  }
}

QuantisedLayout layout_of(Format format, std::int64_t rows, std::int64_t k) {
  if (!is_quantised(format)) not_this(format, "is not quantised");
  if (is_fp4(format) && k % group_of(format, k) != 0) {
    throw Error(
        ErrorCode::InvalidArgument,
        std::to_string(k) + " values are not whole groups of " + std::string(to_string(format)),
        "k", "a multiple of " + std::to_string(group_of(format, k)));
  }
  const Tile tile = tile_of(format, rows, k);
  QuantisedLayout layout;
  layout.code_bytes = is_fp4(format) ? k / 2 : k;
  layout.scale_rows = rows == 0 ? 0 : ceil_div(rows, tile.rows);
  layout.scale_columns = k == 0 ? 0 : ceil_div(k, tile.columns);
  layout.scale_dtype = format == Format::Nvfp4 ? DType::Float8E4M3
                       : is_fp4(format)        ? DType::UInt8
                                               : DType::Float32;
  return layout;
}

float fp8_scale(float largest) noexcept {
  return (largest < kLeastLargest ? kLeastLargest : largest) / kE4m3Max;
}

float nvfp4_global_scale(float largest) noexcept {
  return (largest < kLeastLargest ? kLeastLargest : largest) / kNvfp4Range;
}

void quantise(Format format, const float* w, std::int64_t rows, std::int64_t k,
              const QuantisedMatrix& to) {
  layout_of(format, rows, k);
  auto* bytes = static_cast<std::uint8_t*>(to.scales);
  auto* floats = static_cast<float*>(to.scales);
  for_each_tile(
      format, rows, k,
      [&](std::int64_t r, std::int64_t height, std::int64_t c, std::int64_t width, std::int64_t i) {
        const float* from = w + r * k + c;
        switch (format) {
          case Format::Mxfp4:
          case Format::Mxfp4Fp8:
            quantise_mxfp4_group(from, to.codes + (r * k + c) / 2, bytes[i]);
            break;
          case Format::Nvfp4:
            quantise_nvfp4_group(from, to.global_scale, to.codes + (r * k + c) / 2, bytes[i]);
            break;
          default:
            floats[i] = fp8_scale(largest_of(from, height, width, k));
            encode_fp8(from, height, width, k, floats[i], to.codes + r * k + c);
        }
      });
}

template <typename Real>
void dequantise(Format format, const QuantisedMatrix& from, std::int64_t rows, std::int64_t k,
                Real* w) {
  layout_of(format, rows, k);
  const auto* bytes = static_cast<const std::uint8_t*>(from.scales);
  const auto* floats = static_cast<const float*>(from.scales);
  const auto scale_of = [&](std::int64_t i) -> double {
    if (format == Format::Nvfp4) return double{decode_e4m3(bytes[i])} * double{from.global_scale};
    return double{is_fp4(format) ? decode_e8m0(bytes[i]) : floats[i]};
  };
  for_each_tile(
      format, rows, k,
      [&](std::int64_t r, std::int64_t height, std::int64_t c, std::int64_t width, std::int64_t i) {
        // Products of these few significant bits are exact in double.
        const double scale = scale_of(i);
        for (std::int64_t at = r * k + c; at < (r + height) * k; at += k) {
          for (std::int64_t j = at; j < at + width; ++j) {
            const double code = is_fp4(format)
                                    ? double{decode_e2m1(static_cast<std::uint8_t>(
                                          j % 2 == 0 ? from.codes[j / 2] : from.codes[j / 2] >> 4))}
                                    : double{decode_e4m3(from.codes[j])};
            w[j] = static_cast<Real>(code * scale);
          }
        }
      });
}

template void dequantise(Format, const QuantisedMatrix&, std::int64_t, std::int64_t, float*);
template void dequantise(Format, const QuantisedMatrix&, std::int64_t, std::int64_t, double*);

void quantise_activations(Format format, const float* x, std::int64_t rows, std::int64_t k,
                          std::uint8_t* codes, float* scales, const float* given) {
  std::int64_t group = k;
  std::int64_t together = 1;  // rows that share a scale
  switch (format) {
    case Format::Fp8Block:
    case Format::Mxfp4Fp8:
      group = kFp8Block;
      break;
    case Format::Fp8Channel:
      break;
    case Format::Fp8Tensor:
      together = rows;
      break;
    default:
      not_this(format, "does not quantise activations");
  }
  std::int64_t index = 0;
  for (std::int64_t r = 0; r < rows; r += together) {
    for (std::int64_t c = 0; c < k; c += group) {
      const float* from = x + r * k + c;
      const std::int64_t width = std::min(group, k - c);
      scales[index] = given != nullptr ? *given : fp8_scale(largest_of(from, together, width, k));
      encode_fp8(from, together, width, k, scales[index], codes + r * k + c);
      ++index;
    }
  }
}

}  // namespace flexact::moe
