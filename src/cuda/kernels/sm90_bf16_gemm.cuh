// The grouped GEMM of a MoE layer on sm_90a in bf16: rows of experts times their weights, with the
// activation linked in afterwards.
//
//   output[r, :] = epilogue(input[r, :] · weights[expert of r]^T)
//
// One persistent CTA on each SM. A producer warp keeps kStages tiles of input and weights in flight
// with TMA; two consumer warpgroups multiply them with wgmma, 64 rows each, and apply the epilogue
// to their own accumulators: nothing of the 2I-wide product is ever written. Which tiles there are is
// read from device memory, so no launch depends on how tokens were routed.
//
// docs/cuda.md is the design note.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include "arguments.hpp"

// The linked function: see activation/printers.hpp. Two elements at a time, so that packed arithmetic
// is possible; after linking it is inlined and its array arguments are registers.
extern "C" __device__ void flexact_act2(const float g[2], const float u[2],
                                        const float* parameters, float y[2]);
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]);

namespace flexact::cuda {

using cute::Int;
using cute::Shape;

// What becomes of the accumulators.
enum class Epilogue {
  Gated,  // the first half of a tile's columns are gates, the second half their ups
  Unary,
  Plain,  // rounded as they are
};

namespace sm90 {

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kWorkSlots = 2;
inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;

using Element = cute::bfloat16_t;
using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

using SmemAtom = cute::GMMA::Layout_K_SW128_Atom<Element>;
using SmemLayoutA = decltype(cute::tile_to_shape(
    SmemAtom{}, Shape<Int<kTileRows>, Int<kTileDepth>, Int<kStages>>{}));
using SmemLayoutB = decltype(cute::tile_to_shape(
    SmemAtom{}, Shape<Int<kTileColumns>, Int<kTileDepth>, Int<kStages>>{}));
using TiledMma = decltype(cute::make_tiled_mma(
    cute::SM90_64x256x16_F32BF16BF16_SS<cute::GMMA::Major::K, cute::GMMA::Major::K>{},
    cute::Layout<Shape<Int<kConsumers>, Int<1>, Int<1>>>{}));

struct SharedStorage {
  alignas(1024) Element a[kStages][kTileRows * kTileDepth];
  alignas(1024) Element b[kStages][kTileColumns * kTileDepth];
  alignas(128) Element staging[kStagingBytes / 2];
  FullBarrier full[kStages];
  EmptyBarrier empty[kStages];
  int4 work[kWorkSlots];  // expert, first row, rows, column tile; -1 as the column: nothing more
  EmptyBarrier work_full[kWorkSlots];
  EmptyBarrier work_empty[kWorkSlots];
};
static_assert(sizeof(SharedStorage) <= kGemmSharedBytes);

// The tile at a position of the order in which tiles are taken. Groups of row tiles are swept column by
// column: the CTAs at work then share few weights and few rows, and L2 serves most reads.
__device__ inline int4 tile_at(const GemmArguments& arguments, int position, int row_tiles) {
  const int group_tiles = arguments.group_rows * arguments.column_tiles;
  const int group = position / group_tiles;
  const int inside = position - group * group_tiles;
  const int first = group * arguments.group_rows;
  const int height = min(arguments.group_rows, row_tiles - first);
  const int column = inside / height;
  const auto* at = arguments.tiles + first + inside - column * height;
  int4 tile = __ldg(reinterpret_cast<const int4*>(at));
  tile.w = column;
  return tile;
}

// A position in a ring of kLength slots; `phase` flips with each round.
template <int kLength>
struct Ring {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ void advance() {
    if (++slot == kLength) {
      slot = 0;
      phase ^= 1;
    }
  }
};

__device__ inline std::uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

// What a thread of a consumer warp must know of its place in the tile: it holds rows `row` and
// `row + 8`, and of every eight columns the two from `column`.
struct Place {
  int warp, lane, row, column;

