// How a panel is cut. Rows go in tiles of nearly equal height; K goes in stretches whose weights
// stay in the caches while all tiles use them.
//
// Weights come from memory only once, so what matters is that they come all the time:
//   one tile     each weight is used once. The tile prefetches a fixed distance ahead in its own
//                panel and, over the last stretch of that length, at the start of the next.
//   more tiles   the first tile would wait for memory and the others for the arithmetic. So each
//                tile of a stretch prefetches its share of the following stretch instead.
// Neither the cut of the rows nor that of K changes a sum's order.
//
// On Zen 4 a prefetch into L1 keeps one of the few buffers that misses wait in: memory and
// arithmetic then take turns. There a lone tile, whose reads are one ascending row, is left to the
// processor (a quarter faster), and the shares of several tiles go to L2 only (a third faster). Zen
// 5 reaches the limits with prefetches into L1.
#include "cpu/panel.hpp"

#include <algorithm>

namespace flexact::cpu {

namespace {

// Values of k in a stretch. A stretch costs a tile one round trip of its sums, and saves the
// following tiles a wait for memory: the fewer tiles there are, the shorter it should be.
constexpr std::int64_t kShortStretch = 96;
constexpr std::int64_t kShortStretchIntoL2 = 192;
constexpr std::int64_t kStretch = 256;
constexpr std::int64_t kLongStretch = 512;
constexpr std::int64_t kAheadBytes = 8192;  // prefetch distance of a lone tile

// Bytes of the panel for one value of k (half a pair's).
std::int64_t bytes_per_k(const PanelCall& call) noexcept {
  return call.blocks * std::int64_t{kColumns} * bytes_of(call.kernels->weights);
}

// One tile over k [begin, end).
void run_tile(const PanelCall& call, std::int64_t first_row, int height, std::int64_t begin,
              std::int64_t end, const std::byte* prefetch, std::int64_t lines) noexcept {
  const void* rows[kMaxRows];
  for (int r = 0; r < height; ++r) {
    rows[r] = static_cast<const std::byte*>(call.rows[first_row + r]) +
              begin * bytes_of(call.kernels->inputs);
  }
  TileCall tile{};
  tile.rows = rows;
  tile.weights = call.weights + begin * bytes_per_k(call);
  tile.k = end - begin;
  tile.c = call.c + first_row * call.c_stride;
  tile.c_stride = call.c_stride;
  std::copy_n(call.columns, kMaxBlocks, tile.columns);
  tile.accumulate = begin > 0;
  tile.prefetch_lines = static_cast<std::int32_t>(prefetch == nullptr ? 0 : lines);
  tile.prefetch = prefetch;
  tile.prefetch_into_l2 = call.prefetch == Prefetch::IntoL2;
  call.kernels->tile[height - 1][call.blocks - 1](tile);
}

void run_lone_tile(const PanelCall& call) noexcept {
  const int height = static_cast<int>(call.row_count);
  if (call.prefetch == Prefetch::IntoL2) {
    run_tile(call, 0, height, 0, call.k, nullptr, 0);
    return;
  }
  const std::int64_t lines = kPrefetchStep * bytes_per_k(call) / 64;
  const std::byte* end = call.weights + call.k * bytes_per_k(call);
  // Where the next weights follow this panel, running on is the right prefetch to the end.
  const std::int64_t ahead = call.next == nullptr || call.next == end
                                 ? 0
                                 : kAheadBytes / bytes_per_k(call) / kPrefetchStep * kPrefetchStep;
  const std::int64_t turn =
      std::max<std::int64_t>(0, (call.k - ahead) / kPrefetchStep * kPrefetchStep);
  const std::byte* here = call.next == nullptr ? nullptr : call.weights + kAheadBytes;
  if (ahead == 0) {
    run_tile(call, 0, height, 0, call.k, here, lines);
    return;
  }
  if (turn > 0) run_tile(call, 0, height, 0, turn, here, lines);
  run_tile(call, 0, height, turn, call.k, call.next, lines);
}

}  // namespace

void multiply_panel(const PanelCall& call) noexcept {
  const std::int64_t tiles = ceil_div(call.row_count, call.kernels->rows);
  if (tiles == 1) {
    run_lone_tile(call);
    return;
  }
  const std::int64_t shortest =
      call.prefetch == Prefetch::IntoL2 ? kShortStretchIntoL2 : kShortStretch;
  const std::int64_t longest = tiles == 2 ? shortest : tiles <= 4 ? kStretch : kLongStretch;
  const std::int64_t stretches = ceil_div(call.k, longest);
  const std::int64_t stretch = ceil_div(ceil_div(call.k, stretches), kPrefetchStep) * kPrefetchStep;
  const std::int64_t lines = ceil_div(kPrefetchStep * bytes_per_k(call) / 64, tiles);
  for (std::int64_t begin = 0; begin < call.k; begin += stretch) {
    const std::int64_t end = std::min(begin + stretch, call.k);
    const std::byte* following = end < call.k ? call.weights + end * bytes_per_k(call) : call.next;
    // What one tile prefetches of it, and how much there is.
    const std::int64_t share = ceil_div(end - begin, kPrefetchStep) * lines * 64;
    const std::int64_t whole = stretch * bytes_per_k(call);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first_row = call.row_count * t / tiles;
      const int height = static_cast<int>(call.row_count * (t + 1) / tiles - first_row);
      const bool enough = t * share >= whole;
      run_tile(call, first_row, height, begin, end,
               following == nullptr || enough ? nullptr : following + t * share, lines);
    }
  }
}

}  // namespace flexact::cpu
