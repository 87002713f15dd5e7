// What stands around the GEMMs, on the CPU: the source of the gathers and of combine thread by
// thread, and the order in which tiles are taken.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "cuda/kernels/tile_order.hpp"
#include "emulated/e4m3.hpp"
#include "emulated/stream_instructions.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/moe_rows_fp4.cuh"
#include "cuda/kernels/moe_rows_fp8.cuh"
#include "cuda/kernels/token_rows.cuh"

namespace {

using namespace flexact::cuda;

// Tokens whose slots have experts, or none here, and the rows that those give them: experts follow
// each other, and slots of one come as they are.
struct Rows {
  int tokens, top_k, width, block_tokens, experts;
  std::int64_t stride;
  std::mt19937 random;
  std::vector<std::int64_t> ids;
  std::vector<std::int32_t> slot_row;
  std::vector<RowTile> tiles;
  std::vector<float> weights;
  std::vector<std::uint16_t> hidden, rows;

  Rows(int tokens_, int top_k_, int width_, int block_tokens_, int gap, int experts_)
      : tokens(tokens_),
        top_k(top_k_),
        width(width_),
        block_tokens(block_tokens_),
        experts(experts_),
        stride(width_ + gap) {
    const int slots = tokens * top_k;
    for (int slot = 0; slot < slots; ++slot) {
      // Also beyond both ends, by more than 32 bits.
      const bool here = random() % 4 != 0;
      const std::int64_t beyond = random() % 2 == 0 ? experts : -1 - (std::int64_t{1} << 33);
      ids.push_back(here ? static_cast<std::int64_t>(random()) % experts : beyond);
      weights.push_back(here ? static_cast<float>(random() % 100) / 64 - 0.5f
                             : std::numeric_limits<float>::quiet_NaN());
    }
    slot_row.assign(static_cast<std::size_t>(slots), -1);
    std::int32_t row = 0;
    for (int expert = 0; expert < experts; ++expert) {
      const std::int32_t first = row;
      for (std::size_t slot = 0; slot < ids.size(); ++slot) {
        if (ids[slot] == expert) slot_row[slot] = row++;
      }
      const std::size_t before = tiles.size();
      for (std::int32_t at = first; at < row; at += tiles.back().rows) {
        const bool last = row - at <= tile_rows() + extra_rows();
        tiles.push_back({expert, at, last ? row - at : tile_rows(), 0});
      }
      const auto count = static_cast<int>(tiles.size() - before);
      for (int i = 0; i < count; ++i) {
        tiles[before + static_cast<std::size_t>(i)].run = tile_run(i, count);
      }
    }
    hidden = numbers(tokens * stride);
    rows = numbers(std::int64_t{slots} * width);
  }
  std::vector<std::uint16_t> numbers(std::int64_t count) {
    std::vector<std::uint16_t> list(static_cast<std::size_t>(count));
    for (auto& each : list)
      each = static_cast<std::uint16_t>(0x3e00 + random() % 512 + random() % 2 * 0x8000);
    return list;
  }
  std::int32_t tile_rows() const { return tokens % 2 == 0 ? kTileRows : 32; }
  std::int32_t extra_rows() const { return top_k % 2 == 0 ? kExtraRows : 0; }
  float input(int token, int column) const {
    return __bfloat162float({hidden[static_cast<std::size_t>(token * stride + column)]});
  }
  GatherArguments gather_arguments(float* scales) const {
    GatherArguments g{};
    g.hidden = hidden.data();
    g.hidden_stride = stride;
    g.slot_row = slot_row.data();
    g.weights = weights.data();
    g.weight_stride = top_k;
    g.weight_step = 1;
    g.row_scale = scales;
    g.width = width;
    g.top_k = top_k;
    g.tokens = tokens;
    g.block_tokens = block_tokens;
    return g;
  }
  // Rows in bytes of which each is that of its slot's token.
  template <typename RowOfToken>
  std::vector<std::uint8_t> in_order(std::size_t bytes, RowOfToken row_of_token) const {
    std::vector<std::uint8_t> list(slot_row.size() * bytes, 0xff);
    for (std::size_t slot = 0; slot < slot_row.size(); ++slot) {
      if (slot_row[slot] < 0) continue;
      const std::vector<std::uint8_t> row = row_of_token(static_cast<int>(slot) / top_k);
      std::copy(row.begin(), row.end(),
                list.begin() + slot_row[slot] * static_cast<std::int64_t>(bytes));
    }
    return list;
  }
  std::vector<float> scales_in_order() const {
    std::vector<float> list(slot_row.size(), -1);
    for (std::size_t slot = 0; slot < slot_row.size(); ++slot) {
      if (slot_row[slot] >= 0) list[static_cast<std::size_t>(slot_row[slot])] = weights[slot];
    }
    return list;
  }

