// Data of a case and its fp64 value.
#include "data.hpp"

#include <algorithm>
#include <limits>
#include <random>
#include <tuple>

#include "fp4_data.hpp"
#include "fp8_data.hpp"
#include "sample_values.hpp"

namespace flexact::conformance {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Shape {
  int digits;    // of the significand
  int lowest;    // exponent of the smallest subnormal
  double limit;  // largest finite number
};
Shape shape_of(DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
      return {8, -133, 0x1.fep127};
    case DType::Float16:
      return {11, -24, 65504};
    case DType::Float8E4M3:
      return {4, -9, 448};
    default:
      return {24, -149, 0x1.fffffep127};
  }
}

// The bits of a number that is already representable.
std::uint32_t encode(double value, DType dtype) {
  const auto single = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  if (dtype == DType::Float32) return bits;
  if (dtype == DType::BFloat16) return std::isnan(value) ? 0x7fc0u : bits >> 16;
  const std::uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::abs(value);
  if (dtype == DType::Float8E4M3) {
    const std::uint32_t sign8 = sign >> 8;
    if (std::isnan(value)) return sign8 | 0x7f;
    if (magnitude < 0x1p-6) return sign8 | static_cast<std::uint32_t>(magnitude * 0x1p9);
    const int exponent = std::ilogb(magnitude);
    const auto fraction = static_cast<std::uint32_t>(std::ldexp(magnitude, 3 - exponent)) - 8u;
    return sign8 | static_cast<std::uint32_t>(exponent + 7) << 3 | fraction;
  }
  if (std::isnan(value)) return 0x7e00u;
  if (std::isinf(value)) return sign | 0x7c00u;
  if (magnitude < 0x1p-14) return sign | static_cast<std::uint32_t>(magnitude * 0x1p24);
  const int exponent = std::ilogb(magnitude);
  const auto fraction = static_cast<std::uint32_t>(std::ldexp(magnitude, 10 - exponent)) - 1024u;
  return sign | static_cast<std::uint32_t>(exponent + 15) << 10 | fraction;
}

std::int64_t product(const std::vector<std::int64_t>& dims) {
  std::int64_t count = 1;
  for (std::int64_t dim : dims) count *= dim;
  return count;
}

}  // namespace

double round_to(double value, DType dtype) {
  if (!std::isfinite(value) || value == 0) return value;
  const Shape shape = shape_of(dtype);
  const int unit = std::max(std::ilogb(value) - shape.digits + 1, shape.lowest);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
  if (std::abs(rounded) <= shape.limit) return rounded;
  // E4M3 has no infinities: what is too large becomes the largest number.
  return std::copysign(dtype == DType::Float8E4M3 ? shape.limit : INFINITY, value);
}

double half_ulp(double value, DType dtype) {
  const Shape shape = shape_of(dtype);
  if (!std::isfinite(value) || value == 0) return std::ldexp(0.5, shape.lowest);
  return std::ldexp(0.5, std::max(std::ilogb(value) - shape.digits + 1, shape.lowest));
}

