// The MoE block on the CPU.
//
//   sort      (token, slot) pairs by expert; each expert's pairs are one run of rows
//   gate_up   task = expert x panel of w13: g and u in fp32 on the stack, bias, activation tape,
//             one rounding -> activated [rows, I]
//   down      task = expert x panel of w2 -> partial [rows, H] in fp32
//   combine   task = one token: y = scale * sum_k w_k * (partial + bias), k ascending, one rounding
//
// Tokens are taken in chunks so that the workspace stays small. No sum depends on the number of
// threads, on who takes a task, or on which other tokens are there.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cpu/backend.hpp"
#include "cpu/gemm.hpp"
#include "cpu/memory.hpp"
#include "cpu/pack.hpp"
#include "cpu/panel.hpp"
#include "cpu/pool.hpp"
#include "cpu/tape.hpp"
#include "flexact/error.hpp"
#include "moe/problem.hpp"
#include "moe/routing.hpp"

namespace flexact::cpu {

namespace {

// Most scratch of one call, and the least tokens of a chunk: below them weights would be read again
// too often.
constexpr std::size_t kChunkBytes = std::size_t{128} << 20;
constexpr std::int64_t kMinChunk = 256;
constexpr std::int64_t kLine = 16;  // floats

// Roughly what one thread does in a microsecond; a call is spread only over threads that it keeps
// busy.
constexpr double kBytesPerMicrosecond = 40e3;
constexpr double kFlopsPerMicrosecond = 200e3;
constexpr double kMicrosecondsPerThread = 15;

std::int64_t round_up(std::int64_t a, std::int64_t b) noexcept {
  return ceil_div(a, b) * b;
}

const IsaKernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::Avx2:
      return kKernelsAvx2;
    case Isa::Avx512:
    case Isa::Avx512Bf16:
      return kKernelsAvx512;
#endif
    default:
      return kKernelsScalar;
  }
}

Element element_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::BFloat16:
      return Element::Bf16;
    case DType::Float16:
      return Element::Fp16;
    default:
      return Element::Fp32;
  }
}

const GemmKernels& choose_kernels(const MoeProblem& problem, Isa isa) {
  const IsaKernels& kernels = kernels_of(isa);
  switch (element_of(moe::plain_dtype(problem.format))) {
    case Element::Bf16:
#if defined(__x86_64__)
      if (isa == Isa::Avx512Bf16 && problem.io_dtype == DType::BFloat16) return kBf16RowsAvx512Bf16;
#endif
      return kernels.bf16;
    case Element::Fp16:
      return kernels.fp16;
    default:
      return kernels.fp32;
  }
}

// One weight, packed.
struct Packed {
  PackedLayout layout;
  WeightMemory memory;

  const std::byte* panel(std::int64_t expert, std::int64_t panel) const noexcept {
    return memory.data() + expert * layout.expert_bytes() + layout.panel_offset(panel);
  }
};

class CpuPlan final : public Plan {
 public:
  CpuPlan(const MoeProblem& problem, const Function& function, const MoeWeights& weights,
          const PlanOptions& options)
      : problem_(problem),
        isa_(options.isa),
        numerics_(options.numerics),
        given_pool_(options.pool),
        prefetch_(options.prefetch),
        rows_(kernels_of(options.isa).rows),
        kernels_(choose_kernels(problem, options.isa)),
        tape_(function.graph(), options.isa,
              options.numerics == Numerics::Precise ? Arithmetic::Fp64 : Arithmetic::Fp32),
        parameter_count_(static_cast<std::int64_t>(function.parameters().size())),
        function_text_(function.name() == "expr" ? function.canonical() : function.name()) {
    const bool paired = problem.pairing != Pairing::None;
    w13_.layout = {kernels_.weights, problem.hidden, problem.intermediate, paired, kernels_.blocks};
    w2_.layout = {kernels_.weights, problem.intermediate, problem.hidden, false, kernels_.blocks};
    pack(w13_, weights.w13, problem.pairing);
    pack(w2_, weights.w2, Pairing::None);
    take_biases(weights);
  }

  std::size_t workspace_bytes(std::int64_t tokens) const override {
    moe::validate_tokens(tokens);
    return tokens == 0 ? 0 : chunk_bytes(std::min(tokens, chunk_limit()));
  }