  template <typename Kernel>
  void launch(unsigned blocks, int columns, Kernel kernel) const {
    const auto parts = static_cast<unsigned>((columns + 8 * kRowThreads - 1) / (8 * kRowThreads));
    emulated::Block::current().grid = {blocks, parts, 1};
    for (unsigned y = 0; y < parts; ++y) {
      for (unsigned x = 0; x < blocks; ++x)
        emulated::Block::current().run(kRowThreads, {x, y}, kernel);
    }
  }
  unsigned blocks() const {
    return static_cast<unsigned>((tokens + block_tokens - 1) / block_tokens);
  }
};

const std::vector<Rows>& all_rows() {
  static const std::vector<Rows> list = {
      {1, 1, 8, 1, 0, 1},     {7, 2, 1032, 4, 8, 5},    {9, 3, 64, 8, 3, 300},
      {5, 8, 2056, 2, 0, 8},  {17, 32, 24, 8, 0, 1024}, {3, 10, 1024, 1, 4, 2},
      {11, 1, 40, 8, 16, 64}, {280, 4, 8, 8, 0, 3},     {1, 4, 96, 1, 0, 5},
  };
  return list;
}

// Calls gather(rows, block) as both kernels of a gather do. Where rows are counted nothing is known
// before, and what route writes must be there afterwards.
template <typename Gather>
void launch_both(const Rows& each, bool counted, unsigned blocks, int columns, Gather gather) {
  if (!counted) {
    each.launch(blocks, columns, [&] {
      gather_listed(each.slot_row.data(), [&](auto rows, int block) { gather(rows, block); });
    });
    return;
  }
  for (const bool wide : {true, false}) {
    // Beyond 32 bits there is nothing in 32 bits.
    std::vector<std::int32_t> narrow;
    for (const std::int64_t id : each.ids)
      narrow.push_back(id < -1 ? -1 : static_cast<std::int32_t>(id));
    std::vector<std::int32_t> slot_row(each.slot_row.size(), -7);
    std::vector<RowTile> tiles(each.slot_row.size() + 1, RowTile{-7, -7, -7, -7});
    std::int32_t tile_count = -7;
    std::vector<std::uint32_t> taken(6, 7);
    RouteArguments r{};
    r.ids = wide ? static_cast<const void*>(each.ids.data()) : narrow.data();
    r.id_stride = each.top_k;
    r.id_step = 1;
    r.wide_ids = wide;
    r.experts = each.experts;
    r.tokens = each.tokens;
    r.top_k = each.top_k;
    r.slot_row = slot_row.data();
    r.tiles = tiles.data();
    r.tile_count = &tile_count;
    r.taken = taken.data();
    r.counters = 5;
    r.tile_rows = each.tile_rows();
    r.extra_rows = each.extra_rows();
    each.launch(blocks + 1, columns,
                [&] { gather_counted(r, [&](auto rows, int block) { gather(rows, block); }); });
    EXPECT_EQ(slot_row, each.slot_row) << each.tokens;
    EXPECT_EQ(taken, (std::vector<std::uint32_t>{0, 0, 0, 0, 0, 7}));
    ASSERT_EQ(tile_count, static_cast<std::int32_t>(each.tiles.size())) << each.tokens;
    for (std::size_t i = 0; i < each.tiles.size(); ++i) {
      EXPECT_EQ(tiles[i].expert, each.tiles[i].expert) << i;
      EXPECT_EQ(tiles[i].first_row, each.tiles[i].first_row) << i;
      EXPECT_EQ(tiles[i].rows, each.tiles[i].rows) << i;
      EXPECT_EQ(tiles[i].run, each.tiles[i].run) << i;
    }
    EXPECT_EQ(tiles[each.tiles.size()].expert, -7);
  }
}

TEST(TokenRows, gather_copies_each_token_to_the_rows_of_its_slots) {
  for (const Rows& each : all_rows()) {
    const auto expected = each.in_order(static_cast<std::size_t>(each.width) * 2, [&](int token) {
      const auto* from = reinterpret_cast<const std::uint8_t*>(
          &each.hidden[static_cast<std::size_t>(token * each.stride)]);
      return std::vector<std::uint8_t>(from, from + each.width * 2);
    });
    for (const bool counted : {false, true}) {
      std::vector<std::uint8_t> rows(expected.size(), 0xff);
      std::vector<float> scales(each.slot_row.size(), -1);
      GatherArguments g = each.gather_arguments(scales.data());
      if (counted) g.slot_row = nullptr;
      g.rows = rows.data();
      launch_both(each, counted, each.blocks(), each.width,
                  [&](auto found, int block) { gather(g, found, block); });
      EXPECT_EQ(rows, expected) << each.tokens << " " << counted;
      EXPECT_EQ(scales, each.scales_in_order()) << each.tokens << " " << counted;
    }
  }
}

TEST(TokenRows, gather_for_fp4_orders_columns_and_fills_up_blocks) {
  for (const Rows& each : all_rows()) {
    const int width = (each.width + kFp4Block - 1) / kFp4Block * kFp4Block;
    const auto expected = each.in_order(static_cast<std::size_t>(width) * 2, [&](int token) {
      std::vector<std::uint8_t> row;
      for (int i = 0; i < width; ++i) {
        const int column = i / kFp4Block * kFp4Block + fp4_column(i % kFp4Block);
        const std::uint16_t bits =
            column < each.width
                ? each.hidden[static_cast<std::size_t>(token * each.stride + column)]
                : std::uint16_t{0};
        row.push_back(static_cast<std::uint8_t>(bits));
        row.push_back(static_cast<std::uint8_t>(bits >> 8));
      }
      return row;
    });
    for (const bool counted : {false, true}) {
      std::vector<std::uint8_t> rows(expected.size(), 0xff);
      std::vector<float> scales(each.slot_row.size(), -1);
      Fp4GatherArguments f{each.gather_arguments(scales.data()), width, 0};
      if (counted) f.gather.slot_row = nullptr;
      f.gather.rows = rows.data();
      launch_both(each, counted, static_cast<unsigned>(each.tokens), width,
                  [&](auto found, int token) { gather(f, found, token); });
      EXPECT_EQ(rows, expected) << each.tokens << " " << counted;
      EXPECT_EQ(scales, each.scales_in_order()) << each.tokens << " " << counted;
    }
  }
}

// What codes a row has under which scales: of groups, of the row, of all rows, or given.
TEST(TokenRows, gather_rounds_by_groups_rows_all_rows_or_a_given_scale) {
  constexpr float kGiven = 0.01f;
  for (const Rows& each : all_rows()) {
    float of_all = 0;
    for (std::size_t slot = 0; slot < each.slot_row.size(); ++slot) {
      for (int i = 0; i < each.width && each.slot_row[slot] >= 0; ++i)
        of_all = std::max(of_all, std::abs(each.input(static_cast<int>(slot) / each.top_k, i)));
    }
    for (const auto scaling :
         {InputScaling::Groups, InputScaling::Rows, InputScaling::All, InputScaling::Given}) {
      for (const bool ordered : {false, true}) {
        if (ordered && scaling != InputScaling::Groups) continue;
        const int width =
            ordered ? (each.width + kFp4Block - 1) / kFp4Block * kFp4Block : each.width;
        const int group = scaling == InputScaling::Groups ? kGroup : each.width;
        const auto scale_of = [&](int token, int column) {
          float largest = 0;
          const int first = column / group * group;
          for (int i = first; i < std::min(each.width, first + group); ++i)
            largest = std::max(largest, std::abs(each.input(token, i)));
          if (scaling == InputScaling::All) largest = of_all;
          return scaling == InputScaling::Given ? kGiven : std::max(largest, 1e-10f) / 448.0f;
        };
        const auto expected = each.in_order(static_cast<std::size_t>(width), [&](int token) {
          std::vector<std::uint8_t> row;
          for (int i = 0; i < width; ++i) {
            const int column =
                ordered ? i / kFp4Block * kFp4Block + mxfp4_fp8_column(i % kFp4Block) : i;
            const float x = column < each.width ? each.input(token, column) : 0;
            row.push_back(flexact::moe::encode_e4m3(x * (1.0f / scale_of(token, column))));
          }
          return row;
        });
        const bool of_rows = scaling == InputScaling::Groups || scaling == InputScaling::Rows;
        const int groups = of_rows ? (width + group - 1) / group : 0;
        const auto slots = static_cast<std::int64_t>(each.slot_row.size());
        std::vector<float> expected_scales(static_cast<std::size_t>(groups * slots), -1);
        for (std::int64_t slot = 0; slot < slots; ++slot) {
          const std::int32_t row = each.slot_row[static_cast<std::size_t>(slot)];
          for (int i = 0; i < groups && row >= 0; ++i)
            expected_scales[static_cast<std::size_t>(i * slots + row)] =
                scale_of(static_cast<int>(slot) / each.top_k, i * group);
        }
        if (scaling == InputScaling::All && of_all != 0) expected_scales = {scale_of(0, 0)};
        for (const bool counted : {false, true}) {
          std::vector<std::uint8_t> codes(expected.size(), 0xff);
          std::vector<float> row_scales(each.slot_row.size(), -1);
          std::vector<float> scales(expected_scales.size(), -1);
          std::vector<std::uint32_t> largest(each.slot_row.size(), 7);
          Fp8GatherArguments g{};
          g.gather = each.gather_arguments(row_scales.data());
          if (counted) g.gather.slot_row = nullptr;
          g.gather.rows = codes.data();
          g.scaling = scaling;
          g.row_bytes = width;
          g.scales = scales.data();
          g.group_step = slots;
          g.given = &kGiven;
          g.activated_largest = largest.data();
          g.ordered = ordered;
          const int columns = scaling == InputScaling::Rows ? 8 : width;
          const int parts = (width + 8 * kRowThreads - 1) / (8 * kRowThreads);
          g.routed = {
              each.ids.data(), each.top_k, 1, 1, each.experts, static_cast<std::int32_t>(slots),
              each.top_k};
          g.largest_count = counted ? each.tokens * parts : 1;
          std::vector<std::uint32_t> of_inputs(static_cast<std::size_t>(g.largest_count + 1), 0);
          g.largest = of_inputs.data();
          if (scaling == InputScaling::All) {
            // One is cleared before, those of tokens are not.
            std::fill(of_inputs.begin() + (counted ? 0 : 1), of_inputs.end(), 0x7fffffffu);
            each.launch(static_cast<unsigned>(each.tokens), columns, [&] { find_largest(g); });
            EXPECT_EQ(of_inputs.back(), 0x7fffffffu);
          }
          launch_both(each, counted, static_cast<unsigned>(each.tokens), columns,
                      [&](auto found, int token) { gather(g, found, token); });
          const auto what = std::to_string(each.tokens) + " " +
                            std::to_string(static_cast<int>(scaling)) + (ordered ? " ordered" : "");
          EXPECT_EQ(codes, expected) << what;
          EXPECT_EQ(scales, expected_scales) << what;
          EXPECT_EQ(row_scales, each.scales_in_order()) << what;
          for (const std::int32_t row : each.slot_row) {
            EXPECT_EQ(row < 0 ? 0 : largest[static_cast<std::size_t>(row)], 0u) << what;
          }
        }
      }
    }
  }
}

template <typename Element>
void expect_sums_in_order() {
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
                      to_float(Element{each.rows[at + static_cast<std::size_t>(h)]});
            }
            sum[static_cast<std::size_t>(h)] += value;
            if (!adds) expected.push_back(Rounding<Element>::one(value).bits);
          }
        }
        for (const float each_sum : sum) {
          if (adds) expected.push_back(Rounding<Element>::one(each_sum * 2.5f).bits);
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
      each.launch(each.blocks(), each.width, [&] { combine<Element>(c); });
      EXPECT_EQ(output, expected) << each.tokens << " " << adds;
    }
  }
}

