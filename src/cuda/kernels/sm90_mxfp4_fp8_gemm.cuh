// The grouped GEMM of a MoE layer on sm_90a with E2M1 weights and E4M3 inputs: mxfp4_fp8.
//
// The skeleton is the FP4 kernel's (sm90_fp4_gemm.cuh): weights are the first operand and come from
// registers, tokens are the columns of the products. What differs:
//
// - A weight becomes E4M3 by a table: the eight magnitudes under its group's scale, by which bytes
//   are selected four at a time. The tables of all scales lie in shared memory.
// - A product of 128 values of K is added up in the tensor core, then in fp32 with the scales of
//   the tokens. Products come in two waves, gates and ups, through one set of registers. While one
//   warpgroup brings its wave to scale, the tensor core works on the other's.
// - A second producer warp fetches the tokens' scales of each stage.
// - The results of a token and 128 outputs, one group of the next GEMM's inputs, are held by all
//   eight warps, which meet in shared memory for its largest magnitude.
//
// docs/cuda.md is the design note.
#pragma once

#include <cute/arch/copy_sm80.hpp>

#include "e4m3.cuh"
#include "sm90_fp4_gemm.cuh"

namespace flexact::cuda::sm90 {

struct Mxfp4Fp8Storage {
  alignas(1024) std::uint8_t input[kStages][kTileRows * kGroup];
  alignas(128) std::uint8_t codes[kStages][kTileColumns * kFp4CodeBytes];
  alignas(128) std::uint8_t scales[kStages][fp4_scale_bytes(1)];
  alignas(128) float input_scales[kStages][kTileRows];
  alignas(128) std::uint8_t staging[kConsumers][kFp4StagingBytes];
  std::uint64_t magnitudes[32];
  std::uint32_t largest[kConsumers * 4][kTileRows];  // of a token among a warp's outputs
  float inverse[kTileRows];                          // what a token's results are multiplied by
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  WorkQueue queue;
};
static_assert(sizeof(Mxfp4Fp8Storage) + 1024 <= kMxfp4Fp8SharedBytes);

template <int kRows>
struct Mxfp4Fp8Product;
#define FLEXACT_MXFP4_FP8_PRODUCT(rows)                        \
  template <>                                                  \
  struct Mxfp4Fp8Product<rows> {                               \
    using Mma = gmma::MMA_64x##rows##x32_F32E4M3E4M3_RS_TN<>; \
  };
FLEXACT_MXFP4_FP8_PRODUCT(16)
FLEXACT_MXFP4_FP8_PRODUCT(64)
FLEXACT_MXFP4_FP8_PRODUCT(128)
#undef FLEXACT_MXFP4_FP8_PRODUCT

template <typename Mma, int kCount, std::size_t... kIndex>
__device__ __forceinline__ void multiply_step(float (&products)[kCount],
                                              const std::uint32_t (&a)[4], std::uint64_t b,
                                              gmma::ScaleOut scale, std::index_sequence<kIndex...>) {
  Mma::fma(a[0], a[1], a[2], a[3], b, products[kIndex]..., scale);
}

// All threads of both warpgroups.
__device__ __forceinline__ void meet_all() {
  asm volatile("bar.sync 3, 256;" ::: "memory");
}

// A consumer's, read anew where it is needed: it is not worth a register during the products.
__device__ __forceinline__ int consumer_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread - 128;
}

