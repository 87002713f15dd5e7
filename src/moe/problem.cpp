// Validation of problems, weights and inputs.
#include "moe/problem.hpp"

#include <cmath>
#include <utility>
#include <vector>

#include "flexact/error.hpp"
#include "moe/quantised.hpp"

namespace flexact::moe {

namespace {

[[noreturn]] void invalid(const std::string& message, const std::string& where,
                          std::string hint = {}) {
  throw Error(ErrorCode::InvalidArgument, message, where, std::move(hint));
}

void check_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    invalid(std::to_string(value) + " is out of range", name,
            std::to_string(low) + " to " + std::to_string(high));
  }
}

std::string shape_text(const std::int64_t* shape, int rank) {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool known(Pairing pairing) noexcept {
  switch (pairing) {
    case Pairing::Concat:
    case Pairing::UpFirst:
    case Pairing::Interleaved:
    case Pairing::Separate:
    case Pairing::None:
      return true;
  }
  return false;
}

bool has_bias(const MoeProblem& problem) noexcept {
  return problem.bias13 || problem.bias2;
}

void check_bias(const char* name, const TensorView& view, bool expected, std::int64_t experts,
                std::int64_t width) {
  if (!expected) {
    if (view)
      invalid("a bias is given, but the problem has none", name, "set the problem's bias flag");
    return;
  }
  check_tensor(name, view, {DType::Float32, DType::BFloat16, DType::Float16}, {experts, width});
}

void check_biases(const MoeProblem& problem, const MoeWeights& weights) {
  check_bias("w13_bias", weights.w13_bias, problem.bias13, problem.experts, w13_rows(problem));
  check_bias("w2_bias", weights.w2_bias, problem.bias2, problem.experts, problem.hidden);
}

void check_absent(const MoeProblem& problem, const char* name, const TensorView& view) {
  if (view) {
    invalid("a scale is given, but format " + std::string(to_string(problem.format)) + " has none",
            name);
  }
}

// The first shape of the view's rank is the one that it must have.
void check_shapes(const char* name, const TensorView& view, DType dtype,
                  std::initializer_list<std::vector<std::int64_t>> shapes) {
  const std::vector<std::int64_t>* chosen = shapes.begin();
  for (const auto& shape : shapes) {
    if (static_cast<int>(shape.size()) == view.rank) {
      chosen = &shape;
      break;
    }
  }
  switch (chosen->size()) {
    case 0:
      return check_tensor(name, view, {dtype}, {});
    case 1:
      return check_tensor(name, view, {dtype}, {(*chosen)[0]});
    case 2:
      return check_tensor(name, view, {dtype}, {(*chosen)[0], (*chosen)[1]});
    default:
      return check_tensor(name, view, {dtype}, {(*chosen)[0], (*chosen)[1], (*chosen)[2]});
  }
}

// Rows of 128 x 128 blocks of w13: gate and up are cut into blocks each for itself, except where
// their rows alternate.
std::int64_t w13_block_rows(const MoeProblem& problem) noexcept {
  const auto blocks = [](std::int64_t rows) { return (rows + kFp8Block - 1) / kFp8Block; };
  switch (problem.pairing) {
    case Pairing::None:
      return blocks(problem.intermediate);
    case Pairing::Interleaved:
      return blocks(2 * problem.intermediate);
    default:
      return 2 * blocks(problem.intermediate);
  }
}

// One fp32 number for each expert's w13: [E], or where gate and up have their own, [E, 2].
void check_halves(const char* name, const TensorView& view, const MoeProblem& problem) {
  if (problem.pairing == Pairing::None) {
    check_shapes(name, view, DType::Float32, {{problem.experts}});
  } else {
    check_shapes(name, view, DType::Float32, {{problem.experts, 2}, {problem.experts}});
  }
}

}  // namespace

std::int64_t w13_rows(const MoeProblem& problem) noexcept {
  return problem.pairing == Pairing::None ? problem.intermediate : 2 * problem.intermediate;
}

void validate(const MoeProblem& problem) {
  check_range("experts", problem.experts, 1, kMaxExperts);
  check_range("top_k", problem.top_k, 1, kMaxTopK);
  check_range("hidden", problem.hidden, 1, kMaxWidth);
  check_range("intermediate", problem.intermediate, 1, kMaxWidth);
  if (to_string(problem.format) == "unknown") invalid("not a format", "format");
  if (!known(problem.pairing)) invalid("not a pairing", "pairing");
  if (problem.io_dtype != DType::Float32 && problem.io_dtype != DType::BFloat16 &&
      problem.io_dtype != DType::Float16) {
    invalid(std::string(to_string(problem.io_dtype)) + " hidden states", "io_dtype",
            "float32, bfloat16 or float16");
  }
  if (!std::isfinite(problem.routed_scaling_factor)) {
    invalid("not a finite number", "routed_scaling_factor");
  }
}

