// Packing: each panel is a small transposition, done by whichever thread takes it.
#include "cpu/pack.hpp"

#include <algorithm>
#include <cstring>

namespace flexact::cpu {

namespace {

// Where a block's 16 source rows begin; null: a column beyond the matrix.
using BlockRows = const std::byte* [kColumns];

template <typename Word>
void copy_word(const std::byte* row, std::int64_t offset, std::byte* to) noexcept {
  if (row != nullptr) {
    std::memcpy(to, row + offset, sizeof(Word));
  } else {
    std::memset(to, 0, sizeof(Word));
  }
}

// Pairs of 16-bit values from rows that are contiguous in k: a transposition of 32-bit words.
void pack_pairs_of_rows(const BlockRows& rows, std::int64_t k, std::int64_t step, std::byte* to) {
  constexpr std::int64_t kStretch = 16;  // of pairs: one cache line of each row at a time
  for (std::int64_t first = 0; first < k / 2; first += kStretch) {
    const std::int64_t end = std::min(first + kStretch, k / 2);
    for (int c = 0; c < kColumns; ++c) {
      for (std::int64_t i = first; i < end; ++i) {
        copy_word<std::uint32_t>(rows[c], 4 * i, to + i * step + 4 * c);
      }
    }
  }
  if (k % 2 != 0) {
    for (int c = 0; c < kColumns; ++c) {
      copy_word<std::uint16_t>(rows[c], 2 * (k - 1), to + k / 2 * step + 4 * c);
    }
  }
}

// Any strides: value k of column c goes to line k, or to half k % 2 of word c of line k / 2.
template <typename Word>
void pack_any(const BlockRows& rows, std::int64_t k_count, std::int64_t k_stride, bool pairs,
              std::int64_t step, std::byte* to) {
  const std::int64_t size = sizeof(Word);
  for (std::int64_t k = 0; k < k_count; ++k) {
    std::byte* line = pairs ? to + k / 2 * step + k % 2 * size : to + k * step;
    const std::int64_t pitch = pairs ? 2 * size : size;
    for (int c = 0; c < kColumns; ++c) {
      copy_word<Word>(rows[c], k * k_stride * size, line + c * pitch);
    }
  }
}

void pack_block(const PackedLayout& layout, const BlockRows& rows, std::int64_t k_stride,
                std::int64_t step, std::byte* to) {
  const bool pairs = layout.type == Element::Bf16;
  if (pairs && k_stride == 1) {
    pack_pairs_of_rows(rows, layout.k, step, to);
  } else if (layout.type == Element::Fp32) {
    pack_any<std::uint32_t>(rows, layout.k, k_stride, false, step, to);
  } else {
    pack_any<std::uint16_t>(rows, layout.k, k_stride, pairs, step, to);
  }
}

float bias_value(const std::byte* at, DType dtype) noexcept {
  if (dtype == DType::Float32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  float value = 0;
  kKernelsScalar.rows.widen(at, dtype == DType::BFloat16 ? Element::Bf16 : Element::Fp16, &value,
                            1);
  return value;
}

}  // namespace

std::int64_t PackedLayout::panels() const noexcept {
  return (columns + columns_per_panel() - 1) / columns_per_panel();
}

int PackedLayout::blocks_of(std::int64_t panel) const noexcept {
  const std::int64_t left = columns - panel * columns_per_panel();
  const std::int64_t wanted = (left + kColumns - 1) / kColumns * (paired ? 2 : 1);
  return static_cast<int>(std::min<std::int64_t>(wanted, blocks));
}

std::int64_t PackedLayout::block_bytes(std::int64_t values) const noexcept {
  switch (type) {
    case Element::Bf16:
      return (values + 1) / 2 * 2 * kColumns * 2;
    case Element::Fp16:
      return values * kColumns * 2;
    case Element::Fp32:
      return values * kColumns * 4;
  }
  return 0;
}

std::int64_t PackedLayout::panel_offset(std::int64_t panel) const noexcept {
  return panel * blocks * block_bytes(k);
}

std::int64_t PackedLayout::expert_bytes() const noexcept {
  const std::int64_t last = panels() - 1;
  return (panel_offset(last) + blocks_of(last) * block_bytes(k) + 63) / 64 * 64;
}

PairRows source_rows(Pairing pairing, std::int64_t column, std::int64_t columns) noexcept {
  switch (pairing) {
    case Pairing::UpFirst:
      return {columns + column, column};
    case Pairing::Interleaved:
      return {2 * column, 2 * column + 1};
    default:
      return {column, columns + column};
  }
}

void pack_panel(const PackedLayout& layout, const TensorView& source, Pairing pairing,
                std::int64_t expert, std::int64_t panel, std::byte* to) {
  const std::int64_t size = bytes_of(layout.type);
  const int blocks = layout.blocks_of(panel);
  const std::int64_t block_step = layout.block_bytes(layout.type == Element::Bf16 ? 2 : 1);
  const auto* base = static_cast<const std::byte*>(source.data) + expert * source.strides[0] * size;
  for (int b = 0; b < blocks; ++b) {
    const std::int64_t first =
        panel * layout.columns_per_panel() + (layout.paired ? b / 2 : b) * std::int64_t{kColumns};
    BlockRows rows;
    for (int c = 0; c < kColumns; ++c) {
      const std::int64_t column = first + c;
      std::int64_t row = column;
      if (layout.paired) {
        const PairRows pair = source_rows(pairing, column, layout.columns);
        row = b % 2 == 0 ? pair.gate : pair.up;
      }
      rows[c] = column < layout.columns ? base + row * source.strides[1] * size : nullptr;
    }
    pack_block(layout, rows, source.strides[2], blocks * block_step, to + b * block_step);
  }
}

void unpack_panel(const PackedLayout& layout, Pairing pairing, std::int64_t panel,
                  const std::byte* from, std::byte* to) {
  constexpr std::int64_t kStretch = 32;  // values of k: a cache line or two of each row at a time
  const std::int64_t size = bytes_of(layout.type);
  const int blocks = layout.blocks_of(panel);
  const bool pairs = layout.type == Element::Bf16;
  const std::int64_t block_step = layout.block_bytes(pairs ? 2 : 1);
  const std::int64_t step = blocks * block_step;
  for (int b = 0; b < blocks; ++b) {
    const std::int64_t first =
        panel * layout.columns_per_panel() + (layout.paired ? b / 2 : b) * std::int64_t{kColumns};
    const std::int64_t count = std::min<std::int64_t>(kColumns, layout.columns - first);
    const std::byte* block = from + b * block_step;
    for (std::int64_t begin = 0; begin < layout.k; begin += kStretch) {
      const std::int64_t end = std::min(begin + kStretch, layout.k);
      for (std::int64_t c = 0; c < count; ++c) {
        std::int64_t row = first + c;
        if (layout.paired) {
          const PairRows pair = source_rows(pairing, row, layout.columns);
          row = b % 2 == 0 ? pair.gate : pair.up;
        }
        std::byte* line = to + row * layout.k * size;
        for (std::int64_t k = begin; k < end; ++k) {
          const std::byte* at =
              pairs ? block + k / 2 * step + (2 * c + k % 2) * size : block + k * step + c * size;
          std::memcpy(line + k * size, at, static_cast<std::size_t>(size));
        }
      }
    }
  }
}

void widen_bias(const TensorView& bias, std::int64_t expert, std::int64_t first, std::int64_t step,
                std::int64_t count, float* to) {
  const auto* base = static_cast<const std::byte*>(bias.data);
  const std::int64_t size = size_of(bias.dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t at = expert * bias.strides[0] + (first + i * step) * bias.strides[1];
    to[i] = bias_value(base + at * size, bias.dtype);
  }
}

}  // namespace flexact::cpu
