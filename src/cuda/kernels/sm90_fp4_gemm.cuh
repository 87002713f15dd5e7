// The grouped GEMM of a MoE layer on sm_90a with E2M1 weights and bf16 inputs, with the activation
// linked in afterwards.
//
//   output[r, :] = epilogue(input[r, :] · weights[expert of r]^T)
//
// The skeleton is the BF16 kernel's (sm90_bf16_gemm.cuh): the same tiles of 128 rows × 256 weight
// rows, the same producer and order of tiles. What differs:
//
// - wgmma takes its first operand from registers, so weights are that one: the products are
//   transposed, weight rows × input rows. Each thread decodes the codes that it multiplies, out of
//   the checkpoint's own bytes (fp4_layout.hpp), while the tensor core works on those before.
// - A warpgroup has 64 gates and their 64 ups (64 rows of each half of the tile), and all input
//   rows.
// - A tile of few rows takes a narrower wgmma: 16, 64 or 128 columns.
// - Calls whose experts have few rows take a kernel of their own, of tiles of up to 32 rows: four
//   warpgroups decode instead of two.
// - Results are turned around on their way through shared memory, in the order of columns that the
//   next GEMM multiplies in.
//
// docs/cuda.md is the design note.
#pragma once

#include <cuda_fp16.h>
#include <cutlass/arch/reg_reconfig.h>

#include "dependent_launch.cuh"
#include "fp4_layout.hpp"
#include "sm90_epilogue.cuh"
#include "sm90_stages.cuh"
#include "sm90_tiles.cuh"

