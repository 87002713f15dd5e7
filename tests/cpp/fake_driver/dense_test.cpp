// Plans of act_and_mul on the driver beside this file: what the host passes to the kernels for rows
// of any size, stride and alignment, and what it says when something is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda/backend.hpp"
#include "cuda/dense_plan.hpp"
#include "data.hpp"
#include "device.hpp"
#include "flexact/backend.hpp"
#include "flexact/error.hpp"
#include "moe/small_floats.hpp"

namespace {

using flexact::DenseCall;
using flexact::DenseProblem;
using flexact::DenseResult;
using flexact::DType;
using flexact::Error;
using flexact::ErrorCode;
using flexact::Function;
using flexact::Pairing;
using flexact::ParameterTable;
using flexact::conformance::decode;
using flexact::conformance::Device;
using flexact::conformance::half_ulp;
using flexact::conformance::Tensor;
using testing::HasSubstr;

#define NEED_MACHINE() \
  if (const auto refusal = flexact::cuda::refuse_machine()) GTEST_SKIP() << refusal->reason

struct Size {
  std::int64_t rows, width, gap = 0, out_gap = 0, offset = 0;
};

// The functions that the driver computes.
Function function_of(Pairing pairing) {
  return Function::expression(pairing == Pairing::None ? "2*x+p" : "g*u+p");
}

// Runs a plan on numbers and compares with fp64.
void check(const flexact::DensePlan& plan, const DenseProblem& problem, const Size& size) {
  const bool gated = problem.pairing != Pairing::None;
  const bool plain = problem.result == DenseResult::Plain;
  const std::int64_t columns = gated ? 2 * size.width : size.width;
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<double> values(static_cast<std::size_t>(size.rows * columns));
  for (double& value : values) value = normal(random);
  const Tensor x(problem.dtype, {size.rows, columns}, values, size.gap);
  const std::int64_t element = size_of(problem.dtype), out_element = plain ? element : 1;
  const std::int64_t out_stride = size.width + size.out_gap;
  const std::int64_t groups = problem.result == DenseResult::Fp8Rows ? 1 : (size.width + 127) / 128;

  Device device;
  std::vector<std::byte> shifted(static_cast<std::size_t>(size.offset * element));
  shifted.insert(shifted.end(), x.bytes.begin(), x.bytes.end());
  std::vector<std::byte> out(static_cast<std::size_t>(size.rows * out_stride * out_element),
                             std::byte{0xff});
  const std::vector<std::byte> before = out;
  std::vector<float> scales(static_cast<std::size_t>(size.rows * groups), -1);
  const float p = 0.5f;
  DenseCall call;
  call.rows = size.rows;
  call.intermediate = size.width;
  call.x =
      static_cast<const char*>(device.copy(shifted.data(), shifted.size())) + size.offset * element;
  call.x_stride = x.strides[0];
  call.out = device.copy(out.data(), out.size());
  call.out_stride = out_stride;
  if (!plain) call.scales = static_cast<float*>(device.copy(scales.data(), scales.size() * 4));
  call.scale_row_stride = groups;
  call.scale_group_stride = 1;
  plan.run(call, {static_cast<const float*>(device.copy(&p, 4)), 1, 1}, nullptr);
  device.read(out.data(), call.out, out.size());
  if (!plain) {
    device.read(reinterpret_cast<std::byte*>(scales.data()), call.scales, scales.size() * 4);
  }

  for (std::int64_t row = 0; row < size.rows; ++row) {
    for (std::int64_t i = 0; i < size.width; ++i) {
      const auto at = [&](std::int64_t column) {
        return x.exact[static_cast<std::size_t>(row * columns + column)];
      };
      const bool pairs = problem.pairing == Pairing::Interleaved;
      const double first = at(pairs ? 2 * i : i);
      const double want =
          gated ? first * at(pairs ? 2 * i + 1 : size.width + i) + p : 2 * first + p;
      const std::byte* stored = out.data() + (row * out_stride + i) * out_element;
      if (plain) {
        ASSERT_NEAR(decode(stored, problem.dtype), want,
                    1.01 * half_ulp(want, problem.dtype) + 1e-6);
        continue;
      }
      const std::int64_t group = problem.result == DenseResult::Fp8Rows ? 0 : i / 128;
      const double scale = scales[static_cast<std::size_t>(row * groups + group)];
      const double got = flexact::moe::decode_e4m3(static_cast<std::uint8_t>(*stored)) * scale;
      ASSERT_NEAR(got, want, std::fmax(std::fabs(want) * 0x1.01p-4, scale * 0x1.01p-10));
    }
    const auto end = static_cast<std::ptrdiff_t>((row * out_stride + size.width) * out_element);
    const auto next = end + static_cast<std::ptrdiff_t>(size.out_gap * out_element);
    ASSERT_TRUE(std::equal(out.begin() + end, out.begin() + next, before.begin() + end));
  }
}

TEST(CutlassDense, passes_every_layout_type_and_result_to_the_kernels) {
  NEED_MACHINE();
  const Size sizes[] = {{3, 264},          {1, 8},   {4, 129, 5, 3}, {2, 256, 16, 8},
                        {2, 128, 0, 0, 1}, {700, 96}};
  for (const Pairing pairing :
       {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16, DType::Float32}) {
      for (const DenseResult result :
           {DenseResult::Plain, DenseResult::Fp8Groups, DenseResult::Fp8Rows}) {
        const DenseProblem problem = {pairing, dtype, result};
        const auto plan = flexact::cuda::make_dense_plan(problem, function_of(pairing),
                                                         flexact::moe::Numerics::Fast);
        for (const Size& size : sizes) {
          check(*plan, problem, size);
          ASSERT_FALSE(HasFatalFailure())
              << to_string(pairing) << " " << to_string(dtype) << " " << static_cast<int>(result)
              << " " << size.rows << " x " << size.width;
        }
      }
    }
  }
}