// acc = Σ over stages of a depth: the tensor core's sums, times the tokens' scales, added in fp32; of the first
// kRows tokens. `codes` and `half_bytes` as for multiply_codes().
template <int kRows>
__device__ __forceinline__ void multiply_codes_e4m3(Fp4Accumulators& acc, Mxfp4Fp8Storage& shared,
                                                    Ring<kStages>& ring, int depth, int codes,
                                                    int half_bytes) {
  using Mma = typename Mxfp4Fp8Product<kRows>::Mma;
  constexpr int kCount = kRows / 2;  // numbers of a thread in a wave
  const std::uint64_t first_input = tile_descriptor(&shared.input[0][0]);
  const std::uint32_t first_codes =
      shared_address(&shared.codes[0][0]) + static_cast<std::uint32_t>(codes);
  CUTE_UNROLL
  for (int part = 0; part < 2; ++part) {
    CUTE_UNROLL
    for (int i = 0; i < kCount; ++i) acc[part][i] = 0;
  }
  for (int left = depth; left > 0; left -= kFp4Block) {
    const int thread = consumer_thread();
    shared.full[ring.slot].wait(ring.phase);
    const std::uint32_t scales = __float_as_uint(
        load_shared(reinterpret_cast<const float*>(shared.scales[ring.slot]) + thread));
    const float* const of_tokens = &shared.input_scales[ring.slot][thread % 4 * 2];
    const std::uint64_t input = first_input + ring.slot * (sizeof(shared.input[0]) / 16);
    CUTE_UNROLL
    for (int part = 0; part < 2; ++part) {
      // A word is a step of wgmma: its first and its second sixteen columns.
      std::uint32_t a[4][4];
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t stored = scales >> (part * 16 + half * 8) & 0xff;
        const float2 table =
            load_shared(reinterpret_cast<const float2*>(shared.magnitudes) + stored);
        const uint4 words = load_shared16(first_codes + ring.slot * sizeof(shared.codes[0]) +
                                          part * (kTileColumns / 2 * kFp4CodeBytes) +
                                          half * half_bytes);
        const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const Mxfp4Fp8Codes decoded =
              mxfp4_fp8_codes(word[i], __float_as_uint(table.x), __float_as_uint(table.y));
          a[i][half] = decoded.first;
          a[i][half + 2] = decoded.last;
        }
      }
      float products[kCount];
      fence(products);
      CUTE_UNROLL
      for (int i = 0; i < 16; ++i) cute::warpgroup_fence_operand(a[i / 4][i % 4]);
      cute::warpgroup_arrive();
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        multiply_step<Mma>(products, a[i], input + i * 2,
                           i == 0 ? gmma::ScaleOut::Zero : gmma::ScaleOut::One,
                           std::make_index_sequence<kCount>{});
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<0>();
      fence(products);
      CUTE_UNROLL
      for (int block = 0; block < kRows / 8; ++block) {
        const float2 scale = load_shared(reinterpret_cast<const float2*>(of_tokens + block * 8));
        CUTE_UNROLL
        for (int i = block * 4; i < block * 4 + 4; ++i) {
          acc[part][i] += products[i] * (i % 2 == 0 ? scale.x : scale.y);
        }
      }
    }
    __syncwarp();
    release(shared, ring.slot, consumer_thread() % 32);
    ring.advance();
  }
}