namespace flexact::cuda {

enum class Fp4 { Mx, Nv, MxFp8 };  // MxFp8: sm90_mxfp4_fp8_gemm.cuh

namespace sm90 {

inline constexpr int kFp4ProducerRegisters = 40;
inline constexpr int kFp4ConsumerRegisters = 232;

// How a CTA divides its tiles. With few rows weights are all that is read, and what limits that is
// decoding: two warps of a scheduler wait for themselves half of the time. The sums leave registers
// enough for four. Both groups of consumers have the tile's weight rows, and take turns along K.
struct ManyRows {
  static constexpr int kRows = kTileRows;
  static constexpr int kGroups = 1;  // of two warpgroups
  static constexpr int kStages = flexact::cuda::kStages;
  static constexpr int kPassRows = 64;      // that leave together
  static constexpr int kStepsTogether = 2;  // of wgmma, that are decoded and issued together
  static constexpr int kThreads = kGemmThreads;
  static constexpr int kProducerRegisters = kFp4ProducerRegisters;
  static constexpr int kConsumerRegisters = kFp4ConsumerRegisters;
};
struct FewRows {
  static constexpr int kRows = kFp4FewRows;
  static constexpr int kGroups = 2;
  static constexpr int kStages = kFp4FewStages;
  static constexpr int kPassRows = 16;
  static constexpr int kStepsTogether = 1;
  static constexpr int kThreads = kFp4FewThreads;
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters = 112;
};
static_assert(FewRows::kThreads == 128 + FewRows::kGroups * kConsumers * 128);

// Scales of a weight row in a block that one thread needs.
template <Fp4 kFormat>
inline constexpr int kScalesOfRow = kFormat == Fp4::Nv ? 2 : 1;

// Sums on their way from the second group to the first, a thread's one behind the other.
template <int kGroups, int kRows>
struct Fp4Sums {
  float sums[kRows][kConsumers * 128];
};
template <int kRows>
struct Fp4Sums<1, kRows> {};

template <Fp4 kFormat, typename Shape>
struct Fp4Storage : Fp4Sums<Shape::kGroups, Shape::kRows> {
  alignas(1024) __nv_bfloat16 input[Shape::kStages][2][Shape::kRows * 64];
  alignas(1024) std::uint8_t codes[Shape::kStages][kTileColumns * kFp4CodeBytes];
  alignas(128) std::uint8_t scales[Shape::kStages][fp4_scale_bytes(kScalesOfRow<kFormat>)];
  alignas(128) std::uint8_t staging[kConsumers][Shape::kPassRows * 128];
  FullBarrier full[Shape::kStages];
  EmptyBarrier empty[Shape::kStages];
  WorkQueue queue;
};
static_assert(sizeof(Fp4Storage<Fp4::Nv, ManyRows>) <= kFp4SharedBytes);
static_assert(sizeof(Fp4Storage<Fp4::Nv, FewRows>) <= kFp4FewSharedBytes);

// Sums of a thread: 64 rows of each half of the tile × the tile's input rows.
template <typename Shape>
using SumsOf = float[2][Shape::kRows / 2];
using Fp4Accumulators = SumsOf<ManyRows>;

template <int kRows>
struct Fp4Product;
#define FLEXACT_FP4_PRODUCT(rows)                                                        \
  template <>                                                                            \
  struct Fp4Product<rows> {                                                              \
    using Mma = gmma::MMA_64x##rows##x16_F32BF16BF16_RS<gmma::Major::K, gmma::Major::K>; \
  };
FLEXACT_FP4_PRODUCT(8)
FLEXACT_FP4_PRODUCT(16)
FLEXACT_FP4_PRODUCT(32)
FLEXACT_FP4_PRODUCT(64)
FLEXACT_FP4_PRODUCT(128)
#undef FLEXACT_FP4_PRODUCT

template <typename Mma, int kCount, std::size_t... kIndex>
__device__ __forceinline__ void multiply_registers(float (&acc)[kCount], std::uint32_t a0,
                                                   std::uint32_t a1, std::uint32_t a2,
                                                   std::uint32_t a3, std::uint64_t b,
                                                   gmma::ScaleOut scale,
                                                   std::index_sequence<kIndex...>) {
  Mma::fma(a0, a1, a2, a3, b, acc[kIndex]..., scale);
}

__device__ __forceinline__ std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// What the decoded bits of a row are multiplied by: one factor for all 32 columns, twice in a
// register, or one for each 16, which share a register.
template <Fp4 kFormat>
struct Factors {
  std::uint32_t both;
  __device__ __forceinline__ std::uint32_t at(int word) const {
    if constexpr (kFormat == Fp4::Mx) return both;
    std::uint32_t twice;
    if (word < 2) {
      asm("{.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};}"
          : "=r"(twice)
          : "r"(both));
    } else {
      asm("{.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};}"
          : "=r"(twice)
          : "r"(both));
    }
    return twice;
  }
};

// Of the four rows: part 0, half 0 and 1, then part 1.
template <Fp4 kFormat>
__device__ __forceinline__ void load_factors(Factors<kFormat> (&factors)[4],
                                             const std::uint8_t* scales, int thread) {
  if constexpr (kFormat == Fp4::Mx) {
    const std::uint32_t word =
        __float_as_uint(load_shared(reinterpret_cast<const float*>(scales) + thread));
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) factors[i].both = mxfp4_factor(word >> 8 * i & 0xff);
  } else {
    const float2 words = load_shared(reinterpret_cast<const float2*>(scales) + thread);
    const std::uint32_t word[2] = {__float_as_uint(words.x), __float_as_uint(words.y)};
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      std::uint32_t halves;
      asm("cvt.rn.f16x2.e4m3x2 %0, %1;"
          : "=r"(halves)
          : "h"(static_cast<std::uint16_t>(word[i / 2] >> i % 2 * 16)));
      const float2 scale = __half22float2(reinterpret_cast<const __half2&>(halves));
      factors[i].both = pack(scale.x * kNvfp4Factor, scale.y * kNvfp4Factor);
    }
  }
}

// A word of 32 columns. The compiler sees it here and not before: it would decode all four at once,
// for which there are not registers enough.
__device__ __forceinline__ std::uint32_t word_of(const uint4& words, int i) {
  std::uint32_t word = i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  asm volatile("" : "+r"(word)::"memory");
  return word;
}

