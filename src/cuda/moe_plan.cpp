// A layer on a GPU: what is linked and described once, and the launches of a call.
//
//   route ─ gather ─ GEMM1 + activation ─ GEMM2 ─ combine
//
// With few slots gather's blocks count for themselves what route would tell them, and it is left
// out. A few tokens may take the way of stream_layer.hpp instead; policy.hpp decides.
//
// What the FP8 formats have beside that is in fp8_layer.hpp: scales, a gather that rounds to codes,
// and where scales are not given and not by groups, a launch before the gather or before GEMM2.
// What the FP4 formats have is in fp4_layer.hpp: rows with their columns in another order, and the
// weights' scales in memory of the plan.
//
// Weights stay where they are, in the caller's memory and layout. run() passes pointers on: it
// allocates nothing, reads nothing back and waits for nothing, so it may be captured in a CUDA
// graph.
#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "cuda/architecture.hpp"
#include "cuda/backend.hpp"
#include "cuda/driver.hpp"
#include "cuda/fp4_layer.hpp"
#include "cuda/fp8_layer.hpp"
#include "cuda/jit/function_source.hpp"
#include "cuda/jit/linker.hpp"
#include "cuda/kernels/arguments.hpp"
#include "cuda/kernels/fp4_layout.hpp"
#include "cuda/module_cache.hpp"
#include "cuda/policy.hpp"
#include "cuda/stream_layer.hpp"
#include "cuda/tensor_map.hpp"
#include "flexact/error.hpp"
#include "moe/problem.hpp"
#include "moe/quantised.hpp"

namespace flexact::cuda {

namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Device memory that the plan owns.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const Driver& driver, Context context, std::size_t bytes)
      : driver_(&driver), context_(context), bytes_(bytes) {
    driver.check(driver.allocate(&pointer_, bytes), "allocating a plan's memory");
  }
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(context_, other.context_);
    std::swap(pointer_, other.pointer_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (pointer_ == 0) return;
    try {
      const ContextGuard current(*driver_, context_);
      driver_->release(pointer_);
    } catch (const Error&) {
      // The context is gone, and its memory with it.
    }
  }
  DevicePointer address() const { return pointer_; }
  float* get() const { return reinterpret_cast<float*>(static_cast<std::uintptr_t>(pointer_)); }
  std::size_t bytes() const { return bytes_; }

 private:
  const Driver* driver_ = nullptr;
  Context context_ = nullptr;
  DevicePointer pointer_ = 0;
  std::size_t bytes_ = 0;
};

// Where things lie in the workspace, for one chunk.
struct Layout {
  std::size_t rows = 0;  // sorted input rows; after GEMM1, GEMM2's result
  std::size_t activated = 0;
  std::size_t codes = 0;  // of activated rows that were rounded to FP8 later
  std::size_t input_scales = 0;
  std::size_t activated_scales = 0;
  std::size_t largest = 0;
  std::size_t slot_row = 0;
  std::size_t row_scale = 0;
  std::size_t tiles = 0;
  std::size_t tile_count = 0;
  std::size_t taken = 0;  // counters of GEMM1, then of GEMM2, then of the format
  std::size_t bytes = 0;
};

struct Grid {
  unsigned x, y, threads;
  unsigned shared = 0;     // bytes
  unsigned cluster = 1;    // blocks of x
  bool dependent = false;  // programmatic dependent launch
};

// A GEMM's kernel and what a CTA of it needs.
struct GemmKernel {
  Kernel kernel = nullptr;
  unsigned threads = kGemmThreads;
  int shared = kGemmSharedBytes;
};

class MoePlan final : public Plan {
 public:
  MoePlan(const MoeProblem& problem, const Function& function, const MoeWeights& weights,
          const PlanOptions& options);

  std::size_t workspace_bytes(std::int64_t tokens) const override {
    moe::validate_tokens(tokens);
    return tokens == 0 ? 0 : layout(std::min(tokens, chunk_tokens(tokens))).bytes + 255;
  }
  std::size_t resident_bytes() const override {
    return bias13_.bytes() + bias2_.bytes() + scales13_.bytes() + scales2_.bytes() +
           largest13_.bytes() + largest2_.bytes();
  }
  std::string describe() const override;
  void run(const MoeInputs& inputs, const ParameterTable& values, void* workspace,
           std::size_t workspace_size, void* stream) const override;

