// The FP8 GEMM of sm_100a on the CPU, as cuda_sm100_test.cpp runs that of bf16: scales of every
// kind, groups of results that two warps share, codes and magnitudes, against fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "emulated/ctas.hpp"
#include "emulated/e4m3.hpp"
#include "emulated/linked_function.hpp"
#include "emulated/ragged_rows.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_block_gated, Blocks, Gated, Groups)
FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_block_unary, Blocks, Unary, Groups)
FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_block_plain, Blocks, Plain, Rows)
FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_given_gated, Whole, Gated, Given)
FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_whole_gated, Whole, Gated, Largest)
FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_whole_unary, Whole, Unary, Largest)
FLEXACT_SM100_FP8_GEMM_KERNEL(emulated_whole_plain, Whole, Plain, Rows)

namespace {

using namespace flexact::cuda;
namespace moe = flexact::moe;

struct Case {
  std::vector<int> rows_of_expert;
  int depth, columns;
  Scaling scaling;
  Epilogue epilogue;
  Output output;
  bool interleaved = false, bias = false, row_scale = false;
  bool one_scale = false;  // of all rows, and of all weights of an expert; largest: one of all rows
  unsigned ctas = 2;
};

using Kernel = void (*)(const CUtensorMap, const CUtensorMap, const Fp8GemmArguments);
Kernel kernel_of(const Case& c) {
  const bool gated = c.epilogue == Epilogue::Gated, unary = c.epilogue == Epilogue::Unary;
  if (c.scaling == Scaling::Blocks)
    return gated ? emulated_block_gated : unary ? emulated_block_unary : emulated_block_plain;
  if (c.output == Output::Given) return emulated_given_gated;
  return gated ? emulated_whole_gated : unary ? emulated_whole_unary : emulated_whole_plain;
}

class Gemm {
 public:
  explicit Gemm(const Case& c)
      : c_(c),
        ragged_(c.rows_of_expert, kTileRows),
        gated_(c.epilogue == Epilogue::Gated),
        blocks_(c.scaling == Scaling::Blocks) {
    weight_rows_ = gated_ ? 2 * c.columns : c.columns;
    groups_ = (c.depth + kGroup - 1) / kGroup;
    input_ = codes(rows_ * c.depth);
    weights_ = codes(experts() * weight_rows_ * c.depth);
    // Products of one magnitude, whatever the depth.
    input_scale_ = scales(blocks_ ? groups_ * rows_ : rows_, 1 / (3 * std::sqrt(c.depth)));
    weight_scale_ = scales(experts() * weight_rows_ * groups_, 1.0 / 3);
    bias_ = scales(experts() * weight_rows_, 1);
    row_scale_ = scales(rows_, 1);
    values_ = scales(3 * experts(), 1);
    const bool codes_out = c.output == Output::Groups || c.output == Output::Given;
    row_bytes_ = c.columns * (codes_out ? 1 : 2);
    output_.assign(static_cast<std::size_t>((rows_ + 1) * row_bytes_), kPoison);
    out_groups_ = (c.columns + kGroup - 1) / kGroup;
    group_scales_.assign(static_cast<std::size_t>(out_groups_ * rows_ + 1), -1.0f);
    largest_.assign(static_cast<std::size_t>(rows_ + 1), 0);
  }

  void run(bool lazy) {
    Fp8GemmArguments f{};
    GemmArguments& g = f.gemm;
    const auto count = static_cast<std::int32_t>(ragged_.tiles.size());
    std::uint32_t taken[2] = {};
    g.tiles = ragged_.tiles.data();
    g.tile_count = &count;
    g.taken = taken;
    g.output = output_.data();
    g.columns = c_.columns;
    g.depth = c_.depth;
    g.group_rows = 2;
    const int of_tile = gated_ ? kTileColumns / 2 : kTileColumns;
    g.column_tiles = (c_.columns + of_tile - 1) / of_tile;
    g.value_columns = 3;
    g.values = values_.data();
    g.value_stride = 3;
    g.interleaved = c_.interleaved;
    g.bias = c_.bias ? bias_.data() : nullptr;
    g.row_scale = c_.row_scale ? row_scale_.data() : nullptr;
    f.input = {input_scale_.data(), c_.one_scale ? 0 : 1, blocks_ ? rows_ : 0};
    // As fp8_layer.cpp describes scales of concatenated or alternating rows.
    f.weights = {weight_scale_.data(), c_.one_scale ? 0 : row_step(), blocks_ ? 1 : 0};
    f.expert_step = expert_step();
    f.up_step = up_step();
    f.last_block = blocks_ ? blocks_of_half() - 1 : 0;
    f.group_scales = group_scales_.data();
    f.group_step = rows_;
    f.given_scale = &kGivenScale;
    f.largest = largest_.data();
    f.largest_step = c_.one_scale ? 0 : 1;
    const CUtensorMap a = {input_.data(), 2, 1, {c_.depth, rows_}, {1, c_.depth}, {128, 64}};
    emulated::run_ctas(c_.ctas, kGemmThreads, lazy, [&] { kernel_of(c_)(a, weight_map(), f); });
  }

