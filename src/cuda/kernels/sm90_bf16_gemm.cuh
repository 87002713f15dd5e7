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
#include <cute/arch/cluster_sm90.hpp>
#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include "arguments.hpp"

// The linked function: see activation/printers.hpp. Two elements at a time, so that packed arithmetic
// is possible; after linking it is inlined and its array arguments are registers.
extern "C" __device__ void flexact_act2(const float first[2], const float second[2],
                                        const float* parameters, float y[2]);
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]);

namespace flexact::cuda {

using cute::Int;
using cute::Shape;

// What becomes of the accumulators.
enum class Epilogue {
  Gated,  // columns 16j … 16j+7 are the gates (or ups) of outputs 8j … 8j+7, the next eight their partners
  Unary,
  Plain,  // rounded as they are
};

namespace sm90 {

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kProducerRegisters = 24;
inline constexpr int kConsumerRegisters = 240;

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
};
static_assert(kStages * kStageBytes + kStagingBytes + 2 * kStages * 8 + 1024 <= kGemmSharedBytes);

// The tiles of this cluster, one after the other. Groups of row tiles are swept column by column:
// the CTAs at work then share few weights and few rows, and L2 serves most reads.
struct Schedule {
  const GemmArguments& arguments;  // stays in constant memory
  int row_tiles;
  int position;

  template <int kCluster>
  __device__ static Schedule of_cluster(const GemmArguments& arguments) {
    return {arguments, *arguments.tile_count, static_cast<int>(blockIdx.x) / kCluster};
  }

