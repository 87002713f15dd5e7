// A few tokens: what the two stream kernels (kernels/stream.cuh) are told of a layer and
// a call. There is no routing and no gather before them.
//
//   up + activation ─ down ( ─ combine )
#pragma once

#include <string>

#include "cuda/fp8_layer.hpp"
#include "cuda/kernels/arguments.hpp"
#include "cuda/policy.hpp"
#include "flexact/moe.hpp"

namespace flexact::cuda {

// The router's ids of a call or a chunk, which begin at `ids`.
RoutedIds routed_ids(const MoeProblem& problem, const MoeInputs& inputs, const void* ids,
                     std::int64_t tokens);

class StreamLayer {
 public:
  // Weights are read where they are. What a format's kernels are told beside that is the format's
  // (fp4_layer.hpp).
  StreamLayer(const MoeProblem& problem, const MoeWeights& weights);

  struct Call {
    RoutedIds routed;
    const void* hidden;  // the first token's row
    std::int64_t hidden_stride;
    const float* router;  // the first token's weights
    std::int64_t router_stride, router_step;
    void* activated;  // [slots, I]
    void* rows;       // [slots, H], where combine follows
    void* output;     // [tokens, H], where it does not
  };
  StreamArguments up(const Call& call, const Choice& choice, const ParameterTable& values,
                     const float* bias) const;
  StreamArguments down(const Call& call, const Choice& choice, const float* bias) const;

  // The images and kernels are called image() + part and "flexact_" kernel() + part, with the parts
  // gated, unary and down.
  std::string image() const;
  std::string kernel() const;

  // Blocks of a launch: of x for outputs, of y for slots, or for the tokens of a sum.
  unsigned blocks_up(const StreamArguments& arguments) const;
  static unsigned blocks_x(const StreamArguments& arguments);
  static unsigned blocks_y(const StreamArguments& arguments);
  // Bytes of shared memory that it asks for: FP8's codes of rows.
  unsigned shared(const StreamArguments& arguments) const;
  int most_shared() const;

 private:
  // In elements; `offset` of gate and up from an expert's first row.
  struct Rows {
    const void* data;
    std::int64_t expert, row, offset[2];
  };
  std::string variant() const;
  static Rows rows_of(const TensorView& weights, Pairing pairing);
  static StreamArguments arguments_of(const Rows& rows, const Call& call);

  MoeProblem problem_;
  Rows w13_, w2_;
};

}  // namespace flexact::cuda
