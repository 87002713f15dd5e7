// Scales in the caller's layouts as steps between them.
#include "cuda/fp4_layer.hpp"

#include "cuda/kernels/fp4_layout.hpp"
#include "moe/quantised.hpp"

namespace flexact::cuda {

namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t whole_blocks(std::int64_t width) {
  return ceil_div(width, kFp4Block) * kFp4Block;
}

// Of the scales of all outputs or, with [E, 2], of gates and then of ups, wherever their rows are.
// One type of arguments has them as the other does.
template <typename Arguments>
void set_global(Arguments& arguments, const TensorView& global) {
  arguments.global = static_cast<const float*>(global.data);
  if (!global) return;
  arguments.global_step = global.strides[0];
  arguments.up_step = global.rank == 2 ? global.strides[1] : 0;
}

}  // namespace

Fp4Layer::Fp4Layer(const MoeProblem& problem, const MoeWeights& weights)
    : problem_(problem),
      scale13_(weights.w13_scale),
      scale2_(weights.w2_scale),
      global13_(weights.w13_global_scale),
      global2_(weights.w2_global_scale),
      input_width_(whole_blocks(problem.hidden)),
      activated_width_(whole_blocks(problem.intermediate)) {}

std::string Fp4Layer::gemm1() const {
  return std::string(to_string(problem_.format)) +
         (problem_.pairing == Pairing::None ? "_unary" : "_gated");
}

Fp4Layer::Ordering Fp4Layer::order(const TensorView& scale, std::int64_t columns,
                                   std::int64_t depth, Pairing pairing, bool permuted) const {
  Ordering ordering{};
  Fp4ScaleArguments& arguments = ordering.arguments;
  const bool gated = pairing != Pairing::None;
  arguments.scales = static_cast<const std::uint8_t*>(scale.data);
  arguments.expert_step = scale.strides[0];
  arguments.row_step = scale.strides[1];
  arguments.group_step = scale.strides[2];
  if (pairing == Pairing::Interleaved) {
    arguments.row_step *= 2;
    arguments.offset[1] = scale.strides[1];
  } else if (gated) {
    arguments.offset[pairing == Pairing::UpFirst ? 0 : 1] = columns * scale.strides[1];
  }
  arguments.columns = static_cast<std::int32_t>(columns);
  arguments.groups = static_cast<std::int32_t>(scale.shape[2]);
  arguments.column_tiles =
      static_cast<std::int32_t>(ceil_div(columns, gated ? kTileColumns / 2 : kTileColumns));
  arguments.steps = static_cast<std::int32_t>(ceil_div(depth, kFp4Block));
  arguments.of_row = problem_.format == Format::Nvfp4 ? 2 : 1;
  arguments.gated = gated;
  arguments.permuted = permuted;
  arguments.e4m3 = rounds_inputs();
  ordering.parts = problem_.experts * (gated ? 2 : 1);
  ordering.blocks = problem_.experts * arguments.column_tiles;
  ordering.bytes = ordering.blocks * arguments.steps * fp4_scale_bytes(arguments.of_row);
  return ordering;
}

Fp4Layer::Ordering Fp4Layer::order13() const {
  return order(scale13_, problem_.intermediate, problem_.hidden, problem_.pairing, true);
}

Fp4Layer::Ordering Fp4Layer::order2() const {
  return order(scale2_, problem_.hidden, problem_.intermediate, Pairing::None, false);
}

std::int64_t Fp4Layer::scale_bytes(const MoeProblem& problem) {
  const std::int64_t stage = fp4_scale_bytes(problem.format == Format::Nvfp4 ? 2 : 1);
  const auto of = [&](std::int64_t columns, std::int64_t depth, bool gated) {
    const std::int64_t tiles = ceil_div(columns, gated ? kTileColumns / 2 : kTileColumns);
    return problem.experts * tiles * ceil_div(depth, kFp4Block) * stage;
  };
  return of(problem.intermediate, problem.hidden, problem.pairing != Pairing::None) +
         of(problem.hidden, problem.intermediate, false);
}

Fp4GatherArguments Fp4Layer::gather(const GatherArguments& gather) const {
  return {gather, static_cast<std::int32_t>(input_width_), 0};
}

Fp8GatherArguments Fp4Layer::gather_codes(const GatherArguments& gather,
                                          const Memory& memory) const {
  Fp8GatherArguments arguments{};
  arguments.gather = gather;
  arguments.scaling = InputScaling::Groups;
  arguments.row_bytes = static_cast<std::int32_t>(input_width_);
  arguments.ordered = 1;
  arguments.scales = memory.input_scales;
  arguments.group_step = memory.rows;
  return arguments;
}

std::int64_t Fp4Layer::input_scale_bytes(std::int64_t rows) const {
  return rounds_inputs() ? input_width_ / kGroup * rows * 4 : 0;
}

std::int64_t Fp4Layer::activated_bytes(std::int64_t rows) const {
  return rows * activated_width_ * (rounds_inputs() ? 1 : 2);
}

std::int64_t Fp4Layer::activated_scale_bytes(std::int64_t rows) const {
  return rounds_inputs() ? activated_width_ / kGroup * rows * 4 : 0;
}

std::int64_t Fp4Layer::bytes_of_row() const {
  return activated_bytes(1) + input_scale_bytes(1) + activated_scale_bytes(1);
}

Fp4StreamArguments Fp4Layer::streamed(const StreamArguments& stream, const Ordering& ordering,
                                      const void* scales, const TensorView& global) {
  Fp4StreamArguments arguments{};
  arguments.stream = stream;
  arguments.scales = static_cast<const std::uint8_t*>(scales);
  arguments.column_tiles = ordering.arguments.column_tiles;
  arguments.steps = ordering.arguments.steps;
  set_global(arguments, global);
  return arguments;
}

Fp4StreamArguments Fp4Layer::stream_up(const StreamArguments& stream, const Memory& memory) const {
  return streamed(stream, order13(), memory.scales13, global13_);
}

Fp4StreamArguments Fp4Layer::stream_down(const StreamArguments& stream,
                                         const Memory& memory) const {
  return streamed(stream, order2(), memory.scales2, global2_);
}

Fp4GemmArguments Fp4Layer::gemm1(const GemmArguments& gemm, const Memory& memory,
                                 int box_rows) const {
  Fp4GemmArguments arguments{};
  arguments.gemm = gemm;
  arguments.scales = static_cast<const std::uint8_t*>(memory.scales13);
  set_global(arguments, global13_);
  arguments.width = static_cast<std::int32_t>(activated_width_);
  arguments.box_rows = box_rows;
  arguments.largest = memory.largest13;
  arguments.input_scales = memory.input_scales;
  arguments.group_scales = memory.activated_scales;
  arguments.group_step = memory.rows;
  return arguments;
}

Fp4GemmArguments Fp4Layer::gemm2(const GemmArguments& gemm, const Memory& memory,
                                 int box_rows) const {
  Fp4GemmArguments arguments{};
  arguments.gemm = gemm;
  arguments.scales = static_cast<const std::uint8_t*>(memory.scales2);
  set_global(arguments, global2_);
  arguments.width = static_cast<std::int32_t>(problem_.hidden);
  arguments.box_rows = box_rows;
  arguments.largest = memory.largest2;
  arguments.input_scales = memory.activated_scales;
  arguments.group_step = memory.rows;
  return arguments;
}

}  // namespace flexact::cuda