 private:
  DeviceMemory ordered_bias(const TensorView& bias, Pairing pairing) const;
  DeviceMemory ordered_scales(Fp4Layer::Ordering ordering, DeviceMemory& largest);
  void link(const Function& function, moe::Numerics numerics);
  // Elements of a row in the workspace.
  std::int64_t input_width() const { return fp4_ ? fp4_->input_width() : problem_.hidden; }
  std::int64_t activated_width() const {
    return fp4_ ? fp4_->activated_width() : problem_.intermediate;
  }
  std::int64_t chunk_tokens(std::int64_t tokens) const;
  std::int64_t most_tiles(std::int64_t tokens, int tile_rows) const;
  std::int32_t counters() const { return 4 + (fp8_ ? fp8_->counters() : 0); }
  Layout layout(std::int64_t tokens) const;
  void run_chunk(const MoeInputs& inputs, const ParameterTable& values, std::int64_t first,
                 std::int64_t tokens, char* workspace, Stream stream) const;
  void launch_with(Kernel kernel, void** parameters, const Grid& grid, Stream stream,
                   const char* doing) const;
  template <typename Arguments>
  void launch(Kernel kernel, const Arguments& arguments, const Grid& grid, Stream stream,
              const char* doing, const RouteArguments* route = nullptr) const {
    void* parameters[] = {const_cast<Arguments*>(&arguments), const_cast<RouteArguments*>(route)};
    launch_with(kernel, parameters, grid, stream, doing);
  }
  template <typename Arguments>
  void launch_gemm(const GemmKernel& kernel, const TensorMap (&input)[2], const TensorMap& weights,
                   const Arguments& arguments, const GemmArguments& gemm, std::int64_t row_tiles,
                   const Choice& choice, Stream stream, const char* doing) const;
  void launch_fp8_round(const GemmArguments& gemm1, char* workspace, const Layout& at,
                        const Fp8Layer::Memory& memory, bool dependent, Stream stream) const;

  const Driver& driver_ = Driver::instance();
  MoeProblem problem_;
  std::string function_;
  std::int64_t parameter_count_;
  Location location_;
  const Architecture* architecture_ = nullptr;
  int multiprocessors_ = 0;
  Wish wish_;
  unsigned launches_;
  std::int64_t most_scratch_;
  std::optional<Fp8Layer> fp8_;
  std::optional<Fp4Layer> fp4_;
  std::optional<StreamLayer> stream_;
  DType element_;                           // of the GEMMs' operands
  GemmKernel gemm1_, gemm2_, few1_, few2_;  // the latter of tiles of few rows
  Kernel route_ = nullptr, gather_ = nullptr, gather_counted_ = nullptr, combine_ = nullptr,
         order_bias_ = nullptr;
  Kernel fp8_largest_ = nullptr, fp8_round_ = nullptr, order_scales_ = nullptr,
         largest_scales_ = nullptr;
  Kernel stream_up_ = nullptr, stream_down_ = nullptr;
  TensorMap map13_, map2_;
  DeviceMemory bias13_, bias2_;
  DeviceMemory scales13_, scales2_;    // of FP4 weights
  DeviceMemory largest13_, largest2_;  // of their rows, in mxfp4_fp8
  std::int64_t rounded_groups_ = 0;    // mxfp4_fp8: groups of weights that E4M3 does not hold
};

MoePlan::MoePlan(const MoeProblem& problem, const Function& function, const MoeWeights& weights,
                 const PlanOptions& options)
    : problem_(problem),
      function_(function.name().empty() ? function.canonical() : function.name()),
      parameter_count_(static_cast<std::int64_t>(function.parameters().size())),
      wish_(options.wish),
      launches_(options.launches),
      most_scratch_(options.most_scratch),
      element_(is_fp8(problem.format) || problem.format == Format::Mxfp4Fp8 ? DType::Float8E4M3
                                                                            : problem.io_dtype) {
  moe::validate_weights(problem, weights);
  location_ = location_of(driver_, "w13", weights.w13.data);
  for (const auto& [name, view] :
       {std::pair{"w2", &weights.w2}, std::pair{"w13_bias", &weights.w13_bias},
        std::pair{"w2_bias", &weights.w2_bias}, std::pair{"w13_scale", &weights.w13_scale},
        std::pair{"w2_scale", &weights.w2_scale},
        std::pair{"w13_global_scale", &weights.w13_global_scale},
        std::pair{"w2_global_scale", &weights.w2_global_scale},
        std::pair{"a13_scale", &weights.a13_scale}, std::pair{"a2_scale", &weights.a2_scale}}) {
    if (*view && location_of(driver_, name, view->data).device != location_.device) {
      throw Error(ErrorCode::InvalidArgument, "lies on another GPU than w13", name);
    }
  }
  architecture_ = &architecture_for(driver_, location_.device, "w13");
  if (const auto refusal = refuse_format(*architecture_, problem.format)) {
    throw Error(ErrorCode::Unsupported, refusal->reason, "cutlass", refusal->hint);
  }
  if (!architecture_->parts_of_tiles) wish_.split_last = wish_.extra_rows = 0;
  const ContextGuard current(driver_, location_.context);
  driver_.check(driver_.device_attribute(&multiprocessors_, kMultiprocessors, location_.device),
                "counting multiprocessors");

  if (is_fp8(problem.format)) fp8_.emplace(problem, weights);
  if (moe::is_fp4(problem.format)) fp4_.emplace(problem, weights);
  if (may_take(Path::Stream, problem, wish_)) stream_.emplace(problem, weights);
  link(function, options.numerics);
  map13_ = map_weights(driver_, "w13", weights.w13, problem.pairing);
  map2_ = map_weights(driver_, "w2", weights.w2, Pairing::None);
  if (problem.bias13) bias13_ = ordered_bias(weights.w13_bias, problem.pairing);
  if (problem.bias2) bias2_ = ordered_bias(weights.w2_bias, Pairing::None);
  if (fp4_) {
    scales13_ = ordered_scales(fp4_->order13(), largest13_);
    scales2_ = ordered_scales(fp4_->order2(), largest2_);
  }
}