double decode(const std::byte* at, DType dtype) {
  if (dtype == DType::Float32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, at, sizeof half);
  if (dtype == DType::BFloat16) {
    const std::uint32_t bits = std::uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = (half & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? kNaN : sign * INFINITY;
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
}

Tensor::Tensor(DType type, std::vector<std::int64_t> dims, const std::vector<double>& values,
               std::int64_t gap)
    : dtype(type), shape(std::move(dims)) {
  strides.resize(shape.size());
  std::int64_t stride = 1;
  for (int i = static_cast<int>(shape.size()) - 1; i >= 0; --i) {
    if (i == 0) stride += gap;
    strides[static_cast<std::size_t>(i)] = stride;
    stride *= shape[static_cast<std::size_t>(i)];
  }
  const auto size = static_cast<std::size_t>(size_of(dtype));
  bytes.resize(static_cast<std::size_t>(strides.empty() ? 0 : strides[0] * shape[0]) * size);
  const std::uint32_t nan = encode(kNaN, dtype);
  for (std::size_t i = 0; i < bytes.size(); i += size) std::memcpy(&bytes[i], &nan, size);
  const std::int64_t row = shape[0] == 0 ? 0 : product(shape) / shape[0];
  exact.resize(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    exact[i] = round_to(values[i], dtype);
    const std::uint32_t bits = encode(exact[i], dtype);
    const auto index = static_cast<std::int64_t>(i);
    const std::int64_t at = index / row * strides[0] + index % row;
    std::memcpy(&bytes[static_cast<std::size_t>(at) * size], &bits, size);
  }
}

TensorView Tensor::view() const {
  TensorView v;
  // A tensor without elements still has an address.
  static const std::uint64_t nothing = 0;
  v.data = bytes.empty() ? static_cast<const void*>(&nothing) : bytes.data();
  v.dtype = dtype;
  v.rank = static_cast<int>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    v.shape[i] = shape[i];
    v.strides[i] = strides[i];
  }
  return v;
}

CaseData::CaseData(const Case& test)
    : problem_(test.problem()),
      tokens_(sizes()[static_cast<std::size_t>(test.options().size)].tokens),
      rows13_(test.pairing == Pairing::None ? problem_.intermediate : 2 * problem_.intermediate),
      int32_ids_(test.options().int32_ids) {
  const MoeProblem& p = problem_;
  const Options& o = test.options();
  std::seed_seq seed{static_cast<unsigned>(test.row), static_cast<unsigned>(test.pairing),
                     static_cast<unsigned>(test.format)};
  std::mt19937 random(seed);
  const auto normal = [&](std::int64_t count, double scale) {
    std::normal_distribution<double> distribution(0, scale);
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& value : values) value = distribution(random);
    return values;
  };

  // Gate and up of size 1.5, on every third token of size 6: activations are neither linear nor
  // saturated, and limits are met.
  std::vector<double> hidden = normal(tokens_ * p.hidden, 1.0);
  for (std::int64_t m = 0; m < tokens_; m += 3) {
    for (std::int64_t h = 0; h < p.hidden; ++h)
      hidden[static_cast<std::size_t>(m * p.hidden + h)] *= 4;
  }
  hidden_ = Tensor(p.io_dtype, {tokens_, p.hidden}, hidden, o.strided ? 3 : 0);
  const DType weight = p.format == Format::Fp32   ? DType::Float32
                       : p.format == Format::Fp16 ? DType::Float16
                                                  : DType::BFloat16;
  // Weights of experts that no token visits are NaN; whoever reads them shows it.
  const std::int64_t idle = p.experts > 2 && p.top_k < p.experts ? p.experts - 1 : -1;
  const auto expert_weights = [&](std::int64_t each, double scale) {
    std::vector<double> values = normal(p.experts * each, scale);
    if (idle >= 0) std::fill_n(values.begin() + idle * each, each, kNaN);
    return values;
  };
  const std::vector<double> up =
      expert_weights(rows13_ * p.hidden, 1.5 / std::sqrt(static_cast<double>(p.hidden)));
  const std::vector<double> down =
      expert_weights(p.hidden * p.intermediate, 1 / std::sqrt(static_cast<double>(p.intermediate)));
  if (is_fp8(p.format)) {
    std::tie(w13_, w13_scale_) = quantise_fp8(up, p.experts, rows13_, p.hidden, scales_of_w13(p));
    std::tie(w2_, w2_scale_) =
        quantise_fp8(down, p.experts, p.hidden, p.intermediate, scales_of_w2(p));
    if (p.format == Format::Fp8Tensor && test.row % 2 == 1) {
      // Inputs of four times the usual size saturate now and then.
      a13_scale_ = Tensor(DType::Float32, {1}, {8.0 / 448});
      a2_scale_ = Tensor(DType::Float32, {1}, {16.0 / 448});
    }
  } else if (is_fp4(p.format)) {
    // Gate and up share a global scale in half of the cases.
    const std::int64_t halves = p.pairing == Pairing::None || test.row % 2 == 1 ? 1 : 2;
    std::tie(w13_, w13_scale_, w13_global_) =
        quantise_fp4(up, p.experts, rows13_, p.hidden, p.format, p.pairing, halves);
    std::tie(w2_, w2_scale_, w2_global_) =
        quantise_fp4(down, p.experts, p.hidden, p.intermediate, p.format, Pairing::None, 1);
  } else {
    w13_ = Tensor(weight, {p.experts, rows13_, p.hidden}, up);
    w2_ = Tensor(weight, {p.experts, p.hidden, p.intermediate}, down);
  }
  if (p.bias13) {
    bias13_ = Tensor(DType::Float32, {p.experts, rows13_}, expert_weights(rows13_, 0.5));
  }
  if (p.bias2)
    bias2_ = Tensor(DType::BFloat16, {p.experts, p.hidden}, expert_weights(p.hidden, 0.5));

  const std::int64_t used = idle >= 0 ? p.experts - 1 : p.experts;
  id_stride_ = p.top_k + (o.strided ? 2 : 0);
  stored_ids64_.assign(static_cast<std::size_t>(tokens_ * id_stride_), -7);
  std::uniform_real_distribution<float> uniform(0.05f, 1.0f);
  for (std::int64_t m = 0; m < tokens_; ++m) {
    for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
      std::int64_t id = static_cast<std::int64_t>(random() % static_cast<unsigned>(used));
      float router = uniform(random);
      const bool outside = (o.ids == Ids::SomeOutside && (m + slot) % 3 == 1) ||
                           (o.ids == Ids::TokenOutside && m == 0);
      if (outside) {
        const std::int64_t far =
            int32_ids_ ? std::numeric_limits<std::int32_t>::max() : std::int64_t{1} << 40;
        const std::int64_t ids[] = {-1, p.experts, far, -far};
        id = ids[random() % 4];
        router = std::numeric_limits<float>::quiet_NaN();
      }
      ids_.push_back(id);
      router_.push_back(router);
      stored_ids64_[static_cast<std::size_t>(m * id_stride_ + slot)] = id;
    }
  }
  input_ = hidden_.exact;
  if (rounds_to_fp8(p.format)) {
    std::vector<bool> read(static_cast<std::size_t>(tokens_));
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      if (ids_[i] >= 0 && ids_[i] < p.experts) read[i / static_cast<std::size_t>(p.top_k)] = true;
    }
    round_rows_to_fp8(input_, p.hidden, p.format, read, a13_scale_.exact);
  }
  for (std::int64_t id : stored_ids64_) stored_ids32_.push_back(static_cast<std::int32_t>(id));

  value_columns_ = static_cast<std::int64_t>(test.subject->function.parameters().size());
  value_rows_ = o.per_expert_values ? p.experts : 1;
  const auto rows =
      test::sample_parameters(test.subject->function, static_cast<int>(value_rows_) + 1);
  for (std::int64_t row = 0; row < value_rows_ && value_columns_ > 0; ++row) {
    // A shared row is the defaults in half of the cases.
    const std::size_t pick = static_cast<std::size_t>(row + (value_rows_ == 1 ? test.row % 2 : 1));
    values_.insert(values_.end(), rows[pick].begin(), rows[pick].end());
  }
}

