// The arithmetic of FP4 weights in the CUDA kernels: every code under every scale, and the order of
// columns.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <set>
#include <utility>

#include "cuda/fp4_layer.hpp"
#include "cuda/kernels/fp4_layout.hpp"
#include "moe/small_floats.hpp"

namespace {

namespace cuda = flexact::cuda;
namespace moe = flexact::moe;

double from_bf16(std::uint32_t bits) {
  return std::bit_cast<float>(bits << 16);
}

// To nearest, ties to even, subnormals kept: what the kernels' multiplication does.
double round_to_bf16(double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int unit = std::max(std::ilogb(value) - 7, -133);
  return std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
}

// Calls check(code, bits) for each code in each of a word's eight places.
template <typename Check>
void for_each_place(Check check) {
  for (std::uint32_t code = 0; code < 16; ++code) {
    for (int place = 0; place < 8; ++place) {
      // All other places hold what differs in every bit.
      std::uint32_t word = 0;
      for (int i = 0; i < 8; ++i) word |= (i == place ? code : ~code & 15u) << (4 * i);
      const std::uint32_t pair = cuda::fp4_pair(word, place % 4);
      check(static_cast<std::uint8_t>(code), place < 4 ? pair & 0xffffu : pair >> 16);
    }
  }
}

TEST(Fp4Layout, a_code_of_any_place_is_its_value_times_a_power_of_two) {
  for_each_place([](std::uint8_t code, std::uint32_t bits) {
    EXPECT_EQ(from_bf16(bits), std::ldexp(moe::decode_e2m1(code), -126));
    EXPECT_EQ(std::signbit(from_bf16(bits)), code >= 8);
  });
}

TEST(Fp4Layout, weights_of_mxfp4_are_exact_or_nan) {
  for (int e8m0 = 0; e8m0 < 256; ++e8m0) {
    const std::uint32_t factor =
        cuda::mxfp4_factor(cuda::mxfp4_stored(static_cast<std::uint8_t>(e8m0)));
    EXPECT_EQ(factor >> 16, factor & 0xffffu);
    for_each_place([&](std::uint8_t code, std::uint32_t bits) {
      const double product = round_to_bf16(from_bf16(bits) * from_bf16(factor & 0xffffu));
      const double weight = std::ldexp(product, cuda::kMxfp4Shift);
      const double exact = std::ldexp(moe::decode_e2m1(code), e8m0 - 127);
      if (e8m0 > 127 + 33) {
        EXPECT_TRUE(std::isnan(weight)) << e8m0;
      } else if (std::abs(exact) >= 0x1p-100) {
        EXPECT_EQ(weight, exact) << e8m0;
      } else {
        EXPECT_LT(std::abs(weight - exact), 0x1p-101) << e8m0;
      }
    });
  }
}

TEST(Fp4Layout, weights_of_nvfp4_are_exact) {
  for (int e4m3 = 0; e4m3 < 256; ++e4m3) {
    const float scale = moe::decode_e4m3(static_cast<std::uint8_t>(e4m3));
    const double factor = double{scale} * cuda::kNvfp4Factor;
    if (!std::isnan(scale)) {
      EXPECT_EQ(round_to_bf16(factor), factor);
    }
    for_each_place([&](std::uint8_t code, std::uint32_t bits) {
      const double product = round_to_bf16(from_bf16(bits) * factor);
      const double exact = double{moe::decode_e2m1(code)} * scale;
      if (std::isnan(scale)) {
        EXPECT_TRUE(std::isnan(product));
      } else {
        EXPECT_EQ(std::ldexp(product, cuda::kNvfp4Shift), exact) << e4m3;
      }
    });
  }
}

TEST(Fp4Layout, a_position_has_a_column_and_a_thread_sixteen_bytes_of_a_row) {
  std::set<int> columns;
  for (int position = 0; position < cuda::kFp4Block; ++position) {
    const int column = cuda::fp4_column(position);
    columns.insert(column);
    // wgmma gives columns 2t, 2t + 1, 2t + 8 and 2t + 9 of each sixteen to thread t.
    EXPECT_EQ(column / 32, position % 8 / 2) << position;
  }
  EXPECT_EQ(columns.size(), static_cast<std::size_t>(cuda::kFp4Block));
}

// `permuted` and `gated` of GEMM2, and of GEMM1 without a gate and with one.
constexpr std::pair<bool, bool> kGemms[] = {{false, false}, {true, false}, {true, true}};

TEST(Fp4Layout, warpgroups_share_the_rows_of_a_part) {
  for (const auto& [permuted, gated] : kGemms) {
    std::set<int> rows;
    for (int thread = 0; thread < cuda::kFp4ScaleThreads; ++thread) {
      for (int half = 0; half < 2; ++half) {
        rows.insert(cuda::fp4_row(thread, half, permuted, gated));
      }
      EXPECT_EQ(
          cuda::fp4_row(thread, 0, permuted, gated) ^ cuda::fp4_row(thread, 1, permuted, gated),
          cuda::fp4_other_row(permuted));
    }
    EXPECT_EQ(rows.size(), 128u);
    EXPECT_EQ(*rows.rbegin(), 127);
  }
}

TEST(Fp4Layout, eight_lanes_load_from_all_banks_at_once) {
  for (const auto& [permuted, gated] : kGemms) {
    if (permuted && !gated) continue;
    for (int first = 0; first < cuda::kFp4ScaleThreads; first += 8) {
      for (int half = 0; half < 2; ++half) {
        std::set<int> places;  // of 16 bytes in a line of 128
        for (int thread = first; thread < first + 8; ++thread) {
          const int row = cuda::fp4_row(thread, half, permuted, gated);
          places.insert((row * cuda::kFp4CodeBytes + thread % 4 * 16) % 128 / 16);
        }
        EXPECT_EQ(places.size(), 8u) << first << " " << gated;
      }
    }
  }
}

// Code `code` in each of a word's eight places, decoded with the table `stored`; check(E4M3 code).
template <typename Check>
void for_each_decoded(int stored, Check check) {
  const std::uint64_t table = cuda::mxfp4_fp8_magnitudes(stored);
  for (std::uint32_t code = 0; code < 16; ++code) {
    for (int place = 0; place < 8; ++place) {
      std::uint32_t word = 0;
      for (int i = 0; i < 8; ++i) word |= (i == place ? code : ~code & 15u) << (4 * i);
      const auto both = cuda::mxfp4_fp8_codes(word, static_cast<std::uint32_t>(table),
                                              static_cast<std::uint32_t>(table >> 32));
      const std::uint32_t four = place < 4 ? both.first : both.last;
      check(static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(four >> place % 4 * 8));
    }
  }
}

TEST(Fp4Layout, weights_of_mxfp4_fp8_are_exact_under_fifteen_scales_and_rounded_below) {
  for (int largest = 0; largest < 255; ++largest) {
    const double factor =
        std::bit_cast<float>(cuda::mxfp4_fp8_factor(static_cast<std::uint8_t>(largest)));
    EXPECT_EQ(factor, std::ldexp(1.0, largest - 133));
    for (int e8m0 = 0; e8m0 <= largest; ++e8m0) {
      const int stored = cuda::mxfp4_fp8_stored(static_cast<std::uint8_t>(e8m0),
                                                static_cast<std::uint8_t>(largest));
      for_each_decoded(stored, [&](std::uint8_t code, std::uint8_t e4m3) {
        const double value = moe::decode_e4m3(e4m3);
        const double exact = std::ldexp(moe::decode_e2m1(code), e8m0 - largest + 6);
        EXPECT_EQ(e4m3 >> 7, code >> 3);
        if (largest - e8m0 <= cuda::kMxfp4Fp8Exact) {
          EXPECT_EQ(value, exact) << largest << " " << e8m0;
        } else {
          EXPECT_EQ(value, std::ldexp(std::nearbyint(std::ldexp(exact, 9)), -9));
          EXPECT_LE(std::abs(value - exact), 0x1p-16 * 0x1p6);
        }
      });
    }
  }
  const int nan = cuda::mxfp4_fp8_stored(255, 130);
  for_each_decoded(nan, [](std::uint8_t, std::uint8_t e4m3) {
    EXPECT_TRUE(std::isnan(moe::decode_e4m3(e4m3)));
  });
}

TEST(Fp4Layout, columns_of_mxfp4_fp8_are_where_a_thread_s_bytes_are) {
  std::set<int> columns;
  for (int position = 0; position < cuda::kFp4Block; ++position) {
    const int column = cuda::mxfp4_fp8_column(position);
    columns.insert(column);
    // m64k32: thread t has columns 4t to 4t + 3 of each sixteen, and a word a step.
    EXPECT_EQ(column / 32, position % 16 / 4);
    EXPECT_EQ(column % 32 / 8, position / 32);
    EXPECT_EQ(column % 8, position / 16 % 2 * 4 + position % 4);
  }
  EXPECT_EQ(columns.size(), static_cast<std::size_t>(cuda::kFp4Block));
  for (const bool permuted : {false, true}) {
    std::set<int> rows;
    for (int thread = 0; thread < cuda::kFp4ScaleThreads; ++thread) {
      const int first = cuda::mxfp4_fp8_row(thread, 0, permuted);
      EXPECT_EQ(cuda::mxfp4_fp8_row(thread, 1, permuted) - first, permuted ? 2 : 8);
      rows.insert(first);
      rows.insert(cuda::mxfp4_fp8_row(thread, 1, permuted));
    }
    EXPECT_EQ(rows.size(), 128u);
    EXPECT_EQ(*rows.rbegin(), 127);
  }
}

// What a plan says that it copies is what it copies, for every pairing and for sizes that are no
// whole tiles.
TEST(Fp4Layout, bytes_of_ordered_scales_are_those_of_both_orders) {
  for (const auto format : {flexact::Format::Mxfp4, flexact::Format::Nvfp4}) {
    for (const auto pairing : {flexact::Pairing::Concat, flexact::Pairing::Interleaved,
                               flexact::Pairing::UpFirst, flexact::Pairing::None}) {
      flexact::MoeProblem problem{};
      problem.experts = 3;
      problem.hidden = 2880;
      problem.intermediate = 160;
      problem.format = format;
      problem.pairing = pairing;
      const cuda::Fp4Layer layer(problem, flexact::MoeWeights{});
      EXPECT_EQ(cuda::Fp4Layer::scale_bytes(problem), layer.order13().bytes + layer.order2().bytes);
    }
  }
}

}  // namespace