// Images are linked at the same time: the first plan of a function waits for the longest of them.
void MoePlan::link(const Function& function, moe::Numerics numerics) {
  const bool gated = problem_.pairing != Pairing::None;
  const std::string source = function_source(function, numerics, problem_.io_dtype);
  using Linked = std::shared_ptr<const LinkedKernel>;
  const auto linked = [&](const std::string& image, bool with_function) {
    return std::async(std::launch::async, [this, &source, image, with_function] {
      return link_kernel(kernel_image(image), with_function ? source : "", architecture_->name,
                         with_function ? function_ : "");
    });
  };
  const auto kernel = [&](const Linked& image, const std::string& name, int shared) {
    return kernel_of(driver_, location_.context, *image, ("flexact_" + name).c_str(), shared);
  };
  // A GEMM is alone in its image and has its name.
  struct Gemm {
    std::string name;
    std::future<Linked> image;
  };
  const std::string own = architecture_->images;
  const auto gemm = [&](const std::string& name, bool with_function) {
    return Gemm{name, linked(own + name, with_function)};
  };
  const std::string name1 =
      fp8_   ? fp8_->gemm1()
      : fp4_ ? fp4_->gemm1()
             : std::string(to_string(problem_.format)) + (gated ? "_gated" : "_unary");
  const std::string name2 = plain_gemm(problem_.format);
  const bool few = has_few_rows(problem_);
  Gemm gemm1 = gemm(name1, true), gemm2 = gemm(name2, false);
  Gemm few1 = few ? gemm(name1 + "_few", true) : Gemm{};
  Gemm few2 = few ? gemm(name2 + "_few", false) : Gemm{};
  std::future<Linked> around = linked(own + "rows", false);
  std::future<Linked> of_fp8, of_fp4, stream_up, stream_down;
  if (fp8_ || (fp4_ && fp4_->rounds_inputs())) of_fp8 = linked("rows_fp8", false);
  if (fp4_) of_fp4 = linked("rows_fp4", false);
  if (stream_) {
    stream_up = linked(stream_->image() + (gated ? "gated" : "unary"), true);
    stream_down = linked(stream_->image() + "down", false);
  }

  const auto gemm_kernel = [&](Gemm& of, unsigned threads, int shared) {
    return GemmKernel{kernel(of.image.get(), "gemm_" + of.name, shared), threads, shared};
  };
  const int shared = fp8_ ? kFp8SharedBytes : fp4_ ? fp4_->gemm_shared() : kGemmSharedBytes;
  gemm1_ = gemm_kernel(gemm1, kGemmThreads, shared);
  gemm2_ = gemm_kernel(gemm2, kGemmThreads, shared);
  if (few) {
    few1_ = gemm_kernel(few1, kFp4FewThreads, kFp4FewSharedBytes);
    few2_ = gemm_kernel(few2, kFp4FewThreads, kFp4FewSharedBytes);
  }
  const Linked rows = around.get();
  route_ = kernel(rows, "route", static_cast<int>(problem_.experts) * 8);
  combine_ = kernel(rows, problem_.format == Format::Fp16 ? "combine_fp16" : "combine", 0);
  order_bias_ = kernel(rows, "order_bias", 0);
  const Linked rows8 = of_fp8.valid() ? of_fp8.get() : nullptr;
  const Linked rows4 = of_fp4.valid() ? of_fp4.get() : nullptr;
  const std::string gather = rows8 ? "fp8_gather" : rows4 ? "fp4_gather" : "gather";
  const Linked& gathers = rows8 ? rows8 : rows4 ? rows4 : rows;
  gather_ = kernel(gathers, gather, 0);
  gather_counted_ = kernel(gathers, gather + "_counted", 0);
  if (fp8_) {
    fp8_largest_ = kernel(rows8, "fp8_largest", 0);
    fp8_round_ = kernel(rows8, "fp8_round", 0);
  }
  if (fp4_) {
    order_scales_ = kernel(rows4, "fp4_order_scales", 0);
    largest_scales_ = kernel(rows4, "fp4_largest_scales", 0);
  }
  if (stream_) {
    const std::string name = stream_->kernel();
    const int rows_shared = stream_->most_shared();
    stream_up_ = kernel(stream_up.get(), name + (gated ? "gated" : "unary"), rows_shared);
    stream_down_ = kernel(stream_down.get(), name + "down", rows_shared);
  }
}

