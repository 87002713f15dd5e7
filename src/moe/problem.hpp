// What a caller may ask for: the checks that hold for every backend.
//
// A value outside its documented range is an InvalidArgument error; a problem that is well-formed
// but that no backend defines is a Refusal. Nothing here reads a tensor's elements.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "flexact/activation.hpp"
#include "flexact/backend.hpp"
#include "flexact/moe.hpp"

namespace flexact::moe {

inline constexpr std::int64_t kMaxExperts = 1 << 16;
inline constexpr std::int64_t kMaxTopK = 32;
inline constexpr std::int64_t kMaxWidth = 1 << 20;  // hidden and intermediate
inline constexpr std::int64_t kMaxTokens = std::int64_t{1} << 31;

// Rows of w13 for each expert: 2I, or I where the layer is unary.
std::int64_t w13_rows(const MoeProblem& problem) noexcept;

// Throws InvalidArgument.
void validate(const MoeProblem& problem);

// The combinations that no backend computes because they have no single meaning.
std::optional<Refusal> refuse_meaningless(const MoeProblem& problem, const Function& function);

// Checks rank, shape, strides, presence and dtype. Throws InvalidArgument naming `name`.
void check_tensor(const char* name, const TensorView& view, std::initializer_list<DType> dtypes,
                  std::initializer_list<std::int64_t> shape);

// The element type of weights in a format without scales: Bf16, Fp16 or Fp32.
DType plain_dtype(Format format) noexcept;

// w13, w2 in a format without scales and the biases; scales must be absent. Throws InvalidArgument.
void validate_plain_weights(const MoeProblem& problem, const MoeWeights& weights);

// The weights, biases and scales of any format as docs/formats.md states them. Throws
// InvalidArgument.
void validate_weights(const MoeProblem& problem, const MoeWeights& weights);

// Throws InvalidArgument. With no tokens, only the count is looked at.
void validate(const MoeProblem& problem, const MoeInputs& inputs);

// Throws InvalidArgument unless the table is [1 or E, the function's parameter count].
void validate(const MoeProblem& problem, std::int64_t parameter_count,
              const ParameterTable& values);

// Throws InvalidArgument for a count outside 0 … kMaxTokens.
void validate_tokens(std::int64_t tokens);

}  // namespace flexact::moe