// acc = weights · rows^T over the group's part of `steps` stages, of the first kRows rows. `codes`:
// where the thread's first row lies in a stage; `other_row`: the bit in which its second one's place
// differs.
template <Fp4 kFormat, typename Shape, int kRows>
__device__ __forceinline__ void multiply_codes(SumsOf<Shape>& acc,
                                               Fp4Storage<kFormat, Shape>& shared,
                                               Ring<Shape::kStages>& ring, int steps, int group,
                                               int thread, int codes, std::uint32_t other_row) {
  using Mma = typename Fp4Product<kRows>::Mma;
  constexpr auto kSums = std::make_index_sequence<kRows / 2>{};
  const std::uint64_t first_input = tile_descriptor(&shared.input[0][0][0]);
  const std::uint32_t first_codes =
      shared_address(&shared.codes[0][0]) + static_cast<std::uint32_t>(codes);
  const int lane = thread % 32;
  auto scale = gmma::ScaleOut::Zero;
  int previous = -1;
  for (int step = 0; step < steps; ++step) {
    if (step % Shape::kGroups != group) {
      ring.advance();
      continue;
    }
    shared.full[ring.slot].wait(ring.phase);
    Factors<kFormat> factors[4];
    load_factors<kFormat>(factors, shared.scales[ring.slot], thread);
    const std::uint32_t first_row = first_codes + ring.slot * sizeof(shared.codes[0]);
    uint4 words[4];
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      words[i] = load_shared16((i % 2 == 0 ? first_row : first_row ^ other_row) +
                               i / 2 * (kTileColumns / 2 * kFp4CodeBytes));
    }
    // Only the lower half of a descriptor differs between tiles.
    const std::uint32_t input = static_cast<std::uint32_t>(first_input) +
                                ring.slot * (sizeof(shared.input[0]) / 16);
    // A word of each row is two steps of wgmma. Decoding goes on while what was decoded before is
    // at work.
    constexpr int kSteps = Shape::kStepsTogether;
    CUTE_UNROLL
    for (int first = 0; first < 8; first += kSteps) {
      std::uint32_t a[4][2 * kSteps];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t codes_of_row = word_of(words[i], first / 2);
        CUTE_UNROLL
        for (int j = 0; j < 2 * kSteps; ++j) {
          const std::uint32_t pair = fp4_pair(codes_of_row, first % 2 * 2 + j);
          a[i][j] = multiply_pairs(pair, factors[i].at(first / 2));
          cute::warpgroup_fence_operand(a[i][j]);
        }
      }
      fence(acc[0]);
      fence(acc[1]);
      cute::warpgroup_arrive();
      CUTE_UNROLL
      for (int k = first; k < first + kSteps; ++k) {
        const std::uint32_t low = input + k / 4 * (sizeof(shared.input[0][0]) / 16) + k % 4 * 2;
        const std::uint64_t b = (first_input >> 32 << 32) | low;
        const int j = (k - first) * 2;
        CUTE_UNROLL
        for (int part = 0; part < 2; ++part) {
          multiply_registers<Mma>(acc[part], a[part * 2][j], a[part * 2 + 1][j],
                                  a[part * 2][j + 1], a[part * 2 + 1][j + 1], b, scale, kSums);
        }
        scale = gmma::ScaleOut::One;
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<1>();
      fence(acc[0]);
      fence(acc[1]);
      if (first == 0 && previous >= 0) release(shared, previous, lane);
    }
    previous = ring.slot;
    ring.advance();
  }
  cute::warpgroup_wait<0>();
  fence(acc[0]);
  fence(acc[1]);
  if (Shape::kGroups == 1 || previous >= 0) release(shared, previous, lane);
}

// All threads of a warpgroup.
__device__ __forceinline__ void meet(int warpgroup) {
  if (warpgroup == 0) {
    asm volatile("bar.sync 1, 128;" ::: "memory");
  } else {
    asm volatile("bar.sync 2, 128;" ::: "memory");
  }
}

