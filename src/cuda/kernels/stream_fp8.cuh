// The stream kernels' weights in E4M3 beside inputs in E4M3: sums of products in f16, which holds every code.
//
// A block rounds the rows of its columns to codes itself, in shared memory, while its first weights are on
// their way: the first half reads bf16 rows, the second the fp32 results of the first, which a group's
// scale needs from several blocks. Scales by blocks multiply the sums of 128 columns, others those of all.
#pragma once

#include "stream.cuh"

namespace flexact::cuda::stream {

// kBlocks: each 128 × 128 weights have a scale, and each 128 values of a row; else rows and rows, or all.
template <bool kBlocks>
struct Fp8 {
  using Arguments = Fp8StreamArguments;
  using Element = std::uint8_t;
  static constexpr int kColumnsOfElement = 1;
  static constexpr int kColumnsOfThread = 16;
  template <Kind kKind>
  static constexpr int kChunks = 2;  // a group
  template <Kind kKind>
  static constexpr int kStages = 2;
  template <Kind kKind>
  static constexpr int kInputBytes = kIsFirst<kKind> ? 2 : 4;
  template <Kind kKind>
  static constexpr int kInputLoads = 0;

  struct OfBlock {
    float scale[kStreamColumns];  // of a row
    std::uint32_t largest[kStreamColumns];
    int rows[kStreamMaxSlots];
    int row_count;
  };

  template <Kind kKind>
  struct Scales {
    float of[kParts<kKind>];
  };

  __device__ static const StreamArguments& common(const Arguments& f) { return f.stream; }
  // Codes of a row in shared memory: rows meet different banks. Groups' scales follow all rows.
  __device__ static int groups_of(const Arguments& f) { return (f.stream.depth + kGroup - 1) / kGroup; }
  __device__ static int pitch_of(const Arguments& f) { return groups_of(f) * kGroup + 64; }

  template <Kind kKind>
  class Thread {
   public:
    // Outputs beyond the last are read as the last eight.
    template <Kind>
    __device__ Rows rows(const Arguments& f, int block, int lane) {
      const int first = block * kStreamRows;
      const int output = min(first, f.stream.columns - 8);
      of_row_ = (f.interleaved != 0 ? 2 * output : output) / kGroup * f.weights.row_step;
      codes_ = dynamic_shared() + lane / 4 * pitch_of(f) + lane % 4 * 16;
      pair_ = lane % 4 * 2;
      return {output + lane / 4, first + 8 < f.stream.columns ? 8 : 0};
    }
    __device__ void turn_to(const Arguments& f, int expert) {
      if constexpr (kBlocks) scales_ = f.weights.at + expert * f.expert_step + of_row_;
    }
    __device__ void load_scales(const Arguments& f, Stage<kKind, Fp8>& stage, int step, bool there) {
      if constexpr (kBlocks) {
#pragma unroll
        for (int part = 0; part < kParts<kKind>; ++part) {
          stage.scales.of[part] = there ? __ldg(scales_ + step * f.weights.group_step + part * f.up_step) : 0.0f;
        }
      }
    }
    __device__ void begin(const Arguments& f, int count) {
      if constexpr (kBlocks) {
        groups_ = groups_of(f);
        row_scales_ = reinterpret_cast<const float*>(dynamic_shared() + count * pitch_of(f));
        // A column that there is not has sums that nobody reads.
        first_ = min(pair_, count - 1) * groups_;
        second_ = min(pair_ + 1, count - 1) * groups_;
      }
    }

    __device__ void multiply(float (&acc)[kParts<kKind>][4], const Stage<kKind, Fp8>& stage,
                             const Input<kKind, Fp8>&, int step, bool mine) {
      if constexpr (!kBlocks) {
        add(acc, stage, step, mine);
      } else {
        float sums[kParts<kKind>][4] = {};
        add(sums, stage, step, mine);
        // A step that there is not has zeros, and no scale.
        const int group = max(step, 0);
        const float scale[2] = {row_scales_[first_ + group], row_scales_[second_ + group]};
#pragma unroll
        for (int part = 0; part < kParts<kKind>; ++part) {
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[part][i] += sums[part][i] * (scale[i % 2] * stage.scales.of[part]);
        }
      }
    }