  std::size_t resident_bytes() const override {
    return w13_.memory.size() + w2_.memory.size() +
           (bias13_.size() + bias2_.size()) * sizeof(float);
  }

  std::string describe() const override {
    const auto megabytes = static_cast<std::int64_t>(resident_bytes() >> 20);
    std::string text =
        "cpu " + std::string(cpu::to_string(isa_)) + ": " + kernels_.instruction + ", tile " +
        std::to_string(kernels_.rows) + "x" + std::to_string(kernels_.blocks * kColumns) + ", " +
        std::string(flexact::to_string(problem_.format)) + " weights " + std::to_string(megabytes) +
        " MiB packed, " + std::to_string(pool().threads()) + " threads, " + function_text_;
    if (numerics_ == Numerics::Exact) text += ", exact";
    if (numerics_ == Numerics::Precise) text += ", precise";
    return text;
  }

  void run(const MoeInputs& inputs, const ParameterTable& values, void* workspace,
           std::size_t workspace_size, void* stream) const override;

  void unpack(void* w13, void* w2) const override {
    unpack(w13_, problem_.pairing, moe::w13_rows(problem_), static_cast<std::byte*>(w13));
    unpack(w2_, Pairing::None, problem_.hidden, static_cast<std::byte*>(w2));
  }

 private:
  // One chunk of tokens on its way through the block.
  struct Chunk {
    std::int64_t first_token;
    std::int64_t tokens;
    const std::byte* hidden;     // row 0 of the chunk
    std::int64_t hidden_stride;  // bytes
    moe::Routing routing;
    float* widened;        // [tokens, H] where the kernels take fp32 rows and the input is narrower
    std::byte* activated;  // [rows, activated_stride()] of kernels_.inputs
    float* partial;        // [rows, partial_stride()]
  };

  Pool& pool() const { return given_pool_ != nullptr ? *given_pool_ : Pool::instance(); }

  Element io() const noexcept { return element_of(problem_.io_dtype); }
  bool widens_input() const noexcept {
    return kernels_.inputs == Element::Fp32 && io() != Element::Fp32;
  }
  // An odd number of cache lines, so that rows do not fall on the same sets.
  std::int64_t activated_stride() const noexcept {
    return round_up(problem_.intermediate, 32) + 32;
  }
  std::int64_t partial_stride() const noexcept { return round_up(problem_.hidden, kLine) + kLine; }

  std::size_t bytes_per_token() const noexcept;
  std::int64_t chunk_limit() const noexcept;
  std::size_t chunk_bytes(std::int64_t tokens) const noexcept;
  Chunk place(std::int64_t tokens, void* workspace) const noexcept;
  int thread_limit(const moe::Routing& routing) const noexcept;

  void pack(Packed& packed, const TensorView& source, Pairing pairing);
  void unpack(const Packed& packed, Pairing pairing, std::int64_t rows, std::byte* to) const;
  void take_biases(const MoeWeights& weights);

  void run_chunk(const Chunk& chunk, const MoeInputs& inputs, const ParameterTable& values) const;
  void widen_input(const Chunk& chunk, std::int64_t token) const noexcept;
  void gate_up(const Chunk& chunk, const MoeInputs& inputs, const ParameterTable& values,
               std::int64_t expert, std::int64_t panel, const std::byte* next) const noexcept;
  void activate(const Chunk& chunk, const MoeInputs& inputs, const ParameterTable& values,
                std::int64_t expert, std::int64_t panel, std::int64_t first_row, std::int64_t rows,
                float* gate, float* up) const noexcept;
  void down(const Chunk& chunk, std::int64_t expert, std::int64_t panel,
            const std::byte* next) const noexcept;
  void combine(const Chunk& chunk, const MoeInputs& inputs, std::int64_t token) const noexcept;

  float topk_weight(const Chunk& chunk, const MoeInputs& inputs, std::int64_t pair) const noexcept {
    const auto* weights = static_cast<const float*>(inputs.topk_weights.data);
    return weights[(chunk.first_token + pair / problem_.top_k) * inputs.topk_weights.strides[0] +
                   pair % problem_.top_k * inputs.topk_weights.strides[1]];
  }

