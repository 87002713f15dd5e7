// The 8- and 4-bit floats of quantised weights and activations, one value at a time.
//
//   E4M3  S EEEE MMM, bias 7: ±448 at most, subnormals in steps of 2^-9, no infinities; S.1111.111
//         is NaN. ("fn" in torch and ml_dtypes)
//   E2M1  S EE M, bias 1: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}; neither infinities nor NaN.
//   E8M0  EEEEEEEE, bias 127: 2^-127 … 2^127; 255 is NaN.
//
// Encoders round to nearest, ties to even, and saturate: what lies beyond the largest number,
// infinities included, becomes the largest number.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace flexact::moe {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr float kE2m1Max = 6.0f;
inline constexpr std::uint8_t kE4m3Nan = 0x7f;
inline constexpr std::uint8_t kE8m0Nan = 255;

// NaN keeps its sign and becomes S.1111.111.
inline std::uint8_t encode_e4m3(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 24 & 0x80;
  std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<std::uint8_t>(sign | kE4m3Nan);
  // 464 lies halfway between 448 and what would be 480; the tie goes to the even one, 448.
  if (magnitude >= 0x43e80000) return static_cast<std::uint8_t>(sign | 0x7e);
  if (magnitude < 0x3c800000) {
    // Below 2^-6 steps are 2^-9, which is what fp32 has around 2^14.
    const float shifted = std::bit_cast<float>(magnitude) + 16384.0f;
    return static_cast<std::uint8_t>(
        sign | (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(16384.0f)));
  }
  magnitude += 0x7ffff + (magnitude >> 20 & 1);
  return static_cast<std::uint8_t>(sign | ((magnitude >> 20) - ((127 - 7) << 3)));
}

inline float decode_e4m3(std::uint8_t code) noexcept {
  const std::uint32_t sign = std::uint32_t{code & 0x80u} << 24;
  const std::uint32_t magnitude = code & 0x7f;
  if (magnitude == kE4m3Nan) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {  // subnormal: steps of 2^-9
    const float value = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + ((127u - 7u) << 23)));
}

// There is no NaN to become: NaN is 6, as in PTX's conversion. Bits 4 to 7 of the code are 0.
inline std::uint8_t encode_e2m1(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 28 & 0x8;
  std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7;
  if (magnitude > 0x40a00000) return static_cast<std::uint8_t>(sign | 0x7);  // above 5, a tie
  if (magnitude < 0x3f800000) {
    // Below 1 steps are 0.5, which is what fp32 has around 2^22.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p22f;
    return static_cast<std::uint8_t>(
        sign | (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0x1p22f)));
  }
  magnitude += 0x1fffff + (magnitude >> 22 & 1);
  return static_cast<std::uint8_t>(sign | ((magnitude >> 22) - ((127 - 1) << 1)));
}

// Bits 4 to 7 are not looked at.
inline float decode_e2m1(std::uint8_t code) noexcept {
  constexpr float kValues[] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                               -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  return kValues[code & 0xf];
}

inline float decode_e8m0(std::uint8_t code) noexcept {
  if (code == kE8m0Nan) return std::numeric_limits<float>::quiet_NaN();
  // 2^-127 is subnormal in fp32.
  return std::bit_cast<float>(code == 0 ? 0x00400000u : std::uint32_t{code} << 23);
}

// The scale of a group whose largest magnitude is `largest`: 2^(floor(log2(largest)) - 2), so that
// the largest value lies in [4, 8) and those above 6 saturate (OCP Microscaling 1.0, section 6.3).
// Zero gives the smallest scale; an infinity or NaN gives NaN.
inline std::uint8_t e8m0_scale(float largest) noexcept {
  const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(largest) & 0x7fffffff;
  if (magnitude >= 0x7f800000) return kE8m0Nan;
  const std::uint32_t exponent = magnitude >> 23;
  return static_cast<std::uint8_t>(exponent < 2 ? 0 : exponent - 2);
}

}  // namespace flexact::moe
