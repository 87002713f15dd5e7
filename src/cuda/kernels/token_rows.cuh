// Token rows on their way to the experts and back: gather before the first GEMM, combine after the second.
// Both do nothing but wait for memory, so what they are about is loads in flight: a block takes several
// tokens, looks up all of their slots at once, and then has the rows of several slots on their way.
#pragma once

#ifndef FLEXACT_EMULATED
#include "dependent_launch.cuh"
#endif

#include "arguments.hpp"
#include "elements.cuh"
#include "slot_rows.cuh"

namespace flexact::cuda {

__device__ inline bool aligned16(const void* address, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(address) % 16 == 0) && stride_bytes % 16 == 0;
}

// The eight elements of a row that this thread works on: blocks of x have the same tokens, blocks of y a
// row's parts.
__device__ inline int piece_of_thread() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
}

// What the gathers of all formats begin with, on `count` tokens from `first` on: the rows of their slots, and
// the router's weights on the input.
template <typename Rows>
__device__ inline void find_rows(const GatherArguments& g, SlotRows& slots, Rows rows, int first, int count) {
  const std::int64_t first_slot = std::int64_t{first} * g.top_k;
  rows.find(slots, first_slot, count * g.top_k);
  if (g.weights == nullptr || blockIdx.y != 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < count * g.top_k; i += kRowThreads) {
    const int row = slots.row[i];
    if (row < 0) continue;
    g.row_scale[row] = g.weights[(first + i / g.top_k) * g.weight_stride + i % g.top_k * g.weight_step];
  }
}

// Each token's row goes to each of its experts, whatever its 16-bit elements are. Rows are on their way before their places are known.
template <typename Rows>
__device__ inline void gather(const GatherArguments& g, Rows rows_of_slots, int block) {
  constexpr int kAhead = 4;
  __shared__ SlotRows slots;
  const int first = block * g.block_tokens;
  const int count = min(g.block_tokens, g.tokens - first);
  const int piece = piece_of_thread();
  const bool inside = piece < g.width / 8;
  const bool vectors = aligned16(g.hidden, g.hidden_stride * 2);
  const auto* hidden = static_cast<const std::uint16_t*>(g.hidden) + first * g.hidden_stride;
  uint4 data[kAhead];
  const auto load = [&](int base) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (!inside || base + ahead >= count) continue;
      const auto* from = hidden + (base + ahead) * g.hidden_stride + piece * 8;
      if (vectors) {
        data[ahead] = *reinterpret_cast<const uint4*>(from);
      } else {
        auto* element = reinterpret_cast<std::uint16_t*>(&data[ahead]);
        for (int i = 0; i < 8; ++i) element[i] = from[i];
      }
    }
  };
  load(0);
  find_rows(g, slots, rows_of_slots, first, count);
  if (!inside) return;
  auto* rows = static_cast<std::uint16_t*>(g.rows);
  for (int base = 0; base < count; base += kAhead) {
    if (base > 0) load(base);
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (base + ahead >= count) break;
      for (int i = 0; i < g.top_k; ++i) {
        const int row = slots.row[(base + ahead) * g.top_k + i];
        if (row >= 0) reinterpret_cast<uint4*>(rows + std::int64_t{row} * g.width)[piece] = data[ahead];
      }
    }
  }
}

template <typename Element>
__device__ inline void store8(Element* to, const float* values, bool vectors) {
  uint4 data;
  auto* element = reinterpret_cast<Element*>(&data);
#pragma unroll
  for (int i = 0; i < 8; ++i) element[i] = Rounding<Element>::one(values[i]);
  if (vectors) {
    *reinterpret_cast<uint4*>(to) = data;
  } else {
    for (int i = 0; i < 8; ++i) to[i] = element[i];
  }
}

// Without a list of rows every slot has its own, where its expert is ours.
__device__ inline int row_of_slot(const CombineArguments& c, int slot) {
  if (c.slot_row != nullptr) return c.slot_row[slot];
  const std::int64_t at = slot / c.top_k * c.routed.stride + slot % c.top_k * c.routed.step;
  const std::int64_t id = c.routed.wide != 0 ? static_cast<const std::int64_t*>(c.routed.ids)[at]
                                             : static_cast<const std::int32_t*>(c.routed.ids)[at];
  return id >= 0 && id < c.routed.experts ? slot : -1;
}

// The weighted sum of each token's rows in the order of its slots, in fp32.
template <typename Element>
__device__ inline void combine(const CombineArguments& c) {
  constexpr int kAhead = 8;
  __shared__ SlotRows slots;
  const int first = static_cast<int>(blockIdx.x) * c.block_tokens;
  const int count = min(c.block_tokens, c.tokens - first) * c.top_k;
  wait_for_predecessors();
  let_successor_start();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kRowThreads) {
    const std::int64_t at = (first + i / c.top_k) * c.weight_stride + i % c.top_k * c.weight_step;
    const float weight = c.weights == nullptr ? 1.0f : c.weights[at];
    const int row = row_of_slot(c, first * c.top_k + i);
    slots.row[i] = row;
    // A slot without a row may have any weight.
    slots.weight[i] = row < 0 ? 0.0f : weight;
  }
  __syncthreads();
  const int piece = piece_of_thread();
  if (piece >= c.width / 8) return;
  const auto* rows = static_cast<const Element*>(c.rows);
  const std::int64_t first_row = std::int64_t{first} * (c.combine != 0 ? 1 : c.top_k);
  auto* output = static_cast<Element*>(c.output) + first_row * c.width + piece * 8;
  const bool vectors = aligned16(c.output, 0);
  float sum[8] = {};
  int of_token = 0;
  for (int base = 0; base < count; base += kAhead) {
    uint4 data[kAhead];
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int row = base + ahead < count ? slots.row[base + ahead] : -1;
      data[ahead] = uint4{};
      // Nobody reads it again.
      if (row >= 0) data[ahead] = __ldcs(reinterpret_cast<const uint4*>(rows + std::int64_t{row} * c.width) + piece);
    }
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (base + ahead >= count) break;
      const float weight = slots.weight[base + ahead];
      const auto* element = reinterpret_cast<const Element*>(&data[ahead]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float value = weight * to_float(element[i]);
        sum[i] = c.combine != 0 ? sum[i] + value : value;
      }
      const bool last = ++of_token == c.top_k;
      if (c.combine != 0 && !last) continue;
      if (c.combine != 0) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] *= c.scale;
      }
      store8(output, sum, vectors);
      output += c.width;
      if (last) of_token = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = 0;
    }
  }
}

}  // namespace flexact::cuda
