// What the formats mxfp4 and nvfp4 add to a layer's launches: which kernels, rows in whole blocks
// of columns, and the scales of weights in an order of their own.
//
// Codes are read where the caller has them. Scales are put in order once, when the plan is made,
// and the caller's are not read afterwards: a host that frees them holds each weight once.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/kernels/arguments.hpp"
#include "flexact/moe.hpp"

namespace flexact::cuda {

inline bool is_fp4_with_bf16(Format format) {
  return format == Format::Mxfp4 || format == Format::Nvfp4;
}

class Fp4Layer {
 public:
  // The weights are valid for the problem.
  Fp4Layer(const MoeProblem& problem, const MoeWeights& weights);

  // The variant of GEMM1's image and kernel ("sm90_" variant, "flexact_gemm_" variant), and of
  // GEMM2's kernel.
  std::string gemm1() const;
  std::string gemm2() const;

  // Elements of a row of sorted inputs and of an activated row.
  std::int64_t input_width() const { return input_width_; }
  std::int64_t activated_width() const { return activated_width_; }

  // How scales are put in order. `output` is set by whoever has the memory.
  struct Ordering {
    Fp4ScaleArguments arguments;
    std::int64_t blocks;
    std::int64_t bytes;
  };
  Ordering order13() const;
  Ordering order2() const;

  Fp4GatherArguments gather(const GatherArguments& gather) const;
  // `scales`: what order13() and order2() left.
  Fp4GemmArguments gemm1(const GemmArguments& gemm, const void* scales, int box_rows) const;
  Fp4GemmArguments gemm2(const GemmArguments& gemm, const void* scales, int box_rows) const;

 private:
  Ordering order(const TensorView& scale, std::int64_t columns, std::int64_t depth, Pairing pairing,
                 bool permuted) const;

  MoeProblem problem_;
  TensorView scale13_, scale2_, global13_, global2_;
  std::int64_t input_width_, activated_width_;
};

}  // namespace flexact::cuda
