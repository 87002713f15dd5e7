// What a call launches: decided here from the sizes of a problem and of a call, and from nothing
// else.
#pragma once

#include <cstdint>

#include "cuda/kernels/arguments.hpp"
#include "flexact/moe.hpp"

namespace flexact::cuda {

enum class Path {
  Auto,    // as a wish: what was measured best
  Tiled,   // route, gather, two GEMMs of tiles, combine
  Stream,  // a few tokens: passes over the weights of their experts, and no routing
};

// Of choices that tests and benchmarks make; what is left out is decided by choose().
struct Wish {
  Path path = Path::Auto;
  int dependent_launches = -1;  // programmatic dependent launch: 0 or 1
  int group_rows = 0;           // row tiles that are swept together in GEMM1 …
  int group_rows2 = 0;          // … and GEMM2
  int split_last = -1;          // tiles of the last round are taken in halves: 0 or 1
  int extra_rows = -1;          // an expert's last tile takes a few rows more: 0 or 1
  int early_weights = -1;       // read before the predecessor has ended: 0 or 1
  int counted_rows = -1;        // gather's blocks count rows themselves, without a route: 0 or 1
  int few_rows = -1;            // FP4: the kernels of tiles of few rows, 0 or 1
  int block_tokens = 0;         // of a block of gather and combine
  int row_warps = 0;            // of the stream kernels: 1, 2, 4 or 8
  int row_warps2 = 0;
  int sum = -1;  // of the stream path: whether its second kernel adds the experts' results, 0 or 1
};

struct Choice {
  Path path = Path::Tiled;
  bool dependent_launches = false;
  int group_rows = 0, group_rows2 = 0;
  bool split_last = false;
  int extra_rows = 0;  // of an expert's last tile, beyond tile_rows
  bool early_weights = false;
  bool counted_rows = false;
  bool few_rows = false;
  int tile_rows = kTileRows;  // at most
  int block_tokens = 1;
  int row_warps = 1, row_warps2 = 1;
  bool sum = false;
  int box_rows = 64;  // that a copy of input rows takes
};

// `aligned`: rows of the hidden states begin at multiples of 16 bytes.
Choice choose(const MoeProblem& problem, std::int64_t tokens, bool aligned, int multiprocessors,
              const Wish& wish);

// Whether there are kernels of tiles of few rows.
bool has_few_rows(const MoeProblem& problem);

// Whether some call of the problem takes the path, so that its kernels are needed.
bool may_take(Path path, const MoeProblem& problem, const Wish& wish);

}  // namespace flexact::cuda
