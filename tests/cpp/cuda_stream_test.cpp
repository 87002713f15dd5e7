// The stream kernels' own source on the CPU, thread by thread, against fp64: every index, mask and
// edge of them, without a GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "emulated/stream_instructions.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/sm90_bf16_stream.cuh"

extern "C" void flexact_act2(const float g[2], const float u[2], const float* p, float y[2]) {
  for (int i = 0; i < 2; ++i) y[i] = g[i] * u[i] + p[0] * g[i];
}
extern "C" void flexact_act2_unary(const float x[2], const float* p, float y[2]) {
  for (int i = 0; i < 2; ++i) y[i] = x[i] * std::fabs(x[i]) + p[0];
}

FLEXACT_STREAM_KERNEL(emulated_gated, Gated)
FLEXACT_STREAM_KERNEL(emulated_unary, Unary)
FLEXACT_STREAM_KERNEL(emulated_down, Down)

namespace {

using flexact::cuda::kStreamRows;
using flexact::cuda::kStreamThreads;
using flexact::cuda::StreamArguments;

struct Layer {
  int tokens, top_k, experts, hidden, inner;
  bool gated = true, bias = false, weight_on_input = false, wide = false;
  int row_warps = 1, row_warps2 = 1;
  bool interleaved = false;
};

float to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

class Numbers {
 public:
  explicit Numbers(unsigned seed) : random_(seed) {}
  std::vector<std::uint16_t> bf16(int count, double size) {
    std::vector<std::uint16_t> list(static_cast<std::size_t>(count));
    for (auto& each : list)
      each = __float2bfloat16_rn(static_cast<float>(size * normal_(random_))).bits;
    return list;
  }
  std::vector<float> fp32(int count) {
    std::vector<float> list(static_cast<std::size_t>(count));
    for (auto& each : list) each = static_cast<float>(normal_(random_));
    return list;
  }
  std::mt19937& random() { return random_; }

 private:
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
};

void launch(const StreamArguments& arguments, void (*kernel)(const StreamArguments)) {
  const int outputs = kStreamRows * arguments.row_warps;
  const int rows =
      arguments.sum != 0 ? arguments.routed.slots / arguments.routed.top_k : arguments.routed.slots;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < (arguments.columns + outputs - 1) / outputs; ++x) {
      emulated::Block::current().run(kStreamThreads,
                                     {static_cast<unsigned>(x), static_cast<unsigned>(y)},
                                     [&] { kernel(arguments); });
    }
  }
}