   private:
    __device__ void add(float (&acc)[kParts<kKind>][4], const Stage<kKind, Fp8>& stage, int step, bool mine) {
#pragma unroll
      for (int chunk = 0; chunk < 2; ++chunk) {
        uint4 x = {0, 0, 0, 0};
        if (mine) x = *reinterpret_cast<const uint4*>(codes_ + step * kGroup + chunk * 64);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const std::uint32_t four = word_of(x, i);
          const std::uint32_t x0 = e4m3_to_f16(four), x1 = e4m3_to_f16(four >> 16);
#pragma unroll
          for (int part = 0; part < kParts<kKind>; ++part) {
            const std::uint32_t low = only_now(word_of(stage.weight[part][chunk][0], i));
            const std::uint32_t high = only_now(word_of(stage.weight[part][chunk][1], i));
            multiply_f16(acc[part], e4m3_to_f16(low), e4m3_to_f16(high), e4m3_to_f16(low >> 16),
                         e4m3_to_f16(high >> 16), x0, x1);
          }
        }
      }
    }
    __device__ static std::uint32_t word_of(const uint4& words, int i) {
      return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
    }

    std::int64_t of_row_;
    const float* scales_;
    const std::uint8_t* codes_;  // of this thread's column
    const float* row_scales_;
    int pair_, groups_, first_, second_;
  };

  // Eight neighbouring values of a row of the input.
  template <Kind kKind>
  __device__ static void load_values(const Arguments& f, int row, int k, float (&value)[8]) {
    const bool there = k < f.stream.depth;
    const auto* at = static_cast<const unsigned char*>(f.stream.input) +
                     (row * f.stream.input_stride + k) * kInputBytes<kKind>;
    const uint4 first = load_input(at, there);
    if constexpr (kIsFirst<kKind>) {
      const std::uint32_t word[4] = {first.x, first.y, first.z, first.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        value[i] = float_of(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000u);
      }
    } else {
      const uint4 last = load_input(at + 16, there);
      const std::uint32_t word[8] = {first.x, first.y, first.z, first.w, last.x, last.y, last.z, last.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] = float_of(word[i]);
    }
  }
  __device__ static std::uint32_t largest_of(const float (&value)[8]) {
    std::uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = max(largest, magnitude_bits(value[i]));
    return largest;
  }
  __device__ static int row_of(const StreamArguments& a, int slot) {
    return a.input_of_slots != 0 ? slot : slot / a.routed.top_k;
  }