// What follows the products of GEMM1, and the way out as codes: 128 outputs of all tokens at a time.
// Piece c of row r lies at c ^ (r % 8), so that neither side meets a bank twice.
template <Epilogue kEpilogue>
__device__ __forceinline__ void finish_codes(Fp4Accumulators& acc, Mxfp4Fp8Storage& shared,
                                             const Fp4GemmArguments& fp4, const int4& tile,
                                             const float* parameters) {
  constexpr bool kGated = kEpilogue == Epilogue::Gated;
  const GemmArguments& arguments = fp4.gemm;
  const int thread = consumer_thread();
  const int warp = thread / 32;
  const int lane = thread % 32;
  const std::uint32_t memory = shared_address(&shared.staging[0][0]);
  // Lane l of stmatrix names token l of 32, whose eight pieces are the warps'.
  const std::uint32_t written =
      memory + lane * kGroup + static_cast<std::uint32_t>(warp ^ (lane % 8)) * 16;
  const int out_row = thread / 8;
  const std::uint32_t read = memory + out_row * kGroup +
                             static_cast<std::uint32_t>(thread % 8 ^ (out_row % 8)) * 16;
  // Neighbouring eighths of a warp have neighbouring places: one takes the first halves of both,
  // the other the second ones.
  const std::uint32_t selector = lane / 4 % 2 == 0 ? 0x6240 : 0x3715;

  CUTE_UNROLL
  for (int part = 0; part < (kGated ? 1 : 2); ++part) {
    const int column = tile.w * kOutputColumns<kEpilogue> + part * kGroup;
    if (column >= fp4.width) break;
    const Fp4Rows own = rows_of<kEpilogue, Fp4::MxFp8>(fp4, tile, thread, part);
    const Fp4Rows ups = rows_of<kEpilogue, Fp4::MxFp8>(fp4, tile, thread, 1);  // of a gated layer
    // Results take the place of what they were made from.
    CUTE_UNROLL
    for (int block = 0; block < kTileRows / 8; ++block) {
      if (block * 8 >= tile.z) break;
      float scale[2] = {1, 1};
      if (arguments.row_scale != nullptr) {
        CUTE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int row = min(block * 8 + lane % 4 * 2 + e, tile.z - 1);
          scale[e] = __ldg(arguments.row_scale + tile.y + row);
        }
      }
      std::uint32_t largest[2] = {};
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const auto sum = [&](int of_part, const Fp4Rows& rows, int e) {
          return acc[of_part][block * 4 + half * 2 + e] * rows.factor[half] * scale[e] +
                 rows.bias[half];
        };
        const float x[2] = {sum(part, own, 0), sum(part, own, 1)};
        float y[2];
        if constexpr (kGated) {
          const float up[2] = {sum(1, ups, 0), sum(1, ups, 1)};
          flexact_act2(x, up, parameters, y);
        } else {
          flexact_act2_unary(x, parameters, y);
        }
        CUTE_UNROLL
        for (int e = 0; e < 2; ++e) {
          // What lies beyond the last column has no part in the scale, and is multiplied by zeros.
          const float result = own.inside[half] ? y[e] : 0;
          acc[part][block * 4 + half * 2 + e] = result;
          largest[e] = max(largest[e], magnitude_bits(result));
        }
      }
      CUTE_UNROLL
      for (int e = 0; e < 2; ++e) {
        CUTE_UNROLL
        for (int distance = 4; distance < 32; distance *= 2) {
          largest[e] = max(largest[e], __shfl_xor_sync(0xffffffffu, largest[e], distance));
        }
      }
      if (lane < 4) {
        store_shared(reinterpret_cast<float2*>(&shared.largest[warp][block * 8 + lane * 2]),
                     {__uint_as_float(largest[0]), __uint_as_float(largest[1])});
      }
    }
    meet_all();
    if (thread < kTileRows) {
      std::uint32_t bits = 0;
      CUTE_UNROLL
      for (int i = 0; i < kConsumers * 4; ++i) {
        const auto* at = reinterpret_cast<const float*>(&shared.largest[i][thread]);
        bits = max(bits, __float_as_uint(load_shared(at)));
      }
      const float scale = fp8_scale(__uint_as_float(bits));
      store_shared(&shared.inverse[thread], reciprocal(scale));
      if (thread < tile.z) {
        fp4.group_scales[column / kGroup * fp4.group_step + tile.y + thread] = scale;
      }
    }
    meet_all();
    CUTE_UNROLL
    for (int quad = 0; quad < kTileRows / 32; ++quad) {
      if (quad * 32 >= tile.z) break;
      std::uint32_t word[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int block = quad * 4 + i;
        const float2 inverse = load_shared(
            reinterpret_cast<const float2*>(&shared.inverse[block * 8 + lane % 4 * 2]));
        const float* y = &acc[part][block * 4];
        const std::uint32_t codes = to_e4m3(y[0] * inverse.x, y[2] * inverse.x) |
                                    std::uint32_t{to_e4m3(y[1] * inverse.y, y[3] * inverse.y)} << 16;
        word[i] = __byte_perm(codes, __shfl_xor_sync(0xffffffffu, codes, 4), selector);
      }
      store_matrices_turned(written + quad * 32 * kGroup, word);
    }
    meet_all();
    auto* to = static_cast<std::uint8_t*>(arguments.output) + column + thread % 8 * 16;
    CUTE_UNROLL
    for (int i = 0; i < kTileRows; i += 32) {
      const int row = i + out_row;
      if (row < tile.z) {
        *reinterpret_cast<uint4*>(to + std::int64_t{tile.y + row} * fp4.width) =
            load_shared16(read + i * kGroup);
      }
    }
  }
}

