// The order in which the CTAs of a persistent GEMM take its tiles. Plain C++, so that tests can
// walk it.
#pragma once

#include "arguments.hpp"

#ifdef __CUDACC__
#define FLEXACT_EVERYWHERE __host__ __device__
#else
#define FLEXACT_EVERYWHERE
#endif

namespace flexact::cuda {

// One position of the order: a tile, or its upper or lower half of rows.
struct TilePlace {
  int row_tile;
  int column_tile;
  int half;  // -1: the whole tile
};

// Every CTA takes a tile a round. Where the last round's tiles are no more than half of the CTAs,
// their halves of rows keep twice as many at work: nothing is computed otherwise, only by others.
class TileOrder {
 public:
  FLEXACT_EVERYWHERE TileOrder(int row_tiles, int column_tiles, int group_rows, bool split_last,
                               int ctas)
      : row_tiles_(row_tiles), column_tiles_(column_tiles), group_rows_(group_rows) {
    const int tiles = row_tiles * column_tiles;
    const int rest = tiles % ctas;
    const int split = split_last && 2 * rest <= ctas ? rest : 0;
    whole_ = tiles - split;
    positions_ = tiles + split;
  }

  FLEXACT_EVERYWHERE int positions() const { return positions_; }

  // Groups of row tiles are swept column by column: the CTAs at work then share few weights and few
  // rows, and L2 serves most reads.
  // run_of(row tile): its RowTile::run.
  template <typename RunOf>
  FLEXACT_EVERYWHERE TilePlace at(int position, RunOf run_of) const {
    const int beyond = position - whole_;
    const int tile = beyond < 0 ? position : whole_ + beyond / 2;
    if (group_rows_ < 0) return in_expert(tile, beyond, run_of(tile / column_tiles_));
    const int group_tiles = group_rows_ * column_tiles_;
    const int group = tile / group_tiles;
    const int inside = tile - group * group_tiles;
    const int first = group * group_rows_;
    const int left = row_tiles_ - first;
    const int height = left < group_rows_ ? left : group_rows_;
    const int column = inside / height;
    return {first + inside - column * height, column, beyond < 0 ? -1 : beyond % 2};
  }

 private:
  // Groups of one expert's row tiles, as equal as can be. A group of `height` row tiles takes as
  // many positions as it has tiles, so one of them tells which group a position is of.
  FLEXACT_EVERYWHERE TilePlace in_expert(int tile, int beyond, std::int32_t run) const {
    const int of_run = run & 0xffff, count = (run >> 16) + 1;
    const int groups = (count - group_rows_ - 1) / -group_rows_;
    const int most = (count + groups - 1) / groups;
    const int before = of_run / most * most;
    const int height = count - before < most ? count - before : most;
    const int first = tile / column_tiles_ - of_run + before;
    const int inside = tile - first * column_tiles_;
    const int column = inside / height;
    return {first + inside - column * height, column, beyond < 0 ? -1 : beyond % 2};
  }

  int row_tiles_, column_tiles_, group_rows_, whole_, positions_;
};

}  // namespace flexact::cuda