  MoeProblem problem_;
  Isa isa_;
  Numerics numerics_;
  Pool* given_pool_;
  Prefetch prefetch_;
  const RowKernels& rows_;
  const GemmKernels& kernels_;
  Tape tape_;
  std::int64_t parameter_count_;
  std::string function_text_;
  Packed w13_;
  Packed w2_;
  std::vector<float> bias13_;  // [E, gate I, up I], or [E, I]; empty: none
  std::vector<float> bias2_;   // [E, H]
};

void CpuPlan::pack(Packed& packed, const TensorView& source, Pairing pairing) {
  const PackedLayout& layout = packed.layout;
  const std::int64_t panels = layout.panels();
  packed.memory = WeightMemory(static_cast<std::size_t>(problem_.experts * layout.expert_bytes()));
  Pool::Session session(pool(), pool().threads());
  session.for_each(problem_.experts * panels, [&](std::int64_t task, std::int64_t) noexcept {
    const std::int64_t expert = task / panels;
    const std::int64_t panel = task % panels;
    std::byte* to =
        packed.memory.data() + expert * layout.expert_bytes() + layout.panel_offset(panel);
    pack_panel(layout, source, pairing, expert, panel, to);
  });
}

void CpuPlan::unpack(const Packed& packed, Pairing pairing, std::int64_t rows,
                     std::byte* to) const {
  const PackedLayout& layout = packed.layout;
  const std::int64_t panels = layout.panels();
  const std::int64_t expert_bytes = rows * layout.k * bytes_of(layout.type);
  Pool::Session session(pool(), pool().threads());
  session.for_each(problem_.experts * panels, [&](std::int64_t task, std::int64_t) noexcept {
    const std::int64_t expert = task / panels;
    const std::int64_t panel = task % panels;
    unpack_panel(layout, pairing, panel, packed.panel(expert, panel), to + expert * expert_bytes);
  });
}

void CpuPlan::take_biases(const MoeWeights& weights) {
  const std::int64_t width = problem_.intermediate;
  if (problem_.bias13) {
    const std::int64_t rows = moe::w13_rows(problem_);
    bias13_.resize(static_cast<std::size_t>(problem_.experts * rows));
    for (std::int64_t e = 0; e < problem_.experts; ++e) {
      float* to = bias13_.data() + e * rows;
      if (problem_.pairing == Pairing::None) {
        widen_bias(weights.w13_bias, e, 0, 1, width, to);
        continue;
      }
      const PairRows first = source_rows(problem_.pairing, 0, width);
      const std::int64_t step = problem_.pairing == Pairing::Interleaved ? 2 : 1;
      widen_bias(weights.w13_bias, e, first.gate, step, width, to);
      widen_bias(weights.w13_bias, e, first.up, step, width, to + width);
    }
  }
  if (problem_.bias2) {
    bias2_.resize(static_cast<std::size_t>(problem_.experts * problem_.hidden));
    for (std::int64_t e = 0; e < problem_.experts; ++e) {
      widen_bias(weights.w2_bias, e, 0, 1, problem_.hidden, bias2_.data() + e * problem_.hidden);
    }
  }
}

std::size_t CpuPlan::bytes_per_token() const noexcept {
  const std::int64_t row = activated_stride() * bytes_of(kernels_.inputs) + partial_stride() * 4;
  const std::int64_t widened = widens_input() ? round_up(problem_.hidden, kLine) * 4 : 0;
  return static_cast<std::size_t>(problem_.top_k * row + widened);
}

std::int64_t CpuPlan::chunk_limit() const noexcept {
  return std::max(kMinChunk, static_cast<std::int64_t>(kChunkBytes / bytes_per_token()));
}

std::size_t CpuPlan::chunk_bytes(std::int64_t tokens) const noexcept {
  return moe::Routing::bytes(problem_.experts, tokens * problem_.top_k) +
         static_cast<std::size_t>(tokens) * bytes_per_token();
}

CpuPlan::Chunk CpuPlan::place(std::int64_t tokens, void* workspace) const noexcept {
  const std::int64_t pairs = tokens * problem_.top_k;
  auto* cursor = static_cast<std::byte*>(workspace);
  const auto take = [&cursor](std::int64_t bytes) { return std::exchange(cursor, cursor + bytes); };
  // All sizes are multiples of 64 bytes, so all parts are aligned.
  moe::Routing routing(
      take(static_cast<std::int64_t>(moe::Routing::bytes(problem_.experts, pairs))),
      problem_.experts, pairs);
  std::byte* widened = take(widens_input() ? tokens * round_up(problem_.hidden, kLine) * 4 : 0);
  std::byte* activated = take(pairs * activated_stride() * bytes_of(kernels_.inputs));
  std::byte* partial = take(pairs * partial_stride() * 4);
  return {0,         tokens,
          nullptr,   0,
          routing,   reinterpret_cast<float*>(widened),
          activated, reinterpret_cast<float*>(partial)};
}

