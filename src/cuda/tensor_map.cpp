// Tensor maps through the driver.
#include "cuda/tensor_map.hpp"

#include <array>

#include "cuda/kernels/arguments.hpp"
#include "cuda/kernels/fp4_layout.hpp"
#include "flexact/error.hpp"

namespace flexact::cuda {

namespace {

constexpr int kBytes = 0;
constexpr int kFloat16 = 6;
constexpr int kBFloat16 = 9;
constexpr int kNoInterleave = 0;
constexpr int kNoSwizzle = 0;
constexpr int kSwizzle128 = 3;
constexpr int kPromote256 = 3;
constexpr int kFillZeros = 0;
constexpr std::int64_t kBoxBytes = 128;  // of a row: what one swizzled line holds

// FP4 codes come as bytes, and are read by threads: they are not swizzled.
bool is_packed(DType dtype) {
  return dtype == DType::UInt8;
}

std::uint32_t box_depth(DType dtype) {
  return static_cast<std::uint32_t>(is_packed(dtype) ? kFp4CodeBytes : kBoxBytes / size_of(dtype));
}

template <std::size_t kRank>
TensorMap encode(const Driver& driver, DType dtype, const void* data,
                 const std::array<std::uint64_t, kRank>& sizes,
                 const std::array<std::uint64_t, kRank - 1>& strides,
                 const std::array<std::uint32_t, kRank>& box) {
  std::array<std::uint32_t, kRank> steps;
  steps.fill(1);
  TensorMap map;
  const int type = size_of(dtype) == 1 ? kBytes : dtype == DType::Float16 ? kFloat16 : kBFloat16;
  driver.check(
      driver.tensor_map(&map, type, static_cast<int>(kRank), const_cast<void*>(data), sizes.data(),
                        strides.data(), box.data(), steps.data(), kNoInterleave,
                        is_packed(dtype) ? kNoSwizzle : kSwizzle128, kPromote256, kFillZeros),
      "describing a tensor to the copy engine");
  return map;
}

}  // namespace

TensorMap map_rows(const Driver& driver, DType dtype, const void* rows, std::int64_t count,
                   std::int64_t depth, int box_rows) {
  const auto width = static_cast<std::uint64_t>(depth);
  return encode<2>(driver, dtype, rows, {width, static_cast<std::uint64_t>(count)},
                   {width * static_cast<std::uint64_t>(size_of(dtype))},
                   {box_depth(dtype), static_cast<std::uint32_t>(box_rows)});
}

TensorMap map_weights(const Driver& driver, const char* name, const TensorView& weights,
                      Pairing pairing) {
  const auto bytes = [&](int dimension, std::int64_t rows) {
    const std::int64_t stride =
        weights.strides[static_cast<std::size_t>(dimension)] * rows * size_of(weights.dtype);
    if (stride % 16 != 0) {
      throw Error(ErrorCode::InvalidArgument, "a stride is no multiple of 16 bytes", name,
                  "contiguous weights");
    }
    return static_cast<std::uint64_t>(stride);
  };
  if (weights.shape[2] > 1 && weights.strides[2] != 1) {
    throw Error(ErrorCode::InvalidArgument,
                "the last stride is " + std::to_string(weights.strides[2]), name,
                "rows of neighbouring elements");
  }
  if (reinterpret_cast<std::uintptr_t>(weights.data) % 16 != 0) {
    throw Error(ErrorCode::InvalidArgument, "is not aligned to 16 bytes", name,
                "cudaMalloc aligns to 256");
  }
  const auto experts = static_cast<std::uint64_t>(weights.shape[0]);
  const auto rows = static_cast<std::uint64_t>(weights.shape[1]);
  const auto depth = static_cast<std::uint64_t>(weights.shape[2]);
  const std::uint32_t depth_of_box = box_depth(weights.dtype);
  if (pairing == Pairing::None) {
    return encode<4>(driver, weights.dtype, weights.data, {depth, rows, 1, experts},
                     {bytes(1, 1), bytes(1, weights.shape[1]), bytes(0, 1)},
                     {depth_of_box, 128, 1, 1});
  }
  if (pairing == Pairing::Interleaved) {
    return encode<4>(driver, weights.dtype, weights.data, {depth, 2, rows / 2, experts},
                     {bytes(1, 1), bytes(1, 2), bytes(0, 1)}, {depth_of_box, 1, 128, 1});
  }
  return encode<4>(driver, weights.dtype, weights.data, {depth, rows / 2, 2, experts},
                   {bytes(1, 1), bytes(1, weights.shape[1] / 2), bytes(0, 1)},
                   {depth_of_box, 128, 1, 1});
}

}  // namespace flexact::cuda
