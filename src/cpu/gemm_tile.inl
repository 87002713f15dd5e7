// The tile over fp32 rows, written once for all instruction sets. The including file defines, in
// its anonymous namespace, a struct V with
//   Reg, kLanes, zero, load, store, broadcast(const float*), fma(a, b, c) = a * b + c
//   Raw, load_raw (kLanes pairs of bf16), low(Raw), high(Raw): the pairs' first and second values
//   load_fp16 (kLanes halves, widened)
// No function of the standard library is called here.

inline void prefetch_lines(const TileCall& call, const std::byte*& at) {
  for (std::int32_t i = 0; i < call.prefetch_lines; ++i) __builtin_prefetch(at + 64 * i, 0, 3);
  at += 64 * call.prefetch_lines;
}

// How the weights of one step of k are read: BYTES a block and value of k, `value(p)` for kLanes
// columns.
struct Fp32Weights {
  static constexpr int kBytes = 64;
  static V::Reg value(const std::byte* p, int vector) {
    return V::load(reinterpret_cast<const float*>(p) + vector * V::kLanes);
  }
};
struct Fp16Weights {
  static constexpr int kBytes = 32;
  static V::Reg value(const std::byte* p, int vector) {
    return V::load_fp16(p + 2 * vector * V::kLanes);
  }
};

template <int ROWS, int BLOCKS>
struct Sums {
  static constexpr int kPerBlock = kColumns / V::kLanes;
  static constexpr int kVectors = BLOCKS * kPerBlock;
  V::Reg sum[ROWS][kVectors];

  inline __attribute__((always_inline)) void begin(const TileCall& call) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) {
        sum[r][j] = call.accumulate ? V::load(place(call, r, j)) : V::zero();
      }
    }
  }
  inline __attribute__((always_inline)) void end(const TileCall& call) const {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) V::store(place(call, r, j), sum[r][j]);
    }
  }
  static float* place(const TileCall& call, int r, int j) {
    return call.c + r * call.c_stride + call.columns[j / kPerBlock] + j % kPerBlock * V::kLanes;
  }
};

template <int ROWS, int BLOCKS, typename Weights>
void tile_single(const TileCall& call) {
  using S = Sums<ROWS, BLOCKS>;
  S s;
  s.begin(call);
  const float* a[ROWS];
  for (int r = 0; r < ROWS; ++r) a[r] = static_cast<const float*>(call.rows[r]);
  const std::byte* w = call.weights;
  const std::byte* ahead = call.prefetch;

  const auto step = [&](std::int64_t k) __attribute__((always_inline)) {
    V::Reg b[S::kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < S::kVectors; ++j) {
      b[j] = Weights::value(w + j / S::kPerBlock * Weights::kBytes, j % S::kPerBlock);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const V::Reg x = V::broadcast(a[r] + k);
#pragma GCC unroll 16
      for (int j = 0; j < S::kVectors; ++j) s.sum[r][j] = V::fma(x, b[j], s.sum[r][j]);
    }
    w += BLOCKS * Weights::kBytes;
  };
  std::int64_t k = 0;
  for (; k + kPrefetchStep <= call.k; k += kPrefetchStep) {
    prefetch_lines(call, ahead);
#pragma GCC unroll 8
    for (int i = 0; i < kPrefetchStep; ++i) step(k + i);
  }
  for (; k < call.k; ++k) step(k);
  s.end(call);
}

template <int ROWS, int BLOCKS>
void tile_pairs(const TileCall& call) {
  using S = Sums<ROWS, BLOCKS>;
  S s;
  s.begin(call);
  const float* a[ROWS];
  for (int r = 0; r < ROWS; ++r) a[r] = static_cast<const float*>(call.rows[r]);
  const std::byte* w = call.weights;
  const std::byte* ahead = call.prefetch;

  const auto add = [&](std::int64_t k, bool second) __attribute__((always_inline)) {
    V::Reg b[S::kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < S::kVectors; ++j) {
      const V::Raw raw = V::load_raw(w + j / S::kPerBlock * 64 + j % S::kPerBlock * 4 * V::kLanes);
      b[j] = second ? V::high(raw) : V::low(raw);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const V::Reg x = V::broadcast(a[r] + k + (second ? 1 : 0));
#pragma GCC unroll 16
      for (int j = 0; j < S::kVectors; ++j) s.sum[r][j] = V::fma(x, b[j], s.sum[r][j]);
    }
  };
  const auto step = [&](std::int64_t k) __attribute__((always_inline)) {
    add(k, false);
    add(k, true);
    w += BLOCKS * 64;
  };
  std::int64_t k = 0;
  for (; k + kPrefetchStep <= call.k; k += kPrefetchStep) {
    prefetch_lines(call, ahead);
#pragma GCC unroll 4
    for (int i = 0; i < kPrefetchStep; i += 2) step(k + i);
  }
  for (; k + 2 <= call.k; k += 2) step(k);
  if (k < call.k) add(k, false);
  s.end(call);
}

// ROWS × BLOCKS tables; what is larger than the register file's share stays null.
#define FLEXACT_TILES_4(FUNCTION, ROWS, ...)                                                       \
  {                                                                                                \
    FUNCTION<ROWS, 1 __VA_OPT__(, ) __VA_ARGS__>, FUNCTION<ROWS, 2 __VA_OPT__(, ) __VA_ARGS__>,    \
        FUNCTION<ROWS, 3 __VA_OPT__(, ) __VA_ARGS__>, FUNCTION<ROWS, 4 __VA_OPT__(, ) __VA_ARGS__> \
  }
#define FLEXACT_TILES_2(FUNCTION, ROWS, ...)                                                    \
  {                                                                                             \
    FUNCTION<ROWS, 1 __VA_OPT__(, ) __VA_ARGS__>, FUNCTION<ROWS, 2 __VA_OPT__(, ) __VA_ARGS__>, \
        nullptr, nullptr                                                                        \
  }
