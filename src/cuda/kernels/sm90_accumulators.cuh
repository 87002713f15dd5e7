// A warpgroup's accumulators and the products that are added to them, straight on the instruction. CuTe's
// tensors say the same, and the linker takes more than half a second to see through them.
#pragma once

#include <cstdint>
#include <utility>

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/util.hpp>

namespace flexact::cuda::sm90 {

// How far a descriptor moves with its tile's address.
__device__ constexpr std::uint64_t descriptor_step(std::uint64_t bytes) {
  return bytes / 16;
}

// What wgmma must know of a tile: rows of 128 bytes, swizzled in groups of eight rows, aligned to such a
// group. A step along K inside the 128 bytes moves the address alone.
template <typename Element>
__device__ __forceinline__ std::uint64_t tile_descriptor(const Element* tile) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroup = std::uint64_t{1024 / 16} << 32;
  constexpr std::uint64_t kUnused = std::uint64_t{1} << 16;  // what CuTe writes where it has no meaning
  return kSwizzle128 | kGroup | kUnused | (cute::cast_smem_ptr_to_uint(tile) & 0x3ffffu) >> 4;
}

// Of 64 rows and kColumns columns.
template <int kColumns>
struct AccumulatorsOf {
  static constexpr int kCount = kColumns / 2;
  float each[kCount];

  __device__ __forceinline__ float& operator()(int i) { return each[i]; }

  // Nothing that the compiler does with them crosses this.
  __device__ __forceinline__ void fence() {
    CUTE_UNROLL
    for (float& one : each) cute::warpgroup_fence_operand(one);
  }

  template <typename Product>
  __device__ __forceinline__ void add(std::uint64_t a, std::uint64_t b, cute::SM90::GMMA::ScaleOut scale) {
    add_to<Product>(a, b, scale, std::make_index_sequence<kCount>{});
  }

 private:
  template <typename Product, std::size_t... kIndex>
  __device__ __forceinline__ void add_to(std::uint64_t a, std::uint64_t b, cute::SM90::GMMA::ScaleOut scale,
                                         std::index_sequence<kIndex...>) {
    Product::fma(a, b, each[kIndex]..., scale);
  }
};

}  // namespace flexact::cuda::sm90
