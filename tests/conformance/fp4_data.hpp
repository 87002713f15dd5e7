// The FP4 formats of a case: weights as E2M1 codes, two to a byte, with scales. docs/formats.md
// says how; it is written again here.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "data.hpp"

namespace flexact::conformance {

bool is_fp4(Format format);  // mxfp4, nvfp4 or mxfp4_fp8

// Codes, scales and (nvfp4) global scales of `values` [experts, rows, k]: one global scale for each
// expert, or for each of `halves` of its rows as the pairing has them. Neighbouring scales differ
// by factors of up to four, so that one from the wrong place shows. The codes' `exact` is what they
// stand for.
std::tuple<Tensor, Tensor, Tensor> quantise_fp4(std::vector<double> values, std::int64_t experts,
                                                std::int64_t rows, std::int64_t k, Format format,
                                                Pairing pairing, std::int64_t halves);

}  // namespace flexact::conformance
