// The stream kernels' weights in bf16, multiplied as they are loaded.
#pragma once

#include "stream.cuh"

namespace flexact::cuda::stream {

struct Bf16 {
  using Arguments = StreamArguments;
  using Element = __nv_bfloat16;
  using OfBlock = Nothing;
  template <Kind kKind>
  using Scales = Nothing;
  static constexpr int kColumnsOfElement = 1;
  static constexpr int kColumnsOfThread = 8;  // in one load
  template <Kind kKind>
  static constexpr int kChunks = kKind == Kind::Gated ? 2 : 3;
  template <Kind kKind>
  static constexpr int kStages = 2;
  template <Kind kKind>
  static constexpr int kInputBytes = 2;
  template <Kind kKind>
  static constexpr int kInputLoads = 1;  // for a chunk

  __device__ static const StreamArguments& common(const Arguments& arguments) { return arguments; }

  // What a thread keeps during a walk.
  template <Kind kKind>
  struct Thread {
    // Outputs beyond the last are read as the last eight.
    template <Kind>
    __device__ Rows rows(const Arguments& a, int block, int lane) {
      const int first = block * kStreamRows;
      return {min(first, a.columns - 8) + lane / 4, first + 8 < a.columns ? 8 : 0};
    }
    __device__ void turn_to(const Arguments&, int) {}
    __device__ void load_scales(const Arguments&, Stage<kKind, Bf16>&, int, bool) {}
    __device__ void begin(const Arguments&, int) {}
    __device__ void multiply(float (&acc)[kParts<kKind>][4], const Stage<kKind, Bf16>& stage,
                             const Input<kKind, Bf16>& input, int, bool) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks<kKind>; ++chunk) {
        const uint4& x = input.x[chunk][0];
#pragma unroll
        for (int part = 0; part < kParts<kKind>; ++part) {
          const uint4& low = stage.weight[part][chunk][0];
          const uint4& high = stage.weight[part][chunk][1];
          multiply_bf16(acc[part], low.x, high.x, low.y, high.y, x.x, x.y);
          multiply_bf16(acc[part], low.z, high.z, low.w, high.w, x.z, x.w);
        }
      }
    }
  };

  template <Kind kKind>
  __device__ static void prepare(const Arguments&, Shared<Bf16>&, int) {}
  template <Kind kKind>
  __device__ static OutputPair outputs(int block, int pair) {
    return {2 * pair, 2 * pair + 1, block * kStreamRows + 2 * pair};
  }
  template <Kind kKind>
  __device__ static float scaled(float sum, const Arguments&, const Shared<Bf16>&, int, int, int, int) {
    return sum;
  }
  template <Kind kKind>
  __device__ static void store(const Arguments& a, std::int64_t at, const float (&y)[2]) {
    store_rounded(a, at, y);
  }
};

}  // namespace flexact::cuda::stream
