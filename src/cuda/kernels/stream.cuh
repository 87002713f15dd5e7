// A layer of a few tokens: a pass over the weights of the experts that were chosen, as fast as
// memory gives them.
//
//   up      activated[slot, :] = function(input[token of slot, :] · w13[expert of slot]^T)
//   down    rows[slot, :] = activated[slot, :] · w2[expert of slot]^T, or the sum over a token's slots
//
// There is no routing before it: a block reads the few ids itself. Operands are swapped: 16 outputs are
// the rows of an `mma`, up to eight slots its columns, so that a weight is read once however many tokens
// chose the expert. Each thread loads weights straight into the registers from which they are multiplied:
// the order of a sum along K is free, so 16 bytes of a row are one thread's whatever fragment `mma` has in
// mind. Two to four stages of loads are in flight in every warp, and nothing else is between memory and
// the tensor cores.
//
// How weights are stored, and what must be done to them and to the input before they can be multiplied,
// is a format's: stream_bf16.cuh, stream_fp4.cuh, stream_fp8.cuh. Kind and format make a kernel.
//
// docs/cuda.md is the design note.
#pragma once

#include "arguments.hpp"
// A test runs this file on the CPU with instructions of its own: tests/cpp/emulated.
#ifndef FLEXACT_EMULATED
#include "stream_instructions.cuh"
#endif
#include "slot_rows.cuh"

extern "C" __device__ void flexact_act2(const float g[2], const float u[2], const float* parameters,
                                        float y[2]);
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]);

namespace flexact::cuda::stream {

inline constexpr int kWarps = kStreamThreads / 32;

enum class Kind {
  Gated,
  Unary,
  Down,
  Sum,  // down, and added up: each column has an expert of its own
};

template <Kind kKind>
inline constexpr bool kIsFirst = kKind == Kind::Gated || kKind == Kind::Unary;

// Weight rows of an output.
template <Kind kKind>
inline constexpr int kParts = kKind == Kind::Gated ? 2 : 1;

// The two weight rows of a thread: outputs, of which the second is `to_high` after the first.
struct Rows {
  int low, to_high;
};

// Where a format has nothing to keep.
struct Nothing {};

template <class Format>
struct Shared : Format::OfBlock {
  unsigned mask[kWarps];       // slots of this block's expert
  int slot[kStreamColumns];    // of a column
  int expert[kStreamColumns];
  alignas(16) float product[kWarps][2][kStreamRows][kStreamColumns];
};

// What one step brings to a thread of the weights. A chunk is what four neighbouring threads load of a row
// at once; chunks make a step, as long as registers allow.
template <Kind kKind, class Format>
struct Stage {
  uint4 weight[kParts<kKind>][Format::template kChunks<kKind>][2];
  typename Format::template Scales<kKind> scales;
};
// And of the input.
template <Kind kKind, class Format>
struct Input {
  static constexpr int kLoads = Format::template kInputLoads<kKind>;  // of a thread for a chunk
  uint4 x[Format::template kChunks<kKind>][kLoads == 0 ? 1 : kLoads];
};

// This warp's part of a product: its 16 outputs, and every step that is its own, of one expert or, for a
// sum, of one column's expert after the other's.
template <Kind kKind, class Format>
class Walk {
 public:
  static constexpr int kChunks = Format::template kChunks<kKind>;
  static constexpr int kStages = Format::template kStages<kKind>;
  static constexpr int kColumns = 4 * Format::kColumnsOfThread;  // of a chunk
  static constexpr int kStep = kColumns * kChunks;
  static constexpr int kInputBytes = Format::template kInputBytes<kKind>;  // of an element
  using Element = typename Format::Element;

  __device__ Walk(const typename Format::Arguments& format, const Shared<Format>& shared, int count)
      : format_(format), arguments_(Format::common(format)), shared_(shared), count_(count) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    slices_ = kWarps / arguments_.row_warps;
    steps_ = (arguments_.depth + kStep - 1) / kStep;
    column_ = lane / 4;
    piece_ = lane % 4 * Format::kColumnsOfThread;
    // Outputs beyond the last are read as others, and not stored.
    const int block = static_cast<int>(blockIdx.x) * arguments_.row_warps + warp % arguments_.row_warps;
    const auto rows = thread_.template rows<kKind>(format, block, lane);
    low_ = rows.low;
    to_high_ = rows.to_high * arguments_.row_stride;
    const int slot = column_ < count ? shared.slot[column_] : -1;
    const int row = slot < 0 ? 0 : arguments_.input_of_slots != 0 ? slot : slot / arguments_.routed.top_k;
    input_ = static_cast<const unsigned char*>(arguments_.input) +
             (row * arguments_.input_stride + piece_) * kInputBytes;
    has_column_ = slot >= 0;
    step_ = warp / arguments_.row_warps;
    of_ = 0;
    turn_to(shared.expert[0]);
    settle();
  }

