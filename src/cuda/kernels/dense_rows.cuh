// act_and_mul of dense and shared MLPs: rows of gate and up in, rows of their activation out, as they are or
// rounded to E4M3. Nothing but memory's speed matters: a thread asks for 64 bytes before it computes.
//
// A row is cut into pieces, the results of 16 bytes of gate: 8 elements, 4 of fp32. Where anything is not
// aligned to that, or a row is no whole pieces, the same threads read and write element by element.
#pragma once

// A test runs this file on the CPU with instructions of its own: tests/cpp/emulated.
#ifndef FLEXACT_EMULATED
#include "dependent_launch.cuh"
#include "e4m3.cuh"
#endif

#include <type_traits>

#include "arguments.hpp"
#include "elements.cuh"

extern "C" __device__ void flexact_act2(const float g[2], const float u[2], const float* parameters,
                                        float y[2]);
extern "C" __device__ void flexact_act2_unary(const float x[2], const float* parameters, float y[2]);

namespace flexact::cuda::dense {

template <typename Element>
inline constexpr int kPiece = 16 / static_cast<int>(sizeof(Element));
// Threads that have a group of results which share a scale.
template <typename Element>
inline constexpr int kGroupThreads = kGroup / kPiece<Element>;

// Gates and ups of a piece as they are in memory; without a gate the first.
template <bool kGated, typename Element>
struct Data {
  static constexpr int kParts = kGated ? 2 : 1;
  union {
    uint4 part[kParts];
    std::uint8_t bytes[kParts * 16];
  };
  __device__ float at(int i) const { return to_float(reinterpret_cast<const Element*>(bytes)[i]); }
};

struct Place {
  std::int64_t row;
  int column;
};

template <typename Element>
__device__ __forceinline__ Place place_of(const DenseArguments& a, std::uint32_t piece) {
  const std::uint32_t row = piece / a.row_pieces;
  return {row, static_cast<int>(piece - row * a.row_pieces) * kPiece<Element>};
}

// In vectors the place is inside of its row; element by element zeros stand for what is not.
template <bool kVectors, bool kGated, typename Element>
__device__ __forceinline__ Data<kGated, Element> load(const DenseArguments& a, const Place& place) {
  constexpr int kCount = kPiece<Element>;
  Data<kGated, Element> data;
  const bool pairs = kGated && a.interleaved != 0;
  const auto* at = static_cast<const Element*>(a.x) + place.row * a.x_stride + (place.column << (pairs ? 1 : 0));
#pragma unroll
  for (int part = 0; part < Data<kGated, Element>::kParts; ++part) {
    const auto* from = at + (part == 0 ? a.first : a.second);
    if constexpr (kVectors) {
      // Not `nc`: the predecessor may still have been writing when this kernel began.
      data.part[part] = __ldcs(reinterpret_cast<const uint4*>(from));
    } else {
      data.part[part] = uint4{};
      auto* element = reinterpret_cast<Element*>(&data.part[part]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int column = place.column + (pairs ? (part * kCount + i) / 2 : i);
        if (column < a.width) element[i] = from[i];
      }
    }
  }
  return data;
}

// Gates to the first part and ups to the second, where they alternate.
template <typename Element>
__device__ __forceinline__ void take_apart(Data<true, Element>& data) {
  const uint4 a = data.part[0], b = data.part[1];
  const std::uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  std::uint32_t apart[2][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t one = words[2 * i], next = words[2 * i + 1];
    apart[0][i] = sizeof(Element) == 4 ? one : __byte_perm(one, next, 0x5410);
    apart[1][i] = sizeof(Element) == 4 ? next : __byte_perm(one, next, 0x7632);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) data.part[i] = uint4{apart[i][0], apart[i][1], apart[i][2], apart[i][3]};
}

// A piece's results; element by element zeros where the row has ended.
template <bool kVectors, bool kGated, typename Element>
__device__ __forceinline__ void activate(const DenseArguments& a, Data<kGated, Element> data, int column,
                                         const float* parameters, float (&y)[kPiece<Element>]) {
  constexpr int kCount = kPiece<Element>;
  if constexpr (kGated) {
    if (a.interleaved != 0) take_apart<Element>(data);
  }
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const float x[2] = {data.at(i), data.at(i + 1)};
    float result[2];
    if constexpr (kGated) {
      const float u[2] = {data.at(kCount + i), data.at(kCount + i + 1)};
      flexact_act2(x, u, parameters, result);
    } else {
      flexact_act2_unary(x, parameters, result);
    }
    y[i] = kVectors || column + i < a.width ? result[0] : 0.0f;
    y[i + 1] = kVectors || column + i + 1 < a.width ? result[1] : 0.0f;
  }
}

