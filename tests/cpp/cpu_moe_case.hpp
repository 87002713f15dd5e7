// One MoE block with random data of a trained model's scale, and its value in fp64 from the stored
// numbers: nothing here is shared with the library but the function's own fp64 reference.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cpu/backend.hpp"
#include "cpu/pool.hpp"
#include "flexact/backend.hpp"

namespace flexact::testing {

// Numbers in one of the storage types, and the same as doubles.
struct Stored {
  DType dtype = DType::Float32;
  std::vector<std::uint16_t> halves;
  std::vector<float> floats;

  static std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
    bits += 0x7fff + ((bits >> 16) & 1);
    return static_cast<std::uint16_t>(bits >> 16);
  }
  static float from_bf16(std::uint16_t half) {
    const std::uint32_t bits = std::uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  // Rounded through long division, not through the library's bit tricks.
  static double round_to(double value, DType dtype) {
    if (dtype == DType::Float32) return static_cast<float>(value);
    if (!std::isfinite(value) || value == 0) return value;
    const int digits = dtype == DType::BFloat16 ? 8 : 11;
    const int lowest = dtype == DType::BFloat16 ? -133 : -24;
    int exponent;
    std::frexp(value, &exponent);
    const int unit = std::max(exponent - digits, lowest);
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
    if (dtype == DType::Float16 && std::fabs(rounded) > 65504)
      return std::copysign(INFINITY, value);
    return rounded;
  }
  static std::uint16_t to_half(double value) {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    value = std::fabs(round_to(value, DType::Float16));
    if (std::isinf(value)) return sign | 0x7c00;
    if (value == 0) return sign;
    int exponent;
    std::frexp(value, &exponent);
    if (exponent < -13) return static_cast<std::uint16_t>(sign | static_cast<int>(value * 0x1p24));
    return static_cast<std::uint16_t>(sign | ((exponent + 14) << 10) |
                                      (static_cast<int>(std::ldexp(value, 11 - exponent)) & 0x3ff));
  }
  static double from_half(std::uint16_t half) {
    const double sign = (half & 0x8000) != 0 ? -1 : 1;
    const int exponent = (half >> 10) & 31;
    const int fraction = half & 0x3ff;
    if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
    return sign *
           (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
  }

  Stored() = default;
  Stored(DType type, const std::vector<double>& values) : dtype(type) {
    for (const double value : values) {
      if (type == DType::Float32) floats.push_back(static_cast<float>(value));
      if (type == DType::BFloat16) halves.push_back(to_bf16(static_cast<float>(value)));
      if (type == DType::Float16) halves.push_back(to_half(value));
    }
  }
  std::size_t size() const { return floats.size() + halves.size(); }
  const void* data() const {
    return dtype == DType::Float32 ? static_cast<const void*>(floats.data()) : halves.data();
  }
  void* data() { return const_cast<void*>(static_cast<const Stored*>(this)->data()); }
  double at(std::int64_t i) const {
    const auto index = static_cast<std::size_t>(i);
    if (dtype == DType::Float32) return floats.at(index);
    return dtype == DType::BFloat16 ? from_bf16(halves.at(index)) : from_half(halves.at(index));
  }
};

inline TensorView view(const void* data, DType dtype, std::vector<std::int64_t> shape) {
  TensorView v;
  v.data = data;
  v.dtype = dtype;
  v.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    v.shape[i] = shape[i];
    v.strides[i] = stride;
    stride *= shape[i];
  }
  return v;
}
inline TensorView view(const Stored& stored, std::vector<std::int64_t> shape) {
  return view(stored.data(), stored.dtype, std::move(shape));
}

struct MoeCase {
  MoeProblem problem;
  Function function;
  std::int64_t tokens;
  std::vector<float> values;  // [value_rows, P]
  std::int64_t value_rows = 1;

  Stored hidden, w13, w2, bias13, bias2;
  std::vector<float> weights;
  std::vector<std::int64_t> ids;

  std::int64_t w13_rows() const {
    return problem.pairing == Pairing::None ? problem.intermediate : 2 * problem.intermediate;
  }
  DType weight_dtype() const {
    return problem.format == Format::Bf16   ? DType::BFloat16
           : problem.format == Format::Fp16 ? DType::Float16
                                            : DType::Float32;
  }

