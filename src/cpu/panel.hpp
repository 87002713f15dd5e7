// Rows times one panel, tile by tile, with the next weights on their way while these are used.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/gemm.hpp"
#include "cpu/isa.hpp"

namespace flexact::cpu {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept {
  return (a + b - 1) / b;
}

inline constexpr std::int64_t kPanelRows = 192;  // rows that share one pass over a panel

struct PanelCall {
  const GemmKernels* kernels;
  Prefetch prefetch;
  int blocks;                // of this panel
  const std::byte* weights;  // the panel
  std::int64_t k;
  const void* const* rows;  // [row_count] pointers
  std::int64_t row_count;   // 1 … kPanelRows
  float* c;                 // sums, see TileCall
  std::int64_t c_stride;
  std::int32_t columns[kMaxBlocks];
  const std::byte* next;  // the weights read after this panel, or null
};

void multiply_panel(const PanelCall& call) noexcept;

}  // namespace flexact::cpu