  // Weights of the next steps, which depend on nothing that a predecessor writes.
  __device__ void start() {
#pragma unroll
    for (int i = 0; i < kStages; ++i) fetch(stage_[i], position_[i]);
  }

  __device__ void run(float (&acc)[kParts<kKind>][4]) {
    thread_.begin(format_, count_);
    bring(input_of_[0], position_[0]);
    bring(input_of_[1], position_[1]);
    while (true) {
#pragma unroll
      for (int i = 0; i < kStages; ++i) {
        // Of a pair of steps the second may be one of zeros.
        if (i % 2 == 0 && !position_[i].there()) return;
        thread_.multiply(acc, stage_[i], input_of_[i % 2], position_[i].step(), position_[i].mine());
        fetch(stage_[i], position_[i]);
        bring(input_of_[i % 2], position_[(i + 2) % kStages]);
      }
    }
  }

 private:
  // Of a step; a register.
  class Position {
   public:
    Position() = default;
    __device__ Position(int step, bool mine, bool there) : word_(there ? step * 2 + (mine ? 1 : 0) : -1) {}
    __device__ bool there() const { return word_ >= 0; }
    // The column of this thread belongs to the step's expert.
    __device__ bool mine() const { return word_ >= 0 && (word_ & 1) != 0; }
    __device__ int step() const { return word_ >> 1; }
    __device__ int k() const { return step() * kStep; }

   private:
    int word_ = -1;
  };

  // There a warp passes from one expert to the next.
  static constexpr bool kSums = kKind == Kind::Sum;

  __device__ void turn_to(int expert) {
    weights_ = static_cast<const Element*>(arguments_.weights) + expert * arguments_.expert_stride +
               low_ * arguments_.row_stride + arguments_.offset[0] + piece_ / Format::kColumnsOfElement;
    thread_.turn_to(format_, expert);
  }

  // The column whose expert step_ lies in.
  __device__ void settle() {
    if constexpr (kSums) {
      while (of_ < count_ && step_ >= steps_) {
        step_ -= steps_;
        ++of_;
        if (of_ < count_) turn_to(shared_.expert[of_]);
      }
      there_ = of_ < count_;
    } else {
      there_ = step_ < steps_;
    }
  }

  __device__ void fetch(Stage<kKind, Format>& stage, Position& position) {
    position = Position(step_, has_column_ && (!kSums || column_ == of_), there_);
    thread_.load_scales(format_, stage, step_, there_);
#pragma unroll
    for (int part = 0; part < kParts<kKind>; ++part) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int k = step_ * kStep + chunk * kColumns;
        const bool there = there_ && k + piece_ < arguments_.depth;
        const Element* at = weights_ + k / Format::kColumnsOfElement +
                            (part == 0 ? 0 : arguments_.offset[1] - arguments_.offset[0]);
        stage.weight[part][chunk][0] = load_weights(at, there);
        stage.weight[part][chunk][1] = load_weights(at + to_high_, there);
      }
    }
    step_ += slices_;
    settle();
  }

  __device__ void bring(Input<kKind, Format>& input, const Position& position) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int k = position.k() + chunk * kColumns;
#pragma unroll
      for (int i = 0; i < Format::template kInputLoads<kKind>; ++i) {
        input.x[chunk][i] =
            load_input(input_ + k * kInputBytes + i * 16, position.mine() && k + piece_ < arguments_.depth);
      }
    }
  }

  const typename Format::Arguments& format_;
  const StreamArguments& arguments_;
  const Shared<Format>& shared_;
  int count_, slices_, steps_, column_, piece_, step_, of_;
  bool has_column_, there_;
  int low_;               // of this thread's two rows
  std::int64_t to_high_;  // elements from there to the other
  const unsigned char* input_;
  const Element* weights_;  // of the expert's row, this thread's first
  typename Format::template Thread<kKind> thread_;
  Stage<kKind, Format> stage_[kStages];
  Input<kKind, Format> input_of_[2];
  Position position_[kStages];
};

// The accumulators of all warps, for threads that put the divided depth together.
template <class Format, int kCount>
__device__ __forceinline__ void share(Shared<Format>& shared, const float (&acc)[kCount][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int part = 0; part < kCount; ++part) {
    for (int half = 0; half < 2; ++half) {
      float2& at = reinterpret_cast<float2&>(shared.product[warp][part][lane / 4 + half * 8][lane % 4 * 2]);
      at = make_float2(acc[part][half * 2], acc[part][half * 2 + 1]);
    }
  }
  __syncthreads();
}