// A consumer warpgroup.
template <Epilogue kEpilogue>
__device__ __forceinline__ void consume_codes_e4m3(Mxfp4Fp8Storage& shared,
                                                   const Fp4GemmArguments& fp4) {
  constexpr bool kPermuted = kEpilogue != Epilogue::Plain;
  const int thread = static_cast<int>(threadIdx.x) - 128;
  const int row = mxfp4_fp8_row(thread, 0, kPermuted);
  const int codes = row * kFp4CodeBytes + thread % 4 * 16;
  static_assert(mxfp4_fp8_row(0, 1, true) - mxfp4_fp8_row(0, 0, true) == 2);
  const int half_bytes = (kPermuted ? 2 : 8) * kFp4CodeBytes;
  const int warpgroup = __shfl_sync(0xffffffffu, thread / 128, 0);

  Fp4Accumulators acc;
  const int depth = fp4.gemm.depth;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    shared.queue.full[work.slot].wait(work.phase);
    keep_order();
    const int rows = shared.queue.tile[work.slot].w < 0 ? 0 : shared.queue.tile[work.slot].z;
    if (rows == 0) break;

    if (rows > 64) {
      multiply_codes_e4m3<128>(acc, shared, ring, depth, codes, half_bytes);
    } else if (rows > 16) {
      multiply_codes_e4m3<64>(acc, shared, ring, depth, codes, half_bytes);
    } else {
      multiply_codes_e4m3<16>(acc, shared, ring, depth, codes, half_bytes);
    }
    // The tile stayed in the queue: there are no registers for it during the products.
    const int4 tile = next_tile(shared.queue, work, consumer_thread() % 32);

    float parameters[kMaxParameters];
    load_parameters<kEpilogue>(fp4.gemm, tile.x, parameters);
    if constexpr (kEpilogue == Epilogue::Plain) {
      finish<kEpilogue, Fp4::MxFp8>(acc, shared.staging[warpgroup], fp4, tile, parameters);
    } else {
      finish_codes<kEpilogue>(acc, shared, fp4, tile, parameters);
    }
  }
}

// The second producer warp: the tokens' scales of each stage, copied while the codes are.
__device__ __forceinline__ void fetch_input_scales(Mxfp4Fp8Storage& shared,
                                                   const Fp4GemmArguments& fp4) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const int4 tile = next_tile(shared.queue, work, lane);
    if (tile.w < 0) break;

    const float* at[kTileRows / 32];
    CUTE_UNROLL
    for (int i = 0; i < kTileRows / 32; ++i) {
      at[i] = fp4.input_scales + tile.y + min(lane + i * 32, tile.z - 1);
    }
    // Not unrolled: this warp has few registers.
    CUTE_NO_UNROLL
    for (int k = 0; k < fp4.gemm.depth; k += kGroup) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      CUTE_UNROLL
      for (int i = 0; i < kTileRows / 32; ++i) {
        cute::SM80_CP_ASYNC_CACHEALWAYS<float>::copy(
            *at[i], shared.input_scales[ring.slot][lane + i * 32]);
        at[i] += fp4.group_step;
      }
      cutlass::arch::cpasync_barrier_arrive_noinc(
          reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]));
      ring.advance();
    }
  }
  cute::cp_async_wait<0>();
}

template <Epilogue kEpilogue>
__device__ __forceinline__ void mxfp4_fp8_gemm(const CUtensorMap* map_input,
                                               const CUtensorMap* map_codes,
                                               const Fp4GemmArguments& arguments) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<Mxfp4Fp8Storage*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  // A stage is whole when the copy engine's bytes and 32 lanes' scales are there.
  if (threadIdx.x == 0) init_barriers(shared, 1 + 32, kConsumers * 4 + 1);
  if (threadIdx.x < 32) {
    shared.magnitudes[threadIdx.x] =
        mxfp4_fp8_magnitudes(min(static_cast<int>(threadIdx.x), kMxfp4Fp8Nan));
  }
  __syncthreads();
  wait_for_predecessors();
  let_successor_start();

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kFp4ProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_input));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_codes));
      produce_codes<kEpilogue, 1>(shared, map_input, map_codes, arguments);
    } else if (threadIdx.x / 32 == 1) {
      fetch_input_scales(shared, arguments);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kFp4ConsumerRegisters>();
    consume_codes_e4m3<kEpilogue>(shared, arguments);
  }
}

}  // namespace flexact::cuda::sm90

#define FLEXACT_MXFP4_FP8_GEMM_KERNEL(name, epilogue)                              \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)     \
      name(const __grid_constant__ CUtensorMap map_input,                          \
           const __grid_constant__ CUtensorMap map_codes,                          \
           const __grid_constant__ flexact::cuda::Fp4GemmArguments arguments) {    \
    using namespace flexact::cuda;                                                 \
    sm90::mxfp4_fp8_gemm<Epilogue::epilogue>(&map_input, &map_codes, arguments);   \
  }
