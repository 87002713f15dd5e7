// What the copy engine must know of the operands: rows of the sorted input, and rows of the
// weights.
#pragma once

#include "cuda/driver.hpp"
#include "flexact/moe.hpp"

namespace flexact::cuda {

// [rows, depth] of BFloat16 or Float8E4M3, contiguous, in boxes of `box_rows` rows and 128 bytes of
// each.
TensorMap map_rows(const Driver& driver, DType dtype, const void* rows, std::int64_t count,
                   std::int64_t depth, int box_rows = 64);

// Weights [E, N, depth] of any strides, in boxes of 128 rows; packed codes (UInt8) in boxes of 64
// bytes of each. The rows of a gated layer are pairs
// (gate, up): a dimension of its own, after the rows, or before them where gate and up alternate.
TensorMap map_weights(const Driver& driver, const char* name, const TensorView& weights,
                      Pairing pairing);

}  // namespace flexact::cuda
