// Choices by what was measured on an H200: benchmark/results/cuda_choices_h200.json and, of few
// tokens in quantised formats, cuda_choices_few_h200.json, of rows and their order
// cuda_choices_extra_h200.json (tiles: cuda_moe_h100.json).
#include "cuda/policy.hpp"

#include <algorithm>

#include "cuda/fp8_layer.hpp"
#include "moe/quantised.hpp"

namespace flexact::cuda {

namespace {

// With more tokens the tiled kernels are as fast: they read every expert's weights once as well.
// The smaller an expert, the more launches and a last wave of tiles cost.
constexpr std::int64_t kMostStreamTokens = 2;
constexpr std::int64_t kMostStreamTokensOfSmallExperts = 4;
constexpr std::int64_t kBytesOfSmallExpert = std::int64_t{64} << 20;
// FP4: beyond that experts are shared, and the tiled kernels decode their weights once.
constexpr std::int64_t kMostFp4StreamTokens = 4;
constexpr std::int64_t kMostFp4StreamSlots = 16;
// FP8: every block of the second half rounds its rows, which costs more the more rows an expert
// has.
constexpr std::int64_t kMostFp8StreamTokensOfSmallExperts = 2;
constexpr std::int64_t kWeightsOfFp8SmallExpert = std::int64_t{8} << 20;

// So few tokens share few experts: adding a token's results where they are made saves a launch, and
// costs reading the weights of a shared expert again.
constexpr std::int64_t kMostSummedTokens = 2;

// Beyond this many tokens a launch is nothing beside the layer.
constexpr std::int64_t kMostDependentTokens = 4096;

// Up to so many rows an expert has in the mean, tiles of kFp4FewRows rows hold nearly all experts'
// rows: weights are decoded once.
constexpr std::int64_t kMostMeanFewRows = 16;

constexpr int kGroupRows = 8;
constexpr int kGroupRowsOfFew = 4;  // where experts have fewer than four row tiles on average
constexpr int kGroupRows2 = 4;
constexpr bool kSplitLast = true;
// More than so many take blocks that read all ids longer than a launch.
constexpr std::int64_t kMostCountedSlots = 1024;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

bool counting_fits(const MoeProblem& problem, std::int64_t tokens) {
  return problem.experts <= kCountedExperts && tokens * problem.top_k <= kCountedSlots;
}

bool has_stream(Format format) {
  return format == Format::Bf16 || format == Format::Mxfp4 || format == Format::Nvfp4 ||
         is_fp8(format);
}

bool stream_fits(const MoeProblem& problem, std::int64_t tokens, bool aligned) {
  const std::int64_t slots = tokens * problem.top_k;
  if (!has_stream(problem.format) || !aligned || slots > kStreamMaxSlots) return false;
  const std::int64_t depth = std::max(problem.hidden, problem.intermediate);
  return !is_fp8(problem.format) ||
         std::min<std::int64_t>(slots, kStreamColumns) * fp8_stream_bytes(depth) <=
             kFp8StreamMostShared;
}

std::int64_t most_stream_tokens(const MoeProblem& problem) {
  if (moe::is_fp4(problem.format)) {
    return std::min(kMostFp4StreamTokens, kMostFp4StreamSlots / problem.top_k);
  }
  const std::int64_t matrices = problem.pairing == Pairing::None ? 2 : 3;
  const std::int64_t weights = matrices * problem.hidden * problem.intermediate;
  if (is_fp8(problem.format)) {
    return weights <= kWeightsOfFp8SmallExpert ? kMostFp8StreamTokensOfSmallExperts : 1;
  }
  return 2 * weights <= kBytesOfSmallExpert ? kMostStreamTokensOfSmallExperts : kMostStreamTokens;
}

// As many tokens as fit, as long as every multiprocessor has two rounds of eight blocks.
int block_tokens_for(const MoeProblem& problem, std::int64_t tokens, int multiprocessors) {
  const std::int64_t parts = ceil_div(problem.hidden, 8 * kRowThreads);
  int each = 8;
  while (each > 1 && (each * problem.top_k > kBlockSlots ||
                      ceil_div(tokens, each) * parts < 16 * std::int64_t{multiprocessors}))
    each /= 2;
  return each;
}

// As many warps beside each other as leave every multiprocessor several blocks, two of which it
// holds at once: a block that is wide divides its depth less, so it has longer rows to read between
// its beginning and its end. In FP8, where every block rounds rows first, fewer and wider ones are
// better.
int row_warps_for(const MoeProblem& problem, std::int64_t outputs, std::int64_t blocks_of_y,
                  int multiprocessors) {
  const std::int64_t blocks = std::int64_t{multiprocessors} * (is_fp8(problem.format) ? 7 : 16) / 2;
  int warps = 8;
  while (warps > 1 && ceil_div(outputs, kStreamRows * warps) * blocks_of_y < blocks) warps /= 2;
  return warps;
}

// Of the blocks that add up a token's results, which read the weights of all of its experts: as
// many as there is room for at once. The few of a second round would take as long as all of the
// first.
int sum_warps_for(const MoeProblem& problem, std::int64_t tokens, int multiprocessors) {
  if (!is_fp8(problem.format)) {
    return row_warps_for(problem, problem.hidden, tokens, multiprocessors);
  }
  int warps = 1;
  while (warps < 8 && ceil_div(problem.hidden, kStreamRows * warps) * tokens > 2 * multiprocessors)
    warps *= 2;
  return warps;
}

}  // namespace

Choice choose(const MoeProblem& problem, std::int64_t tokens, bool aligned, int multiprocessors,
              const Wish& wish) {
  Choice choice;
  const bool few = tokens <= most_stream_tokens(problem);
  const bool stream = wish.path == Path::Auto ? few : wish.path == Path::Stream;
  choice.path = stream && stream_fits(problem, tokens, aligned) ? Path::Stream : Path::Tiled;
  // Measured in bf16.
  choice.dependent_launches =
      wish.dependent_launches < 0 ? tokens <= kMostDependentTokens : wish.dependent_launches == 1;

  // Groups of one expert's row tiles read its weights once. FP8's are half as many bytes, and there
  // groups of several experts were as fast or faster.
  const bool sixteen_bits = problem.format == Format::Bf16 || problem.format == Format::Fp16;
  const bool short_groups = tokens * problem.top_k < 4 * kTileRows * problem.experts;
  choice.group_rows = wish.group_rows != 0 ? wish.group_rows
                      : sixteen_bits       ? -kGroupRows
                      : short_groups       ? kGroupRowsOfFew
                                           : kGroupRows;
  choice.group_rows2 = wish.group_rows2 != 0 ? wish.group_rows2
                       : sixteen_bits        ? -kGroupRows
                                             : kGroupRows2;
  choice.split_last = wish.split_last < 0 ? kSplitLast : wish.split_last == 1;
  // The 16-bit kernels have room for them.
  if (sixteen_bits && wish.extra_rows != 0) {
    choice.extra_rows = kExtraRows;
  }
  choice.early_weights = wish.early_weights != 0;
  choice.block_tokens = wish.block_tokens != 0 ? wish.block_tokens
                                               : block_tokens_for(problem, tokens, multiprocessors);

  // Reading all ids costs a block less than a launch before it does.
  choice.counted_rows = counting_fits(problem, tokens) &&
                        (wish.counted_rows < 0 ? tokens * problem.top_k <= kMostCountedSlots
                                               : wish.counted_rows == 1);

  // FP4 kernels read no more rows than tiles have, or little more.
  if (moe::is_fp4(problem.format)) {
    const std::int64_t mean = tokens * problem.top_k / problem.experts;
    choice.box_rows = mean >= 48 ? 64 : mean >= 24 ? 32 : mean >= 12 ? 16 : 8;
    choice.few_rows = has_few_rows(problem) &&
                      (wish.few_rows < 0 ? mean <= kMostMeanFewRows : wish.few_rows == 1);
  }
  if (choice.few_rows) {
    choice.tile_rows = kFp4FewRows;
    choice.box_rows = std::min(choice.box_rows, kFp4FewRows);
    choice.split_last = false;
  }

  const std::int64_t slots = tokens * problem.top_k;
  choice.sum = problem.combine && (wish.sum < 0 ? tokens <= kMostSummedTokens : wish.sum == 1);
  choice.row_warps = wish.row_warps != 0
                         ? wish.row_warps
                         : row_warps_for(problem, problem.intermediate, slots, multiprocessors);
  choice.row_warps2 = wish.row_warps2 != 0 ? wish.row_warps2
                      : choice.sum         ? sum_warps_for(problem, tokens, multiprocessors)
                                   : row_warps_for(problem, problem.hidden, slots, multiprocessors);
  return choice;
}

bool has_few_rows(const MoeProblem& problem) {
  return problem.format == Format::Mxfp4 || problem.format == Format::Nvfp4;
}

bool may_take(Path path, const MoeProblem& problem, const Wish& wish) {
  return path == Path::Tiled || (wish.path != Path::Tiled && stream_fits(problem, 1, true));
}

}  // namespace flexact::cuda
