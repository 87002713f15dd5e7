// The kernels around the GEMMs of the FP8 formats: token rows to expert order as E4M3 codes, and activated
// rows to codes where their scale is known only after all of them.
#pragma once

#ifndef FLEXACT_EMULATED
#include <cuda_bf16.h>

#include "dependent_launch.cuh"
#include "e4m3.cuh"
#endif

#include "fp4_layout.hpp"
#include "token_rows.cuh"

namespace flexact::cuda {

// Eight bf16 of a row, and the bits of their largest magnitude.
struct Piece {
  uint4 data;

  __device__ float operator[](int i) const {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(&data)[i]);
  }
  __device__ std::uint32_t largest() const {
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits = max(bits, magnitude_bits((*this)[i]));
    return bits;
  }
  __device__ uint2 codes(float inverse) const {
    uint2 result;
    auto* two = reinterpret_cast<std::uint16_t*>(&result);
#pragma unroll
    for (int i = 0; i < 4; ++i) two[i] = to_e4m3((*this)[2 * i] * inverse, (*this)[2 * i + 1] * inverse);
    return result;
  }
};

__device__ inline Piece load_piece(const __nv_bfloat16* row, int piece, bool aligned) {
  Piece result;
  if (aligned) {
    result.data = reinterpret_cast<const uint4*>(row)[piece];
  } else {
    auto* element = reinterpret_cast<__nv_bfloat16*>(&result.data);
    for (int i = 0; i < 8; ++i) element[i] = row[piece * 8 + i];
  }
  return result;
}

// The largest of a block's numbers, for all of its threads.
__device__ inline std::uint32_t largest_of_block(std::uint32_t bits) {
  __shared__ std::uint32_t of_warp[kRowThreads / 32];
  bits = __reduce_max_sync(0xffffffffu, bits);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = bits;
  __syncthreads();
  for (int i = 0; i < kRowThreads / 32; ++i) bits = max(bits, of_warp[i]);
  return bits;
}

// A token that no expert here takes has no part in a scale.
__device__ inline bool is_ours(const std::int32_t* slot_row, int top_k) {
  for (int slot = 0; slot < top_k; ++slot) {
    if (slot_row[slot] >= 0) return true;
  }
  return false;
}

// The largest magnitude of all tokens that have an expert here. Blocks read ids, so nothing need be routed before.
__device__ inline void find_largest(const Fp8GatherArguments& g) {
  wait_for_predecessors();
  let_successor_start();
  const GatherArguments& rows = g.gather;
  const int token = static_cast<int>(blockIdx.x);
  bool ours = false;
  for (int slot = 0; slot < rows.top_k; ++slot) ours = ours || expert_of(g.routed, token * rows.top_k + slot) >= 0;
  const auto* from = static_cast<const __nv_bfloat16*>(rows.hidden) + token * rows.hidden_stride;
  const bool aligned = aligned16(rows.hidden, rows.hidden_stride * 2);
  const int piece = piece_of_thread();
  const std::uint32_t bits =
      largest_of_block(ours && piece < rows.width / 8 ? load_piece(from, piece, aligned).largest() : 0);
  if (threadIdx.x != 0) return;
  // One block alone writes what it finds, whether or not that was cleared.
  if (g.largest_count != 1 || gridDim.x * gridDim.y == 1) {
    g.largest[token * static_cast<int>(gridDim.y) + static_cast<int>(blockIdx.y)] = bits;
  } else if (ours) {
    raise(g.largest, bits);
  }
}