int CpuPlan::thread_limit(const moe::Routing& routing) const noexcept {
  const double expert = static_cast<double>(w13_.layout.expert_bytes() + w2_.layout.expert_bytes());
  const double values = expert / static_cast<double>(bytes_of(kernels_.weights));
  const double microseconds = std::max(routing.active * expert / kBytesPerMicrosecond,
                                       2.0 * routing.rows * values / kFlopsPerMicrosecond);
  return static_cast<int>(std::clamp(microseconds / kMicrosecondsPerThread, 1.0, 1024.0));
}

void CpuPlan::run(const MoeInputs& inputs, const ParameterTable& values, void* workspace,
                  std::size_t workspace_size, void* stream) const {
  if (stream != nullptr)
    throw Error(ErrorCode::InvalidArgument, "the CPU has no streams", "stream", "null");
  moe::validate(problem_, inputs);
  moe::validate(problem_, parameter_count_, values);
  if (inputs.tokens == 0) return;
  const std::size_t needed = workspace_bytes(inputs.tokens);
  if (workspace == nullptr || workspace_size < needed) {
    throw Error(ErrorCode::InvalidArgument,
                std::to_string(workspace == nullptr ? 0 : workspace_size) + " bytes are too few",
                "workspace",
                std::to_string(needed) + " bytes for " + std::to_string(inputs.tokens) + " tokens");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0) {
    throw Error(ErrorCode::InvalidArgument, "not aligned to 64 bytes", "workspace");
  }

  // Chunks of nearly equal size.
  const std::int64_t chunks = ceil_div(inputs.tokens, chunk_limit());
  const std::int64_t size = ceil_div(inputs.tokens, chunks);
  for (std::int64_t first = 0; first < inputs.tokens; first += size) {
    Chunk chunk = place(std::min(size, inputs.tokens - first), workspace);
    chunk.first_token = first;
    chunk.hidden_stride = inputs.hidden_states.strides[0] * bytes_of(io());
    chunk.hidden =
        static_cast<const std::byte*>(inputs.hidden_states.data) + first * chunk.hidden_stride;
    chunk.routing.sort(inputs.topk_ids, first, chunk.tokens, problem_.top_k, problem_.experts);
    run_chunk(chunk, inputs, values);
  }
}

void CpuPlan::run_chunk(const Chunk& given, const MoeInputs& inputs,
                        const ParameterTable& values) const {
  Chunk chunk = given;
  const moe::Routing& routing = chunk.routing;
  Pool::Session session(pool(), thread_limit(routing));

  if (widens_input()) {
    session.for_each(chunk.tokens,
                     [&](std::int64_t token, std::int64_t) noexcept { widen_input(chunk, token); });
    chunk.hidden = reinterpret_cast<const std::byte*>(chunk.widened);
    chunk.hidden_stride = round_up(problem_.hidden, kLine) * 4;
  }

  const std::int64_t up_panels = w13_.layout.panels();
  const std::int64_t down_panels = w2_.layout.panels();
  const auto weights_of = [&](const Packed& packed, std::int64_t panels,
                              std::int64_t task) noexcept {
    return packed.panel(routing.active_expert[task / panels], task % panels);
  };
  const std::int64_t up_tasks = routing.active * up_panels;
  session.for_each(up_tasks, [&](std::int64_t task, std::int64_t next) noexcept {
    const std::byte* following =
        next < up_tasks ? weights_of(w13_, up_panels, next) : weights_of(w2_, down_panels, 0);
    gate_up(chunk, inputs, values, routing.active_expert[task / up_panels], task % up_panels,
            following);
  });
  const std::int64_t down_tasks = routing.active * down_panels;
  session.for_each(down_tasks, [&](std::int64_t task, std::int64_t next) noexcept {
    const std::byte* following = next < down_tasks ? weights_of(w2_, down_panels, next) : nullptr;
    down(chunk, routing.active_expert[task / down_panels], task % down_panels, following);
  });
  session.for_each(chunk.tokens, [&](std::int64_t token, std::int64_t) noexcept {
    combine(chunk, inputs, token);
  });
}

