// A counting sort: two passes over the ids, one over the experts.
#include "moe/routing.hpp"

namespace flexact::moe {

namespace {

constexpr std::size_t kAlign = 64;

std::size_t padded(std::int64_t count) noexcept {
  return (static_cast<std::size_t>(count) * sizeof(std::int32_t) + kAlign - 1) / kAlign * kAlign;
}

template <typename Id>
void count_ids(const TensorView& ids, std::int64_t first_token, std::int64_t tokens,
               std::int64_t top_k, std::int64_t experts, std::int32_t* row_of_pair,
               std::int32_t* counts) noexcept {
  const Id* data = static_cast<const Id*>(ids.data);
  for (std::int64_t m = 0; m < tokens; ++m) {
    for (std::int64_t k = 0; k < top_k; ++k) {
      const std::int64_t id = data[(first_token + m) * ids.strides[0] + k * ids.strides[1]];
      const bool here = id >= 0 && id < experts;
      row_of_pair[m * top_k + k] = here ? static_cast<std::int32_t>(id) : -1;
      if (here) ++counts[id];
    }
  }
}

}  // namespace

std::size_t Routing::bytes(std::int64_t experts, std::int64_t pairs) noexcept {
  return padded(experts) + padded(experts + 1) + 3 * padded(pairs);
}

Routing::Routing(void* memory, std::int64_t experts, std::int64_t pairs) noexcept {
  auto* cursor = static_cast<std::byte*>(memory);
  const auto take = [&cursor](std::int64_t count) {
    auto* array = reinterpret_cast<std::int32_t*>(cursor);
    cursor += padded(count);
    return array;
  };
  active_expert = take(experts);
  first_row = take(experts + 1);
  pair_of_row = take(pairs);
  token_of_row = take(pairs);
  row_of_pair = take(pairs);
}

void Routing::sort(const TensorView& topk_ids, std::int64_t first_token, std::int64_t tokens,
                   std::int64_t top_k, std::int64_t experts) noexcept {
  // Count into first_row[e + 1]; row_of_pair holds the expert meanwhile.
  for (std::int64_t e = 0; e <= experts; ++e) first_row[e] = 0;
  if (topk_ids.dtype == DType::Int32) {
    count_ids<std::int32_t>(topk_ids, first_token, tokens, top_k, experts, row_of_pair,
                            first_row + 1);
  } else {
    count_ids<std::int64_t>(topk_ids, first_token, tokens, top_k, experts, row_of_pair,
                            first_row + 1);
  }

  // Counts become first rows, one expert late: first_row[e + 1] is where expert e's next pair goes.
  rows = 0;
  active = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int32_t count = first_row[e + 1];
    first_row[e + 1] = rows;
    rows += count;
    if (count > 0) active_expert[active++] = static_cast<std::int32_t>(e);
  }

  // Placing the pairs moves each first_row[e + 1] to its expert's end, which is what it should
  // hold.
  for (std::int64_t m = 0; m < tokens; ++m) {
    for (std::int64_t p = m * top_k; p < (m + 1) * top_k; ++p) {
      const std::int32_t expert = row_of_pair[p];
      if (expert < 0) continue;
      const std::int32_t row = first_row[expert + 1]++;
      row_of_pair[p] = row;
      pair_of_row[row] = static_cast<std::int32_t>(p);
      token_of_row[row] = static_cast<std::int32_t>(m);
    }
  }
}

}  // namespace flexact::moe
