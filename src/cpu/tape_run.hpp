// Runs a tape, for any vector type. Each instruction is one loop over the block: operands come from
// L1 or broadcast memory, results go to a slot, the last one to the caller.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/tape_program.hpp"
#include "cpu/vector_math.hpp"

namespace flexact::cpu {

template <class V>
class TapeRunner {
 public:
  using Scalar = typename V::Scalar;

  static void run(const TapeView& tape, const Scalar* g, const Scalar* u, Scalar* y, std::size_t n,
                  const float* parameters) noexcept {
    alignas(64) Scalar scratch[kTapeScratch];
    const std::size_t uniform_values = tape.uniforms * kWidth;
    std::size_t block = (kTapeScratch - uniform_values) / (tape.slots == 0 ? 1 : tape.slots);
    block = block < kTapeBlock ? block / kWidth * kWidth : kTapeBlock;
    Frame frame{g, u, y, scratch, scratch + uniform_values, block};

    // Broadcast constants and parameters, then compute what depends on them alone.
    for (std::size_t i = 0; i < tape.source_count; ++i) {
      const UniformSource& source = tape.sources[i];
      const Scalar value = source.parameter < 0 ? static_cast<Scalar>(source.constant)
                                                : Scalar{parameters[source.parameter]};
      V::set(value).store(scratch + i * kWidth);
    }
    for (std::size_t i = 0; i < tape.prologue_count; ++i) execute(tape.prologue[i], frame, 1);

    std::size_t done = 0;
    for (; n - done >= kWidth; done += frame.length) {
      const std::size_t rest = n - done;
      frame.length = rest < block ? rest / kWidth * kWidth : block;
      frame.g = g + done;
      frame.u = tape.reads_up ? u + done : nullptr;
      frame.y = y + done;
      run_body(tape, frame, frame.length / kWidth);
    }
    if (done == n) return;

    // The ragged end goes through padded copies, so that no instruction needs a mask.
    alignas(64) Scalar tail[3][kWidth] = {};
    for (std::size_t i = done; i < n; ++i) {
      if (tape.reads_gate) tail[0][i - done] = g[i];
      if (tape.reads_up) tail[1][i - done] = u[i];
    }
    frame.g = tail[0];
    frame.u = tail[1];
    frame.y = tail[2];
    run_body(tape, frame, 1);
    for (std::size_t i = done; i < n; ++i) y[i] = tail[2][i - done];
  }

 private:
  static constexpr std::size_t kWidth = V::kWidth;

  struct Frame {
    const Scalar* g;
    const Scalar* u;
    Scalar* y;
    Scalar* uniforms;
    Scalar* slots;
    std::size_t block;  // values a slot
    std::size_t length = 0;
  };

  // Where an operand's first vector lies, and the distance to the next one (0: the same again).
  struct Source {
    const Scalar* base;
    std::size_t step;
  };

  static Source source(const Operand& operand, const Frame& frame) noexcept {
    switch (operand.place) {
      case Place::Gate:
        return {frame.g, kWidth};
      case Place::Up:
        return {frame.u, kWidth};
      case Place::Uniform:
        return {frame.uniforms + operand.index * kWidth, 0};
      case Place::Slot:
      case Place::Output:
        break;
    }
    return {frame.slots + operand.index * frame.block, kWidth};
  }

  static Scalar* destination(const Operand& operand, const Frame& frame) noexcept {
    if (operand.place == Place::Output) return frame.y;
    if (operand.place == Place::Uniform) return frame.uniforms + operand.index * kWidth;
    return frame.slots + operand.index * frame.block;
  }

  static bool is_uniform(const Operand& operand, Scalar value, const Frame& frame) noexcept {
    return operand.place == Place::Uniform && *source(operand, frame).base == value;
  }

  static void run_body(const TapeView& tape, const Frame& frame, std::size_t vectors) noexcept {
    for (std::size_t i = 0; i < tape.body_count; ++i) execute(tape.body[i], frame, vectors);
  }

  template <class F>
  static void map1(const Instruction& in, const Frame& frame, std::size_t vectors, F f) noexcept {
    const Source a = source(in.operands[0], frame);
    Scalar* y = destination(in.destination, frame);
    for (std::size_t i = 0; i < vectors; ++i) f(V::load(a.base + i * a.step)).store(y + i * kWidth);
  }

