// What the host passes to the kernels: plain structures that both sides include.
#pragma once

#include <cstdint>

namespace flexact::cuda {

// Rows of one tile of a grouped GEMM; the rows of an expert that are left over make a shorter one.
inline constexpr int kTileRows = 128;
// Columns of the weights that one tile covers: for a gated layer half of them are gate, half up.
inline constexpr int kTileColumns = 256;
inline constexpr int kTileDepth = 64;
inline constexpr int kStages = 4;
inline constexpr int kGemmThreads = 384;
inline constexpr int kMaxParameters = 16;

// Shared memory of a GEMM kernel: the stages, the staging of results, two barriers a stage, and
// room to align it all to the 1024 bytes that swizzled tiles need.
inline constexpr int kStageBytes = (kTileRows + kTileColumns) * kTileDepth * 2;
inline constexpr int kStagingBytes = kTileRows * 128 * 2;
inline constexpr int kGemmSharedBytes =
    kStages * kStageBytes + kStagingBytes + 2 * kStages * 8 + 1024;

inline constexpr int kRouteThreads = 1024;
inline constexpr int kRowThreads = 128;  // of gather and combine, eight elements each
inline constexpr int kRouteBlocks = 8;   // of one cluster, where there is work for so many

// One row tile: `rows` consecutive rows of the sorted order, all of one expert.
struct RowTile {
  std::int32_t expert;
  std::int32_t first_row;
  std::int32_t rows;
  std::int32_t padding;
};

struct GemmArguments {
  const RowTile* tiles;
  const std::int32_t* tile_count;
  std::uint32_t* taken;     // two counters, 0 before and after: tiles taken, CTAs that are done
  void* output;             // [rows, columns] bf16
  std::int32_t columns;     // of the output: I or H
  std::int32_t depth;       // H or I
  std::int32_t group_rows;  // row tiles that are swept together, so that weights stay in L2
  std::int32_t column_tiles;
  std::int32_t value_columns;
  std::int32_t gate_pair;    // which of the two weight rows of an output is the gate: 0 or 1
  std::int32_t interleaved;  // the two are neighbours: the weights' second dimension, not the third
  std::int32_t padding;
  const float* values;        // [1 or E, value_columns]
  std::int64_t value_stride;  // 0 where all experts share one row
  const float* bias;          // [E, columns], gated [E, 2, columns], gates first; or null
  const float* row_scale;     // [rows] factor of the input row, or null
};

// A bias of any floating type in the order that the GEMM reads.
struct BiasArguments {
  const void* bias;  // [experts, width]
  std::int64_t stride;
  std::int64_t step;
  std::int32_t type;         // DType
  std::int32_t width;        // gated: 2I
  std::int32_t interleaved;  // gate and up of a column are neighbours
  std::int32_t up_first;
  float* output;
};

struct RouteArguments {
  const void* ids;  // [tokens, top_k]
  std::int64_t id_stride;
  std::int64_t id_step;
  std::int32_t wide_ids;  // int64, else int32
  std::int32_t experts;
  std::int32_t tokens;
  std::int32_t top_k;
  std::int32_t* slot_row;  // [tokens, top_k]: its row in the sorted order, or -1
  RowTile* tiles;
  std::int32_t* tile_count;
  std::uint32_t* taken;  // four counters to clear: of GEMM1 and GEMM2
};

struct GatherArguments {
  const void* hidden;  // [tokens, hidden], rows `hidden_stride` elements apart
  std::int64_t hidden_stride;
  const std::int32_t* slot_row;
  const float* weights;  // [tokens, top_k], or null where rows are not scaled
  std::int64_t weight_stride;
  std::int64_t weight_step;
  void* rows;        // [rows, hidden]
  float* row_scale;  // [rows]
  std::int32_t width;
  std::int32_t top_k;
};

struct CombineArguments {
  const void* rows;  // [rows, hidden]
  const std::int32_t* slot_row;
  const float* weights;  // [tokens, top_k], or null: 1
  std::int64_t weight_stride;
  std::int64_t weight_step;
  void* output;  // [tokens, hidden], or [tokens, top_k, hidden] without `combine`
  std::int32_t width;
  std::int32_t top_k;
  float scale;
  std::int32_t combine;
};

}  // namespace flexact::cuda