// Of row `row` of row block `block`.
template <class Format>
__device__ __forceinline__ float product_of(const Shared<Format>& shared, int row_warps, int block, int part, int row,
                                            int column) {
  float sum = 0;
  for (int warp = block; warp < kWarps; warp += row_warps) sum += shared.product[warp][part][row][column];
  return sum;
}

__device__ __forceinline__ float router_weight(const StreamArguments& a, int slot) {
  return a.weight[slot / a.routed.top_k * a.weight_stride + slot % a.routed.top_k * a.weight_step];
}

// Two neighbouring elements of the output, in bf16.
__device__ __forceinline__ void store_rounded(const StreamArguments& a, std::int64_t at, const float (&y)[2]) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(y[0], y[1]);
  *reinterpret_cast<std::uint32_t*>(static_cast<__nv_bfloat16*>(a.output) + at) =
      reinterpret_cast<const std::uint32_t&>(pair);
}

// Two neighbouring outputs, and the rows of a warp's block that they are.
struct OutputPair {
  int row, second, output;
};

// Two neighbouring results of a slot, `second` the place of the second.
template <Kind kKind, class Format>
__device__ __forceinline__ void result(const typename Format::Arguments& format, const Shared<Format>& shared,
                                       int block, int row, int second, int column, int output,
                                       const float* parameters, float (&y)[2]) {
  const StreamArguments& a = Format::common(format);
  const int expert = shared.expert[column];
  const float scale = a.weight == nullptr ? 1.0f : router_weight(a, shared.slot[column]);
  float x[2][2];
#pragma unroll
  for (int part = 0; part < kParts<kKind>; ++part) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = product_of(shared, a.row_warps, block, part, i == 0 ? row : second, column);
      x[part][i] = scale * Format::template scaled<kKind>(sum, format, shared, expert, part, output + i, column);
      if (a.bias != nullptr) {
        x[part][i] += __ldg(a.bias + (std::int64_t{expert} * kParts<kKind> + part) * a.columns + output + i);
      }
    }
  }
  if constexpr (kKind == Kind::Gated) {
    flexact_act2(x[0], x[1], parameters, y);
  } else if constexpr (kKind == Kind::Unary) {
    flexact_act2_unary(x[0], parameters, y);
  } else {
    y[0] = x[0][0];
    y[1] = x[0][1];
  }
}

// Blocks of y are slots. The first slot of an expert works for all of its slots, the others have nothing to
// do.
template <Kind kKind, class Format>
__device__ __forceinline__ void one_expert(const typename Format::Arguments& format, Shared<Format>& shared) {
  const StreamArguments& a = Format::common(format);
  const int thread = static_cast<int>(threadIdx.x);
  const int mine = static_cast<int>(blockIdx.y);
  if constexpr (kKind != Kind::Down) {
    wait_for_predecessors();
    let_successor_start();
  }
  const int expert = expert_of(a.routed, mine);
  const bool same = thread < a.routed.slots && expert_of(a.routed, thread) == expert;
  const unsigned mask = __ballot_sync(0xffffffffu, same);
  if (thread % 32 == 0) shared.mask[thread / 32] = mask;
  __syncthreads();
  int before = 0;  // slots of this expert before this thread's
  int all = 0;
  bool is_first = true;
  for (int i = 0; i < kWarps; ++i) {
    const unsigned of_warp = shared.mask[i];
    if (i == thread / 32) before = all + __popc(of_warp & ((1u << thread % 32) - 1));
    if (i == mine / 32 && (of_warp & ((1u << mine % 32) - 1)) != 0) is_first = false;
    if (i < mine / 32 && of_warp != 0) is_first = false;
    all += __popc(of_warp);
  }
  if (expert < 0 || !is_first) return;

  for (int first = 0; first < all; first += kStreamColumns) {
    const int count = min(kStreamColumns, all - first);
    if (same && before >= first && before < first + count) {
      shared.slot[before - first] = thread;
      shared.expert[before - first] = expert;
    }
    __syncthreads();
    Walk<kKind, Format> walk(format, shared, count);
    walk.start();
    if (kKind == Kind::Down && first == 0) {
      wait_for_predecessors();
      let_successor_start();
    }
    Format::template prepare<kKind>(format, shared, count);
    float acc[kParts<kKind>][4] = {};
    walk.run(acc);
    share(shared, acc);
    // Not earlier: while weights are on their way every register is taken.
    float parameters[kMaxParameters];
    if constexpr (kKind != Kind::Down) {
#pragma unroll
      for (int i = 0; i < kMaxParameters; ++i) {
        parameters[i] = i < a.value_columns ? __ldg(a.values + expert * a.value_stride + i) : 0.0f;
      }
    }
    const int pairs = a.row_warps * kStreamColumns * kStreamRows / 2;
    for (int at = thread; at < pairs; at += kStreamThreads) {
      const int column = at / 8 % kStreamColumns;
      const int block = at / 64;
      const OutputPair pair =
          Format::template outputs<kKind>(static_cast<int>(blockIdx.x) * a.row_warps + block, at % 8);
      if (column >= count || pair.output >= a.columns) continue;
      float y[2];
      result<kKind, Format>(format, shared, block, pair.row, pair.second, column, pair.output, parameters, y);
      Format::template store<kKind>(format, std::int64_t{shared.slot[column]} * a.columns + pair.output, y);
    }
    __syncthreads();
  }
}