// The values are few and the same for everyone; the function uses those it has.
__device__ __forceinline__ void load_parameters(const DenseArguments& a, float (&parameters)[kMaxParameters]) {
#pragma unroll
  for (int i = 0; i < kMaxParameters; ++i) parameters[i] = i < a.value_columns ? a.values[i] : 0.0f;
}

template <bool kVectors, typename Element>
__device__ __forceinline__ void store(const DenseArguments& a, const Place& place,
                                      const float (&y)[kPiece<Element>]) {
  constexpr int kCount = kPiece<Element>;
  auto* to = static_cast<Element*>(a.output) + place.row * a.output_stride + place.column;
  uint4 data;
  auto* element = reinterpret_cast<Element*>(&data);
#pragma unroll
  for (int i = 0; i < kCount; ++i) element[i] = Rounding<Element>::one(y[i]);
  if constexpr (kVectors) {
    *reinterpret_cast<uint4*>(to) = data;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (place.column + i < a.width) to[i] = element[i];
    }
  }
}

template <bool kVectors, typename Element>
__device__ __forceinline__ void store_codes(const DenseArguments& a, const Place& place,
                                            const float (&y)[kPiece<Element>], float inverse) {
  constexpr int kCount = kPiece<Element>;
  auto* to = static_cast<std::uint8_t*>(a.output) + place.row * a.output_stride + place.column;
  std::uint32_t word[kCount / 4];
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    word[i / 4] = to_e4m3(y[i] * inverse, y[i + 1] * inverse) |
                  std::uint32_t{to_e4m3(y[i + 2] * inverse, y[i + 3] * inverse)} << 16;
  }
  if constexpr (kVectors && kCount == 8) {
    *reinterpret_cast<uint2*>(to) = uint2{word[0], word[1]};
  } else if constexpr (kVectors) {
    *reinterpret_cast<std::uint32_t*>(to) = word[0];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (place.column + i < a.width) to[i] = static_cast<std::uint8_t>(word[i / 4] >> i % 4 * 8);
    }
  }
}

template <typename Element>
__device__ __forceinline__ std::uint32_t largest_of(const float (&y)[kPiece<Element>]) {
  std::uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kPiece<Element>; ++i) bits = max(bits, magnitude_bits(y[i]));
  return bits;
}

// This thread's kAhead pieces, a block's threads apart, all on their way before the first is used. What is
// beyond the last piece, or fills a row up to whole groups, is read as the last of the row and not `there`.
template <bool kVectors, int kAhead, bool kGated, typename Element, typename Use>
__device__ __forceinline__ void for_pieces(const DenseArguments& a, Use use) {
  constexpr int kCount = kPiece<Element>;
  const std::uint32_t first = blockIdx.x * (kAhead * blockDim.x) + threadIdx.x;
  Data<kGated, Element> data[kAhead];
  Place place[kAhead];
  bool there[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const std::uint32_t piece = first + i * blockDim.x;
    place[i] = place_of<Element>(a, min(piece, a.pieces - 1));
    there[i] = piece < a.pieces && place[i].column < a.width;
    Place inside = place[i];
    if constexpr (kVectors) inside.column = min(inside.column, a.width - kCount);
    data[i] = load<kVectors, kGated, Element>(a, inside);
  }
  float parameters[kMaxParameters];
  load_parameters(a, parameters);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    float y[kCount];
    activate<kVectors, kGated, Element>(a, data[i], place[i].column, parameters, y);
    use(place[i], there[i], y);
  }
}

// use(whether in vectors, …) for each piece. A thread has one piece where there is little to do.
template <bool kGated, typename Element, typename Use>
__device__ __forceinline__ void for_each_piece(const DenseArguments& a, Use use) {
  wait_for_predecessors();
  let_successor_start();
  using Of = float (&)[kPiece<Element>];
  const auto vectors = [&](const Place& place, bool there, Of y) { use(std::true_type{}, place, there, y); };
  if (a.vectors == 0) {
    for_pieces<false, 1, kGated, Element>(
        a, [&](const Place& place, bool there, Of y) { use(std::false_type{}, place, there, y); });
  } else if (a.each == 1) {
    for_pieces<true, 1, kGated, Element>(a, vectors);
  } else {
    for_pieces<true, kDensePieces / Data<kGated, Element>::kParts, kGated, Element>(a, vectors);
  }
}

template <bool kGated, typename Element>
__device__ __forceinline__ void act(const DenseArguments& a) {
  for_each_piece<kGated, Element>(a, [&](auto vectors, const Place& place, bool there, const auto& y) {
    if (there) store<decltype(vectors)::value, Element>(a, place, y);
  });
}