// Plans are made once, so this may wait for the copy.
DeviceMemory MoePlan::ordered_bias(const TensorView& bias, Pairing pairing) const {
  DeviceMemory memory(driver_, location_.context,
                      static_cast<std::size_t>(bias.shape[0] * bias.shape[1]) * sizeof(float));
  BiasArguments arguments{};
  arguments.bias = bias.data;
  arguments.stride = bias.strides[0];
  arguments.step = bias.strides[1];
  arguments.type = bias.dtype == DType::Float32 ? 0 : bias.dtype == DType::BFloat16 ? 1 : 2;
  arguments.width = static_cast<std::int32_t>(bias.shape[1]);
  arguments.interleaved = pairing == Pairing::Interleaved;
  arguments.up_first = pairing == Pairing::UpFirst;
  arguments.output = memory.get();
  launch(order_bias_, arguments, {static_cast<unsigned>(bias.shape[0]), 1, 256}, nullptr,
         "copying a bias");
  driver_.check(driver_.stream_synchronize(nullptr), "copying a bias");
  return memory;
}

DeviceMemory MoePlan::ordered_scales(Fp4Layer::Ordering ordering, DeviceMemory& largest) {
  DeviceMemory memory(driver_, location_.context, static_cast<std::size_t>(ordering.bytes));
  Fp4ScaleArguments& arguments = ordering.arguments;
  arguments.output = reinterpret_cast<std::uint8_t*>(memory.get());
  DeviceMemory outside;
  if (fp4_->rounds_inputs()) {
    largest = DeviceMemory(driver_, location_.context,
                           static_cast<std::size_t>(ordering.parts * arguments.columns));
    outside = DeviceMemory(driver_, location_.context, sizeof(std::uint32_t));
    arguments.largest = reinterpret_cast<std::uint8_t*>(largest.get());
    arguments.outside = reinterpret_cast<std::uint32_t*>(outside.get());
    const std::int64_t blocks = ceil_div(arguments.columns, kFp4ScaleThreads);
    launch(largest_scales_, arguments,
           {static_cast<unsigned>(blocks), static_cast<unsigned>(ordering.parts), kFp4ScaleThreads},
           nullptr, "looking for the largest scales");
  }
  launch(order_scales_, arguments, {static_cast<unsigned>(ordering.blocks), 1, kFp4ScaleThreads},
         nullptr, "ordering weight scales");
  driver_.check(driver_.stream_synchronize(nullptr), "ordering weight scales");
  if (fp4_->rounds_inputs()) {
    std::uint32_t count = 0;
    driver_.check(driver_.copy_to_host(&count, outside.address(), sizeof count),
                  "counting scales out of range");
    rounded_groups_ += count;
  }
  return memory;
}

std::string MoePlan::describe() const {
  return "cutlass, " + std::string(architecture_->name) + " " +
         std::string(to_string(problem_.format)) + ", tile " + std::to_string(kTileRows) + "x" +
         std::to_string(kTileColumns) + "x" + std::to_string(fp8_ || fp4_ ? 128 : kTileDepth) +
         (rounded_groups_ != 0
              ? ", " + std::to_string(rounded_groups_) + " groups of weights out of E4M3's range"
              : "") +
         (stream_ ? ", few tokens stream, " : ", ") + function_;
}

std::int64_t MoePlan::chunk_tokens(std::int64_t tokens) const {
  // The result takes the input's memory, which is bf16 in every format.
  const std::int64_t of_row = input_width() * 2 + (fp8_   ? fp8_->bytes_of_row()
                                                   : fp4_ ? fp4_->bytes_of_row()
                                                          : activated_width() * 2);
  const std::int64_t each = problem_.top_k * of_row;
  const std::int64_t most = std::max<std::int64_t>(1, most_scratch_ / each);
  return ceil_div(tokens, ceil_div(tokens, most));
}