// Blocks of y are tokens: a column is one of the token's slots, with an expert of its own.
template <class Format>
__device__ __forceinline__ void sum_of_token(const typename Format::Arguments& format, Shared<Format>& shared) {
  const StreamArguments& a = Format::common(format);
  const int thread = static_cast<int>(threadIdx.x);
  const int column = thread % kStreamColumns;
  const int rows = a.row_warps * kStreamRows;
  constexpr int kRounds = kWarps * kStreamRows * kStreamColumns / kStreamThreads;
  float sum[kRounds] = {};
  for (int first = 0; first < a.routed.top_k; first += kStreamColumns) {
    if (thread < 32) {
      const int k = first + thread;
      const int slot = static_cast<int>(blockIdx.y) * a.routed.top_k + k;
      const bool there = thread < kStreamColumns && k < a.routed.top_k;
      const int expert = there ? expert_of(a.routed, slot) : -1;
      const unsigned ours = __ballot_sync(0xffffffffu, expert >= 0);
      if (thread < kStreamColumns) shared.slot[thread] = -1;
      __syncwarp();
      if (expert >= 0) {
        const int at = __popc(ours & ((1u << thread) - 1));
        shared.slot[at] = slot;
        shared.expert[at] = expert;
      }
    }
    __syncthreads();
    int count = 0;
    for (int i = 0; i < kStreamColumns; ++i) count += shared.slot[i] >= 0 ? 1 : 0;
    Walk<Kind::Sum, Format> walk(format, shared, count);
    walk.start();
    if (first == 0) {
      wait_for_predecessors();
      let_successor_start();
    }
    Format::template prepare<Kind::Sum>(format, shared, count);
    float acc[1][4] = {};
    walk.run(acc);
    share(shared, acc);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int row = (round * kStreamThreads + thread) / kStreamColumns;
      const int output = static_cast<int>(blockIdx.x) * rows + row;
      if (column >= count || row >= rows || output >= a.columns) continue;
      float value = product_of(shared, a.row_warps, row / kStreamRows, 0, row % kStreamRows, column);
      value = Format::template scaled<Kind::Sum>(value, format, shared, shared.expert[column], 0, output, column);
      if (a.bias != nullptr) {
        value += __ldg(a.bias + std::int64_t{shared.expert[column]} * a.columns + output);
      }
      if (a.weight != nullptr) value *= router_weight(a, shared.slot[column]);
      sum[round] += value;
    }
    __syncthreads();
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int row = (round * kStreamThreads + thread) / kStreamColumns;
    const int output = static_cast<int>(blockIdx.x) * rows + row;
    float total = sum[round];
    for (int distance = 1; distance < kStreamColumns; distance *= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, distance);
    }
    if (column == 0 && row < rows && output < a.columns) {
      static_cast<__nv_bfloat16*>(a.output)[std::int64_t{blockIdx.y} * a.columns + output] =
          __float2bfloat16_rn(total * a.scale);
    }
  }
}

template <Kind kKind, class Format>
__device__ __forceinline__ void stream(const typename Format::Arguments& arguments) {
  __shared__ Shared<Format> shared;
  if constexpr (kKind == Kind::Down) {
    if (Format::common(arguments).sum != 0) return sum_of_token<Format>(arguments, shared);
  }
  one_expert<kKind, Format>(arguments, shared);
}

}  // namespace flexact::cuda::stream

#define FLEXACT_STREAM_KERNEL(name, kind, format)                                            \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kStreamThreads, 2) name(       \
      const __grid_constant__ flexact::cuda::stream::format::Arguments arguments) {          \
    using namespace flexact::cuda::stream;                                                   \
    stream<Kind::kind, format>(arguments);                                                   \
  }
