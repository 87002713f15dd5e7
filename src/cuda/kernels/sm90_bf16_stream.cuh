// A layer of a few tokens on sm_90a in bf16: a pass over the weights of the experts that were chosen,
// as fast as memory gives them.
//
//   up      activated[slot, :] = function(input[token of slot, :] · w13[expert of slot]^T)
//   down    rows[slot, :] = activated[slot, :] · w2[expert of slot]^T, or the sum over a token's slots
//
// There is no routing before it: a block reads the few ids itself. Operands are swapped: 16 outputs are
// the rows of an `mma`, up to eight slots its columns, so that a weight is read once however many tokens
// chose the expert. Each thread loads weights straight into the registers from which they are multiplied:
// the order of a sum along K is free, so 16 bytes of a row are one thread's whatever fragment `mma` has in
// mind. Two stages of loads are in flight in every warp, and nothing else is between memory and the
// tensor cores.
//
// docs/cuda.md is the design note.
#pragma once

#include "arguments.hpp"
// A test runs this file on the CPU with instructions of its own: tests/cpp/emulated.
#ifndef FLEXACT_EMULATED
#include "stream_instructions.cuh"
#endif

extern "C" __device__ void flexact_act2(const float g[2], const float u[2], const float* parameters,
                                        float y[2]);
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]);

namespace flexact::cuda::stream {

inline constexpr int kWarps = kStreamThreads / 32;

enum class Kind {
  Gated,
  Unary,
  Down,
};

// 32 values of a row are one load of four neighbouring threads: kChunks such loads make a step, as long as
// registers allow.
template <Kind kKind>
struct Shape {
  static constexpr int kParts = kKind == Kind::Gated ? 2 : 1;
  static constexpr int kChunks = kKind == Kind::Gated ? 2 : 3;
  static constexpr int kStep = 32 * kChunks;
};

struct Shared {
  unsigned mask[kWarps];       // slots of this block's expert
  int slot[kStreamColumns];    // of a column
  int expert[kStreamColumns];
  float product[kWarps][2][kStreamRows][kStreamColumns];
};

__device__ __forceinline__ int expert_of(const RoutedIds& r, int slot) {
  const std::int64_t at = slot / r.top_k * r.stride + slot % r.top_k * r.step;
  const std::int64_t id = r.wide != 0 ? static_cast<const std::int64_t*>(r.ids)[at]
                                      : static_cast<const std::int32_t*>(r.ids)[at];
  return id >= 0 && id < r.experts ? static_cast<int>(id) : -1;
}

// What one step brings to a thread.
template <Kind kKind>
struct Stage {
  uint4 weight[Shape<kKind>::kParts][Shape<kKind>::kChunks][2];
  uint4 x[Shape<kKind>::kChunks];
};

// This warp's part of a product: its 16 outputs, and every step that is its own, of one expert or, for a
// sum, of one column's expert after the other's.
template <Kind kKind>
class Walk {
 public:
  static constexpr int kParts = Shape<kKind>::kParts;
  static constexpr int kChunks = Shape<kKind>::kChunks;
  static constexpr int kStep = Shape<kKind>::kStep;

  __device__ Walk(const StreamArguments& arguments, const Shared& shared, int count)
      : arguments_(arguments), shared_(shared), count_(count) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    slices_ = kWarps / arguments.row_warps;
    steps_ = (arguments.depth + kStep - 1) / kStep;
    column_ = lane / 4;
    piece_ = lane % 4 * 8;
    // Outputs beyond the last are read as the last eight, and not stored.
    const int first = (static_cast<int>(blockIdx.x) * arguments.row_warps + warp % arguments.row_warps) * kStreamRows;
    low_ = (min(first, arguments.columns - 8) + lane / 4) * arguments.row_stride + arguments.offset[0] + piece_;
    to_high_ = first + 8 < arguments.columns ? 8 * arguments.row_stride : 0;
    const int slot = column_ < count ? shared.slot[column_] : -1;
    const int row = slot < 0 ? 0 : arguments.input_of_slots != 0 ? slot : slot / arguments.routed.top_k;
    input_ = static_cast<const __nv_bfloat16*>(arguments.input) + row * arguments.input_stride + piece_;
    has_column_ = slot >= 0;
    step_ = warp / arguments.row_warps;
    of_ = 0;
    weights_ = static_cast<const __nv_bfloat16*>(arguments.weights) + shared.expert[0] * arguments.expert_stride;
    settle();
  }