std::optional<Refusal> refuse_meaningless(const MoeProblem& problem, const Function& function) {
  if (problem.router_weight_on_input && has_bias(problem)) {
    return Refusal{"a bias together with the router weight on the input has no agreed meaning",
                   "apply the router weight to the output, or drop the biases"};
  }
  if (is_fp4(problem.format)) {
    const std::pair<const char*, std::int64_t> sizes[] = {{"hidden", problem.hidden},
                                                          {"intermediate", problem.intermediate}};
    for (const auto& [name, size] : sizes) {
      const std::int64_t group = group_of(problem.format, size);
      if (size % group == 0) continue;
      return Refusal{std::string(to_string(problem.format)) + " stores groups of " +
                         std::to_string(group) + " weights, and " + name + " is " +
                         std::to_string(size),
                     "pad the weights with zeros to whole groups"};
    }
  }
  if (problem.pairing == Pairing::Separate) {
    return Refusal{"gate and up come as two tensors, but the block takes them as one w13",
                   "concatenate them along the rows and say concat"};
  }
  if (problem.pairing == Pairing::None && function.arity() == Arity::Gated) {
    return Refusal{"a gated function needs gate and up, but the pairing is none",
                   "give w13 as [E, 2I, H] with its pairing, or a unary function"};
  }
  if (problem.pairing != Pairing::None && function.arity() == Arity::Unary) {
    return Refusal{"a unary function in a gated layer",
                   "lift it with Function::gated() to f(g) * u"};
  }
  return std::nullopt;
}

void check_tensor(const char* name, const TensorView& view, std::initializer_list<DType> dtypes,
                  std::initializer_list<std::int64_t> shape) {
  const int rank = static_cast<int>(shape.size());
  const std::string expected = shape_text(shape.begin(), rank);
  if (!view) invalid("missing", name, "a tensor " + expected);
  std::string allowed;
  bool known_dtype = false;
  for (const DType dtype : dtypes) {
    known_dtype = known_dtype || view.dtype == dtype;
    allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(dtype));
  }
  if (!known_dtype) invalid("dtype " + std::string(to_string(view.dtype)), name, allowed);
  if (reinterpret_cast<std::uintptr_t>(view.data) %
          static_cast<std::uintptr_t>(size_of(view.dtype)) !=
      0) {
    invalid("the data pointer is not aligned to its elements", name);
  }
  if (view.rank != rank) invalid("rank " + std::to_string(view.rank), name, "a tensor " + expected);
  for (int i = 0; i < rank; ++i) {
    if (view.shape[i] != shape.begin()[i]) {
      invalid("shape " + shape_text(view.shape.data(), rank), name, expected);
    }
    // Offsets stay far from overflow: at most 2^31 · 2^31 elements along each of four axes.
    if (shape.begin()[i] > 1 &&
        (view.strides[i] < 0 || view.strides[i] > (std::int64_t{1} << 31) * 16)) {
      invalid("stride " + std::to_string(view.strides[i]), name,
              "strides in elements, not negative");
    }
  }
}

DType plain_dtype(Format format) noexcept {
  switch (format) {
    case Format::Bf16:
      return DType::BFloat16;
    case Format::Fp16:
      return DType::Float16;
    default:
      return DType::Float32;
  }
}

void validate_plain_weights(const MoeProblem& problem, const MoeWeights& weights) {
  const DType weight_dtype = plain_dtype(problem.format);
  const std::int64_t rows = w13_rows(problem);
  check_tensor("w13", weights.w13, {weight_dtype}, {problem.experts, rows, problem.hidden});
  check_tensor("w2", weights.w2, {weight_dtype},
               {problem.experts, problem.hidden, problem.intermediate});
  check_biases(problem, weights);
  const std::pair<const char*, const TensorView*> scales[] = {
      {"w13_scale", &weights.w13_scale},
      {"w2_scale", &weights.w2_scale},
      {"w13_global_scale", &weights.w13_global_scale},
      {"w2_global_scale", &weights.w2_global_scale},
      {"a13_scale", &weights.a13_scale},
      {"a2_scale", &weights.a2_scale},
  };
  for (const auto& [name, view] : scales) check_absent(problem, name, *view);
}