MoeWeights CaseData::weights() const {
  MoeWeights w;
  w.w13 = w13_.view();
  w.w2 = w2_.view();
  if (is_fp8(problem_.format)) {
    w.w13_scale = w13_scale_.view();
    w.w2_scale = w2_scale_.view();
    if (!a13_scale_.exact.empty()) {
      w.a13_scale = a13_scale_.view();
      w.a2_scale = a2_scale_.view();
    }
  }
  if (is_fp4(problem_.format)) {
    w.w13_scale = w13_scale_.view();
    w.w2_scale = w2_scale_.view();
    if (problem_.format == Format::Nvfp4) {
      w.w13_global_scale = w13_global_.view();
      w.w2_global_scale = w2_global_.view();
    }
  }
  if (problem_.bias13) w.w13_bias = bias13_.view();
  if (problem_.bias2) w.w2_bias = bias2_.view();
  return w;
}

MoeInputs CaseData::inputs(void* output) const {
  MoeInputs in;
  in.tokens = tokens_;
  in.hidden_states = hidden_.view();
  const auto table = [&](const void* data, DType dtype, std::int64_t stride) {
    static const std::uint64_t nothing = 0;
    TensorView v;
    v.data = tokens_ == 0 ? &nothing : data;
    v.dtype = dtype;
    v.rank = 2;
    v.shape = {tokens_, problem_.top_k, 0, 0};
    v.strides = {stride, 1, 0, 0};
    return v;
  };
  in.topk_weights = table(router_.data(), DType::Float32, problem_.top_k);
  in.topk_ids = int32_ids_ ? table(stored_ids32_.data(), DType::Int32, id_stride_)
                           : table(stored_ids64_.data(), DType::Int64, id_stride_);
  in.output = output;
  return in;
}

ParameterTable CaseData::values() const {
  return {value_columns_ == 0 ? nullptr : values_.data(), value_rows_, value_columns_};
}

std::int64_t CaseData::output_count() const {
  return tokens_ * (problem_.combine ? 1 : problem_.top_k) * problem_.hidden;
}

void CaseData::destroy_weights() {
  for (Tensor* tensor : {&w13_, &w2_, &bias13_, &bias2_, &w13_scale_, &w2_scale_, &w13_global_,
                         &w2_global_, &a13_scale_, &a2_scale_}) {
    std::fill(tensor->bytes.begin(), tensor->bytes.end(), std::byte{0xff});
  }
}