  template <class F>
  static void map2(const Instruction& in, const Frame& frame, std::size_t vectors, F f) noexcept {
    const Source a = source(in.operands[0], frame), b = source(in.operands[1], frame);
    Scalar* y = destination(in.destination, frame);
    for (std::size_t i = 0; i < vectors; ++i) {
      f(V::load(a.base + i * a.step), V::load(b.base + i * b.step)).store(y + i * kWidth);
    }
  }

  template <class F>
  static void map3(const Instruction& in, const Frame& frame, std::size_t vectors, F f) noexcept {
    const Source a = source(in.operands[0], frame), b = source(in.operands[1], frame),
                 c = source(in.operands[2], frame);
    Scalar* y = destination(in.destination, frame);
    for (std::size_t i = 0; i < vectors; ++i) {
      f(V::load(a.base + i * a.step), V::load(b.base + i * b.step), V::load(c.base + i * c.step))
          .store(y + i * kWidth);
    }
  }

  template <class F>
  static void map4(const Instruction& in, const Frame& frame, std::size_t vectors, F f) noexcept {
    const Source a = source(in.operands[0], frame), b = source(in.operands[1], frame),
                 c = source(in.operands[2], frame), d = source(in.operands[3], frame);
    Scalar* y = destination(in.destination, frame);
    for (std::size_t i = 0; i < vectors; ++i) {
      f(V::load(a.base + i * a.step), V::load(b.base + i * b.step), V::load(c.base + i * c.step),
        V::load(d.base + i * d.step))
          .store(y + i * kWidth);
    }
  }