  void expect_right() const {
    double of_all = 0;
    for (int row = 0; row < rows_; ++row) {
      double of_row = 0;
      for (int column = 0; column < c_.columns; ++column) {
        double expected = reference(row, column);
        // Codes saturate.
        if (c_.output == Output::Given)
          expected = std::clamp(expected, -448.0 * kGivenScale, 448.0 * kGivenScale);
        const double actual = result(row, column);
        // A code's step is an eighth of its power of two, or of the smallest normal one.
        const double step =
            is_codes() ? std::fmax(std::fabs(expected) / 16, scale_at(row, column) * 0x1p-10)
                       : std::fabs(expected) * 0x1p-8;
        ASSERT_NEAR(actual, expected, step * 1.01 + 1e-4) << "row " << row << ", column " << column;
        of_row = std::fmax(of_row, std::fabs(is_codes() ? expected : actual));
      }
      if (c_.output == Output::Groups) expect_scales(row);
      if (c_.output == Output::Largest && !c_.one_scale) {
        EXPECT_EQ(std::bit_cast<float>(largest_[static_cast<std::size_t>(row)]),
                  static_cast<float>(of_row));
      }
      of_all = std::fmax(of_all, of_row);
    }
    EXPECT_GT(of_all, 0.5);
    if (c_.output == Output::Largest && c_.one_scale) {
      EXPECT_EQ(std::bit_cast<float>(largest_[0]), static_cast<float>(of_all));
    }
    for (int i = 0; i < row_bytes_; ++i)
      EXPECT_EQ(output_[static_cast<std::size_t>(rows_ * row_bytes_ + i)], kPoison);
    EXPECT_EQ(group_scales_.back(), -1.0f);
    EXPECT_EQ(largest_.back(), 0u);
  }

 private:
  static constexpr std::uint8_t kPoison = 0xff;
  static constexpr float kGivenScale = 0.05f;

  int experts() const { return static_cast<int>(c_.rows_of_expert.size()); }
  bool is_codes() const { return c_.output == Output::Groups || c_.output == Output::Given; }
  std::vector<std::uint8_t> codes(int count) {
    std::vector<std::uint8_t> list(static_cast<std::size_t>(count));
    for (auto& each : list) each = moe::encode_e4m3(static_cast<float>(3 * normal_(random_)));
    return list;
  }
  std::vector<float> scales(int count, double size) {
    std::vector<float> list(static_cast<std::size_t>(count));
    for (auto& each : list) each = static_cast<float>(size * (0.5 + std::fabs(normal_(random_))));
    return list;
  }

  // Scales of blocks lie as [expert, block of weight rows, group]: of gates, then of ups, or of
  // alternating rows.
  int blocks_of_half() const {
    const int rows = c_.interleaved ? 2 * c_.columns : c_.columns;
    return (rows + kGroup - 1) / kGroup;
  }
  int row_step() const { return blocks_ ? groups_ : c_.interleaved ? 2 : 1; }
  int up_step() const {
    if (!gated_) return 0;
    if (blocks_) return c_.interleaved ? 0 : blocks_of_half() * groups_;
    return c_.one_scale || c_.interleaved ? 1 : c_.columns;
  }
  int expert_step() const {
    if (!blocks_) return c_.one_scale ? 2 : weight_rows_;
    return blocks_of_half() * groups_ * (gated_ && !c_.interleaved ? 2 : 1);
  }
  double weight_scale(int expert, int column, int up, int group) const {
    int index = expert * expert_step() + up * up_step();
    if (blocks_) {
      const int row = c_.interleaved ? 2 * column + up : column;
      index += row / kGroup * groups_ + group;
    } else if (!c_.one_scale) {
      index += column * row_step();
    }
    return weight_scale_[static_cast<std::size_t>(index)];
  }
  double input_scale(int row, int group) const {
    return input_scale_[static_cast<std::size_t>(c_.one_scale ? 0
                                                 : blocks_    ? group * rows_ + row
                                                              : row)];
  }

  CUtensorMap weight_map() const {
    const std::int64_t line = c_.depth, expert = weight_rows_ * line;
    const std::int64_t count = experts();
    if (!gated_)
      return {weights_.data(), 4, 1, {line, c_.columns, 1, count}, {1, line, expert, expert},
              {128, 128, 1, 1}};
    if (c_.interleaved)
      return {weights_.data(), 4, 1, {line, 2, c_.columns, count}, {1, line, 2 * line, expert},
              {128, 1, 128, 1}};
    return {weights_.data(), 4, 1, {line, c_.columns, 2, count}, {1, line, expert / 2, expert},
            {128, 128, 1, 1}};
  }

