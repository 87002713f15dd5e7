// What tcgen05.mma is told of its operands, bit by bit. Plain C++, so that tests read it as the
// manual has it.
#pragma once

#include <cstdint>

#include "arguments.hpp"

namespace flexact::cuda::sm100 {

// Columns of tensor memory: sums of two tiles.
inline constexpr int kSumTiles = 2;
inline constexpr int kSumColumns = kSumTiles * kTileColumns;
// That a thread takes at once; fewer beside many others.
inline constexpr int kLoadedSums = 32;
inline constexpr int kFewLoadedSums = 16;
// Of a row of results on their way through shared memory.
inline constexpr int kLineBytes = 64;

// By their codes in the descriptor, where E4M3 belongs to instructions of another kind than the
// other two.
enum class Operand : std::uint32_t { E4M3 = 0, Float16 = 0, BFloat16 = 1 };

// A tile's products in fp32 from operands that are neighbours along K.
constexpr std::uint32_t instruction_of(Operand operand) {
  constexpr std::uint32_t kFloat32Sums = 1;
  const auto format = static_cast<std::uint32_t>(operand);
  return kFloat32Sums << 4 | format << 7 | format << 10 | std::uint32_t{kTileColumns / 8} << 17 |
         std::uint32_t{kTileRows / 16} << 24;
}

// Rows of 128 bytes, swizzled in groups of eight, from `address` in shared memory on. Sixteen bytes
// further along K are one more in the lowest bits.
constexpr std::uint64_t tile_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kGroupBytes = 1024;
  constexpr std::uint64_t kVersion = 1;
  constexpr std::uint64_t kSwizzle128 = 2;
  return kSwizzle128 << 61 | kVersion << 46 | (kGroupBytes >> 4) << 32 | std::uint64_t{1} << 16 |
         (address & 0x3ffffu) >> 4;
}

}  // namespace flexact::cuda::sm100
