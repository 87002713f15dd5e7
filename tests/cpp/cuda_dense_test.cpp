// The source of the dense kernels on the CPU, thread by thread, against fp64: every layout, type
// and result, rows of any width, stride and alignment.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulated/e4m3.hpp"
#include "emulated/linked_function.hpp"
#include "emulated/stream_instructions.hpp"
#define FLEXACT_EMULATED
#include "cuda/kernels/dense_rows.cuh"

namespace {

using namespace flexact::cuda;

// Of whole bytes, unlike std::aligned_alloc's: a read beyond the last one is an error to
// AddressSanitizer.
void* aligned(std::size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
}

enum class Layout { Concat, UpFirst, Interleaved, None };
enum class Result { Plain, Groups, Rows };

struct Size {
  int rows, width;
  int gap = 0;        // of rows, in elements
  int out_gap = 0;    // of rows of the result
  int offset = 0;     // of the first element from an address of 16 bytes
  int threads = 64;   // of a block
  bool many = false;  // several pieces a thread
};

// The function that this program links: of cuda_stream_test.cpp.
double reference(Layout layout, double g, double u, double p) {
  return layout == Layout::None ? g * std::fabs(g) + p : g * u + p * g;
}

template <typename Element>
Element to_element(float value) {
  return Rounding<Element>::one(value);
}

// Half the distance of neighbours at `value`, in parts of it.
template <typename Element>
constexpr double kUnit = sizeof(Element) == 4              ? 0x1p-22
                         : std::is_same_v<Element, __half> ? 0x1p-11
                                                           : 0x1p-8;

// Memory whose element 0 lies `offset` elements after an address of 16 bytes and which ends with
// the last, all of it 0xff.
template <typename T>
class Memory {
 public:
  Memory(std::size_t count, int offset)
      : bytes_(aligned((count + static_cast<std::size_t>(offset)) * sizeof(T)), &std::free),
        data_(static_cast<T*>(bytes_.get()) + offset) {
    std::memset(static_cast<void*>(data_), 0xff, count * sizeof(T));
  }
  T* data() { return data_; }
  bool untouched(std::size_t index) const {
    const auto* at = reinterpret_cast<const unsigned char*>(data_ + index);
    return std::all_of(at, at + sizeof(T), [](unsigned char byte) { return byte == 0xff; });
  }