  template <int kCluster>
  __device__ bool next(RowTile& rows, int& column) {
    if (position >= row_tiles * arguments.column_tiles) return false;
    const int group_tiles = arguments.group_rows * arguments.column_tiles;
    const int group = position / group_tiles;
    const int inside = position - group * group_tiles;
    const int first = group * arguments.group_rows;
    const int height = min(arguments.group_rows, row_tiles - first);
    column = inside / height;
    const auto* at = arguments.tiles + first + inside - column * height;
    const int4 entry = __ldg(reinterpret_cast<const int4*>(at));
    rows = {entry.x, entry.y, entry.z, 0};
    position += static_cast<int>(gridDim.x) / kCluster;
    return true;
  }
};

// A position in the ring of stages; `phase` flips with each round.
struct Ring {
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
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
      const int of_output = kEpilogue == Epilogue::Gated ? block / 2 * 8 : block * 8;
      const int column = min(first_column + of_output + place.column, arguments.columns - 2);
      const float* at = bias + column + (kEpilogue == Epilogue::Gated && block % 2 == 1 ? columns : 0);
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
    const float first[2] = {value(acc, 2 * block, half, 0), value(acc, 2 * block, half, 1)};
    const float second[2] = {value(acc, 2 * block + 1, half, 0), value(acc, 2 * block + 1, half, 1)};
    float y[2];
    flexact_act2(first, second, parameters, y);
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

// The producer: one thread issues every copy of this CTA.
template <Epilogue kEpilogue, int kCluster>
__device__ __forceinline__ void produce(SharedStorage& shared, const CUtensorMap* map_a,
                                        const CUtensorMap* map_b, const GemmArguments& arguments,
                                        int rank) {
  constexpr int kOutputs = kEpilogue == Epilogue::Gated ? kTileColumns / 2 : kTileColumns;
  constexpr int kHalfBytes = 64 * kTileDepth * 2;
  constexpr int kColumnBytes = kTileColumns * kTileDepth * 2;
  Schedule schedule = Schedule::of_cluster<kCluster>(arguments);
  constexpr auto kKeep = static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  Ring ring;
  RowTile tile;
  int column;
  while (schedule.next<kCluster>(tile, column)) {
    const int first_column = (column * kCluster + rank) * kOutputs;
    const int halves = tile.rows > 64 ? 2 : 1;
    for (int k = 0; k < arguments.depth; k += kTileDepth) {
      shared.empty[ring.stage].wait(ring.phase ^ 1);
      auto* full = reinterpret_cast<std::uint64_t*>(&shared.full[ring.stage]);
      shared.full[ring.stage].arrive_and_expect_tx(halves * kHalfBytes + kColumnBytes);

      // In a cluster, each CTA fetches half of the rows for both.
      for (int half = 0; half < halves; ++half) {
        Element* target = &shared.a[ring.stage][half * 64 * kTileDepth];
        if constexpr (kCluster == 1) {
          cute::SM90_TMA_LOAD_2D::copy(map_a, full, kKeep, target, k, tile.first_row + half * 64);
        } else if (half == rank) {
          cute::SM90_TMA_LOAD_MULTICAST_2D::copy(map_a, full, (1 << kCluster) - 1, kKeep, target, k,
                                                 tile.first_row + half * 64);
        }
      }
      if constexpr (kEpilogue == Epilogue::Gated) {
        cute::SM90_TMA_LOAD_5D::copy(map_b, full, kKeep, shared.b[ring.stage], k, 0, 0, first_column / 8,
                                     tile.expert);
      } else {
        cute::SM90_TMA_LOAD_3D::copy(map_b, full, kKeep, shared.b[ring.stage], k, first_column,
                                     tile.expert);
      }
      ring.advance();
    }
  }
}

// Gives a stage back to whoever writes into it: the producers of all CTAs of the cluster.
template <int kCluster>
__device__ __forceinline__ void release(EmptyBarrier& empty, int lane) {
  if constexpr (kCluster == 1) {
    if (lane == 0) empty.arrive();
  } else {
    if (lane < kCluster) empty.arrive(lane);
  }
}

// A consumer warpgroup.
template <Epilogue kEpilogue, int kCluster>
__device__ __forceinline__ void consume(SharedStorage& shared, const GemmArguments& arguments,
                                        int rank) {
  constexpr int kOutputs = kEpilogue == Epilogue::Gated ? kTileColumns / 2 : kTileColumns;
  const int thread = static_cast<int>(threadIdx.x) - 128;
  const int warpgroup_row = thread / 128 * 64;
  const int lane = thread % 32;

  TiledMma mma;
  auto of_thread = mma.get_slice(thread);
  auto a = of_thread.make_fragment_A(of_thread.partition_A(
      cute::make_tensor(cute::make_smem_ptr(&shared.a[0][0]), SmemLayoutA{})));
  auto b = of_thread.make_fragment_B(of_thread.partition_B(
      cute::make_tensor(cute::make_smem_ptr(&shared.b[0][0]), SmemLayoutB{})));
  auto acc = cute::partition_fragment_C(mma, Shape<Int<kTileRows>, Int<kTileColumns>>{});

  Schedule schedule = Schedule::of_cluster<kCluster>(arguments);
  const int steps = (arguments.depth + kTileDepth - 1) / kTileDepth;
  Ring ring;
  RowTile tile;
  int column;
  while (schedule.next<kCluster>(tile, column)) {
    // The second warpgroup has nothing to do in a short tile.
    if (warpgroup_row >= tile.rows) {
      for (int step = 0; step < steps; ++step) {
        shared.full[ring.stage].wait(ring.phase);
        release<kCluster>(shared.empty[ring.stage], lane);
        ring.advance();
      }
      continue;
    }

    // One product stays in flight: a stage is released when the next one's has been issued.
    mma.accumulate_ = cute::GMMA::ScaleOut::Zero;
    int previous = 0;
    for (int step = 0; step < steps; ++step) {
      shared.full[ring.stage].wait(ring.phase);
      cute::warpgroup_fence_operand(acc);
      cute::warpgroup_arrive();
      CUTE_UNROLL
      for (int k = 0; k < kTileDepth / 16; ++k) {
        cute::gemm(mma, a(cute::_, cute::_, k, ring.stage), b(cute::_, cute::_, k, ring.stage), acc);
        mma.accumulate_ = cute::GMMA::ScaleOut::One;
      }
      cute::warpgroup_commit_batch();
      cute::warpgroup_wait<1>();
      cute::warpgroup_fence_operand(acc);
      if (step > 0) release<kCluster>(shared.empty[previous], lane);
      previous = ring.stage;
      ring.advance();
    }
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(acc);
    release<kCluster>(shared.empty[previous], lane);

    const Place place = Place::of_consumer();
    // A copy in registers: the compiler could not know that stores leave the table alone.
    float parameters[kMaxParameters];
    if constexpr (kEpilogue != Epilogue::Plain) {
      CUTE_UNROLL
      for (int i = 0; i < kMaxParameters; ++i) {
        parameters[i] = i < arguments.value_columns
                            ? __ldg(arguments.values + tile.expert * arguments.value_stride + i)
                            : 0.0f;
      }
    }
    const int first_column = (column * kCluster + rank) * kOutputs;
    apply_scale_and_bias<kEpilogue>(acc, arguments, tile, first_column, place);
    store<kEpilogue>(acc, shared.staging + place.warp * 16 * 128, arguments, tile, first_column, place, parameters);
  }
}

template <Epilogue kEpilogue, int kCluster>
__device__ __forceinline__ void grouped_gemm(const CUtensorMap* map_a, const CUtensorMap* map_b,
                                             const GemmArguments& arguments) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<SharedStorage*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  const int rank = kCluster == 1 ? 0 : static_cast<int>(cute::block_rank_in_cluster());

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(kCluster * kConsumers * 4);
    }
    cutlass::arch::fence_barrier_init();
  }
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    cute::cluster_arrive_relaxed();
    cute::cluster_wait();
  }

  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_a));
      cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(map_b));
      produce<kEpilogue, kCluster>(shared, map_a, map_b, arguments, rank);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume<kEpilogue, kCluster>(shared, arguments, rank);
  }

  // No CTA leaves while the other may still write into its shared memory or wait for its arrival.
  if constexpr (kCluster > 1) {
    cute::cluster_arrive();
    cute::cluster_wait();
  }
}

}  // namespace sm90
}  // namespace flexact::cuda

#define FLEXACT_GEMM_KERNEL(name, epilogue, cluster)                                              \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kGemmThreads, 1)                    \
      name(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,  \
           const __grid_constant__ flexact::cuda::GemmArguments arguments) {                      \
    flexact::cuda::sm90::grouped_gemm<flexact::cuda::Epilogue::epilogue, cluster>(&map_a, &map_b, \
                                                                                  arguments);     \
  }
