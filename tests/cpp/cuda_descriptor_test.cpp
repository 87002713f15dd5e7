// What tcgen05.mma is told of its operands, beside what CUTLASS's own constructors say of the same.
#include <gtest/gtest.h>

#if __has_include(<cute/atom/mma_traits_sm100.hpp>)
#include <cute/tensor.hpp>
// After that.
#include <cute/atom/mma_traits_sm100.hpp>

#include "cuda/kernels/sm100_descriptors.hpp"

namespace {

namespace umma = cute::UMMA;
namespace sm100 = flexact::cuda::sm100;
using flexact::cuda::kTileColumns;
using flexact::cuda::kTileDepth;
using flexact::cuda::kTileRows;

template <typename Element>
std::uint32_t cutlass_instruction() {
  return static_cast<std::uint32_t>(
      umma::make_instr_desc<Element, Element, float, kTileRows, kTileColumns, umma::Major::K,
                            umma::Major::K>());
}

TEST(Sm100Descriptors, instructions_are_those_of_cutlass) {
  EXPECT_EQ(sm100::instruction_of(sm100::Operand::BFloat16),
            cutlass_instruction<cute::bfloat16_t>());
  EXPECT_EQ(sm100::instruction_of(sm100::Operand::Float16), cutlass_instruction<cute::half_t>());
}

// All but the address, which is none on the CPU.
template <int kRows>
std::uint64_t cutlass_tile() {
  using namespace cute;
  const auto layout =
      tile_to_shape(UMMA::Layout_K_SW128_Atom<bfloat16_t>{}, Shape<Int<kRows>, Int<kTileDepth>>{});
  static bfloat16_t memory[kRows * kTileDepth];
  auto descriptor =
      UMMA::make_umma_desc<UMMA::Major::K>(make_tensor(make_smem_ptr(memory), layout));
  descriptor.start_address_ = 0;
  return descriptor;
}

TEST(Sm100Descriptors, tiles_are_those_of_cutlass) {
  EXPECT_EQ(sm100::tile_descriptor(0), cutlass_tile<kTileRows>());
  EXPECT_EQ(sm100::tile_descriptor(0), cutlass_tile<kTileColumns>());
  umma::SmemDescriptor descriptor;
  descriptor.desc_ = sm100::tile_descriptor(0x2f400);
  EXPECT_EQ(descriptor.start_address_, 0x2f40);
  // Sixteen bytes further along K, as a CUTLASS iterator goes.
  EXPECT_EQ(sm100::tile_descriptor(0x400) + 2, sm100::tile_descriptor(0x420));
}

}  // namespace
#else
TEST(Sm100Descriptors, are_those_of_cutlass) {
  GTEST_SKIP() << "this build has no headers of CUTLASS";
}
#endif