void CpuPlan::widen_input(const Chunk& chunk, std::int64_t token) const noexcept {
  rows_.widen(chunk.hidden + token * chunk.hidden_stride, io(),
              chunk.widened + token * round_up(problem_.hidden, kLine), problem_.hidden);
}

void CpuPlan::gate_up(const Chunk& chunk, const MoeInputs& inputs, const ParameterTable& values,
                      std::int64_t expert, std::int64_t panel,
                      const std::byte* next) const noexcept {
  const PackedLayout& layout = w13_.layout;
  const std::int32_t* first_row = chunk.routing.first_row + expert;
  const std::int64_t row_count = first_row[1] - first_row[0];
  const std::int64_t blocks = layout.blocks_of(panel);
  const std::int64_t width = kColumns * (layout.paired ? blocks / 2 : blocks);

  alignas(64) float sums[kPanelRows * kMaxBlocks * kColumns];
  const void* rows[kPanelRows];
  const std::int64_t passes = ceil_div(row_count, kPanelRows);
  for (std::int64_t pass = 0; pass < passes; ++pass) {
    const std::int64_t begin = first_row[0] + row_count * pass / passes;
    const std::int64_t count = first_row[0] + row_count * (pass + 1) / passes - begin;
    for (std::int64_t r = 0; r < count; ++r) {
      rows[r] = chunk.hidden + chunk.routing.token_of_row[begin + r] * chunk.hidden_stride;
    }
    PanelCall call{};
    call.kernels = &kernels_;
    call.prefetch = prefetch_;
    call.blocks = static_cast<int>(blocks);
    call.weights = w13_.panel(expert, panel);
    call.k = problem_.hidden;
    call.rows = rows;
    call.row_count = count;
    call.c = sums;
    call.c_stride = width;
    float* up = sums + count * width;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t column =
          layout.paired ? b % 2 * (count * width) + b / 2 * kColumns : b * kColumns;
      call.columns[b] = static_cast<std::int32_t>(column);
    }
    call.next = pass + 1 < passes ? call.weights : next;
    multiply_panel(call);
    activate(chunk, inputs, values, expert, panel, begin, count, sums,
             layout.paired ? up : nullptr);
  }
}

void CpuPlan::activate(const Chunk& chunk, const MoeInputs& inputs, const ParameterTable& values,
                       std::int64_t expert, std::int64_t panel, std::int64_t first_row,
                       std::int64_t rows, float* gate, float* up) const noexcept {
  const PackedLayout& layout = w13_.layout;
  const std::int64_t blocks = layout.blocks_of(panel);
  const std::int64_t width = kColumns * (layout.paired ? blocks / 2 : blocks);
  const std::int64_t first_column = panel * layout.columns_per_panel();
  const std::int64_t valid = std::min(width, problem_.intermediate - first_column);
  const Element rounding = numerics_ == Numerics::Exact ? io() : Element::Fp32;

  float scale[kPanelRows];
  if (problem_.router_weight_on_input) {
    // (w x) W = w (x W): the weight multiplies the sums, where nothing has been rounded yet.
    for (std::int64_t r = 0; r < rows; ++r) {
      scale[r] = topk_weight(chunk, inputs, chunk.routing.pair_of_row[first_row + r]);
    }
  }
  const auto finish = [&](float* x, std::int64_t part) {
    const float* factor = problem_.router_weight_on_input ? scale : nullptr;
    alignas(64) float bias[kMaxBlocks * kColumns] = {};
    if (!bias13_.empty()) {
      const float* of_expert = bias13_.data() + expert * moe::w13_rows(problem_);
      std::copy_n(of_expert + part * problem_.intermediate + first_column, valid, bias);
    }
    if (factor == nullptr && bias13_.empty() && rounding == Element::Fp32) return;
    rows_.finish(x, rows, width, factor, bias13_.empty() ? nullptr : bias, rounding);
  };
  finish(gate, 0);
  if (up != nullptr) finish(up, 1);

  const float* parameters = parameter_count_ == 0
                                ? nullptr
                                : values.data + (values.rows == 1 ? 0 : expert * values.columns);
  tape_.run(gate, up, gate, static_cast<std::size_t>(rows * width), parameters);
  for (std::int64_t r = 0; r < rows; ++r) {
    rows_.store(gate + r * width, valid, io(), kernels_.inputs,
                chunk.activated + ((first_row + r) * activated_stride() + first_column) *
                                      bytes_of(kernels_.inputs));
  }
}

