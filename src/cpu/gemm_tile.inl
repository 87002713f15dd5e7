// The tile over fp32 rows, written once for all instruction sets. The including file defines, in
// its anonymous namespace, a struct V with
//   Reg, kLanes, zero, load, store, broadcast(const float*), fma(a, b, c) = a * b + c
//   Raw, load_raw (kLanes pairs of bf16), low(Raw), high(Raw): the pairs' first and second values
//   load_fp16 (kLanes halves, widened)
//   kSums: registers for sums; kGroup: for weights. One more holds the row's value.
// No function of the standard library is called here.

// Values of k whose steps are written out in a row. An instrumented build writes out one step:
// nearly all of a minute of compiling would go into the copies, which check nothing that the one
// does not.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kUnrolled = 1;
#else
constexpr int kUnrolled = kPrefetchStep;
#endif

inline void prefetch_lines(const TileCall& call, const std::byte*& at) {
  if (call.prefetch_into_l2) {
    for (std::int32_t i = 0; i < call.prefetch_lines; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
  } else {
    for (std::int32_t i = 0; i < call.prefetch_lines; ++i) __builtin_prefetch(at + 64 * i, 0, 3);
  }
  at += 64 * call.prefetch_lines;
}

// How weights are read: a block's kBytes hold kStep values of k for each column; value(p, vector,
// i) is the i-th of them for kLanes columns.
struct Fp32Weights {
  static constexpr int kBytes = 64, kStep = 1;
  static V::Reg value(const std::byte* p, int vector, int) {
    return V::load(reinterpret_cast<const float*>(p) + vector * V::kLanes);
  }
};
struct Fp16Weights {
  static constexpr int kBytes = 32, kStep = 1;
  static V::Reg value(const std::byte* p, int vector, int) {
    return V::load_fp16(p + 2 * vector * V::kLanes);
  }
};
struct Bf16Weights {
  static constexpr int kBytes = 64, kStep = 2;
  static V::Reg value(const std::byte* p, int vector, int i) {
    const V::Raw raw = V::load_raw(p + 4 * vector * V::kLanes);
    return i == 0 ? V::low(raw) : V::high(raw);
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

// The first BLOCKS blocks of a panel of PITCH, all sums in registers.
template <int ROWS, int BLOCKS, int PITCH, typename Weights>
inline __attribute__((always_inline)) void tile_in_registers(const TileCall& call) {
  using S = Sums<ROWS, BLOCKS>;
  constexpr int kGroup = S::kVectors < V::kGroup ? S::kVectors : V::kGroup;
  S s;
  s.begin(call);
  const float* a[ROWS];
  for (int r = 0; r < ROWS; ++r) a[r] = static_cast<const float*>(call.rows[r]);
  const std::byte* w = call.weights;
  const std::byte* ahead = call.prefetch;

  const auto step = [&](std::int64_t k, int values) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int i = 0; i < values; ++i) {
#pragma GCC unroll 16
      for (int first = 0; first < S::kVectors; first += kGroup) {
        V::Reg b[kGroup];
#pragma GCC unroll 16
        for (int j = 0; j < kGroup; ++j) {
          const int vector = first + j;
          b[j] =
              Weights::value(w + vector / S::kPerBlock * Weights::kBytes, vector % S::kPerBlock, i);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
          const V::Reg x = V::broadcast(a[r] + k + i);
#pragma GCC unroll 16
          for (int j = 0; j < kGroup; ++j) {
            s.sum[r][first + j] = V::fma(x, b[j], s.sum[r][first + j]);
          }
        }
      }
    }
    w += PITCH * Weights::kBytes;
  };
  std::int64_t k = 0;
  for (; k + kPrefetchStep <= call.k; k += kPrefetchStep) {
    prefetch_lines(call, ahead);
#pragma GCC unroll kUnrolled
    for (int i = 0; i < kPrefetchStep; i += Weights::kStep) step(k + i, Weights::kStep);
  }
  for (; k + Weights::kStep <= call.k; k += Weights::kStep) step(k, Weights::kStep);
  if (k < call.k) step(k, 1);  // the last value of an odd K
  s.end(call);
}

// Where the sums of all blocks at once would not fit, block after block over short stretches of K:
// the second block finds its weights in L1, and memory is read in the panel's order.
template <int ROWS, int BLOCKS, typename Weights>
void tile(const TileCall& call) {
  if constexpr (ROWS * Sums<ROWS, BLOCKS>::kVectors <= V::kSums) {
    tile_in_registers<ROWS, BLOCKS, BLOCKS, Weights>(call);
  } else {
    constexpr std::int64_t kStretch = 128;
    const void* rows[ROWS];
    TileCall part = call;
    part.rows = rows;
    for (std::int64_t begin = 0; begin < call.k; begin += kStretch) {
      part.k = call.k - begin < kStretch ? call.k - begin : kStretch;
      part.accumulate = call.accumulate || begin > 0;
      for (int r = 0; r < ROWS; ++r) rows[r] = static_cast<const float*>(call.rows[r]) + begin;
      const std::int64_t steps = part.k / kPrefetchStep;
      for (int b = 0; b < BLOCKS; ++b) {
        part.weights = call.weights + (begin / Weights::kStep * BLOCKS + b) * Weights::kBytes;
        part.columns[0] = call.columns[b];
        // Each block prefetches its share of what the stretch would.
        const std::int32_t first = call.prefetch_lines * b / BLOCKS;
        part.prefetch_lines = call.prefetch_lines * (b + 1) / BLOCKS - first;
        part.prefetch = call.prefetch == nullptr
                            ? nullptr
                            : call.prefetch + 64 * (begin / kPrefetchStep * call.prefetch_lines +
                                                    steps * first);
        tile_in_registers<ROWS, 1, BLOCKS, Weights>(part);
      }
    }
  }
}

// A row of the table of tiles; panels have at most four, or two, blocks.
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
// All six rows of it.
#define FLEXACT_TILES(ROW, FUNCTION, ...)                                                         \
  {                                                                                               \
    ROW(FUNCTION, 1 __VA_OPT__(, ) __VA_ARGS__), ROW(FUNCTION, 2 __VA_OPT__(, ) __VA_ARGS__),     \
        ROW(FUNCTION, 3 __VA_OPT__(, ) __VA_ARGS__), ROW(FUNCTION, 4 __VA_OPT__(, ) __VA_ARGS__), \
        ROW(FUNCTION, 5 __VA_OPT__(, ) __VA_ARGS__), ROW(FUNCTION, 6 __VA_OPT__(, ) __VA_ARGS__)  \
  }
