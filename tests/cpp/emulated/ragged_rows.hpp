// Rows of several experts, and the tiles in which a GEMM takes them: each expert's last one is
// short.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/kernels/arguments.hpp"

namespace emulated {

struct RaggedRows {
  std::vector<int> expert;  // of each row
  std::vector<flexact::cuda::RowTile> tiles;

  RaggedRows(const std::vector<int>& rows_of_expert, int tile_rows) {
    for (int i = 0; i < static_cast<int>(rows_of_expert.size()); ++i) {
      const int first = count(), end = first + rows_of_expert[static_cast<std::size_t>(i)];
      expert.resize(static_cast<std::size_t>(end), i);
      for (int row = first; row < end; row += tile_rows) {
        tiles.push_back({i, row, std::min(tile_rows, end - row), 0});
      }
    }
  }
  int count() const { return static_cast<int>(expert.size()); }
  int expert_of(int row) const { return expert[static_cast<std::size_t>(row)]; }
};

}  // namespace emulated
