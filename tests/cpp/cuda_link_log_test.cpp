// What is read from the linker's log.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cuda/jit/link_log.hpp"

namespace {

using flexact::cuda::LinkReport;
using flexact::cuda::read_link_log;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kClean = R"(ptxas info    : 11 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
ptxas info    : Compile time = 454.281 ms
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 256 bytes smem
)";

TEST(LinkLog, reads_each_kernels_resources) {
  const LinkReport report = read_link_log(kClean);
  ASSERT_EQ(report.kernels.size(), 2u);
  EXPECT_EQ(report.kernels[0].name, "first");
  EXPECT_EQ(report.kernels[0].registers, 168);
  EXPECT_EQ(report.kernels[1].name, "second");
  EXPECT_EQ(report.kernels[1].registers, 46);
  EXPECT_THAT(report.faults(), IsEmpty());
}

TEST(LinkLog, a_spill_and_a_stack_frame_are_faults) {
  const LinkReport report = read_link_log(
      "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
      "ptxas         .     40 bytes stack frame, 36 bytes spill stores, 20 bytes spill loads\n"
      "ptxas info    : Used 168 registers, used 1 barriers, 40 bytes cumulative stack size\n");
  ASSERT_EQ(report.kernels.size(), 1u);
  EXPECT_EQ(report.kernels[0].spill_bytes, 56);
  EXPECT_EQ(report.kernels[0].stack_bytes, 40);
  EXPECT_EQ(report.kernels[0].registers, 168);
  EXPECT_THAT(report.faults(), ElementsAre(HasSubstr("56 bytes"), HasSubstr("40 bytes")));
}

TEST(LinkLog, an_advisory_about_wgmma_or_setmaxnreg_is_a_fault) {
  const LinkReport report = read_link_log(
      "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
      "serialized due to the presence of Extern calls in the function 'k'\n"
      "ptxas info    : setmaxnreg ignored to maintain minimum register requirement\n");
  EXPECT_THAT(report.faults(), ElementsAre(HasSubstr("C7510"), HasSubstr("setmaxnreg")));
}

TEST(LinkLog, nothing_is_read_from_nothing) {
  EXPECT_THAT(read_link_log("").kernels, IsEmpty());
  EXPECT_THAT(read_link_log("no kernel here\nC7 C75 C75x").faults(), IsEmpty());
}

}  // namespace