// Two groups' warpgroups of the same weight rows, of which one waits for what the other has done.
// Numbers of barriers are constants: a register for each would be two too many.
enum class Sums { Written, Read };
__device__ __forceinline__ void tell(Sums sums, int warpgroup) {
  if (sums == Sums::Written) {
    if (warpgroup == 0) {
      asm volatile("bar.arrive 3, 256;" ::: "memory");
    } else {
      asm volatile("bar.arrive 4, 256;" ::: "memory");
    }
  } else {
    if (warpgroup == 0) {
      asm volatile("bar.arrive 5, 256;" ::: "memory");
    } else {
      asm volatile("bar.arrive 6, 256;" ::: "memory");
    }
  }
}
__device__ __forceinline__ void await(Sums sums, int warpgroup) {
  if (sums == Sums::Written) {
    if (warpgroup == 0) {
      asm volatile("bar.sync 3, 256;" ::: "memory");
    } else {
      asm volatile("bar.sync 4, 256;" ::: "memory");
    }
  } else {
    if (warpgroup == 0) {
      asm volatile("bar.sync 5, 256;" ::: "memory");
    } else {
      asm volatile("bar.sync 6, 256;" ::: "memory");
    }
  }
}

// The second group's sums of the first kRows rows become part of the first's. Of a single stage it
// has none.
template <int kRows, typename Shape>
__device__ __forceinline__ void add_groups(SumsOf<Shape>& acc,
                                           Fp4Sums<Shape::kGroups, Shape::kRows>& shared,
                                           int steps, int group, int warpgroup, int thread) {
  if (steps < Shape::kGroups) return;
  if (group != 0) {
    await(Sums::Read, warpgroup);
    CUTE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      store_shared(&shared.sums[i][thread], acc[i / (kRows / 2)][i % (kRows / 2)]);
    }
    tell(Sums::Written, warpgroup);
  } else {
    await(Sums::Written, warpgroup);
    CUTE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      acc[i / (kRows / 2)][i % (kRows / 2)] += load_shared(&shared.sums[i][thread]);
    }
    tell(Sums::Read, warpgroup);
  }
}

// What a thread must know of its two weight rows in a part of the tile.
struct Fp4Rows {
  float factor[2];  // what sums are short of
  float bias[2];
  bool inside[2];
};
template <Epilogue kEpilogue, Fp4 kFormat>
__device__ __forceinline__ Fp4Rows rows_of(const Fp4GemmArguments& fp4, const int4& tile,
                                           int thread, int part) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  const GemmArguments& arguments = fp4.gemm;
  const int first_column =
      tile.w * kOutputColumns<kEpilogue> + (kGated ? 0 : part * (kTileColumns / 2));
  Fp4Rows rows;
  if constexpr (kFormat == Fp4::Mx) {
    rows.factor[0] = static_cast<float>(std::uint64_t{1} << kMxfp4Shift);
  } else if constexpr (kFormat == Fp4::Nv) {
    const float global =
        __ldg(fp4.global + tile.x * fp4.global_step + (kGated ? part * fp4.up_step : 0));
    rows.factor[0] = static_cast<float>(1 << kNvfp4Shift) * global;
  }
  if constexpr (kFormat != Fp4::MxFp8) rows.factor[1] = rows.factor[0];
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    constexpr bool kPermuted = kEpilogue != Epilogue::Plain;
    const int column = first_column + (kFormat == Fp4::MxFp8 ? mxfp4_fp8_row(thread, half, kPermuted)
                                                             : fp4_row(thread, half, kPermuted, kGated));
    const std::int64_t row = std::int64_t{tile.x} * (kGated ? 2 : 1) + (kGated ? part : 0);
    rows.inside[half] = column < arguments.columns;
    rows.bias[half] = 0;
    if (arguments.bias != nullptr && rows.inside[half]) {
      rows.bias[half] = __ldg(arguments.bias + row * arguments.columns + column);
    }
    if constexpr (kFormat == Fp4::MxFp8) {
      const std::int64_t at = row * arguments.columns + min(column, arguments.columns - 1);
      rows.factor[half] = __uint_as_float(mxfp4_fp8_factor(__ldg(fp4.largest + at)));
    }
  }
  return rows;
}