// One activated number: what it is, and how far sums of gate and up that are a little off may move
// it.
struct CaseData::Term {
  double value = 0;
  double off = 0;
  double moved = 0;  // how far it may be off, in the mean
  double step = 0;   // between codes, where it is rounded to one
};

Expected CaseData::expected(const Function& function) const {
  if (problem_.pairing == Pairing::None) {
    return expected(
        [&](double x, double, const std::vector<double>& v) { return function.reference(x, v); });
  }
  return expected([&](double g, double u, const std::vector<double>& v) {
    return function.reference(g, u, v);
  });
}

void CaseData::shift_experts() {
  const auto shift = [&](auto& id) {
    if (id >= 0 && id < problem_.experts) {
      id = static_cast<std::remove_reference_t<decltype(id)>>((id + 1) % problem_.experts);
    }
  };
  for (std::int64_t& id : ids_) shift(id);
  for (std::int64_t& id : stored_ids64_) shift(id);
  for (std::int32_t& id : stored_ids32_) shift(id);
}

Expected CaseData::expected(const Formula& formula) const {
  const MoeProblem& p = problem_;
  const auto at = [](const Tensor& tensor, std::int64_t index) {
    return tensor.exact[static_cast<std::size_t>(index)];
  };
  const auto count = static_cast<std::size_t>(output_count());
  Expected result;
  result.value.assign(count, 0.0);
  std::vector<double> squares(count, 0.0), magnitudes(count, 0.0);
  const bool fp8 = rounds_to_fp8(p.format);
  // How far sums may be off, in parts of what is added up: fp32, or the tensor core's sums of E4M3
  // products, which keep some 14 bits.
  const double accuracy = !fp8 ? 0x1p-20 : scales_groups(p.format) ? 0x1p-11 : 0x1p-9;
  // And a function whose result is rounded to bf16 or fewer bits, in parts of itself.
  const double coarseness = p.io_dtype == DType::BFloat16 ? 0x1p-10 : 0.0;
  std::vector<Term> terms(static_cast<std::size_t>(tokens_ * p.top_k * p.intermediate));
  std::vector<double> largest(count, 0.0);
  std::vector<double> parameters(static_cast<std::size_t>(value_columns_));
  // Relative rounding error of a number of the io type.
  const double unit = half_ulp(1.0, p.io_dtype);

  std::vector<bool> valid(static_cast<std::size_t>(tokens_ * p.top_k));
  for (std::int64_t pair = 0; pair < tokens_ * p.top_k; ++pair) {
    const std::int64_t m = pair / p.top_k, e = ids_[static_cast<std::size_t>(pair)];
    if (e < 0 || e >= p.experts) continue;
    valid[static_cast<std::size_t>(pair)] = true;
    const double router = router_[static_cast<std::size_t>(pair)];
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const std::int64_t row = value_rows_ == 1 ? 0 : e;
      parameters[i] = values_[static_cast<std::size_t>(row * value_columns_) + i];
    }
    // `scale`: the size of what is added up.
    const auto project = [&](std::int64_t row, double& scale) {
      double sum = 0, square = 0;
      for (std::int64_t h = 0; h < p.hidden; ++h) {
        const double product = input_[static_cast<std::size_t>(m * p.hidden + h)] *
                               at(w13_, (e * rows13_ + row) * p.hidden + h);
        sum += product;
        square += product * product;
      }
      const double factor = p.router_weight_on_input ? router : 1.0;
      scale = fp8 ? std::abs(factor) * std::sqrt(square) : 1;
      sum *= factor;
      return p.bias13 ? sum + at(bias13_, e * rows13_ + row) : sum;
    };
    for (std::int64_t i = 0; i < p.intermediate; ++i) {
      Term& term = terms[static_cast<std::size_t>(pair * p.intermediate + i)];
      double scale_g = 1, scale_u = 1;
      if (p.pairing == Pairing::None) {
        const double x = project(i, scale_g);
        term.value = formula(x, 0, parameters);
        term.off = accuracy * (std::abs(term.value) + std::abs(x) + scale_g);
        for (const double sign : {-accuracy, accuracy}) {
          const double moved = formula(x + sign * scale_g, 0, parameters);
          term.off = std::max(term.off, std::abs(moved - term.value));
        }
      } else {
        const bool interleaved = p.pairing == Pairing::Interleaved;
        double g = project(interleaved ? 2 * i : i, scale_g);
        double u = project(interleaved ? 2 * i + 1 : p.intermediate + i, scale_u);
        if (p.pairing == Pairing::UpFirst) std::swap(g, u);
        if (p.pairing == Pairing::UpFirst) std::swap(scale_g, scale_u);
        term.value = formula(g, u, parameters);
        term.off =
            accuracy * (std::abs(term.value) + (std::abs(g) + scale_g) * (std::abs(u) + scale_u));
        for (const double of_g : {-accuracy, accuracy}) {
          for (const double of_u : {-accuracy, accuracy}) {
            const double moved = formula(g + of_g * scale_g, u + of_u * scale_u, parameters);
            term.off = std::max(term.off, std::abs(moved - term.value));
          }
        }
      }
    }
  }

  // The roundings between the two GEMMs, and how far each may move a number: where sums that are a
  // little off lie near the middle of two codes, they are rounded to the other one.
  if (fp8) {
    std::vector<double> rounded(terms.size());
    for (std::size_t i = 0; i < terms.size(); ++i) rounded[i] = terms[i].value;
    // Where the scale waits for all values, they wait as the io type.
    const bool later = !scales_groups(p.format) && a2_scale_.exact.empty();
    if (later) {
      for (double& value : rounded) value = round_to(value, p.io_dtype);
    }
    const std::vector<double> scales =
        round_rows_to_fp8(rounded, p.intermediate, p.format, valid, a2_scale_.exact);
    // The scale is as far off as the largest number can become larger.
    std::vector<double> could_be(terms.size());
    for (std::size_t i = 0; i < terms.size(); ++i) {
      terms[i].off += coarseness * std::abs(terms[i].value);
      if (later) terms[i].off += 2 * unit * std::abs(terms[i].value);
      could_be[i] = std::abs(terms[i].value) + terms[i].off;
    }
    const std::vector<double> larger =
        round_rows_to_fp8(could_be, p.intermediate, p.format, valid, a2_scale_.exact);
    for (std::size_t i = 0; i < terms.size(); ++i) {
      Term& term = terms[i];
      const double of_scale = scales[i] == 0 ? 0 : larger[i] / scales[i] - 1;
      const double off = term.off + of_scale * std::abs(term.value);
      term.step =
          scales[i] == 0 ? 0 : 2 * scales[i] * half_ulp(rounded[i] / scales[i], DType::Float8E4M3);
      term.value = rounded[i];
      term.moved = std::sqrt(off * (off + term.step));
    }
  } else {
    for (Term& term : terms) {
      term.value = round_to(term.value, p.io_dtype);
      term.moved = (2 * unit + coarseness) * std::abs(term.value) + term.off;
    }
  }

  for (std::int64_t pair = 0; pair < tokens_ * p.top_k; ++pair) {
    if (!valid[static_cast<std::size_t>(pair)]) continue;
    const std::int64_t m = pair / p.top_k, e = ids_[static_cast<std::size_t>(pair)];
    const double router = router_[static_cast<std::size_t>(pair)];
    const double factor =
        p.combine ? p.routed_scaling_factor * (p.router_weight_on_input ? 1.0 : router) : 1.0;
    for (std::int64_t h = 0; h < p.hidden; ++h) {
      double sum = p.bias2 ? at(bias2_, e * p.hidden + h) : 0.0;
      double square = 0, magnitude = std::abs(sum), step = 0;
      for (std::int64_t i = 0; i < p.intermediate; ++i) {
        const Term& term = terms[static_cast<std::size_t>(pair * p.intermediate + i)];
        const double weight = at(w2_, (e * p.hidden + h) * p.intermediate + i);
        sum += term.value * weight;
        square += term.moved * term.moved * weight * weight;
        step = std::max(step, std::abs(term.step * weight));
        magnitude += std::abs(term.value * weight);
      }
      if (fp8) square += 4 * unit * unit * sum * sum;
      const auto out = static_cast<std::size_t>((p.combine ? m : pair) * p.hidden + h);
      result.value[out] += factor * sum;
      squares[out] += factor * factor * square;
      magnitudes[out] += std::abs(factor) * magnitude;
      largest[out] = std::max(largest[out], std::abs(factor) * step);
    }
  }
  const double of_sums = !fp8 ? 0x1p-21 : scales_groups(p.format) ? 0x1p-12 : 0x1p-11;
  double total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    result.bound.push_back(1.01 * half_ulp(result.value[i], p.io_dtype) +
                           6 * std::sqrt(squares[i]) + largest[i] + of_sums * magnitudes[i]);
    total += result.value[i] * result.value[i];
  }
  result.size = count == 0 ? 0 : std::sqrt(total / static_cast<double>(count));
  return result;
}

}  // namespace flexact::conformance
