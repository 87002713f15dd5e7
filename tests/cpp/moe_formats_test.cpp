// The quantised formats against definitions that share no code with them: a decoder that spells out
// sign, exponent and mantissa, and an encoder that searches all codes for the nearest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "flexact/error.hpp"
#include "moe/problem.hpp"
#include "moe/quantised.hpp"
#include "moe/small_floats.hpp"

namespace {

using namespace flexact;
using namespace flexact::moe;
using ::testing::HasSubstr;

constexpr Format kQuantised[] = {Format::Fp8Block, Format::Fp8Tensor, Format::Fp8Channel,
                                 Format::Mxfp4,    Format::Nvfp4,     Format::Mxfp4Fp8};

// A float of the given widths by its definition; `last_is_nan`: all ones below the sign is NaN.
double decoded(int code, int exponent_bits, int mantissa_bits, bool last_is_nan) {
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  const int exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const bool negative = code >> (mantissa_bits + exponent_bits) & 1;
  if (last_is_nan && exponent == (1 << exponent_bits) - 1 && mantissa == (1 << mantissa_bits) - 1)
    return std::nan("");
  const double value =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                    : std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  return negative ? -value : value;
}
double e4m3(int code) {
  return decoded(code, 4, 3, true);
}
double e2m1(int code) {
  return decoded(code, 2, 1, false);
}

// The code of the nearest value; of two equally near ones the even code.
int nearest(double value, int codes, const std::function<double(int)>& decode) {
  // Far beyond the largest value distances would round to the same.
  const double magnitude = std::min(std::fabs(value), 1e6);
  int best = 0;
  for (int code = 1; code < codes / 2; ++code) {
    const double distance = std::fabs(decode(code) - magnitude);
    const double least = std::fabs(decode(best) - magnitude);
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(value) ? codes / 2 : 0);
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

// All bf16 values, and every point halfway between two codes with its fp32 neighbours.
std::vector<float> inputs(int codes, const std::function<double(int)>& decode) {
  std::vector<float> values;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
    values.push_back(std::bit_cast<float>(bits << 16));
  for (int code = 0; code + 1 < codes / 2; ++code) {
    const auto middle = static_cast<float>((decode(code) + decode(code + 1)) / 2);
    for (const float sign : {1.0f, -1.0f}) {
      values.push_back(sign * middle);
      values.push_back(sign * std::nextafterf(middle, 0));
      values.push_back(sign * std::nextafterf(middle, INFINITY));
    }
  }
  return values;
}

TEST(SmallFloats, decoders_follow_the_definition_for_all_codes) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    EXPECT_TRUE(same(decode_e4m3(byte), e4m3(code))) << code;
    EXPECT_TRUE(same(decode_e2m1(byte), e2m1(code & 15))) << code;
    EXPECT_TRUE(same(decode_e8m0(byte), code == 255 ? std::nan("") : std::ldexp(1.0, code - 127)))
        << code;
  }
  EXPECT_EQ(e4m3(0x7e), kE4m3Max);
  EXPECT_EQ(e2m1(7), kE2m1Max);
}

TEST(SmallFloats, encoders_find_the_nearest_code_of_every_bf16_value_and_every_tie) {
  const std::function<double(int)> finite_e4m3 = [](int code) {
    return code == 0x7f ? -1e9 : e4m3(code);  // NaN is nobody's nearest
  };
  for (const float value : inputs(256, finite_e4m3)) {
    const int expected =
        std::isnan(value) ? (std::signbit(value) ? 0xff : 0x7f) : nearest(value, 256, finite_e4m3);
    ASSERT_EQ(encode_e4m3(value), expected) << value;
  }
  for (const float value : inputs(16, e2m1)) {
    ASSERT_EQ(encode_e2m1(value), std::isnan(value) ? 7 : nearest(value, 16, e2m1)) << value;
  }
}

TEST(SmallFloats, every_code_survives_a_round_trip) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    EXPECT_EQ(encode_e4m3(decode_e4m3(byte)), byte);
    if (code < 16) {
      EXPECT_EQ(encode_e2m1(decode_e2m1(byte)), byte);
    }
  }
}

TEST(SmallFloats, a_group_scale_puts_the_largest_value_between_four_and_eight) {
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const float largest = std::bit_cast<float>(bits << 16);
    const std::uint8_t code = e8m0_scale(largest);
    const double ratio = largest / double{decode_e8m0(code)};
    ASSERT_LT(ratio, 8) << largest;
    if (code != 0) {
      ASSERT_GE(ratio, 4) << largest;
    }
  }
  EXPECT_EQ(e8m0_scale(0), 0);
  EXPECT_EQ(e8m0_scale(INFINITY), kE8m0Nan);
  EXPECT_EQ(e8m0_scale(NAN), kE8m0Nan);
  EXPECT_EQ(e8m0_scale(-6), e8m0_scale(6));
}