 private:
  std::unique_ptr<void, decltype(&std::free)> bytes_;
  T* data_;
};

template <bool kGated, typename Element>
void launch(const DenseArguments& arguments, Result result, const Size& size) {
  const int blocks =
      result == Result::Rows
          ? size.rows
          : static_cast<int>((arguments.pieces - 1) / (size.threads * arguments.each) + 1);
  for (int x = 0; x < blocks; ++x) {
    emulated::Block::current().run(size.threads, {static_cast<unsigned>(x)}, [&] {
      if (result == Result::Plain) dense::act<kGated, Element>(arguments);
      if (result == Result::Groups) dense::act_groups<kGated, Element>(arguments);
      if (result == Result::Rows) dense::act_rows<kGated, Element>(arguments);
    });
  }
}

template <typename Element>
void check(Layout layout, Result result, const Size& size, unsigned seed) {
  const bool gated = layout != Layout::None;
  const int columns = gated ? 2 * size.width : size.width;
  const int x_stride = columns + size.gap, out_stride = size.width + size.out_gap;
  const int groups = (size.width + kGroup - 1) / kGroup;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Memory<Element> x(static_cast<std::size_t>(size.rows * x_stride), size.offset);
  for (int row = 0; row < size.rows; ++row) {
    for (int i = 0; i < columns; ++i) {
      x.data()[row * x_stride + i] = to_element<Element>(normal(random));
    }
  }
  const auto count = static_cast<std::size_t>(size.rows * out_stride);
  Memory<Element> plain(count, size.offset);
  Memory<std::uint8_t> codes(count, size.offset);
  // Scales of a group are neighbours, with a gap of one row.
  std::vector<float> scales(static_cast<std::size_t>((size.rows + 1) * groups), -1);
  const float value = 0.75f;

  constexpr int kPiece = dense::kPiece<Element>;
  DenseArguments a{};
  a.x = x.data();
  a.x_stride = x_stride;
  a.first = layout == Layout::UpFirst ? size.width : 0;
  a.second = layout == Layout::Concat ? size.width : layout == Layout::Interleaved ? kPiece : 0;
  a.output = result == Result::Plain ? static_cast<void*>(plain.data()) : codes.data();
  a.output_stride = out_stride;
  a.scales = scales.data();
  a.scale_row_step = 1;
  a.scale_group_step = size.rows + 1;
  a.values = &value;
  a.value_columns = 1;
  a.width = size.width;
  a.row_pieces =
      result == Result::Groups ? groups * (kGroup / kPiece) : (size.width + kPiece - 1) / kPiece;
  a.pieces = size.rows * a.row_pieces;
  a.interleaved = layout == Layout::Interleaved;
  a.vectors = size.width % kPiece == 0 && size.offset == 0 && size.gap % kPiece == 0 &&
              size.out_gap % kPiece == 0;
  a.each = !size.many || a.vectors == 0 ? 1 : gated ? kDensePieces / 2 : kDensePieces;
  if (gated) {
    launch<true, Element>(a, result, size);
  } else {
    launch<false, Element>(a, result, size);
  }

  for (int row = 0; row < size.rows; ++row) {
    std::vector<double> want;
    for (int i = 0; i < size.width; ++i) {
      const auto at = [&](int column) {
        return static_cast<double>(to_float(x.data()[row * x_stride + column]));
      };
      const int g = layout == Layout::UpFirst       ? size.width + i
                    : layout == Layout::Interleaved ? 2 * i
                                                    : i;
      const int u = layout == Layout::UpFirst       ? i
                    : layout == Layout::Interleaved ? 2 * i + 1
                                                    : size.width + i;
      want.push_back(reference(layout, at(g), gated ? at(u) : 0, value));
    }
    const int group = result == Result::Rows ? size.width : kGroup;
    for (int i = 0; i < size.width; ++i) {
      const int index = row * out_stride + i;
      const double y = want[static_cast<std::size_t>(i)];
      if (result == Result::Plain) {
        ASSERT_NEAR(to_float(plain.data()[index]), y, kUnit<Element> * std::fabs(y) + 1e-6)
            << row << ", " << i;
        continue;
      }
      double largest = 0;
      for (int k = i / group * group; k < std::min(size.width, (i / group + 1) * group); ++k) {
        largest = std::fmax(largest, std::fabs(want[static_cast<std::size_t>(k)]));
      }
      const double scale = scales[static_cast<std::size_t>(row + i / group * (size.rows + 1))];
      ASSERT_NEAR(scale, largest / 448, 1e-5 * largest / 448 + 1e-12) << row << ", " << i;
      const double got = flexact::moe::decode_e4m3(codes.data()[index]) * scale;
      ASSERT_NEAR(got, y, std::fmax(std::fabs(y) * 0x1.01p-4, scale * 0x1.01p-10))
          << row << ", " << i;
    }
    for (int i = size.width; i < out_stride; ++i) {
      const auto index = static_cast<std::size_t>(row * out_stride + i);
      ASSERT_TRUE(result == Result::Plain ? plain.untouched(index) : codes.untouched(index));
    }
  }
  for (int group = 0; group < (result == Result::Groups ? groups : 1); ++group) {
    ASSERT_EQ(scales[static_cast<std::size_t>(size.rows + group * (size.rows + 1))], -1);
  }
}

class DenseRows : public testing::TestWithParam<Size> {};

TEST_P(DenseRows, equal_fp64_rounded_once_in_every_layout_type_and_result) {
  unsigned seed = 0;
  for (const Layout layout : {Layout::Concat, Layout::UpFirst, Layout::Interleaved, Layout::None}) {
    for (const Result result : {Result::Plain, Result::Groups, Result::Rows}) {
      const auto what = [&](const char* type) {
        return std::string(type) + ", layout " + std::to_string(static_cast<int>(layout)) +
               ", result " + std::to_string(static_cast<int>(result));
      };
      check<__nv_bfloat16>(layout, result, GetParam(), ++seed);
      if (HasFatalFailure()) FAIL() << what("bf16");
      check<__half>(layout, result, GetParam(), ++seed);
      if (HasFatalFailure()) FAIL() << what("fp16");
      check<float>(layout, result, GetParam(), ++seed);
      if (HasFatalFailure()) FAIL() << what("fp32");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, DenseRows,
    testing::Values(Size{.rows = 3, .width = 8}, Size{.rows = 7, .width = 264, .many = true},
                    Size{.rows = 2, .width = 1},
                    Size{.rows = 5, .width = 130, .gap = 3, .out_gap = 1},
                    Size{.rows = 4, .width = 136, .gap = 16, .out_gap = 8, .many = true},
                    // Its rows are longer than what a block of the third result keeps.
                    Size{.rows = 2, .width = 1160, .threads = 32},
                    Size{.rows = 2, .width = 1161, .threads = 32},
                    Size{.rows = 3, .width = 72, .offset = 1},
                    Size{.rows = 33, .width = 16, .threads = 32, .many = true}));

TEST(DenseRows, a_nan_is_the_largest_of_its_group_and_infinities_stay) {
  std::vector<float> x(256, 1.0f), scales(2, -1);
  x[3] = NAN;
  x[200] = INFINITY;
  std::vector<std::uint8_t> codes(256, 0xff);
  const float value = 0;
  DenseArguments a{};
  a.x = x.data();
  a.output = codes.data();
  a.scales = scales.data();
  a.scale_group_step = 1;
  a.values = &value;
  a.value_columns = 1;
  a.width = 256;
  a.row_pieces = a.pieces = 64;
  a.each = 1;
  launch<false, float>(a, Result::Groups, Size{.rows = 1, .width = 256});
  EXPECT_TRUE(std::isnan(scales[0]));
  EXPECT_TRUE(std::isinf(scales[1]));
  for (int i = 0; i < 128; ++i) EXPECT_EQ(codes[static_cast<std::size_t>(i)] & 0x7f, 0x7f);
}

}  // namespace