  MoeCase(MoeProblem p, Function f, std::int64_t m, std::uint32_t seed = 1)
      : problem(p), function(std::move(f)), tokens(m) {
    std::mt19937 random(seed);
    const auto normal = [&](std::int64_t count, double scale) {
      std::normal_distribution<double> distribution(0, scale);
      std::vector<double> data(static_cast<std::size_t>(count));
      for (double& x : data) x = distribution(random);
      return data;
    };
    // Gate and up of size 1 to 2, so that activations are neither linear nor saturated.
    hidden = Stored(p.io_dtype, normal(m * p.hidden, 1.0));
    w13 = Stored(weight_dtype(),
                 normal(p.experts * w13_rows() * p.hidden, 1.5 / std::sqrt(double(p.hidden))));
    w2 = Stored(weight_dtype(), normal(p.experts * p.hidden * p.intermediate,
                                       1 / std::sqrt(double(p.intermediate))));
    if (p.bias13) bias13 = Stored(DType::Float32, normal(p.experts * w13_rows(), 0.5));
    if (p.bias2) bias2 = Stored(DType::BFloat16, normal(p.experts * p.hidden, 0.5));
    std::uniform_real_distribution<float> uniform(0.05f, 1.0f);
    for (std::int64_t i = 0; i < m * p.top_k; ++i) weights.push_back(uniform(random));
    for (std::int64_t i = 0; i < m * p.top_k; ++i) {
      ids.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(p.experts)));
    }
    for (const Parameter& parameter : function.parameters()) {
      values.push_back(static_cast<float>(parameter.default_value.value_or(1.25)));
    }
  }

  MoeWeights moe_weights() const {
    const MoeProblem& p = problem;
    MoeWeights w;
    w.w13 = view(w13, {p.experts, w13_rows(), p.hidden});
    w.w2 = view(w2, {p.experts, p.hidden, p.intermediate});
    if (p.bias13) w.w13_bias = view(bias13, {p.experts, w13_rows()});
    if (p.bias2) w.w2_bias = view(bias2, {p.experts, p.hidden});
    return w;
  }
  MoeInputs inputs(void* output) const {
    MoeInputs in;
    in.tokens = tokens;
    in.hidden_states = view(hidden, {tokens, problem.hidden});
    in.topk_weights = view(weights.data(), DType::Float32, {tokens, problem.top_k});
    in.topk_ids = view(ids.data(), DType::Int64, {tokens, problem.top_k});
    in.output = output;
    return in;
  }
  ParameterTable table() const {
    return {values.data(), value_rows, static_cast<std::int64_t>(function.parameters().size())};
  }
  std::int64_t output_rows() const { return tokens * (problem.combine ? 1 : problem.top_k); }

  // The output filled with NaN, and a workspace filled with signalling patterns, before the run.
  Stored run(const Plan& plan, std::uint8_t poison = 0xff) const {
    const auto count = static_cast<std::size_t>(output_rows() * problem.hidden);
    Stored out(problem.io_dtype, std::vector<double>(count, NAN));
    const std::size_t bytes = plan.workspace_bytes(tokens);
    std::vector<std::uint8_t> memory(bytes + 64, poison);
    void* workspace = memory.data();
    std::size_t room = memory.size();
    std::align(64, bytes, workspace, room);
    plan.run(inputs(out.data()), table(), workspace, bytes, nullptr);
    return out;
  }
  Stored run(cpu::Isa isa, cpu::Pool* pool = nullptr,
             cpu::Numerics numerics = cpu::Numerics::Fast) const {
    return run(*cpu::make_moe_plan(problem, function, moe_weights(), {isa, numerics, pool}));
  }

  // f of one intermediate column of one expert.
  double activation(double g, double u, std::int64_t expert) const {
    const std::size_t count = function.parameters().size();
    const std::size_t row = value_rows == 1 ? 0 : static_cast<std::size_t>(expert);
    const std::vector<double> v(values.begin() + static_cast<std::ptrdiff_t>(row * count),
                                values.begin() + static_cast<std::ptrdiff_t>((row + 1) * count));
    return function.arity() == Arity::Gated ? function.reference(g, u, v)
                                            : function.reference(g, v);
  }

  // [M, H] or [M, k, H] in fp64, rounded nowhere but where the contract says so: the intermediate
  // goes to the io type.
  std::vector<double> reference(bool exact = false) const {
    const MoeProblem& p = problem;
    std::vector<double> out(static_cast<std::size_t>(output_rows() * p.hidden), 0.0);
    std::vector<double> inner(static_cast<std::size_t>(p.intermediate));
    for (std::int64_t m = 0; m < tokens; ++m) {
      for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
        const std::int64_t e = ids[static_cast<std::size_t>(m * p.top_k + slot)];
        if (e < 0 || e >= p.experts) continue;
        const double weight = weights[static_cast<std::size_t>(m * p.top_k + slot)];
        const auto project = [&](std::int64_t row) {
          double sum = 0;
          for (std::int64_t h = 0; h < p.hidden; ++h) {
            sum += hidden.at(m * p.hidden + h) * w13.at((e * w13_rows() + row) * p.hidden + h);
          }
          if (p.router_weight_on_input) sum *= weight;
          if (p.bias13) sum += bias13.at(e * w13_rows() + row);
          return exact ? Stored::round_to(sum, p.io_dtype) : sum;
        };
        for (std::int64_t i = 0; i < p.intermediate; ++i) {
          std::int64_t gate = i;
          std::int64_t up = p.intermediate + i;
          if (p.pairing == Pairing::UpFirst) std::swap(gate, up);
          if (p.pairing == Pairing::Interleaved) {
            gate = 2 * i;
            up = 2 * i + 1;
          }
          const double value = p.pairing == Pairing::None
                                   ? activation(project(i), 0, e)
                                   : activation(project(gate), project(up), e);
          inner[static_cast<std::size_t>(i)] = Stored::round_to(value, p.io_dtype);
        }
        for (std::int64_t h = 0; h < p.hidden; ++h) {
          double sum = p.bias2 ? bias2.at(e * p.hidden + h) : 0.0;
          for (std::int64_t i = 0; i < p.intermediate; ++i) {
            sum +=
                inner[static_cast<std::size_t>(i)] * w2.at((e * p.hidden + h) * p.intermediate + i);
          }
          if (p.combine) {
            const double factor = p.router_weight_on_input ? 1.0 : weight;
            out[static_cast<std::size_t>(m * p.hidden + h)] +=
                p.routed_scaling_factor * factor * sum;
          } else {
            out[static_cast<std::size_t>((m * p.top_k + slot) * p.hidden + h)] = sum;
          }
        }
      }
    }
    return out;
  }
};

