// How a GPU kernel is launched: tile shapes and routes, from measured tables or from a model.
//
// Token counts are rounded up to powers of two first, so that a layer has a short list of launches:
// all of them can be compiled before serving, and no new token count compiles anything.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flexact/moe.hpp"

namespace flexact::moe {

// One GEMM's tile. The weight block of a gated gate_up tile has 2 * block_n rows.
struct Tile {
  int block_m = 0;
  int block_n = 0;
  int block_k = 0;
  int group_m = 1;  // row tiles that run together, for the L2
  int warps = 4;
  int stages = 3;
  int persistent =
      0;  // programs on each multiprocessor that loop over tiles; 0: one program a tile
  friend bool operator==(const Tile&, const Tile&) = default;
};

struct Launch {
  // Tiles find their pairs in the ids themselves (few pairs); otherwise pairs are sorted first.
  bool direct = false;
  // Only with direct: without tensor cores, a tile is {block_n, block_k, warps}.
  bool vector = false;        // the first GEMM, only with fuse_combine
  bool fuse_combine = false;  // the second, with the sum over experts in the same kernel
  // Token rows are copied into sorted order before the first GEMM, which then gathers nothing.
  bool permute = false;
  Tile gate_up;
  Tile down;           // block_m at most gate_up's, where pairs are sorted
  std::string source;  // "model", or the table's entry
  friend bool operator==(const Launch&, const Launch&) = default;
};

// What the choice depends on beside the problem.
struct GpuLimits {
  int multiprocessors = 132;
  int shared_bytes = 232448;  // the most one block may have
};

// At most so many pairs are searched by every tile instead of being sorted.
inline constexpr std::int64_t kDirectPairs = 128;

// Tokens are computed in chunks, and the down projection in slabs of columns, so that the scratch
// memory does not grow with the number of tokens.
struct Chunking {
  std::int64_t tokens = 0;   // in a chunk
  std::int64_t columns = 0;  // of H in a slab
};
Chunking chunking(const MoeProblem& problem, std::int64_t tokens);

// The power of two that stands for a token count, at least 1.
std::int64_t token_bucket(std::int64_t tokens);

// Without a measurement. Every rule stands in launch_policy.cpp with its reason.
Launch model(const MoeProblem& problem, std::int64_t tokens, const GpuLimits& limits);

// Measured launches of one device. An entry holds for one shape and format; between measured token
// counts the nearest (by ratio) is taken. Shapes that were not measured go by the model, and so do
// token counts more than twice or less than half of every measured one.
class LaunchTable {
 public:
  LaunchTable() = default;
  // Throws ConfigError with a JSON pointer.
  static LaunchTable from_json(std::string_view text);

  const std::string& device() const noexcept { return device_; }
  std::size_t size() const noexcept { return entries_.size(); }
  Launch choose(const MoeProblem& problem, std::int64_t tokens, const GpuLimits& limits) const;
  // The distinct launches of all token counts up to `tokens`.
  std::vector<Launch> all(const MoeProblem& problem, std::int64_t tokens,
                          const GpuLimits& limits) const;

 private:
  struct Entry {
    Format format = Format::Bf16;
    std::int64_t experts = 0, top_k = 0, hidden = 0, intermediate = 0, tokens = 0;
    bool gated = true;
    Launch launch;
  };
  std::string device_;
  std::vector<Entry> entries_;
};

}  // namespace flexact::moe