std::int64_t MoePlan::most_tiles(std::int64_t tokens, int tile_rows) const {
  const std::int64_t rows = tokens * problem_.top_k;
  return rows / tile_rows + std::min(rows, problem_.experts);
}

Layout MoePlan::layout(std::int64_t tokens) const {
  Layout layout;
  const auto take = [&layout](std::int64_t bytes) {
    const std::size_t at = layout.bytes;
    layout.bytes += static_cast<std::size_t>(ceil_div(bytes, 256) * 256);
    return at;
  };
  const std::int64_t rows = tokens * problem_.top_k;
  layout.rows = take(rows * input_width() * 2);
  const bool wide = !fp8_ || fp8_->rounds_later();
  std::int64_t activated =
      fp4_ ? fp4_->activated_bytes(rows) : rows * activated_width() * (wide ? 2 : 1);
  // The stream kernels leave fp32 to be rounded. More tokens never need less.
  if (fp8_ && stream_) {
    const std::int64_t most = std::min<std::int64_t>(rows, kStreamMaxSlots);
    activated = std::max(activated, most * activated_width() * 4);
  }
  layout.activated = take(activated);
  if (fp4_) {
    layout.input_scales = take(fp4_->input_scale_bytes(rows));
    layout.activated_scales = take(fp4_->activated_scale_bytes(rows));
  }
  if (fp8_) {
    layout.codes = fp8_->rounds_later() ? take(rows * problem_.intermediate) : layout.activated;
    layout.input_scales = take(fp8_->input_scale_bytes(rows));
    layout.activated_scales = take(fp8_->activated_scale_bytes(rows));
    layout.largest = take(fp8_->largest_bytes(rows));
  }
  layout.slot_row = take(rows * 4);
  layout.row_scale = take(problem_.router_weight_on_input ? rows * 4 : 0);
  const int tile_rows = has_few_rows(problem_) ? kFp4FewRows : kTileRows;
  layout.tiles = take(most_tiles(tokens, tile_rows) * static_cast<std::int64_t>(sizeof(RowTile)));
  layout.tile_count = take(4);
  layout.taken = take(counters() * 4);
  return layout;
}

void MoePlan::launch_with(Kernel kernel, void** parameters, const Grid& grid, Stream stream,
                          const char* doing) const {
  LaunchAttribute attributes[2] = {};
  attributes[0].id = kClusterDimension;
  attributes[0].value.cluster = {grid.cluster, 1, 1};
  attributes[1].id = kProgrammaticLaunch;
  attributes[1].value.programmatic = 1;
  const LaunchConfiguration configuration{{grid.x, grid.y, 1}, {grid.threads, 1, 1},
                                          grid.shared,         stream,
                                          attributes,          grid.dependent ? 2u : 1u};
  driver_.check(driver_.launch(&configuration, kernel, parameters, nullptr), doing);
}

// `input`: boxes of a tile's rows, and of its extra ones. `gemm`: what both kinds of arguments
// have.
template <typename Arguments>
void MoePlan::launch_gemm(const GemmKernel& kernel, const TensorMap (&input)[2],
                          const TensorMap& weights, const Arguments& arguments,
                          const GemmArguments& gemm, std::int64_t row_tiles, const Choice& choice,
                          Stream stream, const char* doing) const {
  const std::int64_t blocks =
      std::min<std::int64_t>(multiprocessors_, row_tiles * gemm.column_tiles);
  void* parameters[] = {const_cast<TensorMap*>(&input[0]), const_cast<TensorMap*>(&weights),
                        const_cast<Arguments*>(&arguments), const_cast<TensorMap*>(&input[1])};
  launch_with(kernel.kernel, parameters,
              {static_cast<unsigned>(blocks), 1, kernel.threads,
               static_cast<unsigned>(kernel.shared), 1, choice.dependent_launches},
              stream, doing);
}

void MoePlan::launch_fp8_round(const GemmArguments& gemm1, char* workspace, const Layout& at,
                               const Fp8Layer::Memory& memory, bool dependent,
                               Stream stream) const {
  const Grid grid = {static_cast<unsigned>(memory.rows),
                     static_cast<unsigned>(ceil_div(problem_.intermediate, 8 * kRowThreads)),
                     kRowThreads,
                     0,
                     1,
                     dependent};
  launch(fp8_round_, fp8_->round(gemm1, workspace + at.codes, memory), grid, stream,
         "rounding activated rows");
}