void validate_weights(const MoeProblem& problem, const MoeWeights& weights) {
  if (!is_quantised(problem.format)) return validate_plain_weights(problem, weights);
  const bool fp4 = is_fp4(problem.format);
  const std::int64_t experts = problem.experts;
  const std::int64_t rows = w13_rows(problem);
  const QuantisedLayout up = layout_of(problem.format, rows, problem.hidden);
  const QuantisedLayout down = layout_of(problem.format, problem.hidden, problem.intermediate);
  const DType codes = fp4 ? DType::UInt8 : DType::Float8E4M3;
  check_tensor("w13", weights.w13, {codes}, {experts, rows, up.code_bytes});
  check_tensor("w2", weights.w2, {codes}, {experts, problem.hidden, down.code_bytes});
  check_biases(problem, weights);

  switch (problem.format) {
    case Format::Fp8Block:
      check_shapes("w13_scale", weights.w13_scale, DType::Float32,
                   {{experts, w13_block_rows(problem), up.scale_columns}});
      check_shapes("w2_scale", weights.w2_scale, DType::Float32,
                   {{experts, down.scale_rows, down.scale_columns}});
      break;
    case Format::Fp8Tensor:
      check_halves("w13_scale", weights.w13_scale, problem);
      check_shapes("w2_scale", weights.w2_scale, DType::Float32, {{experts}});
      break;
    case Format::Fp8Channel:
      check_shapes("w13_scale", weights.w13_scale, DType::Float32,
                   {{experts, rows}, {experts, rows, 1}});
      check_shapes("w2_scale", weights.w2_scale, DType::Float32,
                   {{experts, problem.hidden}, {experts, problem.hidden, 1}});
      break;
    default:
      check_shapes("w13_scale", weights.w13_scale, up.scale_dtype,
                   {{experts, rows, up.scale_columns}});
      check_shapes("w2_scale", weights.w2_scale, down.scale_dtype,
                   {{experts, problem.hidden, down.scale_columns}});
  }
  if (problem.format == Format::Nvfp4) {
    check_halves("w13_global_scale", weights.w13_global_scale, problem);
    check_shapes("w2_global_scale", weights.w2_global_scale, DType::Float32, {{experts}});
  } else {
    check_absent(problem, "w13_global_scale", weights.w13_global_scale);
    check_absent(problem, "w2_global_scale", weights.w2_global_scale);
  }
  const std::pair<const char*, const TensorView*> inputs[] = {{"a13_scale", &weights.a13_scale},
                                                              {"a2_scale", &weights.a2_scale}};
  for (const auto& [name, view] : inputs) {
    // Left out: the scale is taken from the activations of each call.
    if (problem.format != Format::Fp8Tensor) {
      check_absent(problem, name, *view);
    } else if (*view) {
      check_shapes(name, *view, DType::Float32, {{1}, {}});
    }
  }
}

void validate(const MoeProblem& problem, const MoeInputs& inputs) {
  validate_tokens(inputs.tokens);
  if (inputs.tokens == 0) return;
  check_tensor("hidden_states", inputs.hidden_states, {problem.io_dtype},
               {inputs.tokens, problem.hidden});
  if (problem.hidden > 1 && inputs.hidden_states.strides[1] != 1) {
    invalid("rows are not contiguous", "hidden_states", "last stride 1");
  }
  check_tensor("topk_weights", inputs.topk_weights, {DType::Float32},
               {inputs.tokens, problem.top_k});
  check_tensor("topk_ids", inputs.topk_ids, {DType::Int32, DType::Int64},
               {inputs.tokens, problem.top_k});
  if (inputs.output == nullptr) invalid("missing", "output");
  if (reinterpret_cast<std::uintptr_t>(inputs.output) %
          static_cast<std::uintptr_t>(size_of(problem.io_dtype)) !=
      0) {
    invalid("the pointer is not aligned to its elements", "output");
  }
}

void validate(const MoeProblem& problem, std::int64_t parameter_count,
              const ParameterTable& values) {
  if (values.columns != parameter_count) {
    invalid(std::to_string(values.columns) + " columns", "values",
            "the function has " + std::to_string(parameter_count) + " parameters");
  }
  if (parameter_count == 0) return;
  if (values.rows != 1 && values.rows != problem.experts) {
    invalid(std::to_string(values.rows) + " rows", "values",
            "1 or " + std::to_string(problem.experts) + ", one for each expert");
  }
  if (values.data == nullptr) invalid("missing", "values");
}

void validate_tokens(std::int64_t tokens) {
  check_range("tokens", tokens, 0, kMaxTokens);
}

}  // namespace flexact::moe
