// The instructions of the stream kernels, in C++.
#pragma once

#include "block.hpp"

namespace flexact::cuda {

inline void wait_for_predecessors() {}
inline void let_successor_start() {}

namespace stream {

inline uint4 load_weights(const void* address, bool there) {
  uint4 value{};
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0 && there)
    throw std::runtime_error("a load that is not aligned");
  if (there) std::memcpy(&value, address, sizeof value);
  return value;
}
inline uint4 load_input(const void* address, bool there) {
  return load_weights(address, there);
}

inline float low_half(std::uint32_t pair) {
  return std::bit_cast<float>(pair << 16);
}
inline float high_half(std::uint32_t pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}

// mma.m16n8k16 by its definition: a thread's registers hold
//   A  rows lane/4 and lane/4 + 8 at k = lane%4·2 + {0, 1}, then the same at k + 8
//   B  column lane/4 at those k
//   C  rows lane/4 and lane/4 + 8 at columns lane%4·2 + {0, 1}
inline void multiply(float (&acc)[4], std::uint32_t low0, std::uint32_t high0, std::uint32_t low1,
                     std::uint32_t high1, std::uint32_t x0, std::uint32_t x1) {
  const emulated::Meeting& warp =
      emulated::Block::current().meet_warp({low0, high0, low1, high1, x0, x1});
  const unsigned lane = threadIdx.x % 32;
  const auto given = warp.last;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4;
    const unsigned column = lane % 4 * 2 + i % 2;
    float sum = acc[i];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned quad = k % 8 / 2;
      const std::uint32_t a = given[row * 4 + quad][(k < 8 ? 0u : 2u) + i / 2];
      const std::uint32_t b = given[column * 4 + quad][4 + k / 8];
      sum += (k % 2 == 0 ? low_half(a) : high_half(a)) * (k % 2 == 0 ? low_half(b) : high_half(b));
    }
    acc[i] = sum;
  }
}

}  // namespace stream
}  // namespace flexact::cuda
