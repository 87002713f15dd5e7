// A mixture-of-experts block as data: sizes, formats, and views of tensors that somebody else owns.
//
//   y[m] = scale * Σ_k topk_weights[m, k] * down(act(gate(x[m]), up(x[m])))   over experts
//   topk_ids[m, k]
//
// GEMM accumulators are fp32; bias, activation and router weight are applied in fp32 before one
// rounding.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "flexact/config.hpp"

namespace flexact {

enum class DType { Float32, BFloat16, Float16, Float8E4M3, UInt8, Int32, Int64 };
std::string_view to_string(DType dtype) noexcept;
std::int64_t size_of(DType dtype) noexcept;

// Weight × activation format.
enum class Format { Bf16, Fp16, Fp32, Fp8Block, Fp8Tensor, Fp8Channel, Mxfp4, Nvfp4, Mxfp4Fp8 };
// "bf16", "fp16", "fp32", "fp8_block", "fp8_tensor", "fp8_channel", "mxfp4", "nvfp4", "mxfp4_fp8".
std::string_view to_string(Format format) noexcept;
Format parse_format(std::string_view text);

// A strided view of memory that the caller owns. Strides are in elements. data == nullptr: absent.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::Float32;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};

  explicit operator bool() const noexcept { return data != nullptr; }
};

// The part of the block that does not change between calls.
struct MoeProblem {
  std::int64_t experts = 0;       // E: experts in the weight tensors (this rank's)
  std::int64_t top_k = 0;         // k, 1 … 32
  std::int64_t hidden = 0;        // H
  std::int64_t intermediate = 0;  // I, per rank
  Format format = Format::Bf16;
  DType io_dtype = DType::BFloat16;   // hidden_states and output
  Pairing pairing = Pairing::Concat;  // None for a unary function
  bool bias13 = false;                // w13_bias is given
  bool bias2 = false;
  bool router_weight_on_input = false;  // multiplies x, not the output
  // false: the output is [M, k, H], each slot its expert's result without the router weight and the
  // scaling factor (a router weight on the input stays applied); slots of ids outside 0 … E-1 are
  // 0.
  bool combine = true;
  float routed_scaling_factor = 1.0f;
};

// Weights in checkpoint layout: w13 [E, 2I, H] (unary: [E, I, H]), w2 [E, H, I]; biases [E, 2I] (or
// [E, I]) and [E, H], any floating dtype. Scales as docs/formats.md states for each format.
struct MoeWeights {
  TensorView w13;
  TensorView w2;
  TensorView w13_bias;
  TensorView w2_bias;
  TensorView w13_scale;
  TensorView w2_scale;
  TensorView w13_global_scale;
  TensorView w2_global_scale;
  TensorView a13_scale;
  TensorView a2_scale;
};

// One call. topk_ids: Int32 or Int64; an id outside 0 … E-1 contributes nothing and is never read.
// With combine, the output may be the memory of contiguous hidden_states itself.
struct MoeInputs {
  std::int64_t tokens = 0;   // M, may be 0
  TensorView hidden_states;  // [M, H], last stride 1
  TensorView topk_weights;   // [M, k] Float32
  TensorView topk_ids;       // [M, k]
  void* output = nullptr;    // [M, H], or [M, k, H] without combine; io_dtype, contiguous
};

// Parameter values: row-major [rows, columns] fp32; rows is 1 or E. columns is the function's
// count.
struct ParameterTable {
  const float* data = nullptr;
  std::int64_t rows = 1;
  std::int64_t columns = 0;
};

}  // namespace flexact
