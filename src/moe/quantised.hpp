// Matrices in the weight formats, and rows of activations as the kernels quantise them: the exact
// meaning of every format, which tests of all backends compare with. docs/formats.md has the
// layouts in pictures.
//
// A matrix is [rows, k], k contiguous. Codes are row-major: one byte a value for E4M3; for E2M1 two
// values a byte, the even one in the low four bits.
#pragma once

#include <cstdint>

#include "flexact/moe.hpp"

namespace flexact::moe {

inline constexpr std::int64_t kFp8Block = 128;   // fp8_block: 128 x 128 weights, 1 x 128 inputs
inline constexpr std::int64_t kMxfp4Group = 32;  // weights of a row that share an E8M0 scale
inline constexpr std::int64_t kNvfp4Group = 16;  // weights of a row that share an E4M3 scale
inline constexpr float kLeastLargest = 1e-10f;   // what a scale is at least made for
inline constexpr float kNvfp4Range = 6.0f * 448.0f;

bool is_quantised(Format format) noexcept;
bool is_fp4(Format format) noexcept;

// Values of k that share a scale: 128, 32 or 16; k itself where a row or the tensor has one scale.
std::int64_t group_of(Format format, std::int64_t k) noexcept;

// How one matrix is stored. scale_rows x scale_columns scales of scale_dtype, row-major.
struct QuantisedLayout {
  std::int64_t code_bytes = 0;  // of a row
  std::int64_t scale_rows = 0;
  std::int64_t scale_columns = 0;
  DType scale_dtype = DType::Float32;
};
// Throws InvalidArgument for a format that is not quantised, and where k is not whole groups of an
// FP4 format.
QuantisedLayout layout_of(Format format, std::int64_t rows, std::int64_t k);

// The scale of a group of E4M3 codes whose largest magnitude is `largest`: max(largest, 1e-10)/448.
float fp8_scale(float largest) noexcept;
// nvfp4's scale of a whole tensor: max(largest, 1e-10) / (6 * 448).
float nvfp4_global_scale(float largest) noexcept;

// One matrix in a format. `global_scale` is nvfp4's and unused elsewhere.
struct QuantisedMatrix {
  std::uint8_t* codes = nullptr;
  void* scales = nullptr;
  float global_scale = 1.0f;
};

// Rounds w [rows, k] to the format: the scale of each group from its largest magnitude, then each
// value to the nearest code, ties to even.
//   fp8_*   code = e4m3(w * (1 / s)), s = fp8_scale(largest)
//   mxfp4   code = e2m1(w / s), s = e8m0_scale(largest); a group with an infinity or NaN: s is NaN
//   nvfp4   s = e4m3(largest / 6 / global), code = e2m1(w / (s * global)), 0 where s rounds to 0;
//           the caller chooses `global` (nvfp4_global_scale)
// All arithmetic fp32, each operation rounded once.
void quantise(Format format, const float* w, std::int64_t rows, std::int64_t k,
              const QuantisedMatrix& to);

// code * scale (* global scale), rounded once where Real is float and exact where it is double.
template <typename Real>
void dequantise(Format format, const QuantisedMatrix& from, std::int64_t rows, std::int64_t k,
                Real* w);
extern template void dequantise(Format, const QuantisedMatrix&, std::int64_t, std::int64_t, float*);
extern template void dequantise(Format, const QuantisedMatrix&, std::int64_t, std::int64_t,
                                double*);

// Activations x [rows, k] of the FP8 formats to E4M3 codes: fp8_block and mxfp4_fp8 with a scale
// for each 128 values of a row (the last group may be short), fp8_channel for each row, fp8_tensor
// for all rows. s = fp8_scale(largest), code = e4m3(x * (1 / s)). Where `given` is not null,
// fp8_tensor takes that scale and does not look at x for one.
// Throws InvalidArgument for formats that do not quantise activations.
void quantise_activations(Format format, const float* x, std::int64_t rows, std::int64_t k,
                          std::uint8_t* codes, float* scales, const float* given = nullptr);

}  // namespace flexact::moe