  // Weights of the next two steps, which depend on nothing that a predecessor writes.
  __device__ void start() {
    fetch(stage_[0], position_[0]);
    fetch(stage_[1], position_[1]);
  }

  __device__ void run(float (&acc)[kParts][4]) {
    bring(stage_[0], position_[0]);
    bring(stage_[1], position_[1]);
    while (position_[0].there) {
      use(stage_[0], acc);
      fetch(stage_[0], position_[0]);
      bring(stage_[0], position_[0]);
      use(stage_[1], acc);
      fetch(stage_[1], position_[1]);
      bring(stage_[1], position_[1]);
    }
  }

 private:
  struct Position {
    int k = 0;
    bool there = false;
    bool mine = false;  // the column of this thread belongs to the step's expert
  };

  // Only there a warp passes from one expert to the next.
  __device__ bool sums() const { return kKind == Kind::Down && arguments_.sum != 0; }

  // The column whose expert step_ lies in.
  __device__ void settle() {
    if constexpr (kKind != Kind::Down) {
      there_ = step_ < steps_;
      return;
    }
    const int experts = sums() ? count_ : min(count_, 1);
    while (of_ < experts && step_ >= steps_) {
      step_ -= steps_;
      ++of_;
    }
    there_ = of_ < experts;
    if (there_) {
      weights_ = static_cast<const __nv_bfloat16*>(arguments_.weights) +
                 shared_.expert[of_] * arguments_.expert_stride;
    }
  }

  __device__ void fetch(Stage<kKind>& stage, Position& position) {
    position.there = there_;
    position.k = step_ * kStep;
    position.mine = there_ && has_column_ && (!sums() || column_ == of_);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int k = position.k + chunk * 32;
        const bool there = there_ && k + piece_ < arguments_.depth;
        const __nv_bfloat16* at = weights_ + low_ + k + (part == 0 ? 0 : arguments_.offset[1] - arguments_.offset[0]);
        stage.weight[part][chunk][0] = load_weights(at, there);
        stage.weight[part][chunk][1] = load_weights(at + to_high_, there);
      }
    }
    step_ += slices_;
    settle();
  }

  __device__ void bring(Stage<kKind>& stage, const Position& position) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int k = position.k + chunk * 32;
      stage.x[chunk] = load_input(input_ + k, position.mine && k + piece_ < arguments_.depth);
    }
  }

  __device__ void use(const Stage<kKind>& stage, float (&acc)[kParts][4]) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const uint4& x = stage.x[chunk];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint4& low = stage.weight[part][chunk][0];
        const uint4& high = stage.weight[part][chunk][1];
        multiply(acc[part], low.x, high.x, low.y, high.y, x.x, x.y);
        multiply(acc[part], low.z, high.z, low.w, high.w, x.z, x.w);
      }
    }
  }

  const StreamArguments& arguments_;
  const Shared& shared_;
  int count_, slices_, steps_, column_, piece_, step_, of_;
  bool has_column_, there_;
  std::int64_t low_, to_high_;  // this thread's two rows, in elements from an expert's first, and the other
  const __nv_bfloat16* input_;
  const __nv_bfloat16* weights_;
  Stage<kKind> stage_[2];
  Position position_[2];
};

// The accumulators of all warps, for threads that put the divided depth together.
template <int kParts>
__device__ __forceinline__ void share(Shared& shared, const float (&acc)[kParts][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    for (int half = 0; half < 2; ++half) {
      float2& at = reinterpret_cast<float2&>(shared.product[warp][part][lane / 4 + half * 8][lane % 4 * 2]);
      at = make_float2(acc[part][half * 2], acc[part][half * 2 + 1]);
    }
  }
  __syncthreads();
}

