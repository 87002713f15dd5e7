// act_and_mul against the fp64 reference: types, pairings, strides, sizes that fit no vector,
// threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.hpp"
#include "cpu/tape_program.hpp"
#include "flexact/backend.hpp"
#include "flexact/error.hpp"
#include "graph_reference.hpp"
#include "sample_values.hpp"

namespace flexact::cpu {
namespace {

// One tensor in any of the three types, with the exact values its elements have.
struct Tensor {
  DType dtype;
  std::vector<float> fp32;
  std::vector<std::uint16_t> half;

  Tensor(DType type, std::vector<float> values) : dtype(type), fp32(std::move(values)) {
    const TapeKernels& kernels = tape_kernels(Isa::Scalar);
    half.resize(fp32.size());
    if (dtype == DType::BFloat16) {
      kernels.to_bf16(fp32.data(), half.data(), half.size());
      kernels.from_bf16(half.data(), fp32.data(), half.size());
    } else if (dtype == DType::Float16) {
      kernels.to_fp16(fp32.data(), half.data(), half.size());
      kernels.from_fp16(half.data(), fp32.data(), half.size());
    }
  }
  void* data() { return dtype == DType::Float32 ? static_cast<void*>(fp32.data()) : half.data(); }
  // What the elements are now.
  std::vector<float> read() const {
    std::vector<float> values = fp32;
    const TapeKernels& kernels = tape_kernels(Isa::Scalar);
    if (dtype == DType::BFloat16) kernels.from_bf16(half.data(), values.data(), half.size());
    if (dtype == DType::Float16) kernels.from_fp16(half.data(), values.data(), half.size());
    return values;
  }
};

std::vector<float> normal_values(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

double unit_roundoff(DType dtype) {
  return dtype == DType::Float32 ? 0x1p-20 : dtype == DType::BFloat16 ? 0x1p-8 : 0x1p-11;
}

struct Case {
  std::int64_t rows, intermediate, extra;  // extra elements between rows
};

void expect_exact(const Function& function, Pairing pairing, DType dtype, const Case& size) {
  const std::int64_t width = pairing == Pairing::None ? size.intermediate : 2 * size.intermediate;
  const std::int64_t x_stride = width + size.extra, out_stride = size.intermediate + 2 * size.extra;
  constexpr float kPoison = 12345.0f;
  Tensor x(dtype, normal_values(static_cast<std::size_t>(size.rows * x_stride), 1));
  Tensor out(dtype, std::vector<float>(static_cast<std::size_t>(size.rows * out_stride), kPoison));
  const float poison = out.fp32.empty() ? 0 : out.fp32[0];
  const std::vector<float> values = test::sample_parameters(function, 1)[0];
  const std::vector<double> exact_values(values.begin(), values.end());
  act_and_mul(function, {values.data(), 1, static_cast<std::int64_t>(values.size())}, pairing,
              dtype, size.rows, size.intermediate, x.data(), x_stride, out.data(), out_stride);
  const Function lifted = pairing == Pairing::None ? function : function.gated();
  const std::vector<float> y = out.read();
  for (std::int64_t row = 0; row < size.rows; ++row) {
    for (std::int64_t i = 0; i < out_stride; ++i) {
      const float actual = y[static_cast<std::size_t>(row * out_stride + i)];
      if (i >= size.intermediate) {
        ASSERT_EQ(actual, poison) << "written beyond row " << row;
        continue;
      }
      const float* in = x.fp32.data() + row * x_stride;
      const double first = in[pairing == Pairing::Interleaved ? 2 * i : i];
      double exact;
      if (pairing == Pairing::None) {
        exact = lifted.reference(first, exact_values);
      } else {
        const double second =
            in[pairing == Pairing::Interleaved ? 2 * i + 1 : size.intermediate + i];
        exact = pairing == Pairing::UpFirst ? lifted.reference(second, first, exact_values)
                                            : lifted.reference(first, second, exact_values);
      }
      ASSERT_NEAR(actual, exact, std::abs(exact) * unit_roundoff(dtype) + 0x1p-23)
          << function.name() << " " << to_string(pairing) << " " << to_string(dtype) << " row "
          << row << " column " << i;
    }
  }
}

constexpr DType kTypes[] = {DType::Float32, DType::BFloat16, DType::Float16};
constexpr Pairing kPairings[] = {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved};

TEST(ActAndMul, agrees_with_the_reference_for_every_type_pairing_and_size) {
  const Function swish = Function::named("swish"), oai = Function::named("swiglu_oai");
  for (DType dtype : kTypes) {
    for (const Case& size : {Case{3, 1, 0}, Case{2, 17, 5}, Case{5, 96, 0}, Case{1, 1024, 3},
                             Case{3, 2500, 1}, Case{1, 40000, 0}, Case{700, 33, 0}}) {
      for (Pairing pairing : kPairings) {
        expect_exact(oai, pairing, dtype, size);
        expect_exact(swish, pairing, dtype, size);
      }
      expect_exact(swish, Pairing::None, dtype, size);
    }
  }
}

TEST(ActAndMul, every_catalogue_function_runs_on_every_instruction_set) {
  for (Isa isa : supported_isas()) {
    setenv("FLEXACT_CPU_ISA", std::string(to_string(isa)).c_str(), 1);
    for (const std::string& name : ActivationRegistry::instance().list()) {
      const Function function = Function::named(name);
      // Accuracy is the tape's own test; tails of ill-conditioned functions would need its bounds.
      if (function.arity() == Arity::Unary)
        expect_exact(function, Pairing::None, DType::BFloat16, {2, 70, 1});
      expect_exact(function, Pairing::Interleaved, DType::BFloat16, {2, 70, 1});
    }
  }
  unsetenv("FLEXACT_CPU_ISA");
}

TEST(ActAndMul, the_output_may_be_the_input) {
  const Function swiglu = Function::named("swiglu");
  for (DType dtype : kTypes) {
    for (Pairing pairing : kPairings) {
      // Long enough for several threads to share a row.
      constexpr std::int64_t kRows = 3, kWidth = 70000;
      Tensor x(dtype, normal_values(kRows * 2 * kWidth, 2));
      Tensor apart(dtype, std::vector<float>(kRows * 2 * kWidth));
      act_and_mul(swiglu, {}, pairing, dtype, kRows, kWidth, x.data(), 2 * kWidth, apart.data(),
                  2 * kWidth);
      act_and_mul(swiglu, {}, pairing, dtype, kRows, kWidth, x.data(), 2 * kWidth, x.data(),
                  2 * kWidth);
      const std::vector<float> expected = apart.read(), actual = x.read();
      for (std::int64_t row = 0; row < kRows; ++row) {
        for (std::int64_t i = 0; i < kWidth; ++i) {
          ASSERT_EQ(actual[static_cast<std::size_t>(row * 2 * kWidth + i)],
                    expected[static_cast<std::size_t>(row * 2 * kWidth + i)])
              << to_string(pairing) << " " << to_string(dtype) << " " << row << " " << i;
        }
      }
    }
  }
}

TEST(ActAndMul, nothing_is_done_for_no_rows) {
  act_and_mul(Function::named("swiglu"), {}, Pairing::Concat, DType::Float32, 0, 16, nullptr, 32,
              nullptr, 16);
}

TEST(ActAndMul, wrong_arguments_are_refused_before_anything_is_written) {
  const Function swiglu = Function::named("swiglu"), swish = Function::named("swish_glu");
  std::vector<float> x(64, 1.0f), out(64, 7.0f);
  const float beta = 1.0f;
  const auto rejected = [&](const Function& f, ParameterTable values, Pairing pairing, DType dtype,
                            std::int64_t rows, std::int64_t width, std::int64_t x_stride) {
    try {
      act_and_mul(f, values, pairing, dtype, rows, width, x.data(), x_stride, out.data(), width);
    } catch (const Error& error) {
      return error.code() == ErrorCode::InvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(rejected(swiglu, {}, Pairing::None, DType::Float32, 1, 8, 16));
  EXPECT_TRUE(rejected(swiglu, {}, Pairing::Separate, DType::Float32, 1, 8, 16));
  EXPECT_TRUE(rejected(swiglu, {}, Pairing::Concat, DType::Int32, 1, 8, 16));
  EXPECT_TRUE(rejected(swiglu, {}, Pairing::Concat, DType::Float32, 2, 8, 15));
  EXPECT_TRUE(rejected(swiglu, {}, Pairing::Concat, DType::Float32, -1, 8, 16));
  EXPECT_TRUE(rejected(swish, {}, Pairing::Concat, DType::Float32, 1, 8, 16));
  EXPECT_TRUE(rejected(swish, {nullptr, 1, 1}, Pairing::Concat, DType::Float32, 1, 8, 16));
  EXPECT_TRUE(rejected(swish, {&beta, 2, 1}, Pairing::Concat, DType::Float32, 1, 8, 16));
  EXPECT_FALSE(rejected(swish, {&beta, 1, 1}, Pairing::Concat, DType::Float32, 1, 8, 16));
  for (std::size_t i = 8; i < out.size(); ++i) EXPECT_EQ(out[i], 7.0f);
}

class Conversions : public testing::TestWithParam<Isa> {};

TEST_P(Conversions, every_16_bit_number_survives_the_round_trip) {
  const TapeKernels& kernels = tape_kernels(GetParam());
  std::vector<std::uint16_t> all(65536), back(65536);
  for (std::uint32_t i = 0; i < 65536; ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> wide(65536);
  kernels.from_bf16(all.data(), wide.data(), all.size());
  for (std::uint32_t i = 0; i < 65536; ++i) {
    ASSERT_EQ(__builtin_bit_cast(std::uint32_t, wide[i]), i << 16);
  }
  kernels.to_bf16(wide.data(), back.data(), back.size());
  for (std::uint32_t i = 0; i < 65536; ++i) {
    if (!std::isnan(wide[i])) {
      ASSERT_EQ(back[i], i);
    }
    if (std::isnan(wide[i])) {
      ASSERT_GT(back[i] & 0x7fff, 0x7f80);
    }
  }
  kernels.from_fp16(all.data(), wide.data(), all.size());
  kernels.to_fp16(wide.data(), back.data(), back.size());
  for (std::uint32_t i = 0; i < 65536; ++i) {
    if (!std::isnan(wide[i])) {
      ASSERT_EQ(back[i], i);
    }
    if (std::isnan(wide[i])) {
      ASSERT_GT(back[i] & 0x7fff, 0x7c00);
    }
  }
}

TEST_P(Conversions, narrowing_rounds_to_nearest_even_alike_on_every_instruction_set) {
  const TapeKernels& kernels = tape_kernels(GetParam());
  std::mt19937 random(3);
  std::uniform_int_distribution<std::uint32_t> any;
  std::vector<float> values;
  for (int i = 0; i < 200000; ++i) {
    std::uint32_t bits = any(random);
    if (i % 3 == 0) bits &= 0xffff8000u;                        // ties of bf16
    if (i % 3 == 1) bits = (bits & 0x8fffffffu) | 0x30000000u;  // the range of fp16
    if (i % 5 == 0) bits &= 0xfffff000u;                        // ties of fp16
    values.push_back(__builtin_bit_cast(float, bits));
  }
  std::vector<std::uint16_t> bf16(values.size()), fp16(values.size());
  kernels.to_bf16(values.data(), bf16.data(), values.size());
  kernels.to_fp16(values.data(), fp16.data(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) continue;
    // The nearest of the two neighbours, in exact arithmetic; nearbyint rounds ties to even.
    const double v = values[i];
    const auto rounded = [&](int digits, int least_exponent) {
      const int exponent = v == 0 ? least_exponent : std::max(std::ilogb(v), least_exponent);
      const double unit = std::ldexp(1.0, exponent - digits + 1);
      return std::nearbyint(v / unit) * unit;
    };
    float wide;
    kernels.from_bf16(&bf16[i], &wide, 1);
    const double as_bf16 = rounded(8, -126);
    if (std::abs(as_bf16) < 0x1p128) {
      ASSERT_EQ(wide, as_bf16) << v;
    }
    if (std::abs(as_bf16) >= 0x1p128) {
      ASSERT_TRUE(std::isinf(wide)) << v;
    }
    kernels.from_fp16(&fp16[i], &wide, 1);
    const double as_fp16 = rounded(11, -14);
    if (std::abs(as_fp16) < 65520) {
      ASSERT_EQ(wide, as_fp16) << v;
    }
    if (std::abs(as_fp16) >= 65536) {
      ASSERT_TRUE(std::isinf(wide)) << v;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, Conversions, testing::ValuesIn(supported_isas()),
                         [](const auto& test) { return std::string(to_string(test.param)); });

}  // namespace
}  // namespace flexact::cpu
