// The GEMM of sm_100a on the CPU: its own source, thread by thread, with copies and products that
// come when they come, against fp64. All but the instructions' timing is checked: who waits for
// whom, every index, mask, edge and bit of a descriptor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "emulated/ctas.hpp"
#include "emulated/linked_function.hpp"
#include "emulated/ragged_rows.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/sm100_bf16_gemm.cuh"

FLEXACT_SM100_GEMM_KERNEL(emulated_gated, Gated, __nv_bfloat16)
FLEXACT_SM100_GEMM_KERNEL(emulated_unary, Unary, __nv_bfloat16)
FLEXACT_SM100_GEMM_KERNEL(emulated_plain, Plain, __nv_bfloat16)
FLEXACT_SM100_GEMM_KERNEL(emulated_fp16_gated, Gated, __half)

namespace {

using namespace flexact::cuda;

enum class Layout { Concat, UpFirst, Interleaved };

struct Case {
  std::vector<int> rows_of_expert;
  int depth, columns;
  Epilogue epilogue = Epilogue::Gated;
  Layout layout = Layout::Concat;
  bool bias = false, row_scale = false, fp16 = false, split_last = false;
  unsigned ctas = 2;
};

class Gemm {
 public:
  explicit Gemm(const Case& c)
      : c_(c), ragged_(c.rows_of_expert, kTileRows), gated_(c.epilogue == Epilogue::Gated) {
    const int experts = static_cast<int>(c.rows_of_expert.size());
    weight_rows_ = gated_ ? 2 * c.columns : c.columns;
    input_ = numbers(rows_ * c.depth, 1);
    weights_ = numbers(experts * weight_rows_ * c.depth, 1 / std::sqrt(c.depth));
    for (int i = 0; i < experts * weight_rows_; ++i)
      bias_.push_back(static_cast<float>(normal_(random_)));
    for (int i = 0; i < rows_; ++i) scale_.push_back(static_cast<float>(normal_(random_)));
    for (int i = 0; i < 3 * experts; ++i) values_.push_back(static_cast<float>(normal_(random_)));
    // A row more than there are, which nobody may write.
    output_.assign(static_cast<std::size_t>((rows_ + 1) * c.columns), kPoison);
  }

  void run(bool lazy) {
    GemmArguments g{};
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
    g.gate_pair = gated_ && c_.layout == Layout::UpFirst;
    g.interleaved = gated_ && c_.layout == Layout::Interleaved;
    g.bias = c_.bias ? bias_.data() : nullptr;
    g.row_scale = c_.row_scale ? scale_.data() : nullptr;
    g.split_last = c_.split_last;
    g.early_weights = c_.row_scale;  // one of several cases
    const CUtensorMap a = {input_.data(), 2, 2, {c_.depth, rows_}, {2, c_.depth * 2}, {64, 64}};
    const auto kernel = c_.fp16                          ? emulated_fp16_gated
                        : c_.epilogue == Epilogue::Gated ? emulated_gated
                        : c_.epilogue == Epilogue::Unary ? emulated_unary
                                                         : emulated_plain;
    emulated::run_ctas(c_.ctas, kGemmThreads, lazy, [&] { kernel(a, weight_map(), g); });
    EXPECT_EQ(taken[0], 0u);
    EXPECT_EQ(taken[1], 0u);
  }

  void expect_right() const {
    double worst = 0;
    for (int row = 0; row < rows_; ++row) {
      for (int column = 0; column < c_.columns; ++column) {
        const double expected = reference(row, column);
        const double actual = value(output_[static_cast<std::size_t>(row * c_.columns + column)]);
        const double bound = std::fabs(expected) * (c_.fp16 ? 0x1p-11 : 0x1p-8) + 1e-4;
        ASSERT_NEAR(actual, expected, bound) << "row " << row << ", column " << column;
        worst = std::max(worst, std::fabs(expected));
      }
    }
    EXPECT_GT(worst, 0.5);
    for (int column = 0; column < c_.columns; ++column)
      EXPECT_EQ(output_[static_cast<std::size_t>(rows_ * c_.columns + column)], kPoison);
  }

 private:
  static constexpr std::uint16_t kPoison = 0xffff;

  std::vector<std::uint16_t> numbers(int count, double size) {
    std::vector<std::uint16_t> list(static_cast<std::size_t>(count));
    for (auto& each : list) {
      const auto number = static_cast<float>(size * normal_(random_));
      each = c_.fp16 ? __float2half_rn(number).bits : __float2bfloat16_rn(number).bits;
    }
    return list;
  }
  double value(std::uint16_t bits) const {
    return c_.fp16 ? __half2float({bits}) : __bfloat162float({bits});
  }