struct Matrix {
  Matrix(Format f, std::int64_t n, std::int64_t columns) : format(f), rows(n), k(columns) {
    const QuantisedLayout layout = layout_of(format, rows, k);
    codes.assign(static_cast<std::size_t>(rows * layout.code_bytes), 0xaa);
    scales.assign(static_cast<std::size_t>(layout.scale_rows * layout.scale_columns *
                                           size_of(layout.scale_dtype)),
                  0xaa);
  }
  QuantisedMatrix view() { return {codes.data(), scales.data(), global_scale}; }
  void round(const std::vector<float>& w) { quantise(format, w.data(), rows, k, view()); }
  std::vector<double> values() {
    std::vector<double> w(static_cast<std::size_t>(rows * k), 1e300);
    dequantise(format, view(), rows, k, w.data());
    return w;
  }

  Format format;
  std::int64_t rows, k;
  float global_scale = 1.0f;
  std::vector<std::uint8_t> codes, scales;
};

std::vector<float> random_matrix(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> w(static_cast<std::size_t>(count));
  for (float& value : w) value = 0.05f * normal(generator);
  return w;
}

float largest_of(const std::vector<float>& w) {
  float largest = 0;
  for (const float value : w) largest = std::max(largest, std::fabs(value));
  return largest;
}

TEST(Quantised, no_value_is_further_off_than_its_group_allows) {
  for (const Format format : kQuantised) {
    const std::int64_t rows = 131, k = is_fp4(format) ? 160 : 157;  // short blocks at both ends
    const std::vector<float> w = random_matrix(rows * k, 5);
    Matrix m(format, rows, k);
    if (format == Format::Nvfp4) m.global_scale = nvfp4_global_scale(largest_of(w));
    m.round(w);
    const std::vector<double> back = m.values();
    // Half a step of E4M3 is 1/16 of the value or 2^-10 of 448ths; of E2M1 1/4 of it, an eighth of
    // a scale below 1, and up to two scales where mxfp4 saturates.
    const double largest = largest_of(w);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double error = std::fabs(back[i] - double{w[i]});
      const double allowed = is_fp4(format)
                                 ? std::max(0.26 * std::fabs(w[i]), largest / 16)
                                 : std::max(0.0626 * std::fabs(w[i]), largest / 448 / 1000);
      ASSERT_LE(error, allowed) << to_string(format) << " " << i << " " << w[i] << " " << back[i];
    }
  }
}

TEST(Quantised, values_that_the_format_holds_come_back_exactly) {
  for (const Format format : kQuantised) {
    const std::int64_t rows = 130, k = 160;
    std::vector<float> w(static_cast<std::size_t>(rows * k));
    for (std::size_t i = 0; i < w.size(); ++i) {
      // Every group holds its format's largest value, so every scale is 1.
      const int code = static_cast<int>(i % 16 == 0 ? 7 : i % 16);
      w[i] = static_cast<float>(is_fp4(format) ? e2m1(code) : e4m3(i % 16 == 0 ? 0x7e : code * 7));
    }
    Matrix m(format, rows, k);
    m.round(w);
    const std::vector<double> back = m.values();
    for (std::size_t i = 0; i < w.size(); ++i) {
      ASSERT_TRUE(same(back[i], w[i])) << to_string(format) << " " << i;
    }
  }
}

TEST(Quantised, fp8_tensor_has_one_scale_and_fp8_channel_one_a_row) {
  const std::vector<float> w = {1, 2, -448, 0, 0.5f, 0.25f};
  Matrix whole(Format::Fp8Tensor, 2, 3), rows(Format::Fp8Channel, 2, 3);
  whole.round(w);
  rows.round(w);
  EXPECT_EQ(whole.scales.size(), 4u);
  float scales[2];
  std::memcpy(scales, rows.scales.data(), sizeof scales);
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(scales[1], 0.5f / 448.0f);
  EXPECT_EQ(rows.codes[4], 0x7e);
  EXPECT_EQ(whole.codes[4], encode_e4m3(0.5f));
}

TEST(Quantised, zero_groups_stay_zero_and_groups_with_a_nan_become_nan) {
  for (const Format format : kQuantised) {
    for (const float bad : {NAN, INFINITY, -INFINITY, 0.0f}) {
      std::vector<float> w(64, 0.0f);
      w[3] = bad;
      Matrix m(format, 1, 64);
      m.round(w);
      const std::vector<double> back = m.values();
      if (bad == 0) {
        EXPECT_THAT(back, ::testing::Each(0.0)) << to_string(format);
      } else {
        EXPECT_TRUE(std::isnan(back[3])) << to_string(format) << " " << bad;
      }
    }
  }
}

