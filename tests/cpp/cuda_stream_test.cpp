// The stream kernels' own source on the CPU, thread by thread, against fp64: every index, mask and
// edge of them, without a GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "emulated/linked_function.hpp"
#include "emulated/stream_instructions.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/stream_bf16.cuh"
#include "cuda/kernels/stream_fp4.cuh"
#include "cuda/kernels/stream_fp8.cuh"

#define KERNELS(format)                                         \
  FLEXACT_STREAM_KERNEL(emulated_gated_##format, Gated, format) \
  FLEXACT_STREAM_KERNEL(emulated_unary_##format, Unary, format) \
  FLEXACT_STREAM_KERNEL(emulated_down_##format, Down, format)
KERNELS(Bf16)
KERNELS(Mxfp4)
KERNELS(Nvfp4)
KERNELS(Fp8Block)
KERNELS(Fp8Whole)

namespace {

using flexact::cuda::kStreamRows;
using flexact::cuda::kStreamThreads;
using flexact::cuda::StreamArguments;
namespace formats = flexact::cuda::stream;
namespace moe = flexact::moe;

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

// w13 or w2: what its numbers are, and how kernels are told of them.
struct Sizes {
  int experts, parts, outputs, depth;
  bool interleaved, first;  // w13

  // Of all rows in memory.
  int row(int expert, int part, int output) const {
    return (expert * parts) * outputs +
           (interleaved ? output * parts + part : part * outputs + output);
  }
  int rows() const { return experts * parts * outputs; }
};
void describe(const Sizes& s, int width, StreamArguments& arguments) {
  arguments.expert_stride = std::int64_t{s.parts} * s.outputs * width;
  arguments.row_stride = s.interleaved ? s.parts * width : width;
  arguments.offset[0] = 0;
  arguments.offset[1] = s.parts == 1 ? 0 : s.interleaved ? width : std::int64_t{s.outputs} * width;
  arguments.columns = s.outputs;
  arguments.depth = s.depth;
}

template <class Format>
class Matrix;

template <>
class Matrix<formats::Bf16> {
 public:
  Matrix(Numbers& numbers, const Sizes& sizes)
      : sizes_(sizes),
        data_(numbers.bf16(sizes.rows() * sizes.depth, 1 / std::sqrt(sizes.depth))) {}
  double at(int expert, int part, int output, int k) const {
    return to_float(data_[sizes_.row(expert, part, output) * sizes_.depth + k]);
  }
  void pass(StreamArguments& arguments) const {
    describe(sizes_, sizes_.depth, arguments);
    arguments.weights = data_.data();
  }

 private:
  Sizes sizes_;
  std::vector<std::uint16_t> data_;
};

template <int kOfRow>
class Matrix<formats::Fp4<kOfRow>> {
 public:
  Matrix(Numbers& numbers, const Sizes& sizes) : sizes_(sizes) {
    for (int i = 0; i < sizes.rows() * sizes.depth / 2; ++i)
      codes_.push_back(static_cast<std::uint8_t>(numbers.random()()));
    // Weights of a size that keeps sums near 1, whatever the depth.
    const int exponent = -1 - std::ilogb(std::sqrt(sizes.depth));
    for (int i = 0; i < sizes.rows() * groups(); ++i) {
      const auto some = static_cast<int>(numbers.random()() % 4) - 3;
      scales_.push_back(static_cast<std::uint8_t>(kOfRow == 1 ? 127 + exponent + some
                                                              : 0x30 + numbers.random()() % 16));
    }
    for (int i = 0; i < sizes.experts * sizes.parts; ++i)
      globals_.push_back(std::ldexp(0.5f + 0.125f * static_cast<float>(i % 7), exponent));
    order(sizes);
  }
  double at(int expert, int part, int output, int k) const {
    const int row = sizes_.row(expert, part, output);
    const std::uint8_t byte = codes_[(row * sizes_.depth + k) / 2];
    const double code =
        moe::decode_e2m1(static_cast<std::uint8_t>(k % 2 == 0 ? byte & 15 : byte >> 4));
    const std::uint8_t scale = scales_[row * groups() + k / (32 / kOfRow)];
    return kOfRow == 1 ? std::ldexp(code, scale - 127)
                       : code * moe::decode_e4m3(scale) * globals_[expert * sizes_.parts + part];
  }
  void pass(flexact::cuda::Fp4StreamArguments& arguments) const {
    describe(sizes_, sizes_.depth / 2, arguments.stream);
    arguments.stream.weights = codes_.data();
    arguments.scales = ordered_.data();
    arguments.column_tiles = tiles();
    arguments.steps = steps();
    arguments.global = globals_.data();
    arguments.global_step = sizes_.parts;
    arguments.up_step = 1;
  }

 private:
  int groups() const { return sizes_.depth / 32 * kOfRow; }
  int steps() const { return (sizes_.depth + 127) / 128; }
  bool gated() const { return sizes_.parts == 2; }
  int tiles() const { return (sizes_.outputs - 1) / (gated() ? 128 : 256) + 1; }

  // As a plan does it: for each thread of a tile's 256 its scales in 128 columns.
  void order(const Sizes& s) {
    const int bytes = flexact::cuda::fp4_scale_bytes(kOfRow);
    for (int i = 0; i < s.experts * tiles() * steps() * bytes; ++i) {
      const int j = i % kOfRow, half = i / kOfRow % 2, part = i / kOfRow / 2 % 2;
      const int thread = i / kOfRow / 4 % 256, step = i / bytes % steps();
      const int tile = i / bytes / steps() % tiles(), expert = i / bytes / steps() / tiles();
      const int output = (gated() ? tile * 128 : tile * 256 + part * 128) +
                         flexact::cuda::fp4_row(thread, half, s.first, gated());
      const int group = (step * 4 + thread % 4) * kOfRow + j;
      std::uint8_t scale = kOfRow == 1 ? 127 : 0x38;
      if (output < s.outputs && group < groups())
        scale = scales_[s.row(expert, gated() ? part : 0, output) * groups() + group];
      ordered_.push_back(kOfRow == 1 ? flexact::cuda::mxfp4_stored(scale) : scale);
    }
  }

  Sizes sizes_;
  std::vector<std::uint8_t> codes_, scales_, ordered_;
  std::vector<float> globals_;
};

template <bool kBlocks>
class Matrix<formats::Fp8<kBlocks>> {
 public:
  // `rows`: whether each output has a scale, else each of gate and up of an expert.
  Matrix(Numbers& numbers, const Sizes& sizes, bool rows = true) : sizes_(sizes), rows_(rows) {
    for (int i = 0; i < sizes.rows() * sizes.depth; ++i) {
      const auto code = static_cast<std::uint8_t>(numbers.random()());
      codes_.push_back((code & 0x7f) == 0x7f ? std::uint8_t{0x7e} : code);
    }
    const int count = kBlocks ? sizes.experts * 2 * blocks() * groups() : sizes.rows();
    for (int i = 0; i < count; ++i)
      scales_.push_back((0.5f + static_cast<float>(numbers.random()() % 8) / 8) /
                        (100 * std::sqrt(static_cast<float>(sizes.depth))));
  }
  double at(int expert, int part, int output, int k) const {
    const int row = sizes_.row(expert, part, output);
    float scale;
    if (kBlocks) {
      const int block = sizes_.interleaved ? (2 * output + part) / 128 : output / 128;
      scale =
          scales_[((expert * 2 + (sizes_.interleaved ? 0 : part)) * blocks() + block) * groups() +
                  k / 128];
    } else {
      scale = scales_[rows_ ? row : expert * sizes_.parts + part];
    }
    return double{moe::decode_e4m3(codes_[row * sizes_.depth + k])} * scale;
  }
  void pass(flexact::cuda::Fp8StreamArguments& arguments) const {
    describe(sizes_, sizes_.depth, arguments.stream);
    arguments.stream.weights = codes_.data();
    arguments.weights.at = scales_.data();
    arguments.interleaved = sizes_.interleaved;
    if (kBlocks) {
      arguments.weights.row_step = groups();
      arguments.weights.group_step = 1;
      arguments.expert_step = 2 * blocks() * groups();
      arguments.up_step = sizes_.interleaved ? 0 : blocks() * groups();
    } else if (rows_) {
      arguments.weights.row_step = sizes_.interleaved ? sizes_.parts : 1;
      arguments.expert_step = sizes_.parts * sizes_.outputs;
      arguments.up_step = sizes_.interleaved ? 1 : sizes_.outputs;
    } else {
      arguments.weights.row_step = 0;
      arguments.expert_step = sizes_.parts;
      arguments.up_step = 1;
    }
  }

 private:
  int groups() const { return (sizes_.depth + 127) / 128; }
  int blocks() const { return (sizes_.outputs * (sizes_.interleaved ? 2 : 1) + 127) / 128; }

  Sizes sizes_;
  bool rows_;
  std::vector<std::uint8_t> codes_;
  std::vector<float> scales_;
};

StreamArguments& common(StreamArguments& arguments) {
  return arguments;
}
StreamArguments& common(flexact::cuda::Fp8StreamArguments& arguments) {
  return arguments.stream;
}
StreamArguments& common(flexact::cuda::Fp4StreamArguments& arguments) {
  return arguments.stream;
}

// Blocks of x cover the outputs; of FP4's first half whole tiles of 128.
template <class Format, class Arguments>
void launch(Arguments arguments, bool first, void (*kernel)(const Arguments)) {
  const StreamArguments& a = common(arguments);
  const int outputs = kStreamRows * a.row_warps;
  const int columns =
      first && Format::kColumnsOfElement == 2 ? (a.columns + 127) / 128 * 128 : a.columns;
  const int rows = a.sum != 0 ? a.routed.slots / a.routed.top_k : a.routed.slots;
  for (int y = 0; y < rows; ++y) {
    for (int x = 0; x < (columns + outputs - 1) / outputs; ++x) {
      emulated::Block::current().run(kStreamThreads,
                                     {static_cast<unsigned>(x), static_cast<unsigned>(y)},
                                     [&] { kernel(arguments); });
    }
  }
}

// What stands between rows and products. bf16 rows are multiplied as they are.
template <class Format>
struct Rows {
  using Activated = std::uint16_t;
  static double value(Activated bits) { return to_float(bits); }
  static bool untouched(Activated bits) { return bits == 0xffff; }
  static Activated poison() { return 0xffff; }
  static bool rounded(Activated) { return true; }
  static std::vector<std::vector<double>> multiplied(std::vector<std::vector<double>> rows) {
    return rows;
  }
  static void pass(typename Format::Arguments&) {}
};

// E4M3 of rows (an empty one has no part in it), under a scale of each group, each row or all.
using flexact::cuda::InputScaling;
InputScaling scaling = InputScaling::Groups;
constexpr float kGiven = 0.01f;
template <bool kBlocks>
struct Rows<formats::Fp8<kBlocks>> {
  using Activated = float;
  static double value(Activated number) { return number; }
  static bool untouched(Activated number) { return std::isnan(number); }
  static Activated poison() { return std::nanf(""); }
  // Where one scale is that of several groups numbers pass through bf16.
  static bool rounded(Activated number) {
    return (scaling != InputScaling::Rows && scaling != InputScaling::All) ||
           to_float(__float2bfloat16_rn(number).bits) == number;
  }
  static std::vector<std::vector<double>> multiplied(std::vector<std::vector<double>> rows) {
    const auto largest_of = [](const double* at, std::size_t count) {
      double largest = 0;
      for (std::size_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(at[i]));
      return largest;
    };
    double of_all = 0;
    for (const auto& row : rows) of_all = std::fmax(of_all, largest_of(row.data(), row.size()));
    for (auto& row : rows) {
      const std::size_t group = scaling == InputScaling::Groups ? 128 : row.size();
      for (std::size_t from = 0; from < row.size(); from += group) {
        const std::size_t count = std::min(group, row.size() - from);
        const double largest =
            scaling == InputScaling::All ? of_all : largest_of(&row[from], count);
        const float scale = scaling == InputScaling::Given
                                ? kGiven
                                : std::fmax(static_cast<float>(largest), 1e-10f) / 448.0f;
        const float inverse = 1.0f / scale;
        for (std::size_t i = from; i < from + count; ++i)
          row[i] =
              double{moe::decode_e4m3(moe::encode_e4m3(static_cast<float>(row[i]) * inverse))} *
              scale;
      }
    }
    return rows;
  }
  static void pass(flexact::cuda::Fp8StreamArguments& arguments) {
    static const float given = kGiven;
    arguments.scaling = scaling;
    arguments.given = scaling == InputScaling::Given ? &given : nullptr;
    arguments.rounds_results = scaling == InputScaling::Rows || scaling == InputScaling::All;
  }
};

template <class Format>
struct Kernels {
  void (*gated)(typename Format::Arguments);
  void (*unary)(typename Format::Arguments);
  void (*down)(typename Format::Arguments);
};

template <class Format>
void check(const Layer& l, const Kernels<Format>& kernels, unsigned seed) {
  Numbers numbers(seed);
  const int parts = l.gated ? 2 : 1;
  const int slots = l.tokens * l.top_k;
  const auto hidden = numbers.bf16(l.tokens * (l.hidden + 8), 1);
  const Matrix<Format> w13(numbers, {l.experts, parts, l.inner, l.hidden, l.interleaved, true});
  const Matrix<Format> w2(numbers, {l.experts, 1, l.hidden, l.inner, false, false});
  const auto bias13 = numbers.fp32(l.experts * parts * l.inner),
             bias2 = numbers.fp32(l.experts * l.hidden);
  const auto router = numbers.fp32(slots), values = numbers.fp32(l.experts);
  std::vector<std::int64_t> ids;
  for (int i = 0; i < slots; ++i)
    ids.push_back(static_cast<int>(numbers.random()() % (l.experts + 2)) - 1);
  const std::vector<std::int32_t> narrow(ids.begin(), ids.end());
  const auto ours = [&](int slot) { return ids[slot] >= 0 && ids[slot] < l.experts; };
  const auto expert_of = [&](int slot) { return static_cast<int>(ids[slot]); };

  // What no slot of ours writes must stay as it is.
  using OfRows = Rows<Format>;
  std::vector<typename OfRows::Activated> activated(slots * l.inner, OfRows::poison());
  std::vector<std::uint16_t> rows(slots * l.hidden, 0xffff), output(l.tokens * l.hidden, 0xffff);
  typename Format::Arguments up_arguments{};
  StreamArguments& up = common(up_arguments);
  up.routed = {l.wide ? static_cast<const void*>(ids.data()) : narrow.data(),
               l.top_k,
               1,
               l.wide,
               l.experts,
               slots,
               l.top_k};
  up.input = hidden.data();
  up.input_stride = l.hidden + 8;
  up.output = activated.data();
  up.bias = l.bias ? bias13.data() : nullptr;
  up.weight = l.weight_on_input ? router.data() : nullptr;
  up.weight_stride = l.top_k;
  up.weight_step = 1;
  up.values = values.data();
  up.value_stride = 1;
  up.value_columns = 1;
  up.row_warps = l.row_warps;
  w13.pass(up_arguments);
  OfRows::pass(up_arguments);
  launch<Format>(up_arguments, true, l.gated ? kernels.gated : kernels.unary);

  std::vector<std::vector<double>> input(l.tokens);
  for (int slot = 0; slot < slots; ++slot) {
    auto& row = input[slot / l.top_k];
    if (!ours(slot) || !row.empty()) continue;
    for (int k = 0; k < l.hidden; ++k)
      row.push_back(to_float(hidden[slot / l.top_k * (l.hidden + 8) + k]));
  }
  input = OfRows::multiplied(input);
  const auto product = [&](int slot, int part, int i) {
    double sum = 0;
    for (int k = 0; k < l.hidden; ++k)
      sum += input[slot / l.top_k][k] * w13.at(expert_of(slot), part, i, k);
    return l.weight_on_input ? sum * router[slot] : sum;
  };
  for (int slot = 0; slot < slots; ++slot) {
    for (int i = 0; i < l.inner; ++i) {
      const auto got = activated[slot * l.inner + i];
      if (!ours(slot)) {
        ASSERT_TRUE(OfRows::untouched(got));
        continue;
      }
      const auto bias = [&](int part) {
        return l.bias ? bias13[(ids[slot] * parts + part) * l.inner + i] : 0.0f;
      };
      const double g = product(slot, 0, i) + bias(0);
      const double p = values[ids[slot]];
      double want = g * std::fabs(g) + p;
      if (l.gated) want = g * (product(slot, 1, i) + bias(1)) + p * g;
      ASSERT_TRUE(OfRows::rounded(got));
      ASSERT_NEAR(OfRows::value(got), want, 0.01 * (1 + std::fabs(want)))
          << "slot " << slot << " output " << i;
    }
  }

  std::vector<std::vector<double>> middle(slots);
  for (int slot = 0; slot < slots; ++slot) {
    for (int k = 0; ours(slot) && k < l.inner; ++k)
      middle[slot].push_back(OfRows::value(activated[slot * l.inner + k]));
  }
  middle = OfRows::multiplied(middle);
  typename Format::Arguments down_arguments = up_arguments;
  StreamArguments& down = common(down_arguments);
  down.input = activated.data();
  down.input_stride = l.inner;
  down.input_of_slots = 1;
  down.output = rows.data();
  down.bias = l.bias ? bias2.data() : nullptr;
  down.weight = nullptr;
  down.row_warps = l.row_warps2;
  w2.pass(down_arguments);
  launch<Format>(down_arguments, false, kernels.down);
  down.sum = 1;
  down.output = output.data();
  down.scale = 2.5f;
  down.weight = router.data();
  launch<Format>(down_arguments, false, kernels.down);
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
        for (int k = 0; k < l.inner; ++k) want += middle[slot][k] * w2.at(expert_of(slot), 0, h, k);
        ASSERT_NEAR(to_float(rows[slot * l.hidden + h]), want, 0.01 * (1 + std::fabs(want)));
        total += router[slot] * want;
        size += std::fabs(router[slot] * want);
      }
      ASSERT_NEAR(to_float(output[m * l.hidden + h]), 2.5 * total, 0.012 * size) << m << " " << h;
    }
  }
}

// Layers, each with data of its own: the seeds after `seed`.
template <class Format>
void check_all(std::span<const Layer> layers, const Kernels<Format>& kernels, unsigned seed) {
  for (const Layer& layer : layers) {
    check<Format>(layer, kernels, ++seed);
    if (testing::Test::HasFatalFailure()) FAIL() << "layer " << seed;
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
  check_all<formats::Bf16>(layers, {emulated_gated_Bf16, emulated_unary_Bf16, emulated_down_Bf16},
                           0);
}

// Blocks of 128 columns and tiles of 128 outputs that end anywhere, and more than one of each.
const Layer kFp4Layers[] = {
    {.tokens = 1, .top_k = 2, .experts = 4, .hidden = 320, .inner = 96},
    {.tokens = 3,
     .top_k = 3,
     .experts = 2,
     .hidden = 96,
     .inner = 160,
     .bias = true,
     .row_warps = 2,
     .row_warps2 = 4,
     .interleaved = true},
    {.tokens = 1,
     .top_k = 11,
     .experts = 5,
     .hidden = 32,
     .inner = 32,
     .wide = true,
     .row_warps = 8},
    {.tokens = 2,
     .top_k = 4,
     .experts = 3,
     .hidden = 288,
     .inner = 352,
     .gated = false,
     .weight_on_input = true,
     .row_warps = 4,
     .row_warps2 = 8},
    {.tokens = 10, .top_k = 1, .experts = 1, .hidden = 64, .inner = 64, .gated = false},
};

TEST(StreamKernels, compute_mxfp4_whatever_its_sizes) {
  check_all<formats::Mxfp4>(kFp4Layers,
                            {emulated_gated_Mxfp4, emulated_unary_Mxfp4, emulated_down_Mxfp4}, 100);
}

TEST(StreamKernels, compute_nvfp4_whatever_its_sizes) {
  check_all<formats::Nvfp4>(kFp4Layers,
                            {emulated_gated_Nvfp4, emulated_unary_Nvfp4, emulated_down_Nvfp4}, 200);
}

// Groups of 128 columns and blocks of 128 outputs that end anywhere.
const Layer kFp8Layers[] = {
    {.tokens = 1, .top_k = 2, .experts = 4, .hidden = 304, .inner = 144},
    {.tokens = 3,
     .top_k = 3,
     .experts = 2,
     .hidden = 48,
     .inner = 208,
     .bias = true,
     .row_warps = 2,
     .row_warps2 = 4,
     .interleaved = true},
    {.tokens = 1,
     .top_k = 11,
     .experts = 5,
     .hidden = 16,
     .inner = 32,
     .wide = true,
     .row_warps = 8},
    {.tokens = 2,
     .top_k = 4,
     .experts = 3,
     .hidden = 272,
     .inner = 400,
     .gated = false,
     .weight_on_input = true,
     .row_warps = 4,
     .row_warps2 = 8},
    {.tokens = 10, .top_k = 1, .experts = 1, .hidden = 64, .inner = 128, .gated = false},
};

TEST(StreamKernels, compute_fp8_by_blocks_whatever_its_sizes) {
  scaling = InputScaling::Groups;
  check_all<formats::Fp8Block>(
      kFp8Layers, {emulated_gated_Fp8Block, emulated_unary_Fp8Block, emulated_down_Fp8Block}, 300);
}

TEST(StreamKernels, compute_fp8_with_scales_of_rows_of_all_and_given) {
  unsigned seed = 400;
  for (const InputScaling each : {InputScaling::Rows, InputScaling::All, InputScaling::Given}) {
    scaling = each;
    check_all<formats::Fp8Whole>(
        kFp8Layers, {emulated_gated_Fp8Whole, emulated_unary_Fp8Whole, emulated_down_Fp8Whole},
        seed);
    if (HasFatalFailure()) return;
    seed += std::size(kFp8Layers);
  }
}

}  // namespace