  // As tensor_map.cpp describes them.
  CUtensorMap weight_map() const {
    const std::int64_t line = c_.depth * 2, expert = weight_rows_ * line, half = expert / 2;
    const auto experts = static_cast<std::int64_t>(c_.rows_of_expert.size());
    if (!gated_)
      return {weights_.data(), 4, 2, {c_.depth, c_.columns, 1, experts}, {2, line, expert, expert},
              {64, 128, 1, 1}};
    if (c_.layout == Layout::Interleaved)
      return {
          weights_.data(), 4, 2, {c_.depth, 2, c_.columns, experts}, {2, line, 2 * line, expert},
          {64, 1, 128, 1}};
    return {weights_.data(), 4, 2, {c_.depth, c_.columns, 2, experts}, {2, line, half, expert},
            {64, 128, 1, 1}};
  }

  double product(int row, int weight_row) const {
    const int expert = ragged_.expert_of(row);
    double sum = 0;
    for (int k = 0; k < c_.depth; ++k)
      sum += value(input_[static_cast<std::size_t>(row * c_.depth + k)]) *
             value(weights_[static_cast<std::size_t>(
                 (expert * weight_rows_ + weight_row) * c_.depth + k)]);
    return c_.row_scale ? sum * scale_[static_cast<std::size_t>(row)] : sum;
  }

  double reference(int row, int column) const {
    const int expert = ragged_.expert_of(row);
    const auto part = [&](int up) {
      int weight_row = column;
      if (gated_) {
        weight_row = c_.layout == Layout::Interleaved
                         ? 2 * column + up
                         : column + (c_.layout == Layout::UpFirst ? 1 - up : up) * c_.columns;
      }
      const double sum = product(row, weight_row);
      return c_.bias ? sum + bias_[static_cast<std::size_t>(expert * weight_rows_ +
                                                            up * c_.columns + column)]
                     : sum;
    };
    const double p = values_[static_cast<std::size_t>(3 * expert)];
    const double x = part(0);
    if (c_.epilogue == Epilogue::Plain) return x;
    if (c_.epilogue == Epilogue::Unary) return x * std::fabs(x) + p;
    return x * part(1) + p * x;
  }

  Case c_;
  emulated::RaggedRows ragged_;
  bool gated_;
  int rows_ = ragged_.count(), weight_rows_ = 0;
  std::mt19937 random_{7};
  std::normal_distribution<double> normal_;
  std::vector<std::uint16_t> input_, weights_, output_;
  std::vector<float> bias_, scale_, values_;
};

void check(const Case& c) {
  for (const bool lazy : {false, true}) {
    SCOPED_TRACE(lazy ? "copies and products come late" : "they are done at once");
    Gemm gemm(c);
    gemm.run(lazy);
    gemm.expect_right();
  }
}

TEST(Sm100Gemm, gates_and_ups_meet_in_every_layout) {
  for (const Layout layout : {Layout::Concat, Layout::UpFirst, Layout::Interleaved}) {
    SCOPED_TRACE(static_cast<int>(layout));
    check({{70, 3}, 136, 136, Epilogue::Gated, layout, layout != Layout::UpFirst});
  }
}

TEST(Sm100Gemm, whole_tiles_and_more_stages_than_there_are) {
  check({{128, 0, 200}, 6 * kTileDepth, 256, Epilogue::Gated, Layout::Concat, false, true});
}

TEST(Sm100Gemm, layers_without_a_gate_and_the_second_gemm) {
  check({{33, 0, 129}, 72, 264, Epilogue::Unary, Layout::Concat, true, true});
  check({{1, 100, 64}, 200, 520, Epilogue::Plain, Layout::Concat, true});
  check({{300}, 8, 8, Epilogue::Plain});
}

TEST(Sm100Gemm, fp16_and_tiles_taken_in_halves) {
  check({{130, 65}, 64, 128, Epilogue::Gated, Layout::Concat, false, false, true});
  check({{100, 128}, 64, 128, Epilogue::Gated, Layout::Concat, true, true, false, true, 5});
}

TEST(Sm100Gemm, no_rows_and_more_ctas_than_tiles) {
  check({{5}, 64, 8, Epilogue::Plain, Layout::Concat, false, false, false, false, 3});
  Gemm none({{0, 0}, 64, 8, Epilogue::Plain});
  none.run(true);
}

}  // namespace
