// What the FP8 formats add to a layer's launches: which kernels, where scales lie in the caller's
// memory, and where those of activations lie in the workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/kernels/arguments.hpp"
#include "flexact/moe.hpp"

namespace flexact::cuda {

inline bool is_fp8(Format format) {
  return format == Format::Fp8Block || format == Format::Fp8Tensor || format == Format::Fp8Channel;
}

class Fp8Layer {
 public:
  // The weights are valid for the problem.
  Fp8Layer(const MoeProblem& problem, const MoeWeights& weights);

  // GEMM1, as its image ("sm90_" name) and its kernel ("flexact_gemm_" name) are called.
  std::string gemm1() const;

  // Whether the inputs' scale is that of the largest magnitude of the whole call.
  bool needs_largest() const { return input_ == InputScaling::All; }
  // Whether activated values wait as bf16 until their scale is known.
  bool rounds_later() const { return later_; }
  // Counters that are cleared with those of the GEMMs and follow them.
  std::int32_t counters() const { return 2; }
  // Whether a block of the gather works on a whole row.
  bool gathers_whole_rows() const { return input_ == InputScaling::Rows; }

  // Bytes of the workspace for so many sorted rows.
  std::int64_t input_scale_bytes(std::int64_t rows) const;
  std::int64_t activated_scale_bytes(std::int64_t rows) const;
  std::int64_t largest_bytes(std::int64_t rows) const;
  // Scratch of a row in all, beside the input's and the result's memory.
  std::int64_t bytes_of_row() const;

  // Where they are in one call.
  struct Memory {
    std::int64_t rows;
    float* input_scales;
    float* activated_scales;
    std::uint32_t* largest;   // of activated rows, one each; or of parts of tokens
    std::uint32_t* counters;  // the two that were cleared
  };
  // `counted`: no route comes before it, or before the launch that looks for the largest input.
  Fp8GatherArguments gather(const GatherArguments& gather, const RoutedIds& routed, bool counted,
                            const Memory& memory) const;
  // The stream kernels', which round rows themselves. Their activated rows are fp32.
  Fp8StreamArguments stream_up(const StreamArguments& stream) const;
  Fp8StreamArguments stream_down(const StreamArguments& stream) const;
  Fp8GemmArguments gemm1(const GemmArguments& gemm, const Memory& memory) const;
  Fp8RoundArguments round(const GemmArguments& gemm1, void* codes, const Memory& memory) const;
  Fp8GemmArguments gemm2(const GemmArguments& gemm, const Memory& memory) const;

 private:
  // Scales of w13 or w2 as a GEMM reads them.
  struct WeightScales {
    ScaleGrid grid;
    std::int64_t expert_step;
    std::int64_t up_step;
    std::int32_t last_block;
  };
  WeightScales scales13(const MoeProblem& problem, const TensorView& scale) const;
  WeightScales scales2(const MoeProblem& problem, const TensorView& scale) const;
  ScaleGrid scales_of_rows(const float* scales, std::int64_t rows) const;
  std::uint32_t* activated_largest(const Memory& memory) const;
  // Blocks that look at a token's row.
  std::int64_t largest_parts() const { return (hidden_ + 8 * kRowThreads - 1) / (8 * kRowThreads); }

  Format format_;
  std::string pairing_;  // "gated" or "unary"
  std::int64_t hidden_, intermediate_;
  InputScaling input_;
  bool interleaved_blocks_;
  bool later_;
  const float* given13_;
  const float* given2_;
  WeightScales weights13_, weights2_;
};

}  // namespace flexact::cuda
