// The kernels in portable C++: vectors of four floats, which every compiler maps to what the
// machine has.
#include "cpu/gemm.hpp"

namespace flexact::cpu {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "packed pairs are read as little-endian words");

typedef std::uint16_t __attribute__((may_alias, aligned(1))) Half;
typedef std::uint32_t __attribute__((may_alias)) Word;

float half_value(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 31u;
  const std::uint32_t fraction = half & 0x3ffu;
  std::uint32_t bits = sign;
  if (exponent == 31) {
    bits |= 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    bits |= ((exponent + 112u) << 23) | (fraction << 13);
  } else {
    // Subnormal: fraction * 2^-24, exactly.
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return __builtin_bit_cast(float, bits);
}

std::uint16_t half_bits(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and up
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the fraction's 2^-24 steps in the low bits, rounded to even.
    const float sum = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign |
                                      (__builtin_bit_cast(std::uint32_t, sum) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

void half_to_float(const void* from, float* to, std::int64_t n) {
  const Half* in = static_cast<const Half*>(from);
  for (std::int64_t i = 0; i < n; ++i) to[i] = half_value(in[i]);
}

void float_to_half(const float* from, void* to, std::int64_t n) {
  Half* out = static_cast<Half*>(to);
  for (std::int64_t i = 0; i < n; ++i) out[i] = half_bits(from[i]);
}

struct V {
  typedef float Reg __attribute__((vector_size(16)));
  typedef std::uint32_t Raw __attribute__((vector_size(16)));
  struct __attribute__((packed, may_alias)) Memory {
    Reg value;
  };
  static constexpr int kLanes = 4, kSums = 8, kGroup = 4;
  static Reg zero() { return Reg{0, 0, 0, 0}; }
  static Reg load(const float* p) { return reinterpret_cast<const Memory*>(p)->value; }
  static void store(float* p, Reg x) { reinterpret_cast<Memory*>(p)->value = x; }
  static Reg broadcast(const float* p) { return Reg{*p, *p, *p, *p}; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Raw load_raw(const std::byte* p) {
    const Word* words = reinterpret_cast<const Word*>(p);
    return Raw{words[0], words[1], words[2], words[3]};
  }
  static Reg low(Raw raw) { return reinterpret_cast<Reg>(raw << 16); }
  static Reg high(Raw raw) { return reinterpret_cast<Reg>(raw & 0xffff0000u); }
  static Reg load_fp16(const std::byte* p) {
    const Half* halves = reinterpret_cast<const Half*>(p);
    return Reg{half_value(halves[0]), half_value(halves[1]), half_value(halves[2]),
               half_value(halves[3])};
  }
};

#include "cpu/gemm_rows.inl"
#include "cpu/gemm_tile.inl"

}  // namespace

extern const IsaKernels kKernelsScalar = {
    .bf16 = {Element::Bf16,
             Element::Fp32,
             1,
             2,
             "multiply-add",
             {FLEXACT_TILES_2(tile, 1, Bf16Weights)}},
    .fp16 = {Element::Fp16,
             Element::Fp32,
             1,
             2,
             "multiply-add",
             {FLEXACT_TILES_2(tile, 1, Fp16Weights)}},
    .fp32 = {Element::Fp32,
             Element::Fp32,
             1,
             2,
             "multiply-add",
             {FLEXACT_TILES_2(tile, 1, Fp32Weights)}},
    .rows = {widen, finish, store, combine},
};

}  // namespace flexact::cpu