TEST(Quantised, a_block_scale_that_rounds_to_zero_makes_zeros) {
  Matrix m(Format::Nvfp4, 1, 16);
  m.global_scale = 1.0f;
  m.round(std::vector<float>(16, 1e-4f));
  EXPECT_THAT(m.values(), ::testing::Each(0.0));
}

TEST(Quantised, packed_codes_hold_the_even_value_in_the_low_bits) {
  std::vector<float> w(32, 0.0f);
  w[0] = 6;
  w[1] = -0.5f;
  Matrix m(Format::Mxfp4, 1, 32);
  m.round(w);
  EXPECT_EQ(m.codes[0], 0x7 | 0x9 << 4);
  EXPECT_EQ(m.scales[0], 127);
}

TEST(Quantised, float_results_are_the_exact_ones_rounded_once) {
  const std::vector<float> w = random_matrix(64 * 64, 9);
  for (const Format format : kQuantised) {
    Matrix m(format, 64, 64);
    m.global_scale = nvfp4_global_scale(largest_of(w));
    m.round(w);
    std::vector<float> narrow(w.size());
    dequantise(format, m.view(), 64, 64, narrow.data());
    const std::vector<double> exact = m.values();
    for (std::size_t i = 0; i < w.size(); ++i) ASSERT_EQ(narrow[i], static_cast<float>(exact[i]));
  }
}

TEST(Quantised, activations_have_a_scale_for_each_group_row_or_tensor) {
  const std::int64_t rows = 3, k = 200;
  std::vector<float> x = random_matrix(rows * k, 3);
  x[1 * k + 150] = 3.0f;
  const std::pair<Format, std::size_t> cases[] = {{Format::Fp8Block, 6},
                                                  {Format::Mxfp4Fp8, 6},
                                                  {Format::Fp8Channel, 3},
                                                  {Format::Fp8Tensor, 1}};
  for (const auto& [format, count] : cases) {
    std::vector<std::uint8_t> codes(x.size());
    std::vector<float> scales(8, -1.0f);
    quantise_activations(format, x.data(), rows, k, codes.data(), scales.data());
    EXPECT_EQ(std::count(scales.begin(), scales.end(), -1.0f), 8 - static_cast<long>(count));
    EXPECT_EQ(*std::max_element(scales.begin(), scales.end()), 3.0f / 448.0f);
    EXPECT_EQ(codes[1 * k + 150], 0x7e);
  }
  std::vector<std::uint8_t> codes(x.size());
  float scale = 0, given = 1.0f;
  quantise_activations(Format::Fp8Tensor, x.data(), rows, k, codes.data(), &scale, &given);
  EXPECT_EQ(scale, 1.0f);
  EXPECT_EQ(codes[1 * k + 150], encode_e4m3(3.0f));
  EXPECT_THROW(quantise_activations(Format::Mxfp4, x.data(), rows, k, codes.data(), &scale), Error);
}

TEST(Quantised, refuses_formats_without_scales_and_broken_groups) {
  EXPECT_THROW(layout_of(Format::Bf16, 4, 4), Error);
  EXPECT_THROW(layout_of(Format::Mxfp4, 4, 40), Error);
  EXPECT_THROW(layout_of(Format::Nvfp4, 4, 40), Error);
  EXPECT_EQ(layout_of(Format::Nvfp4, 4, 48).scale_columns, 3);
  EXPECT_EQ(layout_of(Format::Fp8Block, 0, 0).scale_rows, 0);
  EXPECT_FALSE(is_quantised(Format::Fp16));
}

// --- Weights of a problem
// -------------------------------------------------------------------------

TensorView view_of(DType dtype, std::vector<std::int64_t> shape) {
  alignas(64) static const std::byte memory[64]{};
  TensorView view;
  view.data = memory;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int i = view.rank; i-- > 0;) {
    view.shape[i] = shape[i];
    view.strides[i] = stride;
    stride *= shape[i];
  }
  return view;
}

MoeProblem problem_of(Format format, Pairing pairing) {
  MoeProblem p;
  p.experts = 4;
  p.top_k = 2;
  p.hidden = 320;
  p.intermediate = 160;
  p.format = format;
  p.pairing = pairing;
  return p;
}