// Of row `row` of row block `block`.
__device__ __forceinline__ float product_of(const Shared& shared, int row_warps, int block, int part, int row,
                                            int column) {
  float sum = 0;
  for (int warp = block; warp < kWarps; warp += row_warps) sum += shared.product[warp][part][row][column];
  return sum;
}

__device__ __forceinline__ float router_weight(const StreamArguments& a, int slot) {
  return a.weight[slot / a.routed.top_k * a.weight_stride + slot % a.routed.top_k * a.weight_step];
}

__device__ __forceinline__ std::uint32_t rounded(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

// Two neighbouring results of a slot.
template <Kind kKind>
__device__ __forceinline__ std::uint32_t result(const StreamArguments& a, const Shared& shared, int block,
                                                int row, int column, int output, const float* parameters) {
  constexpr int kParts = Shape<kKind>::kParts;
  const int expert = shared.expert[column];
  const float scale = a.weight == nullptr ? 1.0f : router_weight(a, shared.slot[column]);
  float x[2][2];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      x[part][i] = scale * product_of(shared, a.row_warps, block, part, row + i, column);
      if (a.bias != nullptr) {
        x[part][i] += __ldg(a.bias + (std::int64_t{expert} * kParts + part) * a.columns + output + i);
      }
    }
  }
  if constexpr (kKind == Kind::Gated) {
    float y[2];
    flexact_act2(x[0], x[1], parameters, y);
    return rounded(y[0], y[1]);
  } else if constexpr (kKind == Kind::Unary) {
    float y[2];
    flexact_act2_unary(x[0], parameters, y);
    return rounded(y[0], y[1]);
  } else {
    return rounded(x[0][0], x[0][1]);
  }
}

// Blocks of y are slots. The first slot of an expert works for all of its slots, the others have nothing to
// do.
template <Kind kKind>
__device__ __forceinline__ void one_expert(const StreamArguments& a, Shared& shared) {
  constexpr int kParts = Shape<kKind>::kParts;
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
    Walk<kKind> walk(a, shared, count);
    walk.start();
    if (kKind == Kind::Down && first == 0) {
      wait_for_predecessors();
      let_successor_start();
    }
    float acc[kParts][4] = {};
    walk.run(acc);
    share<kParts>(shared, acc);
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
      const int row = at % 8 * 2;
      const int column = at / 8 % kStreamColumns;
      const int block = at / 64;
      const int output = (static_cast<int>(blockIdx.x) * a.row_warps + block) * kStreamRows + row;
      if (column >= count || output >= a.columns) continue;
      auto* to = static_cast<__nv_bfloat16*>(a.output) + std::int64_t{shared.slot[column]} * a.columns + output;
      *reinterpret_cast<std::uint32_t*>(to) = result<kKind>(a, shared, block, row, column, output, parameters);
    }
    __syncthreads();
  }
}

// Blocks of y are tokens: a column is one of the token's slots, with an expert of its own.
__device__ __forceinline__ void sum_of_token(const StreamArguments& a, Shared& shared) {
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
    Walk<Kind::Down> walk(a, shared, count);
    walk.start();
    if (first == 0) {
      wait_for_predecessors();
      let_successor_start();
    }
    float acc[1][4] = {};
    walk.run(acc);
    share<1>(shared, acc);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int row = (round * kStreamThreads + thread) / kStreamColumns;
      const int output = static_cast<int>(blockIdx.x) * rows + row;
      if (column >= count || row >= rows || output >= a.columns) continue;
      float value = product_of(shared, a.row_warps, row / kStreamRows, 0, row % kStreamRows, column);
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

template <Kind kKind>
__device__ __forceinline__ void stream(const StreamArguments& arguments) {
  __shared__ Shared shared;
  if constexpr (kKind == Kind::Down) {
    if (arguments.sum != 0) return sum_of_token(arguments, shared);
  }
  one_expert<kKind>(arguments, shared);
}

}  // namespace flexact::cuda::stream

#define FLEXACT_STREAM_KERNEL(name, kind)                                           \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kStreamThreads, 2)    \
      name(const __grid_constant__ flexact::cuda::StreamArguments arguments) {      \
    flexact::cuda::stream::stream<flexact::cuda::stream::Kind::kind>(arguments);    \
  }