  // Read anew for each tile: nothing derived from it is worth a register during the products.
  __device__ static Place of_consumer() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    thread -= 128;
    const int warp = thread / 32;
    const int lane = thread % 32;
    return {warp, lane, warp * 16 + lane / 4, lane % 4 * 2};
  }
};

// Accumulators of a 64-row warpgroup tile: value(column block of 8, 0 or 1 for row + 8, 0 or 1).
template <typename Accumulators>
__device__ __forceinline__ float& value(Accumulators& acc, int block, int half, int element) {
  return acc(block * 4 + half * 2 + element);
}

// The router weight of the input row and the bias, where there are any: x·w of a scaled row is the
// scaled product, so nothing is rounded in between.
template <Epilogue kEpilogue, typename Accumulators>
__device__ __forceinline__ void apply_scale_and_bias(Accumulators& acc, const GemmArguments& arguments,
                                                     const RowTile& tile, int first_column,
                                                     const Place& place) {
  constexpr int kBlocks = kTileColumns / 8;
  if (arguments.row_scale != nullptr) {
    float scale[2];
    for (int half = 0; half < 2; ++half) {
      const int row = min(place.row + half * 8, tile.rows - 1);
      scale[half] = arguments.row_scale[tile.first_row + row];
    }
    CUTE_UNROLL
    for (int i = 0; i < kBlocks * 4; ++i) acc(i) *= scale[(i >> 1) & 1];
  }
  if (arguments.bias != nullptr) {
    const std::int64_t columns = arguments.columns;
    const float* bias = arguments.bias + tile.expert * columns * (kEpilogue == Epilogue::Gated ? 2 : 1);
    CUTE_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      const bool second = kEpilogue == Epilogue::Gated && block >= kBlocks / 2;
      const int of_output = (second ? block - kBlocks / 2 : block) * 8;
      const int column = min(first_column + of_output + place.column, arguments.columns - 2);
      const float* at = bias + column + (second ? columns : 0);
      const float2 pair = __ldg(reinterpret_cast<const float2*>(at));
      for (int half = 0; half < 2; ++half) {
        value(acc, block, half, 0) += pair.x;
        value(acc, block, half, 1) += pair.y;
      }
    }
  }
}

// Two neighbouring results of output block `block` (eight columns) in one of the thread's two rows.
template <Epilogue kEpilogue, typename Accumulators>
__device__ __forceinline__ std::uint32_t result(Accumulators& acc, int block, int half,
                                                const float* parameters) {
  if constexpr (kEpilogue == Epilogue::Gated) {
    constexpr int kPartner = kTileColumns / 16;
    const float gate[2] = {value(acc, block, half, 0), value(acc, block, half, 1)};
    const float up[2] = {value(acc, block + kPartner, half, 0), value(acc, block + kPartner, half, 1)};
    float y[2];
    flexact_act2(gate, up, parameters, y);
    return pack(y[0], y[1]);
  } else if constexpr (kEpilogue == Epilogue::Unary) {
    const float x[2] = {value(acc, block, half, 0), value(acc, block, half, 1)};
    float y[2];
    flexact_act2_unary(x, parameters, y);
    return pack(y[0], y[1]);
  } else {
    return pack(value(acc, block, half, 0), value(acc, block, half, 1));
  }
}

// The address with some of its bits inverted.
template <typename T>
__device__ __forceinline__ T* toggle(T* address, int bits) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(address) ^ static_cast<unsigned>(bits));
}