MoeWeights weights_of(const MoeProblem& p) {
  MoeWeights w;
  const std::int64_t rows = w13_rows(p), h = p.hidden, i = p.intermediate, e = p.experts;
  const bool fp4 = is_fp4(p.format);
  w.w13 = view_of(fp4 ? DType::UInt8 : DType::Float8E4M3, {e, rows, fp4 ? h / 2 : h});
  w.w2 = view_of(fp4 ? DType::UInt8 : DType::Float8E4M3, {e, h, fp4 ? i / 2 : i});
  switch (p.format) {
    case Format::Fp8Block:
      // I is 160: two blocks for gate, two for up; three for 320 alternating rows.
      w.w13_scale = view_of(DType::Float32, {e,
                                             p.pairing == Pairing::None          ? 2
                                             : p.pairing == Pairing::Interleaved ? 3
                                                                                 : 4,
                                             3});
      w.w2_scale = view_of(DType::Float32, {e, 3, 2});
      break;
    case Format::Fp8Tensor:
      w.w13_scale = view_of(DType::Float32, {e});
      w.w2_scale = view_of(DType::Float32, {e});
      break;
    case Format::Fp8Channel:
      w.w13_scale = view_of(DType::Float32, {e, rows});
      w.w2_scale = view_of(DType::Float32, {e, h, 1});
      break;
    case Format::Nvfp4:
      w.w13_scale = view_of(DType::Float8E4M3, {e, rows, h / 16});
      w.w2_scale = view_of(DType::Float8E4M3, {e, h, i / 16});
      w.w13_global_scale = view_of(DType::Float32, {e});
      w.w2_global_scale = view_of(DType::Float32, {e});
      break;
    default:
      w.w13_scale = view_of(DType::UInt8, {e, rows, h / 32});
      w.w2_scale = view_of(DType::UInt8, {e, h, i / 32});
  }
  return w;
}

std::string complaint(const MoeProblem& p, const MoeWeights& w) {
  try {
    validate_weights(p, w);
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), to_string(ErrorCode::InvalidArgument));
    return error.what();
  }
  return "";
}

TEST(QuantisedWeights, every_format_takes_its_scales_and_nothing_else) {
  for (const Format format : kQuantised) {
    for (const Pairing pairing :
         {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
      const MoeProblem p = problem_of(format, pairing);
      const MoeWeights good = weights_of(p);
      EXPECT_EQ(complaint(p, good), "") << to_string(format);

      MoeWeights w = good;
      w.w13_scale = {};
      EXPECT_THAT(complaint(p, w), HasSubstr("w13_scale: missing"));
      w = good;
      w.w2_scale.shape[0] = 5;
      EXPECT_THAT(complaint(p, w), HasSubstr("w2_scale: shape"));
      w = good;
      w.w13.dtype = DType::BFloat16;
      EXPECT_THAT(complaint(p, w), HasSubstr("w13: dtype bfloat16"));
      w = good;
      w.w13_scale.dtype = DType::Int32;
      EXPECT_THAT(complaint(p, w), HasSubstr("w13_scale: dtype"));
      w = good;
      w.a13_scale = view_of(DType::Float32, {1});
      EXPECT_EQ(complaint(p, w).empty(), format == Format::Fp8Tensor);
      w = good;
      w.w13_global_scale = view_of(DType::Float32, {p.experts, 2});
      EXPECT_EQ(complaint(p, w).empty(), format == Format::Nvfp4 && pairing != Pairing::None);
    }
  }
}

TEST(QuantisedWeights, plain_formats_are_checked_by_their_dtype) {
  MoeProblem p = problem_of(Format::Bf16, Pairing::Concat);
  MoeWeights w;
  const std::pair<Format, DType> formats[] = {{Format::Bf16, DType::BFloat16},
                                              {Format::Fp16, DType::Float16},
                                              {Format::Fp32, DType::Float32}};
  for (const auto& [format, dtype] : formats) {
    p.format = format;
    w.w13 = view_of(dtype, {4, 320, 320});
    w.w2 = view_of(dtype, {4, 320, 160});
    EXPECT_EQ(complaint(p, w), "");
    w.w2 = view_of(DType::Int64, {4, 320, 160});
    EXPECT_THAT(complaint(p, w), HasSubstr("w2: dtype"));
  }
}

TEST(QuantisedWeights, broken_groups_are_refused_by_name) {
  MoeProblem p = problem_of(Format::Mxfp4, Pairing::Concat);
  p.intermediate = 48;
  const auto refusal = refuse_meaningless(p, Function::named("swiglu"));
  ASSERT_TRUE(refusal);
  EXPECT_THAT(refusal->reason,
              HasSubstr("mxfp4 stores groups of 32 weights, and intermediate is 48"));
  p.format = Format::Nvfp4;
  EXPECT_FALSE(refuse_meaningless(p, Function::named("swiglu")));
}

}  // namespace
