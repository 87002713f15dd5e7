// One launch for a call: what it is told of rows of any size, stride and alignment.
#include "cuda/dense_plan.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/architecture.hpp"
#include "cuda/driver.hpp"
#include "cuda/jit/function_source.hpp"
#include "cuda/jit/linker.hpp"
#include "cuda/kernels/arguments.hpp"
#include "cuda/module_cache.hpp"
#include "flexact/error.hpp"

namespace flexact::cuda {

namespace {

// Columns and pieces are counted in 32 bits.
constexpr std::int64_t kMostColumns = std::int64_t{1} << 28;
constexpr std::int64_t kMostPieces = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kMostBytes = std::int64_t{1} << 60;
// Below this many pieces a multiprocessor, threads take one each, so that more of them work.
constexpr std::int64_t kFewPieces = 2048;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

[[noreturn]] void reject(const std::string& where, const std::string& what,
                         const std::string& hint) {
  throw Error(ErrorCode::InvalidArgument, what, where, hint);
}

bool is_multiple(const void* pointer, std::int64_t stride_bytes, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0 &&
         stride_bytes % bytes == 0;
}

class CudaDensePlan final : public DensePlan {
 public:
  CudaDensePlan(const DenseProblem& problem, const Function& function, moe::Numerics numerics)
      : problem_(problem),
        function_(function.name().empty() ? function.canonical() : function.name()),
        parameter_count_(static_cast<std::int64_t>(function.parameters().size())) {
    const std::string type = problem.dtype == DType::BFloat16  ? "bf16"
                             : problem.dtype == DType::Float16 ? "fp16"
                                                               : "fp32";
    const std::string variant = type + (gated() ? "_gated" : "_unary");
    kernel_ = "flexact_act_" + variant +
              (problem.result == DenseResult::Plain ? ""
               : by_rows()                          ? "_rows"
                                                    : "_groups");
    image_ = &kernel_image("dense_" + variant);
    source_ = function_source(gated() ? function.gated() : function, numerics, problem.dtype);
    // Ahead of the first call, which then finds what it links.
    link(*architecture_);
  }

  void run(const DenseCall& call, const ParameterTable& values, void* stream) const override {
    validate(call, values);
    if (call.rows == 0 || call.intermediate == 0) return;
    const Location location = location_of(driver_, "x", call.x);
    const ContextGuard current(driver_, location.context);
    const Place& place = place_of(location);
    DenseArguments arguments = arguments_of(call, values);
    // A launch counts its pieces in 32 bits.
    const std::int64_t most = std::max<std::int64_t>(1, kMostPieces / arguments.row_pieces);
    for (std::int64_t first = 0; first < call.rows; first += most) {
      launch(place, arguments, std::min(most, call.rows - first), stream);
      arguments.x =
          static_cast<const char*>(arguments.x) + most * call.x_stride * size_of(problem_.dtype);
      arguments.output = static_cast<char*>(arguments.output) + most * call.out_stride * out_size();
      arguments.scales += fp8() ? most * call.scale_row_stride : 0;
    }
  }

  std::string describe() const override {
    const char* result = problem_.result == DenseResult::Plain       ? ""
                         : problem_.result == DenseResult::Fp8Groups ? " to fp8 by groups"
                                                                     : " to fp8 by rows";
    return "cutlass, " + std::string(architecture_->name) + " act_and_mul " +
           std::string(to_string(problem_.dtype)) + result + ", " + function_;
  }

 private:
  // A GPU's kernel.
  struct Place {
    Kernel kernel;
    int multiprocessors;
  };

  std::shared_ptr<const LinkedKernel> link(const Architecture& architecture) const {
    return link_kernel(*image_, source_, architecture.name, function_);
  }
  bool gated() const { return problem_.pairing != Pairing::None; }
  bool fp8() const { return problem_.result != DenseResult::Plain; }
  bool by_rows() const { return problem_.result == DenseResult::Fp8Rows; }
  std::int64_t out_size() const { return fp8() ? 1 : size_of(problem_.dtype); }
  std::int64_t piece() const { return 16 / size_of(problem_.dtype); }

  const Place& place_of(const Location& location) const {
    const std::lock_guard lock(mutex_);
    const auto found = places_.find(location.context);
    if (found != places_.end()) return found->second;
    const auto linked = link(architecture_for(driver_, location.device, "x"));
    Place place{kernel_of(driver_, location.context, *linked, kernel_.c_str(), 0), 0};
    driver_.check(
        driver_.device_attribute(&place.multiprocessors, kMultiprocessors, location.device),
        "counting multiprocessors");
    return places_.emplace(location.context, place).first->second;
  }

  void validate(const DenseCall& call, const ParameterTable& values) const {
    if (call.rows < 0 || call.rows > kMostBytes) reject("rows", "out of range", "0 to 2^60");
    if (call.intermediate < 0 || call.intermediate > kMostColumns) {
      reject("intermediate", std::to_string(call.intermediate) + " is out of range", "0 to 2^28");
    }
    if (values.rows != 1 || values.columns != parameter_count_ ||
        (parameter_count_ > 0 && values.data == nullptr)) {
      reject("values",
             "a table of [" + std::to_string(values.rows) + ", " + std::to_string(values.columns) +
                 "]",
             "[1, " + std::to_string(parameter_count_) + "]: a dense MLP has no experts");
    }
    if (call.rows == 0 || call.intermediate == 0) return;
    const std::int64_t width = gated() ? 2 * call.intermediate : call.intermediate;
    const auto matrix = [&](const char* name, const void* data, std::int64_t stride,
                            std::int64_t columns, std::int64_t size) {
      if (data == nullptr) reject(name, "is null", "memory of a GPU");
      if (!is_multiple(data, 0, size)) reject(name, "is not aligned to its elements", "");
      if (call.rows > 1 && (stride < columns || stride > kMostBytes / 4 / call.rows)) {
        reject(name, "rows are " + std::to_string(stride) + " elements apart",
               "at least " + std::to_string(columns) + ", and tensors of at most 2^60 bytes");
      }
    };
    matrix("x", call.x, call.x_stride, width, size_of(problem_.dtype));
    matrix("out", call.out, call.out_stride, call.intermediate, out_size());
    if (fp8() && (call.scales == nullptr || !is_multiple(call.scales, 0, sizeof(float)))) {
      reject("scales", "missing or not aligned to its elements", "fp32 memory of a GPU");
    }
    if (!fp8() && call.scales != nullptr) {
      reject("scales", "are given", "none: the result is not rounded to codes");
    }
  }

