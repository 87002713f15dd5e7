// Scales in the caller's layouts as steps between them.
#include "cuda/fp8_layer.hpp"

#include <algorithm>

#include "moe/quantised.hpp"

namespace flexact::cuda {

namespace {

static_assert(kGroup == moe::kFp8Block);

std::int64_t groups_of(std::int64_t width) {
  return (width + kGroup - 1) / kGroup;
}

const float* data_of(const TensorView& view) {
  return static_cast<const float*>(view.data);
}

}  // namespace

Fp8Layer::Fp8Layer(const MoeProblem& problem, const MoeWeights& weights)
    : format_(problem.format),
      pairing_(problem.pairing == Pairing::None ? "unary" : "gated"),
      hidden_(problem.hidden),
      intermediate_(problem.intermediate),
      input_(problem.format == Format::Fp8Block     ? InputScaling::Groups
             : problem.format == Format::Fp8Channel ? InputScaling::Rows
             : weights.a13_scale                    ? InputScaling::Given
                                                    : InputScaling::All),
      interleaved_blocks_(problem.format == Format::Fp8Block &&
                          problem.pairing == Pairing::Interleaved),
      later_(problem.format != Format::Fp8Block && !weights.a2_scale),
      given13_(data_of(weights.a13_scale)),
      given2_(data_of(weights.a2_scale)),
      weights13_(scales13(problem, weights.w13_scale)),
      weights2_(scales2(problem, weights.w2_scale)) {}

std::string Fp8Layer::gemm1() const {
  const char* variant = format_ == Format::Fp8Block ? "block" : later_ ? "whole" : "given";
  return "fp8_" + std::string(variant) + "_" + pairing_;
}

Fp8Layer::WeightScales Fp8Layer::scales13(const MoeProblem& problem,
                                          const TensorView& scale) const {
  WeightScales scales{};
  scales.grid.at = data_of(scale);
  scales.expert_step = scale.strides[0];
  const std::int64_t step = scale.strides[1];
  const bool gated = problem.pairing != Pairing::None;
  if (problem.format == Format::Fp8Tensor) {
    // [E] or [E, 2]: the gate's, then the up's, wherever their rows are.
    scales.up_step = gated && scale.rank == 2 ? step : 0;
    return scales;
  }
  // Rows of scales as rows of weights: of blocks, or one each.
  const bool blocks = problem.format == Format::Fp8Block;
  std::int64_t half = blocks ? groups_of(problem.intermediate) : problem.intermediate;
  scales.grid.row_step = step;
  scales.grid.group_step = blocks ? scale.strides[2] : 0;
  switch (problem.pairing) {
    case Pairing::Concat:
      scales.up_step = half * step;
      break;
    case Pairing::UpFirst:
      scales.grid.at += half * step;
      scales.up_step = -half * step;
      break;
    case Pairing::Interleaved:
      if (blocks) {
        half = groups_of(2 * problem.intermediate);
      } else {
        scales.grid.row_step = 2 * step;
        scales.up_step = step;
      }
      break;
    default:
      break;
  }
  scales.last_block = static_cast<std::int32_t>(half - 1);
  return scales;
}

Fp8Layer::WeightScales Fp8Layer::scales2(const MoeProblem& problem, const TensorView& scale) const {
  WeightScales scales{};
  scales.grid.at = data_of(scale);
  scales.expert_step = scale.strides[0];
  if (problem.format != Format::Fp8Tensor) scales.grid.row_step = scale.strides[1];
  if (problem.format == Format::Fp8Block) scales.grid.group_step = scale.strides[2];
  scales.last_block = static_cast<std::int32_t>(groups_of(problem.hidden) - 1);
  return scales;
}

std::int64_t Fp8Layer::input_scale_bytes(std::int64_t rows) const {
  switch (input_) {
    case InputScaling::Groups:
      return groups_of(hidden_) * rows * 4;
    case InputScaling::Rows:
      return rows * 4;
    case InputScaling::All:
      return 4;
    case InputScaling::Given:
      break;
  }
  return 0;
}

std::int64_t Fp8Layer::activated_scale_bytes(std::int64_t rows) const {
  if (format_ == Format::Fp8Block) return groups_of(intermediate_) * rows * 4;
  return later_ ? (format_ == Format::Fp8Channel ? rows * 4 : 4) : 0;
}

std::int64_t Fp8Layer::largest_bytes(std::int64_t rows) const {
  // Of calls that count their rows, tokens' own: tokens are no more than rows.
  if (needs_largest()) return std::min<std::int64_t>(rows, kCountedSlots) * largest_parts() * 4;
  return format_ == Format::Fp8Channel ? rows * 4 : 0;
}

std::int64_t Fp8Layer::bytes_of_row() const {
  return (later_ ? 3 : 1) * intermediate_ + input_scale_bytes(1) + activated_scale_bytes(1) +
         largest_bytes(1);
}

// The scales of rows as the GEMM reads them that multiplies the rows.
ScaleGrid Fp8Layer::scales_of_rows(const float* scales, std::int64_t rows) const {
  if (format_ == Format::Fp8Block) return {scales, 1, rows};
  return {scales, format_ == Format::Fp8Channel ? 1 : 0, 0};
}

std::uint32_t* Fp8Layer::activated_largest(const Memory& memory) const {
  return format_ == Format::Fp8Channel ? memory.largest : memory.counters + 1;
}

Fp8GatherArguments Fp8Layer::gather(const GatherArguments& gather, const RoutedIds& routed,
                                    bool counted, const Memory& memory) const {
  Fp8GatherArguments arguments{};
  arguments.gather = gather;
  arguments.scaling = input_;
  arguments.row_bytes = static_cast<std::int32_t>(hidden_);
  arguments.scales = memory.input_scales;
  arguments.group_step = memory.rows;
  arguments.given = given13_;
  // Nothing is cleared before a call's first launch.
  arguments.largest = counted ? memory.largest : memory.counters;
  arguments.largest_count =
      counted ? static_cast<std::int32_t>(gather.tokens * largest_parts()) : 1;
  arguments.routed = routed;
  arguments.activated_largest = format_ == Format::Fp8Channel ? memory.largest : nullptr;
  return arguments;
}

Fp8GemmArguments Fp8Layer::gemm1(const GemmArguments& gemm, const Memory& memory) const {
  Fp8GemmArguments arguments{};
  arguments.gemm = gemm;
  arguments.input =
      scales_of_rows(input_ == InputScaling::Given ? given13_ : memory.input_scales, memory.rows);
  arguments.weights = weights13_.grid;
  arguments.expert_step = weights13_.expert_step;
  arguments.up_step = weights13_.up_step;
  arguments.last_block = weights13_.last_block;
  arguments.group_scales = memory.activated_scales;
  arguments.group_step = memory.rows;
  arguments.given_scale = given2_;
  if (later_) {
    arguments.largest = activated_largest(memory);
    arguments.largest_step = format_ == Format::Fp8Channel;
  }
  return arguments;
}

Fp8StreamArguments Fp8Layer::stream_up(const StreamArguments& stream) const {
  Fp8StreamArguments arguments{};
  arguments.stream = stream;
  arguments.weights = weights13_.grid;
  arguments.expert_step = weights13_.expert_step;
  arguments.up_step = weights13_.up_step;
  arguments.given = given13_;
  arguments.scaling = input_;
  arguments.interleaved = interleaved_blocks_;
  arguments.rounds_results = later_;
  return arguments;
}

Fp8StreamArguments Fp8Layer::stream_down(const StreamArguments& stream) const {
  Fp8StreamArguments arguments{};
  arguments.stream = stream;
  arguments.weights = weights2_.grid;
  arguments.expert_step = weights2_.expert_step;
  arguments.given = given2_;
  arguments.scaling =
      format_ == Format::Fp8Tensor ? (later_ ? InputScaling::All : InputScaling::Given) : input_;
  return arguments;
}

Fp8RoundArguments Fp8Layer::round(const GemmArguments& gemm1, void* codes,
                                  const Memory& memory) const {
  Fp8RoundArguments arguments{};
  arguments.rows = gemm1.output;
  arguments.codes = codes;
  arguments.tiles = gemm1.tiles;
  arguments.tile_count = gemm1.tile_count;
  arguments.largest = activated_largest(memory);
  arguments.scales = memory.activated_scales;
  arguments.largest_step = format_ == Format::Fp8Channel;
  arguments.width = static_cast<std::int32_t>(intermediate_);
  return arguments;
}

Fp8GemmArguments Fp8Layer::gemm2(const GemmArguments& gemm, const Memory& memory) const {
  Fp8GemmArguments arguments{};
  arguments.gemm = gemm;
  arguments.input = scales_of_rows(
      format_ == Format::Fp8Block || later_ ? memory.activated_scales : given2_, memory.rows);
  arguments.weights = weights2_.grid;
  arguments.expert_step = weights2_.expert_step;
  arguments.last_block = weights2_.last_block;
  return arguments;
}

}  // namespace flexact::cuda
