// What the host passes to the kernels: plain structures that both sides include.
#pragma once

#include <cstdint>

namespace flexact::cuda {

// Rows of one tile of a grouped GEMM; the rows of an expert that are left over make a shorter one.
inline constexpr int kTileRows = 128;
// The last tile of an expert may have so many rows more, where a kernel has room for them: bytes of
// weights are what a tile waits for, and those of a tile of few rows are the same.
inline constexpr int kExtraRows = 32;
// Columns of the weights that one tile covers: for a gated layer half of them are gate, half up.
inline constexpr int kTileColumns = 256;
inline constexpr int kTileDepth = 64;
inline constexpr int kStages = 4;
inline constexpr int kGemmThreads = 384;
inline constexpr int kMaxParameters = 16;

// Shared memory of a GEMM kernel: the stages, the staging of results, two barriers a stage, and
// room to align it all to the 1024 bytes that swizzled tiles need.
inline constexpr int kStageBytes = (kTileRows + kTileColumns) * kTileDepth * 2;
inline constexpr int kStagingBytes = kTileRows * 64 * 2;
inline constexpr int kGemmSharedBytes = kStages * (kStageBytes + kExtraRows * kTileDepth * 2) +
                                        kStagingBytes + 2 * kStages * 8 + 128 + 1024;

// The same with E4M3: a stage is 128 bytes of each row, so a group of 128 inputs, and their scales.
inline constexpr int kGroup = 128;
inline constexpr int kCodeRowBytes =
    kGroup + 16;  // of staged codes, so that rows meet different banks
inline constexpr int kFp8WarpStagingBytes = 16 * kCodeRowBytes;
inline constexpr int kFp8SharedBytes = kStages * (kStageBytes + (kTileRows + 4) * 4) +
                                       8 * kFp8WarpStagingBytes + 2 * kStages * 8 + 256 + 1024;

// The same with E2M1 weights (fp4_layout.hpp): a stage is 128 columns of bf16 rows, of codes, and
// up to 2 KiB of scales; results leave 64 rows of a warpgroup at a time.
inline constexpr int kFp4StagingBytes = 64 * 64 * 2;
inline constexpr int kFp4SharedBytes =
    kStages * (kTileRows * 256 + kTileColumns * 64 + 2048) + 2 * kFp4StagingBytes + 256 + 1024;

// Tiles of few rows: twice the consumers, more and smaller stages, and sums on their way from one
// half of the consumers to the other.
inline constexpr int kFp4FewRows = 32;
inline constexpr int kFp4FewStages = 7;
inline constexpr int kFp4FewThreads = 640;
inline constexpr int kFp4FewSharedBytes =
    kFp4FewStages * (kFp4FewRows * 256 + kTileColumns * 64 + 2048) + 2 * 16 * 128 +
    kFp4FewRows * 256 * 4 + 256 + 1024;

// The same with E4M3 inputs: a stage's rows are half as long and have scales; groups of results
// meet their largest magnitude in shared memory.
inline constexpr int kMxfp4Fp8SharedBytes =
    kStages * (kTileRows * (128 + 4) + kTileColumns * 64 + 1024) + 2 * kFp4StagingBytes +
    (8 + 1) * kTileRows * 4 + 256 + 256 + 1024;

inline constexpr int kRouteThreads = 1024;
inline constexpr int kRowThreads = 128;  // of gather and combine, eight elements each
inline constexpr int kBlockSlots = 256;  // of the tokens that one of their blocks works on, at most
inline constexpr int kRouteBlocks = 8;   // of one cluster, where there is work for so many
// Calls of so few slots and experts need no route: blocks of gather count for themselves.
inline constexpr int kCountedSlots = 2048;
inline constexpr int kCountedExperts = 1024;

// One row tile: `rows` consecutive rows of the sorted order, all of one expert, at most as many as
// the call's kernels take.
struct RowTile {
  std::int32_t expert;
  std::int32_t first_row;
  std::int32_t rows;
  std::int32_t run;  // its place among its expert's tiles, and their number: see tile_run()
};

// Tiles of one expert that follow each other, in 16 bits each; of more than kMostRun tiles a part.
inline constexpr int kMostRun = 32768;
#ifdef __CUDACC__
__host__ __device__
#endif
    constexpr std::int32_t
    tile_run(int index, int tiles) {
  const int first = index / kMostRun * kMostRun;
  const int count = tiles - first < kMostRun ? tiles - first : kMostRun;
  return (count - 1) << 16 | (index - first);
}

struct GemmArguments {
  const RowTile* tiles;
  const std::int32_t* tile_count;
  std::uint32_t* taken;     // two counters, 0 before and after: tiles taken, CTAs that are done
  void* output;             // [rows, columns] bf16
  std::int32_t columns;     // of the output: I or H
  std::int32_t depth;       // H or I
  std::int32_t group_rows;  // row tiles that are swept together, so that weights stay in L2;
                            // negative: of one expert, at most so many
  std::int32_t column_tiles;
  std::int32_t value_columns;
  std::int32_t gate_pair;    // which of the two weight rows of an output is the gate: 0 or 1
  std::int32_t interleaved;  // the two are neighbours: the weights' second dimension, not the third
  std::int32_t split_last;  // tiles of a last round that fills half of the CTAs are taken in halves
  std::int32_t early_weights;  // the first may be read before the predecessor has ended: its tiles
                               // were listed before that
  std::int32_t padding;
  const float* values;        // [1 or E, value_columns]
  std::int64_t value_stride;  // 0 where all experts share one row
  const float* bias;          // [E, columns], gated [E, 2, columns], gates first; or null
  const float* row_scale;     // [rows] factor of the input row, or null
};

// Where a scale of a matrix lies: at[row * row_step + group * group_step]. Steps of 0: one for all.
struct ScaleGrid {
  const float* at;
  std::int64_t row_step;
  std::int64_t group_step;  // of 128 elements along K
};

// A GEMM of E4M3 codes.
struct Fp8GemmArguments {
  GemmArguments gemm;  // output: bf16, or codes [rows, columns]
  ScaleGrid input;     // of sorted rows
  ScaleGrid
      weights;  // of one expert's columns, or blocks of 128 columns; of gates where there are any
  std::int64_t expert_step;
  std::int64_t up_step;       // from a gate's scale to its up's
  std::int32_t last_block;    // of a half's, or alternating, blocks of 128 columns
  std::int32_t largest_step;  // 1: one magnitude a row, 0: one for all
  float* group_scales;  // written: [ceil(columns / 128), rows], group_step of the next GEMM's input
  std::int64_t group_step;
  const float* given_scale;  // of all results, where the checkpoint has one
  std::uint32_t* largest;    // raised to the bits of the results' largest magnitude
};

// A GEMM of bf16 rows, whose columns are ordered by fp4_column(), with E2M1 codes; in mxfp4_fp8, of
// E4M3 rows whose columns are ordered by mxfp4_fp8_column().
struct Fp4GemmArguments {
  GemmArguments gemm;          // output: bf16 [rows, width], or codes for the next GEMM
  const std::uint8_t* scales;  // as Fp4ScaleArguments leave them
  const float* global;         // nvfp4: of expert e and part p at e·global_step + p·up_step
  std::int64_t global_step;
  std::int64_t up_step;
  std::int32_t width;     // of an output row: whole blocks where the next GEMM reads it
  std::int32_t box_rows;  // of the input's tensor map: 8 to 64
  // mxfp4_fp8:
  const std::uint8_t* largest;  // scale (E8M0) of each weight row, in the order of the bias
  const float* input_scales;    // [groups of 128, group_step], of sorted rows
  float* group_scales;          // the output's, written; as the next GEMM's input
  std::int64_t group_step;
};

// Scales of FP4 weights to the order in which a GEMM reads them, once a layer.
struct Fp4ScaleArguments {
  const std::uint8_t*
      scales;  // of expert e and output i: e·expert_step + i·row_step + offset[part]
  std::int64_t expert_step;
  std::int64_t row_step;
  std::int64_t group_step;
  std::int64_t offset[2];  // gate and up
  std::uint8_t* output;    // [experts, column_tiles, steps, fp4_scale_bytes(of_row)]
  std::int32_t columns;    // outputs: I or H
  std::int32_t groups;     // of a row
  std::int32_t column_tiles;
  std::int32_t steps;   // blocks of 128 along K
  std::int32_t of_row;  // groups in a thread's 32 columns: 1 (E8M0) or 2 (E4M3)
  std::int32_t gated;
  std::int32_t permuted;  // outputs are ordered by fp4_column(), in mxfp4_fp8 mxfp4_fp8_column()
  std::int32_t e4m3;      // mxfp4_fp8: scales become places in a table, by the largest of their row
  std::uint8_t* largest;  // [experts, gated ? 2 : 1, columns]
  std::uint32_t* outside;  // counts scales under which weights were rounded
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
  std::uint32_t* taken;  // counters to clear: two of GEMM1, two of GEMM2, and what a format adds
  std::int32_t counters;
  std::int32_t tile_rows;   // at most
  std::int32_t extra_rows;  // of the last tile of an expert, beyond those
};

// The router's ids as they are, for kernels that find an expert's tokens themselves. A slot is a
// token's k-th choice: slot / top_k is the token.
struct RoutedIds {
  const void* ids;
  std::int64_t stride;
  std::int64_t step;
  std::int32_t wide;  // int64, else int32
  std::int32_t experts;
  std::int32_t slots;  // tokens · top_k
  std::int32_t top_k;
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
  std::int32_t tokens;
  std::int32_t block_tokens;  // tokens of one block
};

// Rows with columns ordered by fp4_column().
struct Fp4GatherArguments {
  GatherArguments gather;
  std::int32_t width;  // of a written row: whole blocks
  std::int32_t padding;
};

// Which values of the input share a scale.
enum class InputScaling : std::int32_t {
  Groups,  // 128 of a row
  Rows,
  All,    // every row that an expert takes
  Given,  // by the checkpoint
};

// Rows as E4M3 codes.
struct Fp8GatherArguments {
  GatherArguments gather;
  InputScaling scaling;
  std::int32_t row_bytes;   // of a written row: the width, or whole blocks
  float* scales;            // written: [groups, rows], [rows] or [1]
  std::int64_t group_step;  // between groups: how many rows there are
  const float* given;
  // All: bits of the largest magnitude, in `largest_count` parts: 1, which was cleared before and
  // is raised, or one of each token's of each block that looks at it.
  std::uint32_t* largest;
  std::uint32_t* activated_largest;  // [rows] to clear for GEMM1, or null
  std::int32_t ordered;  // mxfp4_fp8: columns are ordered by mxfp4_fp8_column(), rows whole blocks
  std::int32_t largest_count;
  RoutedIds routed;
};

// GEMM1's bf16 results to codes.
struct Fp8RoundArguments {
  const void* rows;  // [rows, width]
  void* codes;
  const RowTile* tiles;
  const std::int32_t* tile_count;
  const std::uint32_t* largest;  // as GEMM1 left them
  float* scales;                 // written, as many
  std::int32_t largest_step;     // 1: one a row, 0: one for all
  std::int32_t width;
};

// Kernels for a few tokens (stream.cuh).
inline constexpr int kStreamThreads = 256;
inline constexpr int kStreamRows = 16;    // outputs that a warp works on
inline constexpr int kStreamColumns = 8;  // slots that one pass over the weights serves
inline constexpr int kStreamMaxSlots = kStreamThreads;

struct StreamArguments {
  RoutedIds routed;
  const void* input;  // [tokens or slots, depth], rows `input_stride` elements apart
  std::int64_t input_stride;
  const void* weights;  // of expert e and output i: e·expert_stride + i·row_stride + offset[part]
  std::int64_t expert_stride;
  std::int64_t row_stride;
  std::int64_t offset[2];  // gate and up, in elements; without a gate the first
  void* output;            // [slots, columns], with `sum` [tokens, columns]
  const float* bias;       // as the GEMM's, or null
  const float* weight;     // the router's [tokens, top_k], a factor of a slot's result; or null
  std::int64_t weight_stride;
  std::int64_t weight_step;
  const float* values;  // as the GEMM's
  std::int64_t value_stride;
  std::int32_t value_columns;
  std::int32_t columns;
  std::int32_t depth;
  std::int32_t input_of_slots;  // a row of the input belongs to a slot, else to a token
  std::int32_t row_warps;  // warps of a block beside each other, 1 to 8; others divide the depth
  std::int32_t sum;        // blocks of y are tokens, and their slots' results are added
  float scale;             // of a sum
  std::int32_t padding;
};

// With E2M1 weights and bf16 inputs. Strides of weights are bytes.
struct Fp4StreamArguments {
  StreamArguments stream;
  const std::uint8_t* scales;  // as Fp4ScaleArguments leave them, as are the next two
  std::int32_t column_tiles;
  std::int32_t steps;
  const float* global;  // nvfp4: of expert e and part p at e·global_step + p·up_step
  std::int64_t global_step;
  std::int64_t up_step;
};

// With E4M3 weights, and inputs that become E4M3. Strides of weights are bytes.
struct Fp8StreamArguments {
  StreamArguments stream;  // input: bf16, in the second half fp32; output: the other way around
  ScaleGrid weights;       // as the GEMM's
  std::int64_t expert_step;
  std::int64_t up_step;
  const float* given;  // the input's scale, where it is given
  InputScaling scaling;
  std::int32_t interleaved;     // blocks of scales are cut from alternating rows
  std::int32_t rounds_results;  // the fp32 output holds bf16 numbers
  std::int32_t padding;
};

// Shared memory for a column's codes and scales.
constexpr std::int64_t fp8_stream_bytes(std::int64_t depth) {
  return (depth + kGroup - 1) / kGroup * (kGroup + 4) + 64;
}
inline constexpr int kFp8StreamMostShared = 200 * 1024;

struct CombineArguments {
  const void* rows;  // [rows, hidden]
  const std::int32_t*
      slot_row;  // null: row of a slot is the slot, and `routed` says whether it is ours
  RoutedIds routed;
  const float* weights;  // [tokens, top_k], or null: 1
  std::int64_t weight_stride;
  std::int64_t weight_step;
  void* output;  // [tokens, hidden], or [tokens, top_k, hidden] without `combine`
  std::int32_t width;
  std::int32_t top_k;
  float scale;
  std::int32_t combine;
  std::int32_t tokens;
  std::int32_t block_tokens;  // of one block
};

// act_and_mul of rows (dense_rows.cuh).
inline constexpr int kDenseThreads = 256;
inline constexpr int kDensePieces = 4;        // of 16 bytes that a thread has on their way
inline constexpr int kDenseRowThreads = 512;  // at most, of a block that has a row
inline constexpr int kDenseHeld = 4;          // pieces of a row that a thread keeps

struct DenseArguments {
  const void* x;
  std::int64_t x_stride;       // elements, as everything here
  std::int64_t first, second;  // from a place in a row to its gates and its ups; interleaved: to
                               // its first and second 16 bytes
  void* output;                // of x's type, or E4M3 codes
  std::int64_t output_stride;
  float* scales;
  std::int64_t scale_row_step;
  std::int64_t scale_group_step;
  const float* values;
  std::int32_t value_columns;
  std::int32_t width;        // of a row of results
  std::uint32_t pieces;      // of all rows, fewer than 2^31
  std::uint32_t row_pieces;  // of a row
  std::int32_t each;         // pieces of a thread
  std::int32_t interleaved;
  std::int32_t vectors;  // all is aligned to pieces, and rows are whole ones
  std::int32_t padding;
};

}  // namespace flexact::cuda