__device__ __forceinline__ void swap(std::uint32_t& a, std::uint32_t& b) {
  const std::uint32_t before = a;
  a = b;
  b = before;
}

// Read anew for each tile: nothing derived from it is worth a register during the products.
__device__ __forceinline__ int thread_now() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// What follows the products, and the way out: some input rows and a warpgroup's 64 places at a time
// are turned around. Piece c of row r lies at c ^ (r % 8), so that neither side meets a bank twice.
template <Epilogue kEpilogue, Fp4 kFormat, typename Shape = ManyRows>
__device__ __forceinline__ void finish(SumsOf<Shape>& acc, std::uint8_t* staging,
                                       const Fp4GemmArguments& fp4, const int4& tile,
                                       const float* parameters) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  constexpr bool kPermuted = kEpilogue != Epilogue::Plain;
  constexpr int kPassRows = Shape::kPassRows;
  const GemmArguments& arguments = fp4.gemm;
  const int thread = thread_now() - 128;
  const int warpgroup = thread / 128;
  const int lane = thread % 32;
  const int first_column = tile.w * kOutputColumns<kEpilogue>;

  const std::uint32_t memory = shared_address(staging);
  // Lane l of stmatrix names row l % 8 of matrix l / 8: halves, then blocks of eight input rows.
  const int piece = thread % 128 / 32 * 2 + lane / 8 % 2;
  const std::uint32_t written = memory + (lane / 16 * 8 + lane % 8) * 128 +
                                static_cast<std::uint32_t>(piece ^ (lane % 8)) * 16;
  const int out_row = thread % 128 / 8;
  const int out_piece = thread % 8;
  const std::uint32_t read =
      memory + out_row * 128 + static_cast<std::uint32_t>(out_piece ^ (out_row % 8)) * 16;

  CUTE_UNROLL
  for (int part = 0; part < (kGated ? 1 : 2); ++part) {
    const int column = first_column + part * (kTileColumns / 2) + warpgroup * 64;
    if (column >= fp4.width) break;
    const Fp4Rows own = rows_of<kEpilogue, kFormat>(fp4, tile, thread, part);
    const Fp4Rows ups = rows_of<kEpilogue, kFormat>(fp4, tile, thread, 1);  // of a gated layer
    CUTE_UNROLL
    for (int pass = 0; pass < Shape::kRows / kPassRows; ++pass) {
      if (pass * kPassRows >= tile.z) break;
      meet(warpgroup);
      CUTE_UNROLL
      for (int pair = 0; pair < kPassRows / 16; ++pair) {
        if (pass * kPassRows + pair * 16 >= tile.z) break;
        std::uint32_t word[4];
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int half = i % 2;
          const int block = pass * (kPassRows / 8) + pair * 2 + i / 2;
          float scale[2] = {1, 1};
          if (arguments.row_scale != nullptr) {
            CUTE_UNROLL
            for (int e = 0; e < 2; ++e) {
              const int row = min(block * 8 + lane % 4 * 2 + e, tile.z - 1);
              scale[e] = __ldg(arguments.row_scale + tile.y + row);
            }
          }
          const auto sum = [&](int of_part, const Fp4Rows& rows, int e) {
            return acc[of_part][block * 4 + half * 2 + e] * rows.factor[half] * scale[e] +
                   rows.bias[half];
          };
          float y[2] = {sum(part, own, 0), sum(part, own, 1)};
          if constexpr (kEpilogue == Epilogue::Gated) {
            const float gate[2] = {y[0], y[1]};
            const float up[2] = {sum(1, ups, 0), sum(1, ups, 1)};
            flexact_act2(gate, up, parameters, y);
          } else if constexpr (kEpilogue == Epilogue::Unary) {
            const float x[2] = {y[0], y[1]};
            flexact_act2_unary(x, parameters, y);
          }
          // What lies beyond the last column is multiplied by zeros.
          word[i] = !kPermuted || own.inside[half] ? pack(y[0], y[1]) : 0;
        }
        // Every other group of lanes has its two rows exchanged (fp4_place()). (Without a gate the
        // assembler has no register left for it.)
        if (kGated && kFormat != Fp4::MxFp8 && lane / 4 % 2 != 0) {
          swap(word[0], word[1]);
          swap(word[2], word[3]);
        }
        store_matrices_turned(written + pair * 16 * 128, word);
      }
      meet(warpgroup);
      CUTE_UNROLL
      for (int i = 0; i < kPassRows; i += 16) {
        const int row = pass * kPassRows + i + out_row;
        if (row < tile.z && column + out_piece * 8 < fp4.width) {
          auto* to = static_cast<__nv_bfloat16*>(arguments.output) +
                     std::int64_t{tile.y + row} * fp4.width;
          *reinterpret_cast<uint4*>(to + column + out_piece * 8) = load_shared16(read + i * 128);
        }
      }
    }
  }
}

