// What the CUDA backend says without a GPU: problems are judged first, then the machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cuda/backend.hpp"
#include "cuda/driver.hpp"
#include "flexact/error.hpp"

namespace {

using flexact::DType;
using flexact::Error;
using flexact::ErrorCode;
using flexact::Format;
using flexact::Function;
using flexact::MoeProblem;
using flexact::Pairing;
using flexact::Refusal;
using testing::AnyOf;
using testing::HasSubstr;

MoeProblem problem() {
  MoeProblem p;
  p.experts = 8;
  p.top_k = 2;
  p.hidden = 64;
  p.intermediate = 48;
  return p;
}

std::string reason(const MoeProblem& p, const Function& function = Function::named("swiglu")) {
  const auto refusal = flexact::cuda::backend().refuse(p, function);
  return refusal ? refusal->reason : "";
}

TEST(CutlassBackend, is_in_the_table_and_works_on_a_gpu) {
  EXPECT_EQ(&flexact::backend("cutlass"), &flexact::cuda::backend());
  EXPECT_EQ(flexact::cuda::backend().device(), "cuda");
}

TEST(CutlassBackend, refuses_formats_types_and_sizes_it_has_no_kernel_for) {
  MoeProblem p = problem();
  p.intermediate = 64;
  p.format = Format::Fp32;
  EXPECT_THAT(reason(p), HasSubstr("no CUDA kernels for format"));
  p = problem();
  p.io_dtype = DType::Float16;
  EXPECT_THAT(reason(p), HasSubstr("float16"));
  p = problem();
  p.hidden = 65;
  EXPECT_THAT(reason(p), HasSubstr("hidden 65"));
  p = problem();
  p.intermediate = 50;
  EXPECT_THAT(reason(p), HasSubstr("intermediate 50"));
  p = problem();
  p.experts = 20000;
  EXPECT_THAT(reason(p), HasSubstr("experts"));
  p = problem();
  p.bias13 = p.router_weight_on_input = true;
  EXPECT_THAT(reason(p), HasSubstr("no agreed meaning"));
  p = problem();
  p.pairing = Pairing::None;
  EXPECT_THAT(reason(p), HasSubstr("pairing is none"));
}

TEST(CutlassBackend, takes_fp8_whose_rows_are_whole_pieces) {
  MoeProblem p = problem();
  const auto machine = flexact::cuda::refuse_machine();
  for (const Format format : {Format::Fp8Block, Format::Fp8Tensor, Format::Fp8Channel}) {
    p.format = format;
    EXPECT_EQ(reason(p), machine ? machine->reason : "");
  }
  p.hidden = 72;
  EXPECT_THAT(reason(p), HasSubstr("hidden 72 or intermediate 48 is not a multiple of 16"));
  p.io_dtype = DType::Float16;
  EXPECT_THAT(reason(p), HasSubstr("float16"));
}

TEST(CutlassBackend, takes_fp16_beside_fp16) {
  MoeProblem p = problem();
  p.format = Format::Fp16;
  p.io_dtype = DType::Float16;
  const auto machine = flexact::cuda::refuse_machine();
  EXPECT_EQ(reason(p), machine ? machine->reason : "");
  p.io_dtype = DType::BFloat16;
  EXPECT_THAT(reason(p), HasSubstr("float16 hidden states beside fp16 weights, not bfloat16"));
  p.io_dtype = DType::Float16;
  p.hidden = 68;
  EXPECT_THAT(reason(p), HasSubstr("hidden 68"));
}

TEST(CutlassBackend, takes_fp4_in_whole_pieces) {
  MoeProblem p = problem();
  p.hidden = p.intermediate = 64;
  const auto machine = flexact::cuda::refuse_machine();
  for (const Format format : {Format::Mxfp4, Format::Mxfp4Fp8, Format::Nvfp4}) {
    p.format = format;
    EXPECT_EQ(reason(p), machine ? machine->reason : "");
  }
  p.hidden = 48;  // whole groups, but no whole pieces
  EXPECT_THAT(reason(p), HasSubstr("hidden 48 or intermediate 64 is not a multiple of 32"));
}

TEST(CutlassBackend, refuses_act_and_mul_of_what_is_not_in_one_tensor) {
  const flexact::Backend& backend = flexact::cuda::backend();
  const Function swiglu = Function::named("swiglu");
  const auto reason_of = [&](const flexact::DenseProblem& p) {
    const auto refusal = backend.refuse_dense(p, swiglu);
    return refusal ? refusal->reason : "";
  };
  EXPECT_THAT(reason_of({Pairing::None}), HasSubstr("needs a gate"));
  EXPECT_THAT(reason_of({Pairing::Separate}), HasSubstr("not in one tensor"));
  EXPECT_THAT(reason_of({Pairing::Concat, DType::Int32}), HasSubstr("int32"));
  const auto machine = flexact::cuda::refuse_machine();
  EXPECT_EQ(reason_of({}), machine ? machine->reason : "");
  if (!machine) GTEST_SKIP() << "this machine has a GPU";
  try {
    backend.plan_dense({}, swiglu);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
  }
  EXPECT_THAT(flexact::backend("cpu").refuse_dense({}, swiglu)->reason, HasSubstr("no plans"));
}

TEST(CutlassBackend, refuses_what_the_machine_lacks_and_plans_nothing_then) {
  const auto machine = flexact::cuda::refuse_machine();
  EXPECT_EQ(reason(problem()), machine ? machine->reason : "");
  if (!machine) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_FALSE(machine->hint.empty());
  EXPECT_THAT(machine->reason, AnyOf(HasSubstr("no CUDA kernels"), HasSubstr("libcuda"),
                                     HasSubstr("compute capability"), HasSubstr("libnv")));
  try {
    flexact::cuda::backend().plan(problem(), Function::named("swiglu"), {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
    EXPECT_EQ(error.message(), machine->reason);
  }
}

TEST(Driver, a_missing_one_is_an_error_that_says_so) {
  std::string why;
  if (flexact::cuda::Driver::find(why) != nullptr) GTEST_SKIP() << "this machine has a driver";
  EXPECT_THAT(why, AnyOf(HasSubstr("no NVIDIA driver"), HasSubstr("CUDA_ERROR")));
}

}  // namespace
