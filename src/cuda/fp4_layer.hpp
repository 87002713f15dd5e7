// What the FP4 formats add to a layer's launches: which kernels, rows in whole blocks of columns,
// and the scales of weights in an order of their own; in mxfp4_fp8 also scales of rows.
//
// Codes are read where the caller has them. Scales are put in order once, when the plan is made,
// and the caller's are not read afterwards: a host that frees them holds each weight once.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/kernels/arguments.hpp"
#include "flexact/moe.hpp"

namespace flexact::cuda {

class Fp4Layer {
 public:
  // The weights are valid for the problem.
  Fp4Layer(const MoeProblem& problem, const MoeWeights& weights);

  // mxfp4_fp8: whether rows are E4M3, with a scale for each 128 values.
  bool rounds_inputs() const { return problem_.format == Format::Mxfp4Fp8; }

  int gemm_shared() const { return rounds_inputs() ? kMxfp4Fp8SharedBytes : kFp4SharedBytes; }
  // GEMM1, as its image ("sm90_" name) and its kernel ("flexact_gemm_" name) are called.
  std::string gemm1() const;

  // Elements of a row of sorted inputs and of an activated row.
  std::int64_t input_width() const { return input_width_; }
  std::int64_t activated_width() const { return activated_width_; }

  // Bytes of the workspace for so many sorted rows.
  std::int64_t input_scale_bytes(std::int64_t rows) const;
  std::int64_t activated_bytes(std::int64_t rows) const;
  std::int64_t activated_scale_bytes(std::int64_t rows) const;
  // Scratch of a row in all, beside the input's and the result's memory.
  std::int64_t bytes_of_row() const;

  // Bytes of all weight scales of such a layer once they are in order: of whole tiles.
  static std::int64_t scale_bytes(const MoeProblem& problem);

  // How scales are put in order. `output` is set by whoever has the memory, and in mxfp4_fp8
  // `largest` and `outside`.
  struct Ordering {
    Fp4ScaleArguments arguments;
    std::int64_t blocks;
    std::int64_t bytes;
    std::int64_t parts;  // of experts, of so many columns: mxfp4_fp8 looks for each row's largest
  };
  Ordering order13() const;
  Ordering order2() const;

  // Weight scales as ordering left them, and where scales of rows are in one call.
  struct Memory {
    const void* scales13;
    const void* scales2;
    const std::uint8_t* largest13;
    const std::uint8_t* largest2;
    std::int64_t rows;
    float* input_scales;
    float* activated_scales;
  };
  Fp4GatherArguments gather(const GatherArguments& gather) const;
  Fp8GatherArguments gather_codes(const GatherArguments& gather, const Memory& memory) const;
  // The stream kernels' (not of mxfp4_fp8): the same scales, rows as the caller has them.
  Fp4StreamArguments stream_up(const StreamArguments& stream, const Memory& memory) const;
  Fp4StreamArguments stream_down(const StreamArguments& stream, const Memory& memory) const;
  Fp4GemmArguments gemm1(const GemmArguments& gemm, const Memory& memory, int box_rows) const;
  Fp4GemmArguments gemm2(const GemmArguments& gemm, const Memory& memory, int box_rows) const;

 private:
  Ordering order(const TensorView& scale, std::int64_t columns, std::int64_t depth, Pairing pairing,
                 bool permuted) const;
  static Fp4StreamArguments streamed(const StreamArguments& stream, const Ordering& ordering,
                                     const void* scales, const TensorView& global);

  MoeProblem problem_;
  TensorView scale13_, scale2_, global13_, global2_;
  std::int64_t input_width_, activated_width_;
};

}  // namespace flexact::cuda