// How far a result is from the reference, over the reference's root mean square: the largest
// difference beyond the output's own rounding, and the root mean square of the differences. NaN
// gives infinity.
struct Distance {
  double largest = 0;
  double typical = 0;
};
inline Distance distance(const Stored& out, const std::vector<double>& reference) {
  double difference = 0, square = 0, worst = 0;
  const double half_ulp = out.dtype == DType::BFloat16  ? 0x1p-9
                          : out.dtype == DType::Float16 ? 0x1p-12
                                                        : 0x1p-25;
  if (out.size() != reference.size()) return {INFINITY, INFINITY};
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double d = std::fabs(out.at(static_cast<std::int64_t>(i)) - reference[i]);
    if (!(d < INFINITY)) return {INFINITY, INFINITY};
    difference += d * d;
    square += reference[i] * reference[i];
    worst = std::max(worst, d - 1.01 * half_ulp * std::fabs(reference[i]));
  }
  const double n = std::max<double>(1, static_cast<double>(reference.size()));
  const double scale = std::sqrt(square / n);
  if (scale == 0) return worst == 0 ? Distance{} : Distance{INFINITY, INFINITY};
  return {worst / scale, std::sqrt(difference / n) / scale};
}

// What is allowed beyond that: intermediates are rounded to the io type, and near the middle
// between two values the reference and the kernel may choose different ones.
inline double allowed(DType io) {
  switch (io) {
    case DType::BFloat16:
      return 0.01;
    case DType::Float16:
      return 0.0015;
    default:
      return 1e-5;
  }
}

}  // namespace flexact::testing