// A consumer warpgroup.
template <Epilogue kEpilogue, Fp4 kFormat, typename Shape>
__device__ __forceinline__ void consume_codes(Fp4Storage<kFormat, Shape>& shared,
                                              const Fp4GemmArguments& fp4) {
  constexpr bool kPermuted = kEpilogue != Epilogue::Plain;
  constexpr std::uint32_t kOtherRow = fp4_other_row(kPermuted) * kFp4CodeBytes;
  const int consumer = static_cast<int>(threadIdx.x) - 128;
  const int thread = consumer % (kConsumers * 128);
  const int codes = fp4_row(thread, 0, kPermuted, kEpilogue == Epilogue::Gated) * kFp4CodeBytes + thread % 4 * 16;
  const int warpgroup = __shfl_sync(0xffffffffu, thread / 128, 0);
  const int group =
      Shape::kGroups == 1
          ? 0
          : __shfl_sync(0xffffffffu, consumer / (kConsumers * 128), 0);

  SumsOf<Shape> acc;
  const int steps = (fp4.gemm.depth + kFp4Block - 1) / kFp4Block;
  Ring<Shape::kStages> ring;
  Ring<kWorkSlots> work;
  // There is nothing to read yet, so the second group may write.
  if (Shape::kGroups > 1 && group == 0) tell(Sums::Read, warpgroup);
  // Of the first kRows rows. More widths than three are more than the assembler finds registers for.
  const auto multiply = [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    multiply_codes<kFormat, Shape, kRows>(acc, shared, ring, steps, group, thread, codes,
                                          kOtherRow);
    if constexpr (Shape::kGroups > 1) {
      add_groups<kRows, Shape>(acc, shared, steps, group, warpgroup, thread);
    }
  };
  constexpr int kWidest = Shape::kRows, kMiddle = Shape::kRows / 2;
  constexpr int kNarrow = Shape::kGroups == 1 ? 16 : 8;
  while (true) {
    const int4 tile = next_tile(shared.queue, work, thread_now() % 32);
    if (tile.w < 0) break;
    if (tile.z > kMiddle) {
      multiply(std::integral_constant<int, kWidest>{});
    } else if (tile.z > kNarrow) {
      multiply(std::integral_constant<int, kMiddle>{});
    } else {
      multiply(std::integral_constant<int, kNarrow>{});
    }
    if (group != 0) continue;

    float parameters[kMaxParameters];
    load_parameters<kEpilogue>(fp4.gemm, tile.x, parameters);
    finish<kEpilogue, kFormat, Shape>(acc, shared.staging[warpgroup], fp4, tile, parameters);
  }
  // No barrier is left half met.
  if (Shape::kGroups > 1 && group != 0) await(Sums::Read, warpgroup);
}

