// The sort of tokens by expert.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "moe/routing.hpp"

namespace {

using flexact::DType;
using flexact::TensorView;
using flexact::moe::Routing;

struct Sorted {
  std::vector<std::byte> memory;
  Routing routing;
  Sorted(std::int64_t experts, std::int64_t pairs)
      : memory(Routing::bytes(experts, pairs) + 64, std::byte{0xee}),
        routing(aligned(), experts, pairs) {}
  void* aligned() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (64 - address % 64) % 64;
  }
};

TensorView ids_view(const std::int64_t* ids, std::int64_t tokens, std::int64_t top_k) {
  TensorView view;
  view.data = ids;
  view.dtype = DType::Int64;
  view.rank = 2;
  view.shape = {tokens, top_k};
  view.strides = {top_k, 1};
  return view;
}

TEST(Routing, sorts_pairs_by_expert_and_keeps_their_order) {
  const std::int64_t ids[] = {2, 0, -1, 2, 0, 7, 2, 2};
  Sorted sorted(4, 8);
  Routing& r = sorted.routing;
  r.sort(ids_view(ids, 4, 2), 0, 4, 2, 4);
  ASSERT_EQ(r.rows, 6);
  ASSERT_EQ(r.active, 2);
  EXPECT_EQ(std::vector(r.active_expert, r.active_expert + 2), (std::vector<std::int32_t>{0, 2}));
  EXPECT_EQ(std::vector(r.first_row, r.first_row + 5), (std::vector<std::int32_t>{0, 2, 2, 6, 6}));
  EXPECT_EQ(std::vector(r.pair_of_row, r.pair_of_row + 6),
            (std::vector<std::int32_t>{1, 4, 0, 3, 6, 7}));
  EXPECT_EQ(std::vector(r.token_of_row, r.token_of_row + 6),
            (std::vector<std::int32_t>{0, 2, 0, 1, 3, 3}));
  EXPECT_EQ(std::vector(r.row_of_pair, r.row_of_pair + 8),
            (std::vector<std::int32_t>{2, 0, -1, 3, 1, -1, 4, 5}));
}

TEST(Routing, sorts_any_routing) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const std::int64_t experts = 1 + random() % 9;
    const std::int64_t tokens = random() % 20;
    const std::int64_t top_k = 1 + random() % 5;
    const std::int64_t first = random() % 3;
    std::vector<std::int64_t> ids(static_cast<std::size_t>((first + tokens) * top_k));
    for (auto& id : ids) id = static_cast<std::int64_t>(random() % 14) - 3;
    Sorted sorted(experts, tokens * top_k);
    Routing& r = sorted.routing;
    r.sort(ids_view(ids.data(), first + tokens, top_k), first, tokens, top_k, experts);
    std::int32_t here = 0;
    for (std::int64_t p = 0; p < tokens * top_k; ++p) {
      const std::int64_t id = ids[static_cast<std::size_t>(first * top_k + p)];
      if (id < 0 || id >= experts) {
        ASSERT_EQ(r.row_of_pair[p], -1);
        continue;
      }
      ++here;
      const std::int32_t row = r.row_of_pair[p];
      ASSERT_EQ(r.pair_of_row[row], p);
      ASSERT_EQ(r.token_of_row[row], p / top_k);
      ASSERT_GE(row, r.first_row[id]);
      ASSERT_LT(row, r.first_row[id + 1]);
    }
    ASSERT_EQ(r.rows, here);
    ASSERT_EQ(r.first_row[experts], here);
  }
}

}  // namespace