  // Calls visit(column, k, values) for every eight values of so many rows, of each group in 16
  // neighbouring threads; rows are filled up with zeros to whole groups. Several loads are on their way.
  template <Kind kKind, typename RowOf, typename Visit>
  __device__ static void for_each_eight(const Arguments& f, int rows, RowOf row_at, Visit visit) {
    constexpr int kAtOnce = kIsFirst<kKind> ? 2 : 4;
    const int of_row = groups_of(f) * (kGroup / 8);
    const int all = rows * of_row;
    // All threads of a warp come to each visit.
    for (int first = static_cast<int>(threadIdx.x) / 32 * 32; first < all; first += kAtOnce * kStreamThreads) {
      float value[kAtOnce][8];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = min(first + i * kStreamThreads + static_cast<int>(threadIdx.x) % 32, all - 1);
        load_values<kKind>(f, row_at(at / of_row), at % of_row * 8, value[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = first + i * kStreamThreads + static_cast<int>(threadIdx.x) % 32;
        if (at - static_cast<int>(threadIdx.x) % 32 < all) visit(at, at < all, of_row, value[i]);
      }
    }
  }

  // Rows of the block's columns to codes. All threads come here, and go together.
  template <Kind kKind>
  __device__ static void prepare(const Arguments& f, Shared<Fp8>& shared, int count) {
    const StreamArguments& a = f.stream;
    const int thread = static_cast<int>(threadIdx.x);
    const auto row_at = [&](int column) { return row_of(a, shared.slot[column]); };
    if constexpr (!kBlocks) find_scales<kKind>(f, shared, count);
    const int pitch = pitch_of(f);
    const int groups = groups_of(f);
    auto* row_scales = reinterpret_cast<float*>(dynamic_shared() + count * pitch);
    for_each_eight<kKind>(f, count, row_at, [&](int at, bool there, int of_row, const float (&value)[8]) {
      const int column = min(at / of_row, count - 1);
      const int k = at % of_row * 8;
      float scale;
      if constexpr (kBlocks) {
        std::uint32_t largest = largest_of(value);
#pragma unroll
        for (int distance = 1; distance < 16; distance *= 2) {
          largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        }
        scale = fp8_scale(float_of(largest));
        if (there && thread % 16 == 0) row_scales[column * groups + k / kGroup] = scale;
      } else {
        scale = shared.scale[column];
      }
      const float inverse = reciprocal(scale);
      std::uint32_t word[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t low = to_e4m3(value[4 * i] * inverse, value[4 * i + 1] * inverse);
        const std::uint32_t high = to_e4m3(value[4 * i + 2] * inverse, value[4 * i + 3] * inverse);
        word[i] = low | high << 16;
      }
      if (there) *reinterpret_cast<uint2*>(dynamic_shared() + column * pitch + k) = make_uint2(word[0], word[1]);
    });
    __syncthreads();
  }

  // shared.scale: given, or by the largest magnitude of a row, or of all rows that an expert takes.
  template <Kind kKind>
  __device__ static void find_scales(const Arguments& f, Shared<Fp8>& shared, int count) {
    const StreamArguments& a = f.stream;
    const int thread = static_cast<int>(threadIdx.x);
    const bool all = f.scaling == InputScaling::All;
    if (thread < kStreamColumns) shared.largest[thread] = 0;
    if (thread == 0) shared.row_count = 0;
    __syncthreads();
    if (all) {
      const int rows = a.input_of_slots != 0 ? a.routed.slots : a.routed.slots / a.routed.top_k;
      bool taken = false;
      if (thread < rows && a.input_of_slots != 0) taken = expert_of(a.routed, thread) >= 0;
      for (int i = 0; thread < rows && a.input_of_slots == 0 && i < a.routed.top_k; ++i) {
        taken = taken || expert_of(a.routed, thread * a.routed.top_k + i) >= 0;
      }
      if (taken) shared.rows[atomicAdd(&shared.row_count, 1)] = thread;
      __syncthreads();
    }
    if (f.scaling != InputScaling::Given) {
      const auto row_at = [&](int i) { return all ? shared.rows[i] : row_of(a, shared.slot[i]); };
      for_each_eight<kKind>(f, all ? shared.row_count : count, row_at,
                            [&](int at, bool there, int of_row, const float (&value)[8]) {
        // A group is in one half of a warp.
        std::uint32_t largest = there ? largest_of(value) : 0;
#pragma unroll
        for (int distance = 1; distance < 16; distance *= 2) {
          largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        }
        if (there && thread % 16 == 0) atomicMax(&shared.largest[all ? 0 : at / of_row], largest);
      });
      __syncthreads();
    }
    if (thread < kStreamColumns) {
      shared.scale[thread] = f.scaling == InputScaling::Given ? *f.given
                                                              : fp8_scale(float_of(shared.largest[all ? 0 : thread]));
    }
    __syncthreads();
  }

  template <Kind kKind>
  __device__ static OutputPair outputs(int block, int pair) {
    return {2 * pair, 2 * pair + 1, block * kStreamRows + 2 * pair};
  }
  template <Kind kKind>
  __device__ static float scaled(float sum, const Arguments& f, const Shared<Fp8>& shared, int expert, int part,
                                 int output, int column) {
    if constexpr (kBlocks) return sum;
    return sum * (shared.scale[column] * __ldg(f.weights.at + expert * f.expert_step +
                                               output * f.weights.row_step + part * f.up_step));
  }
  // The first half's results wait in fp32 until their scale is known, as bf16 numbers where it is that of
  // more than a group.
  template <Kind kKind>
  __device__ static void store(const Arguments& f, std::int64_t at, const float (&y)[2]) {
    if constexpr (!kIsFirst<kKind>) {
      store_rounded(f.stream, at, y);
    } else {
      float2 pair = make_float2(y[0], y[1]);
      if (f.rounds_results != 0) {
        pair = make_float2(__bfloat162float(__float2bfloat16_rn(y[0])), __bfloat162float(__float2bfloat16_rn(y[1])));
      }
      *reinterpret_cast<float2*>(static_cast<float*>(f.stream.output) + at) = pair;
    }
  }
};

using Fp8Block = Fp8<true>;
using Fp8Whole = Fp8<false>;

}  // namespace flexact::cuda::stream