// Each warp turns its 16 rows around in its own shared memory, 128 columns at a time, and writes them
// in whole 16-byte pieces. Piece c of row r lies at c ^ (r % 8), so that neither stmatrix nor the reads
// meet a bank twice.
template <Epilogue kEpilogue, typename Accumulators>
__device__ __forceinline__ void store(Accumulators& acc, Element* staging, const GemmArguments& arguments,
                                      const RowTile& tile, int first_column, const Place& place,
                                      const float* parameters) {
  constexpr int kOutputs = kEpilogue == Epilogue::Gated ? kTileColumns / 2 : kTileColumns;
  const int lane = place.lane;
  const int warp_row = place.row - lane / 4;
  char* const memory = reinterpret_cast<char*>(staging);  // 16 rows of 256 bytes
  char* const written = memory + lane % 16 * 256 + ((lane / 16) ^ (lane % 8)) * 16;
  const char* const read = memory + lane / 16 * 256 + ((lane % 16) ^ (lane / 16)) * 16;
  CUTE_UNROLL
  for (int pass = 0; pass < kOutputs / 128; ++pass) {
    CUTE_UNROLL
    for (int pair = 0; pair < 8; ++pair) {
      // Beside sparing work at the edge, the branch keeps the assembler from evaluating all pairs at
      // once, for which there are not registers enough.
      if (first_column + pass * 128 + pair * 16 >= arguments.columns) break;
      std::uint32_t word[4];  // two blocks of eight columns × two halves of eight rows
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i)
        word[i] = result<kEpilogue>(acc, pass * 16 + pair * 2 + i / 2, i & 1, parameters);
      char* const target = toggle(written, pair % 4 * 32) + pair / 4 * 128;
      cute::SM90_U32x4_STSM_N::copy(word[0], word[1], word[2], word[3],
                                    reinterpret_cast<cute::uint128_t&>(*target));
    }
    __syncwarp();
    const int column = first_column + pass * 128 + lane % 16 * 8;
    auto* output = static_cast<Element*>(arguments.output) + column +
                   std::int64_t{tile.first_row + warp_row + lane / 16} * arguments.columns;
    CUTE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint4 data = *reinterpret_cast<const uint4*>(toggle(read, i % 4 * 32) + i * 512);
      if (warp_row + i * 2 + lane / 16 < tile.rows && column < arguments.columns) {
        *reinterpret_cast<uint4*>(output + std::int64_t{i} * 2 * arguments.columns) = data;
      }
    }
    __syncwarp();
  }
}

// The producer: one thread takes tiles and issues every copy. Tiles are taken from a counter, so that all
// CTAs stay close together in the order however unequal tiles are; the next one is asked for while the
// copies of this one are issued.
template <Epilogue kEpilogue>
__device__ __forceinline__ void produce(SharedStorage& shared, const CUtensorMap* map_a,
                                        const CUtensorMap* map_b, const GemmArguments& arguments) {
  constexpr int kOutputs = kEpilogue == Epilogue::Gated ? kTileColumns / 2 : kTileColumns;
  constexpr int kHalfBytes = 64 * kTileDepth * 2;
  constexpr int kColumnBytes = kTileColumns * kTileDepth * 2;
  constexpr auto kHint = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  const int row_tiles = *arguments.tile_count;
  const int tiles = row_tiles * arguments.column_tiles;
  int position = static_cast<int>(blockIdx.x);
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    const bool any = position < tiles;
    const int next = any ? static_cast<int>(gridDim.x + atomicAdd(arguments.taken, 1u)) : 0;
    const int4 tile = any ? tile_at(arguments, position, row_tiles) : make_int4(0, 0, 0, -1);
    shared.work_empty[work.slot].wait(work.phase ^ 1);
    shared.work[work.slot] = tile;
    shared.work_full[work.slot].arrive();
    work.advance();
    if (!any) break;

    const int first_column = tile.w * kOutputs;
    const int halves = tile.z > 64 ? 2 : 1;
    for (int k = 0; k < arguments.depth; k += kTileDepth) {
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      auto* full = reinterpret_cast<std::uint64_t*>(&shared.full[ring.slot]);
      shared.full[ring.slot].arrive_and_expect_tx(halves * kHalfBytes + kColumnBytes);
      for (int half = 0; half < halves; ++half) {
        cute::SM90_TMA_LOAD_2D::copy(map_a, full, kHint,
                                     &shared.a[ring.slot][half * 64 * kTileDepth], k, tile.y + half * 64);
      }
      // Two boxes of 128 weight rows: gates and their ups, wherever the checkpoint has them.
      CUTE_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int row = first_column + (kEpilogue == Epilogue::Gated ? 0 : part * 128);
        const int pair = kEpilogue == Epilogue::Gated ? part ^ arguments.gate_pair : 0;
        cute::SM90_TMA_LOAD_4D::copy(map_b, full, kHint,
                                     &shared.b[ring.slot][part * 128 * kTileDepth], k,
                                     arguments.interleaved != 0 ? pair : row,
                                     arguments.interleaved != 0 ? row : pair, tile.x);
      }
      ring.advance();
    }
    position = next;
  }

  // The last CTA leaves the counters as it found them.
  if (atomicAdd(arguments.taken + 1, 1u) == gridDim.x - 1) {
    arguments.taken[0] = 0;
    arguments.taken[1] = 0;
  }
}

