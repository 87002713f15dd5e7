// Which instruction set is chosen, and that a forced choice never falls back.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cpu/isa.hpp"
#include "flexact/error.hpp"

namespace flexact::cpu {
namespace {

class IsaChoice : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* value = std::getenv("FLEXACT_CPU_ISA")) saved_ = value;
  }
  void TearDown() override {
    if (saved_.empty()) {
      unsetenv("FLEXACT_CPU_ISA");
    } else {
      setenv("FLEXACT_CPU_ISA", saved_.c_str(), 1);
    }
  }
  static void force(const std::string& name) { setenv("FLEXACT_CPU_ISA", name.c_str(), 1); }

 private:
  std::string saved_;
};

TEST_F(IsaChoice, names_round_trip) {
  for (Isa isa : {Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16}) {
    EXPECT_EQ(parse_isa(to_string(isa)), isa);
  }
}

TEST_F(IsaChoice, scalar_is_always_there_and_the_best_is_the_default) {
  unsetenv("FLEXACT_CPU_ISA");
  const auto isas = supported_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::Scalar);
  EXPECT_EQ(selected_isa(), isas.back());
  force("");
  EXPECT_EQ(selected_isa(), isas.back());
}

TEST_F(IsaChoice, the_environment_forces_each_supported_one) {
  for (Isa isa : supported_isas()) {
    force(std::string(to_string(isa)));
    EXPECT_EQ(selected_isa(), isa);
  }
}

TEST_F(IsaChoice, an_unknown_name_is_an_error_that_names_the_known_ones) {
  force("AVX2");
  try {
    selected_isa();
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(error.where(), "FLEXACT_CPU_ISA");
    EXPECT_NE(error.hint().find("avx512bf16"), std::string::npos);
  }
}

TEST_F(IsaChoice, a_name_this_machine_lacks_is_an_error) {
  for (Isa isa : {Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16}) {
    if (is_supported(isa)) continue;
    force(std::string(to_string(isa)));
    EXPECT_THROW(selected_isa(), Error);
  }
}

}  // namespace
}  // namespace flexact::cpu