  DenseArguments arguments_of(const DenseCall& call, const ParameterTable& values) const {
    const std::int64_t size = size_of(problem_.dtype);
    DenseArguments arguments{};
    arguments.x = call.x;
    arguments.x_stride = call.x_stride;
    arguments.interleaved = problem_.pairing == Pairing::Interleaved;
    if (problem_.pairing == Pairing::Concat) arguments.second = call.intermediate;
    if (problem_.pairing == Pairing::UpFirst) arguments.first = call.intermediate;
    if (problem_.pairing == Pairing::Interleaved) arguments.second = piece();
    arguments.output = call.out;
    arguments.output_stride = call.out_stride;
    arguments.scales = call.scales;
    arguments.scale_row_step = call.scale_row_stride;
    arguments.scale_group_step = call.scale_group_stride;
    arguments.values = values.data;
    arguments.value_columns = static_cast<std::int32_t>(parameter_count_);
    arguments.width = static_cast<std::int32_t>(call.intermediate);
    // Groups are whole, so that each has threads of its own.
    arguments.row_pieces =
        static_cast<std::uint32_t>(problem_.result == DenseResult::Fp8Groups
                                       ? ceil_div(call.intermediate, kGroup) * (kGroup / piece())
                                       : ceil_div(call.intermediate, piece()));
    // A row of one alone may have any stride.
    const auto stride = [&](std::int64_t elements) { return call.rows > 1 ? elements : 0; };
    const std::int64_t out_piece = piece() * out_size();
    arguments.vectors = call.intermediate % piece() == 0 &&
                        is_multiple(call.x, stride(call.x_stride) * size, 16) &&
                        is_multiple(call.out, stride(call.out_stride) * out_size(), out_piece);
    return arguments;
  }

  void launch(const Place& place, DenseArguments& arguments, std::int64_t rows,
              void* stream) const {
    const std::int64_t pieces = rows * arguments.row_pieces;
    const std::int64_t ahead = gated() ? kDensePieces / 2 : kDensePieces;
    const bool few = pieces < kFewPieces * place.multiprocessors;
    arguments.pieces = static_cast<std::uint32_t>(pieces);
    arguments.each = static_cast<std::int32_t>(few || arguments.vectors == 0 ? 1 : ahead);
    std::int64_t blocks = rows;
    std::int64_t threads = kDenseThreads;
    if (by_rows()) {
      // As few threads as keep a row in registers, or as many as there is work for.
      const std::int64_t wanted =
          few ? arguments.row_pieces : ceil_div(arguments.row_pieces, kDenseHeld);
      threads = std::min<std::int64_t>(kDenseRowThreads, ceil_div(wanted, 32) * 32);
    } else {
      blocks = ceil_div(pieces, threads * arguments.each);
    }
    LaunchAttribute attribute{};
    attribute.id = kProgrammaticLaunch;
    attribute.value.programmatic = 1;
    const LaunchConfiguration configuration{{static_cast<unsigned>(blocks), 1, 1},
                                            {static_cast<unsigned>(threads), 1, 1},
                                            0,
                                            stream,
                                            &attribute,
                                            1};
    void* parameters[] = {&arguments};
    driver_.check(driver_.launch(&configuration, place.kernel, parameters, nullptr),
                  "activating rows");
  }

  const Driver& driver_ = Driver::instance();
  DenseProblem problem_;
  std::string function_;
  std::int64_t parameter_count_;
  const Architecture* architecture_ = machine_architecture(driver_);  // refuse() asked for one
  std::string kernel_, source_;
  const KernelImage* image_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::map<Context, Place> places_;
};

}  // namespace

std::optional<Refusal> refuse_meaningless(const DenseProblem& problem, const Function& function) {
  if (problem.dtype != DType::Float32 && problem.dtype != DType::BFloat16 &&
      problem.dtype != DType::Float16) {
    return Refusal{std::string(to_string(problem.dtype)) + " is no type of activations",
                   "float32, bfloat16 or float16"};
  }
  if (to_string(problem.pairing) == "unknown" || problem.pairing == Pairing::Separate) {
    return Refusal{"gate and up are not in one tensor", "concat, up_first, interleaved or none"};
  }
  if (problem.pairing == Pairing::None && function.arity() == Arity::Gated) {
    return Refusal{function.name() + " needs a gate, and the pairing is none",
                   "a pairing other than none"};
  }
  return std::nullopt;
}

std::unique_ptr<DensePlan> make_dense_plan(const DenseProblem& problem, const Function& function,
                                           moe::Numerics numerics) {
  return std::make_unique<CudaDensePlan>(problem, function, numerics);
}

}  // namespace flexact::cuda
