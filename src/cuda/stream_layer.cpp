// Arguments of the stream kernels.
#include "cuda/stream_layer.hpp"

#include <algorithm>

#include "cuda/kernels/fp4_layout.hpp"
#include "moe/quantised.hpp"

namespace flexact::cuda {

RoutedIds routed_ids(const MoeProblem& problem, const MoeInputs& inputs, const void* ids,
                     std::int64_t tokens) {
  RoutedIds routed{};
  routed.ids = ids;
  routed.stride = inputs.topk_ids.strides[0];
  routed.step = inputs.topk_ids.strides[1];
  routed.wide = inputs.topk_ids.dtype == DType::Int64;
  routed.experts = static_cast<std::int32_t>(problem.experts);
  routed.slots = static_cast<std::int32_t>(tokens * problem.top_k);
  routed.top_k = static_cast<std::int32_t>(problem.top_k);
  return routed;
}

StreamLayer::StreamLayer(const MoeProblem& problem, const MoeWeights& weights)
    : problem_(problem),
      w13_(rows_of(weights.w13, problem.pairing)),
      w2_(rows_of(weights.w2, Pairing::None)) {}

StreamLayer::Rows StreamLayer::rows_of(const TensorView& weights, Pairing pairing) {
  Rows rows{weights.data, weights.strides[0], weights.strides[1], {}};
  if (pairing == Pairing::Interleaved) {
    rows.row *= 2;
    rows.offset[1] = weights.strides[1];
  } else if (pairing != Pairing::None) {
    rows.offset[pairing == Pairing::UpFirst ? 0 : 1] = weights.shape[1] / 2 * weights.strides[1];
  }
  return rows;
}

StreamArguments StreamLayer::arguments_of(const Rows& rows, const Call& call) {
  StreamArguments arguments{};
  arguments.routed = call.routed;
  arguments.weights = rows.data;
  arguments.expert_stride = rows.expert;
  arguments.row_stride = rows.row;
  arguments.offset[0] = rows.offset[0];
  arguments.offset[1] = rows.offset[1];
  arguments.weight_stride = call.router_stride;
  arguments.weight_step = call.router_step;
  return arguments;
}

StreamArguments StreamLayer::up(const Call& call, const Choice& choice,
                                const ParameterTable& values, const float* bias) const {
  StreamArguments up = arguments_of(w13_, call);
  up.input = call.hidden;
  up.input_stride = call.hidden_stride;
  up.output = call.activated;
  up.bias = bias;
  if (problem_.router_weight_on_input) up.weight = call.router;
  up.values = values.data;
  up.value_stride = values.rows == 1 ? 0 : values.columns;
  up.value_columns = static_cast<std::int32_t>(values.columns);
  up.columns = static_cast<std::int32_t>(problem_.intermediate);
  up.depth = static_cast<std::int32_t>(problem_.hidden);
  up.row_warps = choice.row_warps;
  return up;
}

StreamArguments StreamLayer::down(const Call& call, const Choice& choice, const float* bias) const {
  StreamArguments down = arguments_of(w2_, call);
  down.input = call.activated;
  down.input_stride = problem_.intermediate;
  down.input_of_slots = 1;
  down.output = choice.sum ? call.output : call.rows;
  down.bias = bias;
  // What does not add here leaves router weights to combine.
  if (choice.sum && !problem_.router_weight_on_input) down.weight = call.router;
  down.columns = static_cast<std::int32_t>(problem_.hidden);
  down.depth = static_cast<std::int32_t>(problem_.intermediate);
  down.row_warps = choice.row_warps2;
  down.sum = choice.sum;
  down.scale = problem_.routed_scaling_factor;
  return down;
}

std::string StreamLayer::image() const {
  return variant() + "_stream_";
}

std::string StreamLayer::kernel() const {
  return problem_.format == Format::Bf16 ? "stream_" : "stream_" + variant() + "_";
}

std::string StreamLayer::variant() const {
  const bool whole = is_fp8(problem_.format) && problem_.format != Format::Fp8Block;
  return whole ? "fp8_whole" : std::string(to_string(problem_.format));
}

unsigned StreamLayer::shared(const StreamArguments& arguments) const {
  if (!is_fp8(problem_.format)) return 0;
  const RoutedIds& routed = arguments.routed;
  const int columns = std::min(kStreamColumns, arguments.sum != 0 ? routed.top_k : routed.slots);
  return static_cast<unsigned>(columns * fp8_stream_bytes(arguments.depth));
}

int StreamLayer::most_shared() const {
  return is_fp8(problem_.format) ? kFp8StreamMostShared : 0;
}

// Where scales of FP4 weights are in order, a warp's outputs lie anywhere in 128.
unsigned StreamLayer::blocks_up(const StreamArguments& arguments) const {
  StreamArguments whole = arguments;
  if (moe::is_fp4(problem_.format)) {
    whole.columns = (arguments.columns + kFp4Block - 1) / kFp4Block * kFp4Block;
  }
  return blocks_x(whole);
}

unsigned StreamLayer::blocks_x(const StreamArguments& arguments) {
  const int outputs = kStreamRows * arguments.row_warps;
  return static_cast<unsigned>((arguments.columns + outputs - 1) / outputs);
}

unsigned StreamLayer::blocks_y(const StreamArguments& arguments) {
  const RoutedIds& routed = arguments.routed;
  return static_cast<unsigned>(arguments.sum != 0 ? routed.slots / routed.top_k : routed.slots);
}

}  // namespace flexact::cuda