// Rows are whole groups of pieces here, so that a group's threads are neighbours in one warp.
template <bool kGated, typename Element>
__device__ __forceinline__ void act_groups(const DenseArguments& a) {
  for_each_piece<kGated, Element>(a, [&](auto vectors, const Place& place, bool there, const auto& y) {
    std::uint32_t bits = there ? largest_of<Element>(y) : 0;
#pragma unroll
    for (int distance = 1; distance < kGroupThreads<Element>; distance *= 2) {
      bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, distance));
    }
    const float scale = fp8_scale(__uint_as_float(bits));
    if (!there) return;
    store_codes<decltype(vectors)::value, Element>(a, place, y, reciprocal(scale));
    if (place.column % kGroup == 0) {
      a.scales[place.row * a.scale_row_step + place.column / kGroup * a.scale_group_step] = scale;
    }
  });
}

// The largest of a block's numbers, for all of its threads; blocks are whole warps.
__device__ inline std::uint32_t largest_of_block(std::uint32_t bits) {
  __shared__ std::uint32_t of_warp[kDenseRowThreads / 32];
  const int warps = static_cast<int>(blockDim.x) / 32;
  bits = __reduce_max_sync(0xffffffffu, bits);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = bits;
  __syncthreads();
  for (int i = 0; i < warps; ++i) bits = max(bits, of_warp[i]);
  return bits;
}

// A block has a row. The first pieces of its threads stay in registers; what a longer row has beyond them is
// activated again when the scale is known.
template <bool kVectors, bool kGated, typename Element>
__device__ __forceinline__ void round_row(const DenseArguments& a) {
  constexpr int kCount = kPiece<Element>;
  constexpr int kHeld = kVectors ? kDenseHeld : 1;
  const std::int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const auto load_at = [&](int column) {
    return load<kVectors, kGated, Element>(a, {row, kVectors ? min(column, a.width - kCount) : column});
  };
  Data<kGated, Element> data[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) data[i] = load_at((thread + i * threads) * kCount);
  float parameters[kMaxParameters];
  load_parameters(a, parameters);
  std::uint32_t bits = 0;
  float held[kHeld][kCount];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int column = (thread + i * threads) * kCount;
    activate<kVectors, kGated, Element>(a, data[i], column, parameters, held[i]);
    if (column < a.width) bits = max(bits, largest_of<Element>(held[i]));
  }
  const int beyond = (thread + kHeld * threads) * kCount;
  float y[kCount];
  for (int column = beyond; column < a.width; column += threads * kCount) {
    activate<kVectors, kGated, Element>(a, load_at(column), column, parameters, y);
    bits = max(bits, largest_of<Element>(y));
  }
  const float scale = fp8_scale(__uint_as_float(largest_of_block(bits)));
  const float inverse = reciprocal(scale);
  if (thread == 0) a.scales[row * a.scale_row_step] = scale;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int column = (thread + i * threads) * kCount;
    if (column < a.width) store_codes<kVectors, Element>(a, {row, column}, held[i], inverse);
  }
  for (int column = beyond; column < a.width; column += threads * kCount) {
    activate<kVectors, kGated, Element>(a, load_at(column), column, parameters, y);
    store_codes<kVectors, Element>(a, {row, column}, y, inverse);
  }
}

template <bool kGated, typename Element>
__device__ __forceinline__ void act_rows(const DenseArguments& a) {
  wait_for_predecessors();
  let_successor_start();
  if (a.vectors != 0) {
    round_row<true, kGated, Element>(a);
  } else {
    round_row<false, kGated, Element>(a);
  }
}

}  // namespace flexact::cuda::dense

// The three kernels of an image: what is written as it is, and as codes.
#define FLEXACT_DENSE_KERNELS(name, gated, element)                                      \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kDenseThreads)             \
      name(const __grid_constant__ flexact::cuda::DenseArguments arguments) {            \
    flexact::cuda::dense::act<gated, element>(arguments);                                \
  }                                                                                      \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kDenseThreads)             \
      name##_groups(const __grid_constant__ flexact::cuda::DenseArguments arguments) {   \
    flexact::cuda::dense::act_groups<gated, element>(arguments);                         \
  }                                                                                      \
  extern "C" __global__ void __launch_bounds__(flexact::cuda::kDenseRowThreads, 1)        \
      name##_rows(const __grid_constant__ flexact::cuda::DenseArguments arguments) {     \
    flexact::cuda::dense::act_rows<gated, element>(arguments);                           \
  }
