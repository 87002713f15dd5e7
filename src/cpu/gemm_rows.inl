// Row work in plain loops that the compiler vectorises for the including file's instruction set.
// The including file defines, in its anonymous namespace, half_to_float(const void*, float*, n) and
// float_to_half(const float*, void*, n) (nearest even). Same operations in the same order
// everywhere, so all instruction sets give the same bits.

typedef std::uint32_t __attribute__((may_alias, aligned(4))) Bits;
typedef std::uint16_t __attribute__((may_alias, aligned(2))) HalfBits;

// Nearest even; NaN stays NaN.
inline std::uint32_t bf16_bits(std::uint32_t x) {
  const std::uint32_t rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (x >> 16) | 0x0040u;
  return (x & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
}

inline void to_bf16(const float* from, void* to, std::int64_t n) {
  const Bits* bits = reinterpret_cast<const Bits*>(from);
  HalfBits* out = static_cast<HalfBits*>(to);
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<std::uint16_t>(bf16_bits(bits[i]));
}

inline void from_bf16(const void* from, float* to, std::int64_t n) {
  const HalfBits* in = static_cast<const HalfBits*>(from);
  Bits* out = reinterpret_cast<Bits*>(to);
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<std::uint32_t>(in[i]) << 16;
}

inline void copy_floats(const float* from, float* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// x = the nearest value of `type`.
inline void round_in_place(float* x, std::int64_t n, Element type) {
  if (type == Element::Bf16) {
    Bits* bits = reinterpret_cast<Bits*>(x);
    for (std::int64_t i = 0; i < n; ++i) bits[i] = bf16_bits(bits[i]) << 16;
  } else if (type == Element::Fp16) {
    std::uint16_t halves[64];
    for (std::int64_t i = 0; i < n; i += 64) {
      const std::int64_t m = n - i < 64 ? n - i : 64;
      float_to_half(x + i, halves, m);
      half_to_float(halves, x + i, m);
    }
  }
}

void widen(const void* from, Element type, float* to, std::int64_t n) {
  switch (type) {
    case Element::Fp32:
      copy_floats(static_cast<const float*>(from), to, n);
      break;
    case Element::Bf16:
      from_bf16(from, to, n);
      break;
    case Element::Fp16:
      half_to_float(from, to, n);
      break;
  }
}

void finish(float* x, std::int64_t rows, std::int64_t columns, const float* scale,
            const float* bias, Element type) {
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = x + r * columns;
    if (scale != nullptr) {
      const float factor = scale[r];
      for (std::int64_t c = 0; c < columns; ++c) row[c] *= factor;
    }
    if (bias != nullptr) {
      for (std::int64_t c = 0; c < columns; ++c) row[c] += bias[c];
    }
  }
  if (type != Element::Fp32) round_in_place(x, rows * columns, type);
}

void narrow(const float* from, std::int64_t n, Element type, void* to) {
  switch (type) {
    case Element::Fp32:
      copy_floats(from, static_cast<float*>(to), n);
      break;
    case Element::Bf16:
      to_bf16(from, to, n);
      break;
    case Element::Fp16:
      float_to_half(from, to, n);
      break;
  }
}

void store(const float* from, std::int64_t n, Element rounding, Element type, void* to) {
  narrow(from, n, type, to);
  if (type == Element::Fp32) round_in_place(static_cast<float*>(to), n, rounding);
}

void combine(const float* const* terms, const float* const* biases, const float* weights,
             std::int32_t count, float factor, std::int64_t n, Element type, void* to) {
  constexpr std::int64_t kBlock = 64;
  const std::int64_t size = type == Element::Fp32 ? 4 : 2;
  alignas(64) float sum[kBlock];
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t m = n - i < kBlock ? n - i : kBlock;
    for (std::int64_t c = 0; c < kBlock; ++c) sum[c] = 0;
    for (std::int32_t j = 0; j < count; ++j) {
      const float* term = terms[j] + i;
      const float weight = weights[j];
      if (biases != nullptr) {
        const float* bias = biases[j] + i;
        for (std::int64_t c = 0; c < m; ++c) sum[c] += weight * (term[c] + bias[c]);
      } else {
        for (std::int64_t c = 0; c < m; ++c) sum[c] += weight * term[c];
      }
    }
    for (std::int64_t c = 0; c < kBlock; ++c) sum[c] *= factor;
    narrow(sum, m, type, static_cast<std::byte*>(to) + i * size);
  }
}
