// Scales and codes.
#include "fp8_data.hpp"

#include <algorithm>

namespace flexact::conformance {

namespace {

constexpr std::int64_t kBlock = 128;

std::int64_t blocks_of(std::int64_t count) {
  return (count + kBlock - 1) / kBlock;
}

float scale_of(double largest) {
  return std::max(static_cast<float>(largest), 1e-10f) / 448.0f;
}

}  // namespace

bool is_fp8(Format format) {
  return format == Format::Fp8Block || format == Format::Fp8Tensor || format == Format::Fp8Channel;
}

bool rounds_to_fp8(Format format) {
  return is_fp8(format) || format == Format::Mxfp4Fp8;
}

bool scales_groups(Format format) {
  return format == Format::Fp8Block || format == Format::Mxfp4Fp8;
}

ScaleLayout scales_of_w13(const MoeProblem& p) {
  const std::int64_t inner = p.intermediate, columns = blocks_of(p.hidden);
  const Pairing pairing = p.pairing;
  const std::int64_t rows = pairing == Pairing::None ? inner : 2 * inner;
  const bool split = pairing == Pairing::Concat || pairing == Pairing::UpFirst;
  if (p.format == Format::Fp8Channel) {
    return {{rows}, [](std::int64_t row, std::int64_t) { return row; }};
  }
  if (p.format == Format::Fp8Tensor) {
    if (pairing == Pairing::None) return {{}, [](std::int64_t, std::int64_t) { return 0; }};
    // The gate's, then the up's.
    return {{2}, [=](std::int64_t row, std::int64_t) {
              return pairing == Pairing::Interleaved ? row % 2
                     : pairing == Pairing::UpFirst   ? 1 - row / inner
                                                     : row / inner;
            }};
  }
  const std::int64_t block_rows = split ? 2 * blocks_of(inner) : blocks_of(rows);
  return {{block_rows, columns}, [=](std::int64_t row, std::int64_t column) {
            const std::int64_t block =
                split ? row / inner * blocks_of(inner) + row % inner / kBlock : row / kBlock;
            return block * columns + column / kBlock;
          }};
}

ScaleLayout scales_of_w2(const MoeProblem& p) {
  const std::int64_t columns = blocks_of(p.intermediate);
  if (p.format == Format::Fp8Channel) {
    return {{p.hidden}, [](std::int64_t row, std::int64_t) { return row; }};
  }
  if (p.format == Format::Fp8Tensor) return {{}, [](std::int64_t, std::int64_t) { return 0; }};
  return {{blocks_of(p.hidden), columns}, [=](std::int64_t row, std::int64_t column) {
            return row / kBlock * columns + column / kBlock;
          }};
}

std::pair<Tensor, Tensor> quantise_fp8(std::vector<double> values, std::int64_t experts,
                                       std::int64_t rows, std::int64_t k,
                                       const ScaleLayout& layout) {
  std::int64_t count = 1;
  for (const std::int64_t each : layout.shape) count *= each;
  std::vector<double> scales(static_cast<std::size_t>(experts * count));
  const auto index_of = [&](std::int64_t i) {
    return static_cast<std::size_t>(i / (rows * k) * count + layout.at(i / k % rows, i % k));
  };
  const auto size = static_cast<std::int64_t>(values.size());
  for (std::int64_t i = 0; i < size; ++i) {
    double& value = values[static_cast<std::size_t>(i)];
    double& scale = scales[index_of(i)];
    value *= 0.5 * static_cast<double>(1 + index_of(i) * 3 % 4);
    scale = std::isnan(value) || std::abs(value) > scale ? std::abs(value) : scale;
  }
  for (double& scale : scales) scale = std::isnan(scale) ? scale : scale_of(scale);
  for (std::int64_t i = 0; i < size; ++i)
    values[static_cast<std::size_t>(i)] /= scales[index_of(i)];
  Tensor codes(DType::Float8E4M3, {experts, rows, k}, values);
  for (std::int64_t i = 0; i < size; ++i)
    codes.exact[static_cast<std::size_t>(i)] *= scales[index_of(i)];
  std::vector<std::int64_t> shape = {experts};
  shape.insert(shape.end(), layout.shape.begin(), layout.shape.end());
  return {std::move(codes), Tensor(DType::Float32, shape, scales)};
}

std::vector<double> round_rows_to_fp8(std::vector<double>& values, std::int64_t width,
                                      Format format, const std::vector<bool>& used,
                                      const std::vector<double>& given) {
  const auto step = static_cast<std::size_t>(width);
  std::vector<double> scales(values.size(), 0.0);
  const auto largest_of = [&](std::size_t from, std::size_t count) {
    double largest = 0;
    for (std::size_t i = from; i < from + count; ++i) {
      largest = std::max(largest, std::abs(values[i]));
    }
    return largest;
  };
  double of_all = 0;
  for (std::size_t row = 0; row < used.size(); ++row) {
    if (used[row]) of_all = std::max(of_all, largest_of(row * step, step));
  }
  const std::size_t group = scales_groups(format) ? kBlock : step;
  for (std::size_t row = 0; row < used.size(); ++row) {
    if (!used[row]) continue;
    for (std::size_t from = 0; from < step; from += group) {
      const std::size_t begin = row * step + from, count = std::min(group, step - from);
      const double largest = format == Format::Fp8Tensor ? of_all : largest_of(begin, count);
      const float scale = given.empty() ? scale_of(largest) : static_cast<float>(given[0]);
      const float inverse = 1.0f / scale;
      for (std::size_t i = begin; i < begin + count; ++i) {
        const float code = static_cast<float>(values[i]) * inverse;
        values[i] = round_to(code, DType::Float8E4M3) * scale;
        scales[i] = scale;
      }
    }
  }
  return scales;
}

}  // namespace flexact::conformance