void CpuPlan::down(const Chunk& chunk, std::int64_t expert, std::int64_t panel,
                   const std::byte* next) const noexcept {
  const PackedLayout& layout = w2_.layout;
  const std::int32_t* first_row = chunk.routing.first_row + expert;
  const std::int64_t row_count = first_row[1] - first_row[0];
  const void* rows[kPanelRows];
  const std::int64_t passes = ceil_div(row_count, kPanelRows);
  for (std::int64_t pass = 0; pass < passes; ++pass) {
    const std::int64_t begin = first_row[0] + row_count * pass / passes;
    const std::int64_t count = first_row[0] + row_count * (pass + 1) / passes - begin;
    for (std::int64_t r = 0; r < count; ++r) {
      rows[r] = chunk.activated + (begin + r) * activated_stride() * bytes_of(kernels_.inputs);
    }
    PanelCall call{};
    call.kernels = &kernels_;
    call.prefetch = prefetch_;
    call.blocks = layout.blocks_of(panel);
    call.weights = w2_.panel(expert, panel);
    call.k = problem_.intermediate;
    call.rows = rows;
    call.row_count = count;
    call.c = chunk.partial + begin * partial_stride() + panel * layout.columns_per_panel();
    call.c_stride = partial_stride();
    for (int b = 0; b < call.blocks; ++b) call.columns[b] = b * kColumns;
    call.next = pass + 1 < passes ? call.weights : next;
    multiply_panel(call);
  }
}

void CpuPlan::combine(const Chunk& chunk, const MoeInputs& inputs,
                      std::int64_t token) const noexcept {
  const float* terms[moe::kMaxTopK];
  const float* biases[moe::kMaxTopK];
  float weights[moe::kMaxTopK];
  const std::int64_t row_bytes = problem_.hidden * bytes_of(io());
  auto* out = static_cast<std::byte*>(inputs.output) +
              (chunk.first_token + token) * row_bytes * (problem_.combine ? 1 : problem_.top_k);
  std::int32_t count = 0;
  for (std::int64_t slot = 0; slot < problem_.top_k; ++slot) {
    const std::int64_t pair = token * problem_.top_k + slot;
    const std::int32_t row = chunk.routing.row_of_pair[pair];
    if (row >= 0) {
      terms[count] = chunk.partial + row * partial_stride();
      weights[count] = problem_.combine && !problem_.router_weight_on_input
                           ? topk_weight(chunk, inputs, pair)
                           : 1.0f;
      if (!bias2_.empty()) {
        // The sort keeps the rows of one expert together; the id itself says which.
        const TensorView& ids = inputs.topk_ids;
        const std::int64_t at =
            (chunk.first_token + token) * ids.strides[0] + slot * ids.strides[1];
        const std::int64_t expert = ids.dtype == DType::Int32
                                        ? static_cast<const std::int32_t*>(ids.data)[at]
                                        : static_cast<const std::int64_t*>(ids.data)[at];
        biases[count] = bias2_.data() + expert * problem_.hidden;
      }
      ++count;
    }
    if (!problem_.combine) {
      rows_.combine(terms, bias2_.empty() ? nullptr : biases, weights, count, 1.0f, problem_.hidden,
                    io(), out + slot * row_bytes);
      count = 0;
    }
  }
  if (problem_.combine) {
    rows_.combine(terms, bias2_.empty() ? nullptr : biases, weights, count,
                  problem_.routed_scaling_factor, problem_.hidden, io(), out);
  }
}

}  // namespace

std::unique_ptr<Plan> make_moe_plan(const MoeProblem& problem, const Function& function,
                                    const MoeWeights& weights, const PlanOptions& options) {
  if (const auto refusal = backend().refuse(problem, function)) {
    throw Error(ErrorCode::Unsupported, refusal->reason, "cpu", refusal->hint);
  }
  moe::validate_plain_weights(problem, weights);
  return std::make_unique<CpuPlan>(problem, function, weights, options);
}

}  // namespace flexact::cpu