// One thread takes tiles and issues the copies of their stages: rows, codes and scales. A stage's rows are as
// many lines of 128 bytes as kLines says, one set of them behind the other.
template <Epilogue kEpilogue, int kLines, typename Storage>
__device__ __forceinline__ void produce_codes(Storage& shared, const CUtensorMap* map_input, const CUtensorMap* map_codes,
                                              const Fp4GemmArguments& fp4) {
  constexpr auto kHint = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  constexpr int kScaleBytes = sizeof(shared.scales[0]);
  constexpr int kSet = sizeof(shared.input[0]) / kLines;
  const GemmArguments& arguments = fp4.gemm;
  const int steps = (arguments.depth + kFp4Block - 1) / kFp4Block;
  Ring<sizeof(shared.full) / sizeof(FullBarrier)> ring;
  take_tiles(shared.queue, arguments, [&](const int4& tile) {
    const int first_column = tile.w * kOutputColumns<kEpilogue>;
    const int boxes = (tile.z + fp4.box_rows - 1) / fp4.box_rows;
    const std::uint8_t* scales =
        fp4.scales + (std::int64_t{tile.x} * arguments.column_tiles + tile.w) * steps * kScaleBytes;
    for (int step = 0; step < steps; ++step) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      auto* full = reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]);
      shared.full[ring.slot].arrive_and_expect_tx(boxes * fp4.box_rows * 128 * kLines +
                                                  kTileColumns * kFp4CodeBytes + kScaleBytes);
      cute::SM90_BULK_COPY_G2S::copy(scales + std::int64_t{step} * kScaleBytes, full,
                                     shared.scales[ring.slot], kScaleBytes);
      // Two boxes of 128 weight rows: gates and their ups, wherever the checkpoint has them.
      CUTE_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int row = first_column + (kEpilogue == Epilogue::Gated ? 0 : part * 128);
        const int pair = kEpilogue == Epilogue::Gated ? part ^ arguments.gate_pair : 0;
        cute::SM90_TMA_LOAD_4D::copy(map_codes, full, kHint,
                                     &shared.codes[ring.slot][part * 128 * kFp4CodeBytes],
                                     step * kFp4CodeBytes, arguments.interleaved != 0 ? pair : row,
                                     arguments.interleaved != 0 ? row : pair, tile.x);
      }
      auto* const rows = reinterpret_cast<std::uint8_t*>(&shared.input[ring.slot]);
      // Not unrolled: this warp has few registers.
      CUTE_NO_UNROLL
      for (int box = 0; box < boxes; ++box) {
        CUTE_UNROLL
        for (int line = 0; line < kLines; ++line) {
          cute::SM90_TMA_LOAD_2D::copy(map_input, full, kHint, rows + line * kSet + box * fp4.box_rows * 128,
                                       step * kFp4Block + line * (kFp4Block / kLines), tile.y + box * fp4.box_rows);
        }
      }
      ring.advance();
    }
  });
}

template <Epilogue kEpilogue, Fp4 kFormat, typename Shape>
__device__ __forceinline__ void fp4_gemm(const CUtensorMap* map_input, const CUtensorMap* map_codes,
                                         const Fp4GemmArguments& arguments) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<Fp4Storage<kFormat, Shape>*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  if (threadIdx.x == 0) init_barriers(shared, 1, Shape::kGroups * kConsumers * 4);
  __syncthreads();
  wait_for_predecessors();
  let_successor_start();

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Shape::kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_input));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_codes));
      produce_codes<kEpilogue, 2>(shared, map_input, map_codes, arguments);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Shape::kConsumerRegisters>();
    consume_codes<kEpilogue, kFormat, Shape>(shared, arguments);
  }
}

}  // namespace sm90
}  // namespace flexact::cuda

// `shape`: ManyRows, or FewRows in an image of its own, so that both are linked at the same time.
#define FLEXACT_FP4_GEMM_KERNEL(name, epilogue, format, shape)                                 \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::sm90::shape::kThreads, 1)        \
      name(const __grid_constant__ CUtensorMap map_input,                                      \
           const __grid_constant__ CUtensorMap map_codes,                                      \
           const __grid_constant__ flexact::cuda::Fp4GemmArguments arguments) {                \
    using namespace flexact::cuda;                                                             \
    sm90::fp4_gemm<Epilogue::epilogue, Fp4::format, sm90::shape>(&map_input, &map_codes,       \
                                                                 arguments);                   \
  }
