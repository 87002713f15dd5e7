// Kinds of FP8 GEMMs.
#pragma once

namespace flexact::cuda {

// Which numbers share a scale.
enum class Scaling {
  Blocks,  // 128 × 128 weights, 1 × 128 inputs
  Whole,   // all of K: a tensor or a channel, all rows or a token
};

// What is written.
enum class Output {
  Rows,     // bf16
  Largest,  // bf16, and their largest magnitudes: the codes' scale needs all of them
  Groups,   // E4M3 with a scale for each 128 columns of a row
  Given,    // E4M3 with the checkpoint's scale
};

}  // namespace flexact::cuda
