// The FP8 formats of a case: weights as E4M3 codes with scales, and rows rounded as kernels must
// round them, beside FP4 weights too. docs/formats.md says how; it is written again here.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "data.hpp"

namespace flexact::conformance {

bool is_fp8(Format format);
bool rounds_to_fp8(Format format);  // inputs and activated values: is_fp8(), or mxfp4_fp8
bool scales_groups(Format format);  // of 128 of them

// How the scales of an expert's matrix are stored, and which one an element has.
struct ScaleLayout {
  std::vector<std::int64_t> shape;                                        // of one expert's
  std::function<std::int64_t(std::int64_t row, std::int64_t column)> at;  // of those, row-major
};
ScaleLayout scales_of_w13(const MoeProblem& problem);
ScaleLayout scales_of_w2(const MoeProblem& problem);

// Codes and scales of `values` [experts, rows, k]. Neighbouring scales differ by factors of up to
// four, so that one from the wrong place shows. The codes' `exact` is what they stand for: code
// times scale.
std::pair<Tensor, Tensor> quantise_fp8(std::vector<double> values, std::int64_t experts,
                                       std::int64_t rows, std::int64_t k,
                                       const ScaleLayout& layout);

// Rounds rows of `width` numbers; those that are not `used` have no part in a scale and are left
// alone. `given`: one scale, or empty. Returns each number's scale.
std::vector<double> round_rows_to_fp8(std::vector<double>& values, std::int64_t width,
                                      Format format, const std::vector<bool>& used,
                                      const std::vector<double>& given);

}  // namespace flexact::conformance