// A consumer warpgroup.
template <Epilogue kEpilogue>
__device__ __forceinline__ void consume(SharedStorage& shared, const GemmArguments& arguments) {
  constexpr int kOutputs = kEpilogue == Epilogue::Gated ? kTileColumns / 2 : kTileColumns;
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;

  TiledMma mma;
  auto of_warpgroup = mma.get_slice(warpgroup * 128);
  auto a = of_warpgroup.make_fragment_A(of_warpgroup.partition_A(
      cute::make_tensor(cute::make_smem_ptr(&shared.a[0][0]), SmemLayoutA{})));
  auto b = of_warpgroup.make_fragment_B(of_warpgroup.partition_B(
      cute::make_tensor(cute::make_smem_ptr(&shared.b[0][0]), SmemLayoutB{})));
  auto acc = cute::partition_fragment_C(mma, Shape<Int<kTileRows>, Int<kTileColumns>>{});

  const int steps = (arguments.depth + kTileDepth - 1) / kTileDepth;
  Ring<kStages> ring;
  Ring<kWorkSlots> work;
  while (true) {
    shared.work_full[work.slot].wait(work.phase);
    const int4 tile = shared.work[work.slot];
    __syncwarp();
    if (lane == 0) shared.work_empty[work.slot].arrive();
    work.advance();
    if (tile.w < 0) break;

    // The second warpgroup has nothing to do in a short tile.
    if (warpgroup * 64 >= tile.z) {
      for (int step = 0; step < steps; ++step) {
        shared.full[ring.slot].wait(ring.phase);
        if (lane == 0) shared.empty[ring.slot].arrive();
        ring.advance();
      }
      continue;
    }

    // One product stays in flight: a stage is given back when the next one's has been issued.
    mma.accumulate_ = cute::GMMA::ScaleOut::Zero;
    int previous = 0;
    for (int step = 0; step < steps; ++step) {
      shared.full[ring.slot].wait(ring.phase);
      cute::warpgroup_fence_operand(acc);
      cute::warpgroup_arrive();
      CUTE_UNROLL
      for (int k = 0; k < kTileDepth / 16; ++k) {
        cute::gemm(mma, a(cute::_, cute::_, k, ring.slot), b(cute::_, cute::_, k, ring.slot), acc);
        mma.accumulate_ = cute::GMMA::ScaleOut::One;
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<1>();
      cute::warpgroup_fence_operand(acc);
      if (step > 0 && lane == 0) shared.empty[previous].arrive();
      previous = ring.slot;
      ring.advance();
    }
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(acc);
    if (lane == 0) shared.empty[previous].arrive();

    const Place place = Place::of_consumer();
    // A copy in registers: the compiler could not know that stores leave the table alone.
    float parameters[kMaxParameters];
    if constexpr (kEpilogue != Epilogue::Plain) {
      CUTE_UNROLL
      for (int i = 0; i < kMaxParameters; ++i) {
        parameters[i] = i < arguments.value_columns
                            ? __ldg(arguments.values + tile.x * arguments.value_stride + i)
                            : 0.0f;
      }
    }
    const RowTile rows = {tile.x, tile.y, tile.z, 0};
    apply_scale_and_bias<kEpilogue>(acc, arguments, rows, tile.w * kOutputs, place);
    store<kEpilogue>(acc, shared.staging + place.warp * 16 * 128, arguments, rows, tile.w * kOutputs, place,
                     parameters);
  }
}

template <Epilogue kEpilogue>
__device__ __forceinline__ void grouped_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                             const GemmArguments& arguments) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<SharedStorage*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(kConsumers * 4);
    }
    for (int slot = 0; slot < kWorkSlots; ++slot) {
      shared.work_full[slot].init(1);
      shared.work_empty[slot].init(kConsumers * 4);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      produce<kEpilogue>(shared, map_a, map_b, arguments);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<kEpilogue>(shared, arguments);
  }
}

}  // namespace sm90
}  // namespace flexact::cuda

#define FLEXACT_GEMM_KERNEL(name, epilogue)                                                      \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                   \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, \
           const __grid_constant__ flexact::cuda::GemmArguments arguments) {                     \
    flexact::cuda::sm90::grouped_gemm<flexact::cuda::Epilogue::epilogue>(&map_a, &map_b, arguments); \
  }
