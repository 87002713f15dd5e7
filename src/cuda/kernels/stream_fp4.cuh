// The stream kernels' weights in E2M1 beside bf16 inputs: codes and scales as the tile kernels have them
// (fp4_layout.hpp), decoded in the registers in which they arrive.
//
// A thread loads 16 bytes of each of its weight rows: 32 neighbouring columns, one group of mxfp4 or two of
// nvfp4, and the same columns of its token. Scales are in the plan's order, which is that of the tile
// kernels' threads. So a warp has the rows of one of their warps, and a thread finds the scales of its rows
// beside each other. In the first half of a layer those rows are spread over 128 outputs.
#pragma once

#include "fp4_layout.hpp"
#include "stream.cuh"

namespace flexact::cuda::stream {

// kOfRow: scales of a weight row in a thread's 32 columns, 1 (E8M0) or 2 (E4M3).
template <int kOfRow>
struct Fp4 {
  using Arguments = Fp4StreamArguments;
  using Element = std::uint8_t;
  using OfBlock = Nothing;
  static constexpr int kColumnsOfElement = 2;
  static constexpr int kColumnsOfThread = 32;
  template <Kind kKind>
  static constexpr int kChunks = 1;  // 128 columns, for which the plan keeps scales together
  template <Kind kKind>
  static constexpr int kStages = kKind == Kind::Gated ? 2 : 4;
  template <Kind kKind>
  static constexpr int kInputBytes = 2;
  template <Kind kKind>
  static constexpr int kInputLoads = 4;
  template <Kind kKind>
  static constexpr bool kPermuted = kIsFirst<kKind>;

  // Bytes: of part and half after each other, kOfRow each.
  template <Kind kKind>
  struct Scales {
    std::uint32_t word[kKind == Kind::Gated ? kOfRow : 1];
    // That of row (part, half) for word `i` of its codes.
    __device__ std::uint32_t of(int part, int half, int i) const {
      const int byte = (part * 2 + half) * kOfRow + i * kOfRow / 4;
      return word[byte / 4] >> byte % 4 * 8 & 0xff;
    }
  };

  __device__ static const StreamArguments& common(const Arguments& f) { return f.stream; }

  template <Kind kKind>
  class Thread {
   public:
    template <Kind>
    __device__ Rows rows(const Arguments& f, int block, int lane) {
      constexpr bool kGated = kKind == Kind::Gated;
      const int tile = min(kGated ? block / 8 : block / 16, f.column_tiles - 1);
      const int thread = block % 8 * 32 + lane;
      of_tile_ = tile * f.steps * kBytes + thread * 4 * kOfRow + (kGated ? 0 : block / 8 % 2 * 2 * kOfRow);
      const int row = block / 8 * 128 + fp4_row(thread, 0, kPermuted<kKind>, kGated);
      // Outputs beyond the last are read as some of the first.
      // Of a gate every other group of four lanes has the later row's scales first; here all have the first
      // row first.
      turned_ = kGated && lane / 4 % 2 != 0;
      const int first = row < f.stream.columns ? row : lane / 4;
      return {turned_ ? first - 1 : first, fp4_other_row(kPermuted<kKind>)};
    }
    __device__ void turn_to(const Arguments& f, int expert) {
      scales_ = f.scales + std::int64_t{expert} * f.column_tiles * f.steps * kBytes + of_tile_;
    }
    __device__ void load_scales(const Arguments&, Stage<kKind, Fp4>& stage, int step, bool there) {
      const std::uint8_t* at = scales_ + step * kBytes;
      auto& word = stage.scales.word;
      if constexpr (kKind != Kind::Gated) {
        word[0] = kOfRow == 1 ? load_half(at, there) : load_word(at, there);
      } else if constexpr (kOfRow == 1) {
        word[0] = load_word(at, there);
      } else {
        load_words(at, there, word[0], word[1]);
      }
    }
    __device__ void begin(const Arguments&, int) {}

    __device__ void multiply(float (&acc)[kParts<kKind>][4], const Stage<kKind, Fp4>& stage,
                             const Input<kKind, Fp4>& input, int, bool) {
      Scales<kKind> scales = stage.scales;
      if constexpr (kKind == Kind::Gated) {
#pragma unroll
        for (std::uint32_t& word : scales.word) {
          if (turned_) word = select_bytes(word, word, kOfRow == 1 ? 0x2301 : 0x1032);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Pairs as fp4_pair() has them.
        const uint4& eight = input.x[0][i];
        const std::uint32_t x[4] = {select_bytes(eight.x, eight.z, 0x5410), select_bytes(eight.x, eight.z, 0x7632),
                                    select_bytes(eight.y, eight.w, 0x5410), select_bytes(eight.y, eight.w, 0x7632)};
#pragma unroll
        for (int part = 0; part < kParts<kKind>; ++part) {
          std::uint32_t weight[2][4];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint4& codes = stage.weight[part][0][half];
            const std::uint32_t word = only_now(i == 0 ? codes.x : i == 1 ? codes.y : i == 2 ? codes.z : codes.w);
            const std::uint32_t factor = factor_of(scales.of(part, half, i));
#pragma unroll
            for (int j = 0; j < 4; ++j) weight[half][j] = multiply_pairs(fp4_pair(word, j), factor);
          }
          multiply_bf16(acc[part], weight[0][0], weight[1][0], weight[0][1], weight[1][1], x[0], x[1]);
          multiply_bf16(acc[part], weight[0][2], weight[1][2], weight[0][3], weight[1][3], x[2], x[3]);
        }
      }
    }

   private:
    static constexpr int kBytes = fp4_scale_bytes(kOfRow);  // of a tile's step

    // As bf16, twice.
    __device__ static std::uint32_t factor_of(std::uint32_t stored) {
      if constexpr (kOfRow == 1) {
        return mxfp4_factor(stored);
      } else {
        // Its three bits of mantissa are bf16's: what is left is moved, and copied.
        const std::uint32_t bits = bits_of(e4m3_value(stored) * kNvfp4Factor);
        return select_bytes(bits, bits, 0x3232);
      }
    }

    bool turned_;
    int of_tile_;                 // from an expert's first scale
    const std::uint8_t* scales_;  // this thread's, of the expert's first 128 columns
  };

  template <Kind kKind>
  __device__ static void prepare(const Arguments&, Shared<Fp4>&, int) {}
  template <Kind kKind>
  __device__ static OutputPair outputs(int block, int pair) {
    if constexpr (!kPermuted<kKind>) {
      return {2 * pair, 2 * pair + 1, block * kStreamRows + 2 * pair};
    } else {
      return {pair, pair + 8, block / 8 * 128 + fp4_column(block % 8 * kStreamRows + pair)};
    }
  }
  // What sums are short of.
  template <Kind kKind>
  __device__ static float scaled(float sum, const Arguments& f, const Shared<Fp4>&, int expert, int part, int,
                                 int) {
    if constexpr (kOfRow == 1) {
      return sum * static_cast<float>(std::uint64_t{1} << kMxfp4Shift);
    } else {
      const float global = __ldg(f.global + expert * f.global_step + part * f.up_step);
      return sum * (static_cast<float>(1 << kNvfp4Shift) * global);
    }
  }
  template <Kind kKind>
  __device__ static void store(const Arguments& f, std::int64_t at, const float (&y)[2]) {
    store_rounded(f.stream, at, y);
  }
};

using Mxfp4 = Fp4<1>;
using Nvfp4 = Fp4<2>;

}  // namespace flexact::cuda::stream