// A token's row goes to each of its experts as codes. With one scale a row, a block has the row for itself.
template <typename Rows>
__device__ inline void gather(const Fp8GatherArguments& g, Rows rows_of_slots, int token) {
  __shared__ SlotRows slots;
  const GatherArguments& rows = g.gather;
  const auto* from = static_cast<const __nv_bfloat16*>(rows.hidden) + token * rows.hidden_stride;
  const bool aligned = aligned16(rows.hidden, rows.hidden_stride * 2);
  const int pieces = rows.width / 8;
  const auto load = [&](int piece) { return piece < pieces ? load_piece(from, piece, aligned) : Piece{}; };
  // On its way before the row's places are known.
  Piece next = load(piece_of_thread());
  find_rows(rows, slots, rows_of_slots, token, 1);
  const int slot = static_cast<int>(threadIdx.x);
  const bool own = slot < rows.top_k && slots.row[slot] >= 0;
  if (g.activated_largest != nullptr && blockIdx.y == 0 && own) g.activated_largest[slots.row[slot]] = 0;
  if (!is_ours(slots.row, rows.top_k)) return;

  float scale = 1;
  if (g.scaling == InputScaling::Given) {
    scale = *g.given;
  } else if (g.scaling == InputScaling::All) {
    std::uint32_t bits = 0;
    for (int i = slot; i < g.largest_count; i += kRowThreads) bits = max(bits, g.largest[i]);
    scale = fp8_scale(__uint_as_float(largest_of_block(bits)));
  } else if (g.scaling == InputScaling::Rows) {
    std::uint32_t bits = next.largest();
    for (int piece = slot + kRowThreads; piece < pieces; piece += kRowThreads) {
      bits = max(bits, load(piece).largest());
    }
    scale = fp8_scale(__uint_as_float(largest_of_block(bits)));
    if (own) g.scales[slots.row[slot]] = scale;
  }
  if (g.scaling == InputScaling::All && blockIdx.y == 0 && threadIdx.x == 0) *g.scales = scale;

  auto* codes = static_cast<std::uint8_t*>(rows.rows);
  const int ahead = static_cast<int>(gridDim.y) * kRowThreads;
  for (int first = static_cast<int>(blockIdx.y) * kRowThreads; first < g.row_bytes / 8; first += ahead) {
    const int piece = first + static_cast<int>(threadIdx.x);
    const Piece x = next;
    next = load(piece + ahead);
    if (g.scaling == InputScaling::Groups) {
      // Sixteen threads have a group of 128.
      std::uint32_t bits = x.largest();
      for (int distance = 1; distance < 16; distance *= 2) {
        bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, distance));
      }
      scale = fp8_scale(__uint_as_float(bits));
    }
    if (piece >= g.row_bytes / 8) continue;
    const uint2 result = x.codes(reciprocal(scale));
    // Beside FP4 weights eight columns are two words of their block, and zeros fill up the last block.
    const int block = piece / 16, thread = piece % 16 / 4, step = piece % 4;
    const int word = block * 32 + step * 8 + thread;
    static_assert(mxfp4_fp8_column(2 * 32 + 3 * 4) == 3 * 32 + 2 * 8 && mxfp4_fp8_column(16) == 4);
    for (int i = 0; i < rows.top_k; ++i) {
      const std::int64_t row = slots.row[i];
      if (row < 0) continue;
      if (g.ordered) {
        auto* to = reinterpret_cast<std::uint32_t*>(codes + row * g.row_bytes) + word;
        to[0] = result.x;
        to[4] = result.y;
      } else {
        reinterpret_cast<uint2*>(codes + row * g.row_bytes)[piece] = result;
      }
      if (g.scaling == InputScaling::Groups && threadIdx.x % 16 == 0) {
        g.scales[block * g.group_step + row] = scale;
      }
    }
  }
}

// Rows of GEMM1's bf16 results to codes, with one scale a row or one for all.
__device__ inline void round_rows(const Fp8RoundArguments& r) {
  wait_for_predecessors();
  let_successor_start();
  const int row = static_cast<int>(blockIdx.x);
  const int tiles = *r.tile_count;
  if (tiles == 0) return;
  const RowTile last = r.tiles[tiles - 1];
  if (row >= last.first_row + last.rows) return;
  const std::int64_t at = std::int64_t{row} * r.largest_step;
  const float scale = fp8_scale(__uint_as_float(r.largest[at]));
  if (blockIdx.y == 0 && threadIdx.x == 0 && (row == 0 || r.largest_step != 0)) r.scales[at] = scale;
  const int piece = piece_of_thread();
  if (piece >= r.width / 8) return;
  const auto* from = static_cast<const __nv_bfloat16*>(r.rows) + std::int64_t{row} * r.width;
  auto* to = static_cast<std::uint8_t*>(r.codes) + std::int64_t{row} * r.width;
  reinterpret_cast<uint2*>(to)[piece] = load_piece(from, piece, true).codes(reciprocal(scale));
}

}  // namespace flexact::cuda

#ifndef FLEXACT_EMULATED
extern "C" __global__ void __launch_bounds__(flexact::cuda::kRowThreads)
    flexact_fp8_largest(const __grid_constant__ flexact::cuda::Fp8GatherArguments arguments) {
  flexact::cuda::find_largest(arguments);
}

FLEXACT_GATHER_KERNELS(flexact_fp8_gather, Fp8GatherArguments, gather.slot_row, gather)

extern "C" __global__ void __launch_bounds__(flexact::cuda::kRowThreads)
    flexact_fp8_round(const __grid_constant__ flexact::cuda::Fp8RoundArguments arguments) {
  flexact::cuda::round_rows(arguments);
}
#endif