  double part(int row, int column, int up) const {
    const int expert = ragged_.expert_of(row);
    const int weight_row = c_.interleaved ? 2 * column + up : up * c_.columns + column;
    double sum = 0;
    for (int group = 0; group < groups_; ++group) {
      double of_group = 0;
      for (int k = group * kGroup; k < std::min(c_.depth, (group + 1) * kGroup); ++k) {
        of_group += double{emulated::e4m3(input_[static_cast<std::size_t>(row * c_.depth + k)])} *
                    emulated::e4m3(weights_[static_cast<std::size_t>(
                        (expert * weight_rows_ + weight_row) * c_.depth + k)]);
      }
      sum += of_group * input_scale(row, group) * weight_scale(expert, column, up, group);
    }
    if (c_.row_scale) sum *= row_scale_[static_cast<std::size_t>(row)];
    if (c_.bias)
      sum += bias_[static_cast<std::size_t>(expert * weight_rows_ + up * c_.columns + column)];
    return sum;
  }
  // Kept: a group's largest magnitude asks for all of them again.
  double reference(int row, int column) const {
    const auto [at, is_new] = known_.try_emplace({row, column});
    if (!is_new) return at->second;
    const double p = values_[static_cast<std::size_t>(3 * ragged_.expert_of(row))];
    double y = part(row, column, 0);
    if (c_.epilogue == Epilogue::Unary) y = y * std::fabs(y) + p;
    if (gated_) y = y * part(row, column, 1) + p * y;
    return at->second = y;
  }

  double scale_at(int row, int column) const {
    if (c_.output == Output::Given) return kGivenScale;
    return group_scales_[static_cast<std::size_t>(column / kGroup * rows_ + row)];
  }
  double result(int row, int column) const {
    if (is_codes()) {
      return emulated::e4m3(output_[static_cast<std::size_t>(row * row_bytes_ + column)]) *
             scale_at(row, column);
    }
    std::uint16_t bits;
    std::memcpy(&bits, &output_[static_cast<std::size_t>(row * row_bytes_ + 2 * column)],
                sizeof bits);
    return __bfloat162float({bits});
  }
  void expect_scales(int row) const {
    for (int group = 0; group < out_groups_; ++group) {
      double largest = 0;
      for (int i = group * kGroup; i < std::min(c_.columns, (group + 1) * kGroup); ++i)
        largest = std::fmax(largest, std::fabs(reference(row, i)));
      EXPECT_NEAR(scale_at(row, group * kGroup), largest / 448, largest / 448 * 1e-4 + 1e-6)
          << row << " " << group;
    }
  }

  Case c_;
  emulated::RaggedRows ragged_;
  bool gated_, blocks_;
  int rows_ = ragged_.count(), weight_rows_ = 0, groups_ = 0, row_bytes_ = 0, out_groups_ = 0;
  std::mt19937 random_{11};
  std::normal_distribution<double> normal_;
  std::vector<std::uint8_t> input_, weights_, output_;
  std::vector<float> input_scale_, weight_scale_, bias_, row_scale_, values_, group_scales_;
  std::vector<std::uint32_t> largest_;
  mutable std::map<std::pair<int, int>, double> known_;
};

void check(const Case& c) {
  for (const bool lazy : {false, true}) {
    SCOPED_TRACE(lazy ? "copies and products come late" : "they are done at once");
    Gemm gemm(c);
    gemm.run(lazy);
    gemm.expect_right();
  }
}

TEST(Sm100Fp8Gemm, groups_of_a_gated_layer_are_shared_by_two_warps) {
  check({{70, 3}, 272, 144, Scaling::Blocks, Epilogue::Gated, Output::Groups, false, true});
  check({{33, 0, 130},
         128,
         208,
         Scaling::Blocks,
         Epilogue::Gated,
         Output::Groups,
         true,
         false,
         true});
  check({{40}, 6 * kGroup, 48, Scaling::Blocks, Epilogue::Gated, Output::Groups});
}

TEST(Sm100Fp8Gemm, scales_by_blocks_without_a_gate_and_in_the_second_gemm) {
  check({{65, 20}, 400, 304, Scaling::Blocks, Epilogue::Unary, Output::Groups, false, true});
  check({{1, 100}, 144, 400, Scaling::Blocks, Epilogue::Plain, Output::Rows, false, true});
}

TEST(Sm100Fp8Gemm, codes_by_the_scale_of_the_checkpoint) {
  check({{50, 80},
         144,
         144,
         Scaling::Whole,
         Epilogue::Gated,
         Output::Given,
         false,
         true,
         false,
         true});
}

TEST(Sm100Fp8Gemm, largest_magnitudes_of_rows_and_of_all) {
  check({{50, 33}, 272, 144, Scaling::Whole, Epilogue::Gated, Output::Largest, true, true, true});
  check(
      {{129}, 16, 80, Scaling::Whole, Epilogue::Gated, Output::Largest, false, false, false, true});
  check({{37, 1}, 144, 272, Scaling::Whole, Epilogue::Unary, Output::Largest});
  check({{37, 70}, 144, 272, Scaling::Whole, Epilogue::Plain, Output::Rows, false, true});
}

}  // namespace