TEST(TokenRows, combine_adds_a_token_s_rows_in_the_order_of_its_slots) {
  expect_sums_in_order<__nv_bfloat16>();
  expect_sums_in_order<__half>();
}

TEST(TokenRows, beyond_the_largest_number_of_fp16_is_an_infinity) {
  EXPECT_EQ(Rounding<__half>::one(65519.0f).bits, 0x7bff);
  EXPECT_EQ(Rounding<__half>::one(65520.0f).bits, 0x7c00);
  EXPECT_EQ(Rounding<__half>::one(-1e9f).bits, 0xfc00);
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
            const TilePlace place = order.at(position, [](int) { return -1; });
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

TEST(TileOrder, sweeps_groups_of_one_expert_s_tiles) {
  std::mt19937 random(3);
  for (const int most : {1, 4, 8}) {
    for (const int columns : {1, 5, 16}) {
      std::vector<int> expert, run;
      for (int e = 0; e < 12; ++e) {
        const auto tiles = static_cast<int>(random() % 20);
        for (int i = 0; i < tiles; ++i) {
          expert.push_back(e);
          run.push_back(tile_run(i, tiles));
        }
      }
      const auto row_tiles = static_cast<int>(run.size());
      const TileOrder order(row_tiles, columns, -most, false, 132);
      std::set<std::pair<int, int>> taken;
      std::pair<int, int> group;  // expert and column of the tiles that follow each other
      int height = 0;
      for (int position = 0; position < order.positions(); ++position) {
        const TilePlace place =
            order.at(position, [&](int tile) { return run[static_cast<std::size_t>(tile)]; });
        ASSERT_LT(place.row_tile, row_tiles);
        EXPECT_TRUE(taken.insert({place.row_tile, place.column_tile}).second);
        const std::pair<int, int> now{expert[static_cast<std::size_t>(place.row_tile)],
                                      place.column_tile};
        height = now == group ? height + 1 : 1;
        group = now;
        // With one column groups of an expert follow each other.
        if (columns > 1) {
          EXPECT_LE(height, most);
        }
      }
      EXPECT_EQ(taken.size(), static_cast<std::size_t>(row_tiles * columns));
    }
  }
}

TEST(TileOrder, tells_places_among_more_tiles_than_16_bits_hold) {
  EXPECT_EQ(tile_run(0, 1), 0);
  EXPECT_EQ(tile_run(4, 6), 5 << 16 | 4);
  EXPECT_EQ(tile_run(kMostRun - 1, kMostRun + 3), (kMostRun - 1) << 16 | (kMostRun - 1));
  EXPECT_EQ(tile_run(kMostRun + 1, kMostRun + 3), 2 << 16 | 1);
}

}  // namespace
