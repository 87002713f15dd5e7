// The numbers of one case: stored tensors, their exact values, and the block's value in fp64 with a
// bound of what correct arithmetic may differ by. Shares nothing with the library but its public
// API: rounding, indexing and summation are written again here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "case.hpp"

namespace flexact::conformance {

// A tensor as stored, beside the exact values of its elements.
struct Tensor {
  DType dtype = DType::Float32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // elements
  std::vector<std::byte> bytes;       // gaps hold NaN
  std::vector<double> exact;          // dense, row-major

  Tensor() = default;
  // Rounds `values` to `type`. `gap` elements of NaN lie between rows of the first dimension.
  Tensor(DType type, std::vector<std::int64_t> dims, const std::vector<double>& values,
         std::int64_t gap = 0);
  TensorView view() const;
};

// The value of one stored element.
double decode(const std::byte* at, DType dtype);
// The nearest number of `dtype`, ties to even.
double round_to(double value, DType dtype);
// Half the spacing of `dtype` at `value`.
double half_ulp(double value, DType dtype);

struct Expected {
  std::vector<double> value;  // [M, H] or [M, k, H]
  std::vector<double> bound;  // allowed difference
  double size = 0;            // root mean square of value
};

class CaseData {
 public:
  explicit CaseData(const Case& test);

  MoeWeights weights() const;
  MoeInputs inputs(void* output) const;
  ParameterTable values() const;
  std::int64_t output_count() const;
  const MoeProblem& problem() const { return problem_; }
  // Overwrites the weights, as a caller may that frees them after plan().
  void destroy_weights();

  // `value` computes the activation from g, u (x and nothing without a gate) and the parameters.
  using Formula = std::function<double(double g, double u, const std::vector<double>& parameters)>;
  Expected expected(const Formula& value) const;
  Expected expected(const Function& function) const;
  // Moves every valid id to the next expert: what a kernel computes that confuses experts.
  void shift_experts();

 private:
  struct Term;

  MoeProblem problem_;
  std::int64_t tokens_;
  std::int64_t rows13_;
  bool int32_ids_;
  Tensor hidden_, w13_, w2_, bias13_, bias2_;
  Tensor w13_scale_, w2_scale_, a13_scale_, a2_scale_;
  Tensor w13_global_, w2_global_;
  std::vector<double> input_;      // what the products take: hidden_, rounded as the format says
  std::vector<std::int64_t> ids_;  // dense
  std::vector<std::int64_t> stored_ids64_;
  std::vector<std::int32_t> stored_ids32_;
  std::int64_t id_stride_;
  std::vector<float> router_;
  std::vector<float> values_;
  std::int64_t value_rows_;
  std::int64_t value_columns_;
};

}  // namespace flexact::conformance