  static void execute(const Instruction& in, const Frame& f, std::size_t n) noexcept {
    switch (in.op) {
      case TapeOp::Copy:
        return map1(in, f, n, [](V a) { return a; });
      case TapeOp::Neg:
        return map1(in, f, n, [](V a) { return negate(a); });
      case TapeOp::Add:
        return map2(in, f, n, [](V a, V b) { return a + b; });
      case TapeOp::Sub:
        return map2(in, f, n, [](V a, V b) { return a - b; });
      case TapeOp::Mul:
        return map2(in, f, n, [](V a, V b) { return a * b; });
      case TapeOp::Mul3:
        return map3(in, f, n, [](V a, V b, V c) { return a * b * c; });
      case TapeOp::Div: {
        // By one value for the whole run: its reciprocal, where that is an ordinary number. One
        // rounding more, a fifth of the time.
        const Scalar divisor = *source(in.operands[1], f).base;
        const Scalar inverse = 1 / divisor;
        const Scalar size = inverse < 0 ? -inverse : inverse;
        if (in.operands[1].place == Place::Uniform && size > Scalar{0x1p-100f} &&
            size < Scalar{0x1p100f}) {
          const V factor = V::set(inverse);
          return map1(in, f, n, [factor](V a) { return a * factor; });
        }
        return map2(in, f, n, [](V a, V b) { return a / b; });
      }
      case TapeOp::Fma:
        return map3(in, f, n, [](V a, V b, V c) { return fma(a, b, c); });
      case TapeOp::Fms:
        return map3(in, f, n, [](V a, V b, V c) { return fma(a, b, negate(c)); });
      case TapeOp::Fnma:
        return map3(in, f, n, [](V a, V b, V c) { return fnma(a, b, c); });
      case TapeOp::Powi: {
        const int exponent = in.exponent;
        return map1(in, f, n, [exponent](V a) { return math::power(a, exponent); });
      }
      case TapeOp::Exp:
        return map1(in, f, n, [](V a) { return math::exp(a); });
      case TapeOp::Exp2:
        return map1(in, f, n, [](V a) { return math::exp2(a); });
      case TapeOp::Expm1:
        return map1(in, f, n, [](V a) { return math::expm1(a); });
      case TapeOp::Log:
        return map1(in, f, n, [](V a) { return math::log(a); });
      case TapeOp::Log1p:
        return map1(in, f, n, [](V a) { return math::log1p(a); });
      case TapeOp::Sqrt:
        return map1(in, f, n, [](V a) { return sqrt(a); });
      case TapeOp::Rsqrt:
        return map1(in, f, n, [](V a) { return math::rsqrt(a); });
      case TapeOp::Abs:
        return map1(in, f, n, [](V a) { return abs(a); });
      case TapeOp::Sign:
        return map1(in, f, n, [](V a) { return math::sign(a); });
      case TapeOp::Floor:
        return map1(in, f, n, [](V a) { return floor(a); });
      case TapeOp::Tanh:
        return map1(in, f, n, [](V a) { return math::tanh(a); });
      case TapeOp::Erf:
        return map1(in, f, n, [](V a) { return math::erf(a); });
      case TapeOp::OnePlusErf:
        return map1(in, f, n, [](V a) { return math::one_plus_erf(a); });
      case TapeOp::Softplus:
        return map1(in, f, n, [](V a) { return math::softplus(a); });
      case TapeOp::Relu:
        return map1(in, f, n, [](V a) { return max_second(V::set(0.0f), a); });
      case TapeOp::SigmoidProduct:
        // Where b * c is exact: the same value without the work for its rounding error.
        if (is_uniform(in.operands[1], 1, f)) {
          return map4(in, f, n, [](V a, V, V c, V d) { return a * math::sigmoid(c) * d; });
        }
        if (is_uniform(in.operands[1], 2, f)) {
          return map4(in, f, n, [](V a, V, V c, V d) { return a * math::sigmoid(c + c) * d; });
        }
        return map4(in, f, n,
                    [](V a, V b, V c, V d) { return a * math::sigmoid_of_product(b, c) * d; });
      case TapeOp::GeluProduct:
        return map2(in, f, n, [](V a, V b) { return a * math::normal_cdf(a) * b; });
      case TapeOp::GeluTanhProduct:
        return map2(in, f, n, [](V a, V b) { return a * math::gelu_tanh_gate(a) * b; });
      case TapeOp::MishProduct:
        return map2(in, f, n, [](V a, V b) { return math::tanh_softplus(a) * b; });
      case TapeOp::Min:
        return map2(in, f, n, [](V a, V b) { return math::min(a, b); });
      case TapeOp::Max:
        return map2(in, f, n, [](V a, V b) { return math::max(a, b); });
      case TapeOp::MinBound:
        return map2(in, f, n, [](V a, V b) { return min_second(b, a); });
      case TapeOp::MaxBound:
        return map2(in, f, n, [](V a, V b) { return max_second(b, a); });
      case TapeOp::ClampBound:
        return map3(in, f, n, [](V a, V b, V c) { return min_second(c, max_second(b, a)); });
      case TapeOp::WhereLt:
        return map4(in, f, n, [](V a, V b, V c, V d) { return select(less(a, b), c, d); });
      case TapeOp::WhereLe:
        return map4(in, f, n, [](V a, V b, V c, V d) { return select(less_equal(a, b), c, d); });
      case TapeOp::WhereEq:
        return map4(in, f, n, [](V a, V b, V c, V d) { return select(equal(a, b), c, d); });
      case TapeOp::WhereNe:
        return map4(in, f, n, [](V a, V b, V c, V d) { return select(not_equal(a, b), c, d); });
    }
  }
};

// Conversions between fp32 and the 16-bit floats, whole vectors first, the rest through a copy.
template <class V, V (*kLoad)(const std::uint16_t*)>
void widen(const std::uint16_t* in, float* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) kLoad(in + i).store(out + i);
  if (i == n) return;
  std::uint16_t padded[V::kWidth] = {};
  float wide[V::kWidth];
  for (std::size_t j = i; j < n; ++j) padded[j - i] = in[j];
  kLoad(padded).store(wide);
  for (std::size_t j = i; j < n; ++j) out[j] = wide[j - i];
}

template <class V, void (*kStore)(V, std::uint16_t*)>
void narrow(const float* in, std::uint16_t* out, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) kStore(V::load(in + i), out + i);
  if (i == n) return;
  float padded[V::kWidth] = {};
  std::uint16_t small[V::kWidth];
  for (std::size_t j = i; j < n; ++j) padded[j - i] = in[j];
  kStore(V::load(padded), small);
  for (std::size_t j = i; j < n; ++j) out[j] = small[j - i];
}

template <class V, void (*kDeinterleave)(const float*, V&, V&)>
void deinterleave_all(const float* in, float* even, float* odd, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) {
    V e, o;
    kDeinterleave(in + 2 * i, e, o);
    e.store(even + i);
    o.store(odd + i);
  }
  for (; i < n; ++i) {
    even[i] = in[2 * i];
    odd[i] = in[2 * i + 1];
  }
}

}  // namespace flexact::cpu