TEST(CutlassDense, calls_it_cannot_make_are_refused_by_name) {
  NEED_MACHINE();
  const auto plan = flexact::cuda::make_dense_plan({}, Function::expression("g*u+p"),
                                                   flexact::moe::Numerics::Fast);
  EXPECT_THAT(plan->describe(), HasSubstr("act_and_mul bfloat16"));
  Device device;
  const std::vector<std::byte> memory(4096);
  DenseCall good;
  good.rows = 2;
  good.intermediate = 8;
  good.x = device.copy(memory.data(), memory.size());
  good.x_stride = 16;
  good.out = device.copy(memory.data(), memory.size());
  good.out_stride = 8;
  const ParameterTable values = {static_cast<const float*>(device.copy(memory.data(), 4)), 1, 1};
  EXPECT_NO_THROW(plan->run(good, values, nullptr));
  const auto expect_error = [&](const DenseCall& call, const ParameterTable& table,
                                const char* what) {
    try {
      plan->run(call, table, nullptr);
      ADD_FAILURE() << "no error instead of " << what;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
      EXPECT_THAT(error.what(), HasSubstr(what));
    }
  };
  DenseCall call = good;
  call.x_stride = 15;
  expect_error(call, values, "x: rows are 15 elements apart");
  call = good;
  call.out = static_cast<char*>(call.out) + 1;
  expect_error(call, values, "out: is not aligned");
  call = good;
  call.x = memory.data();
  expect_error(call, values, "x: is no device memory");
  call = good;
  call.intermediate = std::int64_t{1} << 40;
  expect_error(call, values, "intermediate");
  call = good;
  call.scales = static_cast<float*>(call.out);
  expect_error(call, values, "scales: are given");
  expect_error(good, {values.data, 2, 1}, "values: a table of [2, 1]");
  call = good;
  call.rows = 0;
  call.x = call.out = nullptr;
  EXPECT_NO_THROW(plan->run(call, values, nullptr));
}

}  // namespace
