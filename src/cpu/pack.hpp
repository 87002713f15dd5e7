// Weights in the order in which the kernels read them; see gemm.hpp for what a panel is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/gemm.hpp"
#include "flexact/moe.hpp"

namespace flexact::cpu {

// The packed form of one matrix [columns, k] for each expert. With gate and up, `columns` counts
// pairs of columns: blocks alternate gate, up, gate, up, so that one tile computes both.
struct PackedLayout {
  Element type = Element::Bf16;
  std::int64_t k = 0;
  std::int64_t columns = 0;
  bool paired = false;  // gate and up
  int blocks = 0;       // of a whole panel

  std::int64_t columns_per_panel() const noexcept { return kColumns * blocks / (paired ? 2 : 1); }
  std::int64_t panels() const noexcept;
  int blocks_of(std::int64_t panel) const noexcept;
  // Bytes of one block for `values` values of k (a pair counts whole).
  std::int64_t block_bytes(std::int64_t values) const noexcept;
  std::int64_t panel_offset(std::int64_t panel) const noexcept;
  std::int64_t expert_bytes() const noexcept;
};

// Packs one panel of one expert. `source` is [E, rows, k] of `layout.type`, any strides; with gate
// and up its rows are paired as `pairing` says.
void pack_panel(const PackedLayout& layout, const TensorView& source, Pairing pairing,
                std::int64_t expert, std::int64_t panel, std::byte* to);

// The inverse for the matrix of one expert: `from` is the panel, `to` the contiguous matrix
// [rows, k] of `layout.type`, of which the panel's rows are written.
void unpack_panel(const PackedLayout& layout, Pairing pairing, std::int64_t panel,
                  const std::byte* from, std::byte* to);

// The source rows of pair `column`: gate first.
struct PairRows {
  std::int64_t gate;
  std::int64_t up;
};
PairRows source_rows(Pairing pairing, std::int64_t column, std::int64_t columns) noexcept;

// to[i] = element `first + i * stride` of a row of biases, in fp32.
void widen_bias(const TensorView& bias, std::int64_t expert, std::int64_t first, std::int64_t step,
                std::int64_t count, float* to);

}  // namespace flexact::cpu
