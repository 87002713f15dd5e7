// What stands around the GEMMs, on the CPU: the source of gather and combine thread by thread, and
// the order in which tiles are taken.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cuda/kernels/tile_order.hpp"
#include "emulated/stream_instructions.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/token_rows.cuh"

namespace {

using namespace flexact::cuda;

// Tokens whose slots have rows in a random order, or none.
struct Rows {
  int tokens, top_k, width, block_tokens;
  std::int64_t stride;
  std::mt19937 random;
  std::vector<std::int32_t> slot_row;
  std::vector<float> weights;
  std::vector<std::uint16_t> hidden, rows;

  Rows(int tokens_, int top_k_, int width_, int block_tokens_, int gap)
      : tokens(tokens_),
        top_k(top_k_),
        width(width_),
        block_tokens(block_tokens_),
        stride(width_ + gap) {
    const int slots = tokens * top_k;
    std::vector<std::int32_t> order(static_cast<std::size_t>(slots));
    for (int i = 0; i < slots; ++i) order[static_cast<std::size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (const std::int32_t row : order) {
      const bool here = random() % 4 != 0;
      slot_row.push_back(here ? row : -1);
      weights.push_back(here ? static_cast<float>(random() % 100) / 64 - 0.5f
                             : std::numeric_limits<float>::quiet_NaN());
    }
    hidden = numbers(tokens * stride);
    rows = numbers(std::int64_t{slots} * width);
  }
  std::vector<std::uint16_t> numbers(std::int64_t count) {
    std::vector<std::uint16_t> list(static_cast<std::size_t>(count));
    for (auto& each : list) each = static_cast<std::uint16_t>(0x3f00 + random() % 256);
    return list;
  }
  template <typename Kernel>
  void launch(Kernel kernel) const {
    for (int y = 0; y < (width + 8 * kRowThreads - 1) / (8 * kRowThreads); ++y) {
      for (int x = 0; x < (tokens + block_tokens - 1) / block_tokens; ++x) {
        emulated::Block::current().run(
            kRowThreads, {static_cast<unsigned>(x), static_cast<unsigned>(y)}, kernel);
      }
    }
  }
};

const std::vector<Rows>& all_rows() {
  static const std::vector<Rows> list = {
      {1, 1, 8, 1, 0},    {7, 2, 1032, 4, 8},  {9, 3, 64, 8, 3},   {5, 8, 2056, 2, 0},
      {17, 32, 24, 8, 0}, {3, 10, 1024, 1, 4}, {11, 1, 40, 8, 16},
  };
  return list;
}

TEST(TokenRows, gather_copies_each_token_to_the_rows_of_its_slots) {
  for (const Rows& each : all_rows()) {
    std::vector<std::uint16_t> rows(each.rows.size(), 0xffff), expected = rows;
    std::vector<float> scales(each.slot_row.size(), -1), expected_scales = scales;
    for (std::size_t slot = 0; slot < each.slot_row.size(); ++slot) {
      const std::int64_t row = each.slot_row[slot];
      if (row < 0) continue;
      const std::int64_t token = static_cast<std::int64_t>(slot) / each.top_k;
      std::copy_n(each.hidden.begin() + token * each.stride, each.width,
                  expected.begin() + row * each.width);
      expected_scales[static_cast<std::size_t>(row)] = each.weights[slot];
    }
    GatherArguments g{};
    g.hidden = each.hidden.data();
    g.hidden_stride = each.stride;
    g.slot_row = each.slot_row.data();
    g.weights = each.weights.data();
    g.weight_stride = each.top_k;
    g.weight_step = 1;
    g.rows = rows.data();
    g.row_scale = scales.data();
    g.width = each.width;
    g.top_k = each.top_k;
    g.tokens = each.tokens;
    g.block_tokens = each.block_tokens;
    each.launch([&] { gather(g); });
    EXPECT_EQ(rows, expected) << each.tokens;
    EXPECT_EQ(scales, expected_scales) << each.tokens;
  }
}

TEST(TokenRows, combine_adds_a_token_s_rows_in_the_order_of_its_slots) {
  for (const Rows& each : all_rows()) {
    for (const bool adds : {true, false}) {
      const std::int64_t count = std::int64_t{each.tokens} * (adds ? 1 : each.top_k) * each.width;
      std::vector<std::uint16_t> output(static_cast<std::size_t>(count), 0xffff), expected;
      for (int token = 0; token < each.tokens; ++token) {
        std::vector<float> sum(static_cast<std::size_t>(each.width), 0.0f);
        for (int k = 0; k < each.top_k; ++k) {
          const auto slot = static_cast<std::size_t>(token * each.top_k + k);
          for (int h = 0; h < each.width; ++h) {
            float value = 0;
            if (each.slot_row[slot] >= 0) {
              const auto at = static_cast<std::size_t>(each.slot_row[slot]) *
                              static_cast<std::size_t>(each.width);
              value = each.weights[slot] *
                      __bfloat162float({each.rows[at + static_cast<std::size_t>(h)]});
            }
            sum[static_cast<std::size_t>(h)] += value;
            if (!adds) expected.push_back(__float2bfloat16_rn(value).bits);
          }
        }
        for (const float each_sum : sum) {
          if (adds) expected.push_back(__float2bfloat16_rn(each_sum * 2.5f).bits);
        }
      }
      CombineArguments c{};
      c.rows = each.rows.data();
      c.slot_row = each.slot_row.data();
      c.weights = each.weights.data();
      c.weight_stride = each.top_k;
      c.weight_step = 1;
      c.output = output.data();
      c.width = each.width;
      c.top_k = each.top_k;
      c.scale = 2.5f;
      c.combine = adds;
      c.tokens = each.tokens;
      c.block_tokens = each.block_tokens;
      each.launch([&] { combine(c); });
      EXPECT_EQ(output, expected) << each.tokens << " " << adds;
    }
  }
}

TEST(TileOrder, takes_every_tile_once_and_halves_of_the_last_round_alone) {
  for (const int ctas : {1, 4, 13, 132}) {
    for (int row_tiles = 1; row_tiles < 40; row_tiles += 3) {
      for (const int columns : {1, 3, 16}) {
        for (const bool split : {false, true}) {
          const TileOrder order(row_tiles, columns, 8, split, ctas);
          std::map<std::pair<int, int>, std::set<int>> taken;
          int halves = 0;
          for (int position = 0; position < order.positions(); ++position) {
            const TilePlace place = order.at(position);
            EXPECT_TRUE((taken[{place.row_tile, place.column_tile}].insert(place.half).second));
            halves += place.half < 0 ? 0 : 1;
          }
          EXPECT_EQ(taken.size(), static_cast<std::size_t>(row_tiles * columns));
          const std::set<int> whole = {-1}, both = {0, 1};
          for (const auto& [tile, parts] : taken) EXPECT_TRUE(parts == whole || parts == both);
          const int rest = row_tiles * columns % ctas;
          EXPECT_EQ(halves, split && 2 * rest <= ctas ? 2 * rest : 0);
        }
      }
    }
  }
}

}  // namespace