void check(const Layer& l, unsigned seed) {
  Numbers numbers(seed);
  const int parts = l.gated ? 2 : 1;
  const int slots = l.tokens * l.top_k;
  const auto hidden = numbers.bf16(l.tokens * (l.hidden + 8), 1);
  const auto w13 = numbers.bf16(l.experts * parts * l.inner * l.hidden, 1 / std::sqrt(l.hidden));
  const auto w2 = numbers.bf16(l.experts * l.hidden * l.inner, 1 / std::sqrt(l.inner));
  const auto bias13 = numbers.fp32(l.experts * parts * l.inner),
             bias2 = numbers.fp32(l.experts * l.hidden);
  const auto router = numbers.fp32(slots), values = numbers.fp32(l.experts);
  std::vector<std::int64_t> ids;
  for (int i = 0; i < slots; ++i)
    ids.push_back(static_cast<int>(numbers.random()() % (l.experts + 2)) - 1);
  const std::vector<std::int32_t> narrow(ids.begin(), ids.end());
  const auto ours = [&](int slot) { return ids[slot] >= 0 && ids[slot] < l.experts; };

  // What no slot of ours writes must stay as it is.
  std::vector<std::uint16_t> activated(slots * l.inner, 0xffff), rows(slots * l.hidden, 0xffff),
      output(l.tokens * l.hidden, 0xffff);
  StreamArguments up{};
  up.routed = {l.wide ? static_cast<const void*>(ids.data()) : narrow.data(),
               l.top_k,
               1,
               l.wide,
               l.experts,
               slots,
               l.top_k};
  up.input = hidden.data();
  up.input_stride = l.hidden + 8;
  up.weights = w13.data();
  up.expert_stride = std::int64_t{parts} * l.inner * l.hidden;
  up.row_stride = l.interleaved ? 2 * l.hidden : l.hidden;
  up.offset[1] = l.interleaved ? l.hidden : std::int64_t{l.inner} * l.hidden;
  up.output = activated.data();
  up.bias = l.bias ? bias13.data() : nullptr;
  up.weight = l.weight_on_input ? router.data() : nullptr;
  up.weight_stride = l.top_k;
  up.weight_step = 1;
  up.values = values.data();
  up.value_stride = 1;
  up.value_columns = 1;
  up.columns = l.inner;
  up.depth = l.hidden;
  up.row_warps = l.row_warps;
  launch(up, l.gated ? emulated_gated : emulated_unary);

  const auto product = [&](int slot, int row) {  // of w13
    double sum = 0;
    for (int k = 0; k < l.hidden; ++k) {
      sum += to_float(hidden[slot / l.top_k * (l.hidden + 8) + k]) *
             static_cast<double>(to_float(w13[(ids[slot] * parts * l.inner + row) * l.hidden + k]));
    }
    return l.weight_on_input ? sum * router[slot] : sum;
  };
  for (int slot = 0; slot < slots; ++slot) {
    for (int i = 0; i < l.inner; ++i) {
      const std::uint16_t got = activated[slot * l.inner + i];
      if (!ours(slot)) {
        ASSERT_EQ(got, 0xffff);
        continue;
      }
      const auto bias = [&](int part) {
        return l.bias ? bias13[(ids[slot] * parts + part) * l.inner + i] : 0.0f;
      };
      const double g = product(slot, l.interleaved ? 2 * i : i) + bias(0);
      const double p = values[ids[slot]];
      double want = g * std::fabs(g) + p;
      if (l.gated)
        want = g * (product(slot, l.interleaved ? 2 * i + 1 : l.inner + i) + bias(1)) + p * g;
      ASSERT_NEAR(to_float(got), want, 0.01 * (1 + std::fabs(want)))
          << "slot " << slot << " output " << i;
    }
  }

  StreamArguments down = up;
  down.input = activated.data();
  down.input_stride = l.inner;
  down.input_of_slots = 1;
  down.weights = w2.data();
  down.expert_stride = std::int64_t{l.hidden} * l.inner;
  down.row_stride = l.inner;
  down.offset[1] = 0;
  down.output = rows.data();
  down.bias = l.bias ? bias2.data() : nullptr;
  down.weight = nullptr;
  down.columns = l.hidden;
  down.depth = l.inner;
  down.row_warps = l.row_warps2;
  launch(down, emulated_down);
  down.sum = 1;
  down.output = output.data();
  down.scale = 2.5f;
  down.weight = router.data();
  launch(down, emulated_down);
  for (int m = 0; m < l.tokens; ++m) {
    for (int h = 0; h < l.hidden; ++h) {
      double total = 0;
      double size = 1;
      for (int slot = m * l.top_k; slot < (m + 1) * l.top_k; ++slot) {
        if (!ours(slot)) {
          ASSERT_EQ(rows[slot * l.hidden + h], 0xffff);
          continue;
        }
        double want = l.bias ? bias2[ids[slot] * l.hidden + h] : 0.0f;
        for (int k = 0; k < l.inner; ++k) {
          want += to_float(activated[slot * l.inner + k]) *
                  static_cast<double>(to_float(w2[(ids[slot] * l.hidden + h) * l.inner + k]));
        }
        ASSERT_NEAR(to_float(rows[slot * l.hidden + h]), want, 0.01 * (1 + std::fabs(want)));
        total += router[slot] * want;
        size += std::fabs(router[slot] * want);
      }
      ASSERT_NEAR(to_float(output[m * l.hidden + h]), 2.5 * total, 0.012 * size) << m << " " << h;
    }
  }
}

TEST(StreamKernels, compute_a_layer_whatever_its_sizes) {
  const Layer layers[] = {
      {.tokens = 1, .top_k = 2, .experts = 4, .hidden = 64, .inner = 48},
      {.tokens = 3,
       .top_k = 3,
       .experts = 2,
       .hidden = 200,
       .inner = 136,
       .row_warps = 2,
       .row_warps2 = 4},
      {.tokens = 2,
       .top_k = 11,
       .experts = 5,
       .hidden = 24,
       .inner = 40,
       .bias = true,
       .wide = true,
       .row_warps = 8},
      {.tokens = 1,
       .top_k = 8,
       .experts = 16,
       .hidden = 520,
       .inner = 8,
       .weight_on_input = true,
       .row_warps2 = 8},
      {.tokens = 12, .top_k = 2, .experts = 1, .hidden = 40, .inner = 72, .interleaved = true},
      {.tokens = 5,
       .top_k = 1,
       .experts = 3,
       .hidden = 8,
       .inner = 328,
       .gated = false,
       .bias = true,
       .row_warps = 4},
      {.tokens = 40,
       .top_k = 6,
       .experts = 7,
       .hidden = 32,
       .inner = 24,
       .gated = false,
       .row_warps2 = 2},
  };
  unsigned seed = 0;
  for (const Layer& layer : layers) {
    check(layer, ++seed);
    if (HasFatalFailure()) FAIL() << "layer " << seed;
  }
}

}  // namespace
