// The instructions of the stream kernels, in C++.
#pragma once

#include "block.hpp"
#include "cuda/kernels/arguments.hpp"
#include "e4m3.hpp"
#include "moe/small_floats.hpp"

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

// The bytes of a scale's load, which must lie where loads of so many bytes may begin.
inline std::uint32_t load_bytes(const void* address, bool there, std::size_t count) {
  std::uint32_t value = 0;
  if (reinterpret_cast<std::uintptr_t>(address) % count != 0 && there)
    throw std::runtime_error("a load that is not aligned");
  if (there) std::memcpy(&value, address, count);
  return value;
}
inline void load_words(const void* address, bool there, std::uint32_t& first,
                       std::uint32_t& second) {
  if (reinterpret_cast<std::uintptr_t>(address) % 8 != 0 && there)
    throw std::runtime_error("a load that is not aligned");
  first = load_bytes(address, there, 4);
  second = load_bytes(static_cast<const char*>(address) + 4, there, 4);
}
inline std::uint32_t load_word(const void* address, bool there) {
  return load_bytes(address, there, 4);
}
inline std::uint32_t load_half(const void* address, bool there) {
  return load_bytes(address, there, 2);
}

inline float e4m3_value(std::uint32_t code) {
  return flexact::moe::decode_e4m3(static_cast<std::uint8_t>(code));
}
// f16 of a number that it holds exactly.
inline std::uint32_t half_of(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = word >> 16 & 0x8000;
  if (std::isnan(value)) return sign | 0x7fff;
  // All of E4M3 but 0 is in the range of f16's normal numbers.
  return value == 0 ? sign : sign | ((word & 0x7fffffff) - (112u << 23)) >> 13;
}
inline float value_of_half(std::uint32_t half) {
  const std::uint32_t sign = (half & 0x8000) << 16;
  const std::uint32_t magnitude = half & 0x7fff;
  if (magnitude == 0) return std::bit_cast<float>(sign);
  if (magnitude > 0x7c00) return std::nanf("");
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}
inline std::uint32_t e4m3_to_f16(std::uint32_t two) {
  return half_of(e4m3_value(two & 0xff)) | half_of(e4m3_value(two >> 8 & 0xff)) << 16;
}
// Poisoned: no launch may count on what is in it.
inline std::uint8_t* dynamic_shared() {
  alignas(16) static std::array<std::uint8_t, kFp8StreamMostShared> memory = [] {
    std::array<std::uint8_t, kFp8StreamMostShared> poison;
    poison.fill(0xff);
    return poison;
  }();
  return memory.data();
}
inline float float_of(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline std::uint32_t bits_of(float value) {
  return std::bit_cast<std::uint32_t>(value);
}
inline std::uint32_t only_now(std::uint32_t word) {
  return word;
}

inline float low_half(std::uint32_t pair) {
  return std::bit_cast<float>(pair << 16);
}
inline float high_half(std::uint32_t pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}

inline std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 pair =
      __floats2bfloat162_rn(low_half(a) * low_half(b), high_half(a) * high_half(b));
  return std::bit_cast<std::uint32_t>(pair);
}

// mma.m16n8k16 by its definition: a thread's registers hold
//   A  rows lane/4 and lane/4 + 8 at k = lane%4·2 + {0, 1}, then the same at k + 8
//   B  column lane/4 at those k
//   C  rows lane/4 and lane/4 + 8 at columns lane%4·2 + {0, 1}
template <typename Low, typename High>
void multiply(float (&acc)[4], std::uint32_t low0, std::uint32_t high0, std::uint32_t low1,
              std::uint32_t high1, std::uint32_t x0, std::uint32_t x1, Low low_of, High high_of) {
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
      sum += (k % 2 == 0 ? low_of(a) : high_of(a)) * (k % 2 == 0 ? low_of(b) : high_of(b));
    }
    acc[i] = sum;
  }
}

inline void multiply_bf16(float (&acc)[4], std::uint32_t low0, std::uint32_t high0,
                          std::uint32_t low1, std::uint32_t high1, std::uint32_t x0,
                          std::uint32_t x1) {
  multiply(acc, low0, high0, low1, high1, x0, x1, low_half, high_half);
}
inline void multiply_f16(float (&acc)[4], std::uint32_t low0, std::uint32_t high0,
                         std::uint32_t low1, std::uint32_t high1, std::uint32_t x0,
                         std::uint32_t x1) {
  const auto low_of = [](std::uint32_t pair) { return value_of_half(pair & 0xffff); };
  const auto high_of = [](std::uint32_t pair) { return value_of_half(pair >> 16); };
  multiply(acc, low0, high0, low1, high1, x0, x1, low_of, high_of);
}

}  // namespace stream
}  // namespace flexact::cuda
