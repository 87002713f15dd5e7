// Token → expert: the (token, slot) pairs sorted by expert, so that each expert's rows are one run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flexact/moe.hpp"

namespace flexact::moe {

// The sort of one chunk of tokens. Pair p is (token p / k, slot p % k); positions are 0 … rows-1 in
// expert order, and within an expert in pair order. Memory belongs to the caller.
struct Routing {
  std::int32_t rows = 0;        // pairs whose expert is here
  std::int32_t active = 0;      // experts that have rows
  std::int32_t* active_expert;  // [active] their numbers, ascending
  std::int32_t* first_row;      // [E + 1] by expert
  std::int32_t* pair_of_row;    // [rows]
  std::int32_t* token_of_row;   // [rows] within the chunk
  std::int32_t* row_of_pair;    // [tokens * k]; -1 where the id is outside 0 … E-1

  static std::size_t bytes(std::int64_t experts, std::int64_t pairs) noexcept;
  // Places the arrays in `memory`, 64-byte aligned and bytes() long.
  Routing(void* memory, std::int64_t experts, std::int64_t pairs) noexcept;

  // Sorts tokens [first_token, first_token + tokens) of `topk_ids` (Int32 or Int64).
  void sort(const TensorView& topk_ids, std::int64_t first_token, std::int64_t tokens,
            std::int64_t top_k, std::int64_t experts) noexcept;
};

}  // namespace flexact::moe