void MoePlan::run(const MoeInputs& inputs, const ParameterTable& values, void* workspace,
                  std::size_t workspace_size, void* stream) const {
  moe::validate(problem_, inputs);
  moe::validate(problem_, parameter_count_, values);
  if (inputs.tokens == 0) return;
  const std::size_t needed = workspace_bytes(inputs.tokens);
  if (workspace == nullptr || workspace_size < needed) {
    throw Error(
        ErrorCode::InvalidArgument,
        std::to_string(workspace_size) + " bytes, but " + std::to_string(needed) + " are needed",
        "workspace", "workspace_bytes(tokens) says how many");
  }
  const auto address = reinterpret_cast<std::uintptr_t>(workspace);
  auto* const aligned = reinterpret_cast<char*>((address + 255) / 256 * 256);
  const ContextGuard current(driver_, location_.context);
  const std::int64_t chunk = chunk_tokens(inputs.tokens);
  for (std::int64_t first = 0; first < inputs.tokens; first += chunk) {
    run_chunk(inputs, values, first, std::min(chunk, inputs.tokens - first), aligned, stream);
  }
}

void MoePlan::run_chunk(const MoeInputs& inputs, const ParameterTable& values, std::int64_t first,
                        std::int64_t tokens, char* workspace, Stream stream) const {
  const Layout at = layout(tokens);
  const std::int64_t rows = tokens * problem_.top_k;
  const auto aligned_rows = [](const TensorView& view) {
    return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && view.strides[0] % 8 == 0;
  };
  const Choice choice =
      choose(problem_, tokens, aligned_rows(inputs.hidden_states), multiprocessors_, wish_);
  const auto row_of = [](const TensorView& view, std::int64_t row) {
    return static_cast<const char*>(view.data) + row * view.strides[0] * size_of(view.dtype);
  };
  auto* const slot_row = reinterpret_cast<std::int32_t*>(workspace + at.slot_row);
  auto* const row_scale = reinterpret_cast<float*>(workspace + at.row_scale);
  auto* const tiles = reinterpret_cast<RowTile*>(workspace + at.tiles);
  auto* const tile_count = reinterpret_cast<std::int32_t*>(workspace + at.tile_count);
  auto* const taken = reinterpret_cast<std::uint32_t*>(workspace + at.taken);
  const Fp8Layer::Memory memory{rows, reinterpret_cast<float*>(workspace + at.input_scales),
                                reinterpret_cast<float*>(workspace + at.activated_scales),
                                reinterpret_cast<std::uint32_t*>(workspace + at.largest),
                                taken + 4};
  const Fp4Layer::Memory fp4_memory{scales13_.get(),
                                    scales2_.get(),
                                    reinterpret_cast<const std::uint8_t*>(largest13_.get()),
                                    reinterpret_cast<const std::uint8_t*>(largest2_.get()),
                                    rows,
                                    memory.input_scales,
                                    memory.activated_scales};
  const auto* const weights = reinterpret_cast<const float*>(row_of(inputs.topk_weights, first));

  // Blocks of one token, and of as many as gather and combine take.
  const Grid of_tokens = {static_cast<unsigned>(tokens),
                          static_cast<unsigned>(ceil_div(problem_.hidden, 8 * kRowThreads)),
                          kRowThreads,
                          0,
                          1,
                          choice.dependent_launches};
  Grid of_rows = of_tokens;
  of_rows.x = static_cast<unsigned>(ceil_div(tokens, choice.block_tokens));
  const std::int64_t out_row = problem_.hidden * (problem_.combine ? 1 : problem_.top_k);
  CombineArguments combine{};
  combine.rows = workspace + at.rows;
  combine.slot_row = choice.path == Path::Stream ? nullptr : slot_row;
  combine.routed = routed_ids(problem_, inputs, row_of(inputs.topk_ids, first), tokens);
  const bool weighted = problem_.combine && !problem_.router_weight_on_input;
  combine.weights = weighted ? weights : nullptr;
  combine.weight_stride = inputs.topk_weights.strides[0];
  combine.weight_step = inputs.topk_weights.strides[1];
  combine.output = static_cast<char*>(inputs.output) + first * out_row * 2;
  combine.width = static_cast<std::int32_t>(problem_.hidden);
  combine.top_k = static_cast<std::int32_t>(problem_.top_k);
  combine.scale = problem_.routed_scaling_factor;
  combine.combine = problem_.combine;
  combine.tokens = static_cast<std::int32_t>(tokens);
  combine.block_tokens = choice.block_tokens;

  if (choice.path == Path::Stream) {
    const StreamLayer::Call call{combine.routed,
                                 row_of(inputs.hidden_states, first),
                                 inputs.hidden_states.strides[0],
                                 weights,
                                 inputs.topk_weights.strides[0],
                                 inputs.topk_weights.strides[1],
                                 workspace + at.activated,
                                 workspace + at.rows,
                                 combine.output};
    const auto grid = [&](unsigned blocks, const StreamArguments& arguments) {
      return Grid{
          blocks, StreamLayer::blocks_y(arguments), kStreamThreads, stream_->shared(arguments),
          1,      choice.dependent_launches};
    };
    if ((launches_ & kGemm1) != 0) {
      const StreamArguments up = stream_->up(call, choice, values, bias13_.get());
      const Grid blocks = grid(stream_->blocks_up(up), up);
      const char* doing = "computing gate, up and activation";
      if (fp4_) {
        launch(stream_up_, fp4_->stream_up(up, fp4_memory), blocks, stream, doing);
      } else if (fp8_) {
        launch(stream_up_, fp8_->stream_up(up), blocks, stream, doing);
      } else {
        launch(stream_up_, up, blocks, stream, doing);
      }
    }
    if ((launches_ & kGemm2) != 0) {
      const StreamArguments down = stream_->down(call, choice, bias2_.get());
      const Grid blocks = grid(StreamLayer::blocks_x(down), down);
      const char* doing = "computing down";
      if (fp4_) {
        launch(stream_down_, fp4_->stream_down(down, fp4_memory), blocks, stream, doing);
      } else if (fp8_) {
        launch(stream_down_, fp8_->stream_down(down), blocks, stream, doing);
      } else {
        launch(stream_down_, down, blocks, stream, doing);
      }
    }
    if (!choice.sum && (launches_ & kCombine) != 0) {
      launch(combine_, combine, of_rows, stream, "adding the experts' results");
    }
    return;
  }

  RouteArguments route{};
  route.ids = row_of(inputs.topk_ids, first);
  route.id_stride = inputs.topk_ids.strides[0];
  route.id_step = inputs.topk_ids.strides[1];
  route.wide_ids = inputs.topk_ids.dtype == DType::Int64;
  route.experts = static_cast<std::int32_t>(problem_.experts);
  route.tokens = static_cast<std::int32_t>(tokens);
  route.top_k = static_cast<std::int32_t>(problem_.top_k);
  route.slot_row = slot_row;
  route.tiles = tiles;
  route.tile_count = tile_count;
  route.taken = taken;
  route.counters = counters();
  route.tile_rows = choice.tile_rows;
  route.extra_rows = choice.extra_rows;
  const bool counted = choice.counted_rows;
  if (!counted && (launches_ & kRoute) != 0) {
    const unsigned blocks = rows > 2 * kRouteThreads ? kRouteBlocks : 1;
    launch(route_, route,
           {blocks, 1, kRouteThreads, static_cast<unsigned>(problem_.experts) * 8, blocks,
            choice.dependent_launches},
           stream, "sorting tokens by expert");
  }

  GatherArguments gather{};
  gather.hidden = row_of(inputs.hidden_states, first);
  gather.hidden_stride = inputs.hidden_states.strides[0];
  gather.slot_row = slot_row;
  gather.weights = problem_.router_weight_on_input ? weights : nullptr;
  gather.weight_stride = inputs.topk_weights.strides[0];
  gather.weight_step = inputs.topk_weights.strides[1];
  gather.rows = workspace + at.rows;
  gather.row_scale = row_scale;
  gather.width = static_cast<std::int32_t>(problem_.hidden);
  gather.top_k = static_cast<std::int32_t>(problem_.top_k);
  gather.tokens = static_cast<std::int32_t>(tokens);
  gather.block_tokens = choice.block_tokens;
  const auto launch_gather = [&](const auto& arguments, Grid grid) {
    if (counted) {
      grid.x += 1;  // lists the tiles
      launch(gather_counted_, arguments, grid, stream, "gathering rows", &route);
    } else {
      launch(gather_, arguments, grid, stream, "gathering rows");
    }
  };
  if ((launches_ & (counted ? kSort : kGather)) != 0) {
    Grid grid = of_tokens;
    if (fp8_) {
      const Fp8GatherArguments arguments = fp8_->gather(gather, combine.routed, counted, memory);
      if (fp8_->needs_largest()) {
        launch(fp8_largest_, arguments, grid, stream, "looking for the largest input");
      }
      if (fp8_->gathers_whole_rows()) grid.y = 1;
      launch_gather(arguments, grid);
    } else if (fp4_) {
      grid.y = static_cast<unsigned>(ceil_div(input_width(), 8 * kRowThreads));
      if (fp4_->rounds_inputs()) {
        launch_gather(fp4_->gather_codes(gather, fp4_memory), grid);
      } else {
        launch_gather(fp4_->gather(gather), grid);
      }
    } else {
      launch_gather(gather, of_rows);
    }
  }

  const bool gated = problem_.pairing != Pairing::None;
  const auto columns_of = [](std::int64_t columns, bool half) {
    return static_cast<std::int32_t>(ceil_div(columns, half ? kTileColumns / 2 : kTileColumns));
  };
  const std::int64_t row_tiles = most_tiles(tokens, choice.tile_rows);
  const GemmKernel& kernel1 = choice.few_rows ? few1_ : gemm1_;
  const GemmKernel& kernel2 = choice.few_rows ? few2_ : gemm2_;
  GemmArguments gemm{};
  gemm.tiles = tiles;
  gemm.tile_count = tile_count;
  gemm.taken = taken;
  gemm.output = workspace + at.activated;
  gemm.columns = static_cast<std::int32_t>(problem_.intermediate);
  gemm.depth = static_cast<std::int32_t>(problem_.hidden);
  gemm.group_rows = choice.group_rows;
  gemm.split_last = choice.split_last;
  // Gather's own blocks list the tiles, or route before it.
  gemm.early_weights = choice.early_weights && !counted;
  gemm.column_tiles = columns_of(problem_.intermediate, gated);
  gemm.value_columns = static_cast<std::int32_t>(parameter_count_);
  gemm.values = values.data;
  gemm.value_stride = values.rows == 1 ? 0 : values.columns;
  gemm.gate_pair = problem_.pairing == Pairing::UpFirst;
  gemm.interleaved = problem_.pairing == Pairing::Interleaved;
  gemm.bias = bias13_.get();
  gemm.row_scale = problem_.router_weight_on_input ? row_scale : nullptr;
  const auto of_input = [&](const void* from, std::int64_t width, int box_rows) {
    return map_rows(driver_, element_, from, rows, width, box_rows);
  };
  if ((launches_ & kGemm1) != 0) {
    const TensorMap input[] = {of_input(workspace + at.rows, input_width(), choice.box_rows),
                               of_input(workspace + at.rows, input_width(), kExtraRows)};
    const char* doing = "computing gate, up and activation";
    if (fp8_) {
      launch_gemm(kernel1, input, map13_, fp8_->gemm1(gemm, memory), gemm, row_tiles, choice,
                  stream, doing);
      if (fp8_->rounds_later()) {
        launch_fp8_round(gemm, workspace, at, memory, choice.dependent_launches, stream);
      }
    } else if (fp4_) {
      launch_gemm(kernel1, input, map13_, fp4_->gemm1(gemm, fp4_memory, choice.box_rows), gemm,
                  row_tiles, choice, stream, doing);
    } else {
      launch_gemm(kernel1, input, map13_, gemm, gemm, row_tiles, choice, stream, doing);
    }
  }

  // The input rows are not needed any more: their memory takes the result.
  GemmArguments down{};
  down.tiles = tiles;
  down.tile_count = tile_count;
  down.taken = taken + 2;
  down.output = workspace + at.rows;
  down.columns = static_cast<std::int32_t>(problem_.hidden);
  down.depth = static_cast<std::int32_t>(problem_.intermediate);
  down.group_rows = choice.group_rows2;
  down.split_last = choice.split_last;
  down.early_weights = choice.early_weights;
  down.column_tiles = columns_of(problem_.hidden, false);
  down.bias = bias2_.get();
  if ((launches_ & kGemm2) != 0) {
    const void* const from = workspace + (fp8_ ? at.codes : at.activated);
    const TensorMap input[] = {of_input(from, activated_width(), choice.box_rows),
                               of_input(from, activated_width(), kExtraRows)};
    if (fp8_) {
      launch_gemm(kernel2, input, map2_, fp8_->gemm2(down, memory), down, row_tiles, choice, stream,
                  "computing down");
    } else if (fp4_) {
      launch_gemm(kernel2, input, map2_, fp4_->gemm2(down, fp4_memory, choice.box_rows), down,
                  row_tiles, choice, stream, "computing down");
    } else {
      launch_gemm(kernel2, input, map2_, down, down, row_tiles, choice, stream, "computing down");
    }
  }

  if ((launches_ & kCombine) != 0) {
    launch(combine_, combine, of_rows, stream, "adding the experts' results");
  }
}

}  // namespace

std::unique_ptr<Plan> make_moe_plan(const MoeProblem& problem, const Function& function,
                                    const MoeWeights& weights, const PlanOptions& options) {
  return std::make_unique<MoePlan>(problem, function, weights, options);
}

}  // namespace flexact::cuda
