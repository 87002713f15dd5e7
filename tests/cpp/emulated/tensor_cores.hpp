// What the GEMM of sm_100a needs beside threads, in C++: barriers in shared memory, the copy
// engine, and the tensor cores with their memory. Descriptors, swizzles and the places of sums are
// those of the PTX manual, read anew here.
//
// Copies and products are not done when they are asked for but some time later, as late as all
// threads wait for them or at once (Engine::lazy): a kernel that reads too early or overwrites too
// early computes something else.
#pragma once

#include <deque>
#include <limits>
#include <random>
#include <string>

#include "block.hpp"
#include "cuda/kernels/arguments.hpp"
#include "cuda/kernels/sm100_descriptors.hpp"
#include "moe/small_floats.hpp"

#define CUTE_UNROLL
#define CUTE_NO_UNROLL

struct int4 {
  int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}
inline int4 __ldg(const int4* at) {
  return *at;
}
inline std::int32_t __ldg(const std::int32_t* at) {
  return *at;
}
inline float2 __ldg(const float2* at) {
  return *at;
}
inline int __shfl_sync(unsigned, int value, int from) {
  const emulated::Meeting& warp =
      emulated::Block::current().meet_warp({static_cast<std::uint32_t>(value)});
  return static_cast<int>(warp.last[static_cast<std::size_t>(from)][0]);
}

// What the copy engine knows of a tensor: sizes from the innermost on, strides in bytes.
struct CUtensorMap {
  const void* data;
  int rank, element_bytes;
  std::array<std::int64_t, 4> size, stride;
  std::array<int, 4> box;
};

namespace emulated {

[[noreturn]] inline void complain(const char* what) {
  throw std::runtime_error(what);
}

// Shared memory by its 32-bit addresses; the first KiB is the system's.
inline constexpr std::uint32_t kSharedBytes = 228 << 10;
inline std::uint8_t* shared_window() {
  alignas(1024) static std::array<std::uint8_t, kSharedBytes> memory;
  return memory.data();
}

inline std::uint32_t swizzled(std::uint32_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

class Engine {
 public:
  static Engine& current() {
    static Engine engine;
    return engine;
  }
  bool lazy = false;

  // Before a block: nothing is on its way, and memory holds no numbers.
  void begin() {
    copies_.clear();
    products_.clear();
    for (auto& lane : sums) lane.fill(std::numeric_limits<float>::quiet_NaN());
    std::fill_n(shared_window(), kSharedBytes, std::uint8_t{0xff});
    allocated = false;
  }
  void copy(std::function<void()> work) { add(copies_, std::move(work)); }
  // Of one thread, in order.
  void product(std::function<void()> work) { add(products_, std::move(work)); }
  // Copies come in any order.
  bool work() {
    if (copies_.empty() && products_.empty()) return false;
    auto& queue =
        products_.empty() || (!copies_.empty() && random_() % 2 == 0) ? copies_ : products_;
    const std::size_t at = &queue == &copies_ ? random_() % queue.size() : 0;
    const auto task = std::move(queue[at]);
    queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(at));
    task();
    return true;
  }
  bool idle() const { return copies_.empty() && products_.empty(); }

  std::array<std::array<float, 512>, 128> sums;
  bool allocated = false;

 private:
  void add(std::deque<std::function<void()>>& queue, std::function<void()> work) {
    if (lazy) {
      queue.push_back(std::move(work));
    } else {
      work();
    }
  }
  std::deque<std::function<void()>> copies_, products_;
  std::mt19937 random_{1};
};

// mbarrier: a phase ends when all arrivals and all bytes have come.
class Barrier {
 public:
  void init(std::uint32_t arrivals) {
    expected_ = pending_ = static_cast<int>(arrivals);
    bytes_ = 0;
    phase_ = 0;
  }
  void wait(std::uint32_t phase) const {
    Block::current().wait_until([&] { return phase_ != phase; });
  }
  void arrive() { arrive_and_expect_tx(0); }
  void arrive_and_expect_tx(std::uint32_t bytes) {
    bytes_ += static_cast<int>(bytes);
    if (--pending_ < 0) complain("a barrier has more arrivals than it was told of");
    turn();
  }
  void complete(int bytes) {
    bytes_ -= bytes;
    turn();
  }

 private:
  void turn() {
    if (pending_ > 0 || bytes_ != 0) return;
    pending_ = expected_;
    phase_ ^= 1;
    Block::current().progress();
  }
  int expected_, pending_, bytes_;
  std::uint32_t phase_;
};

// A box of a tensor to shared memory, where each 128 bytes of it are a swizzled line; zeros
// outside.
inline void copy_box(const CUtensorMap* map, std::uint64_t* barrier, void* to,
                     std::array<int, 4> at) {
  if (map->box[0] * map->element_bytes != 128) complain("a box is no line");
  const auto address = static_cast<std::uint32_t>(static_cast<std::uint8_t*>(to) - shared_window());
  if (address % 1024 != 0) complain("a box begins inside of a swizzled group");
  Engine::current().copy([=, map = *map] {
    int lines = 1;
    for (int i = 1; i < map.rank; ++i) lines *= map.box[static_cast<std::size_t>(i)];
    for (int line = 0; line < lines; ++line) {
      std::int64_t offset = 0;
      bool inside = true;
      int rest = line;
      for (std::size_t i = 1; i < static_cast<std::size_t>(map.rank); ++i) {
        const std::int64_t index = at[i] + rest % map.box[i];
        rest /= map.box[i];
        inside = inside && index >= 0 && index < map.size[i];
        offset += index * map.stride[i];
      }
      for (int k = 0; k < map.box[0]; ++k) {
        const int bytes = map.element_bytes;
        const auto plain = address + static_cast<std::uint32_t>(line * 128 + k * bytes);
        std::uint8_t* const element = shared_window() + swizzled(plain);
        std::memset(element, 0, static_cast<std::size_t>(bytes));
        if (inside && at[0] + k < map.size[0]) {
          std::memcpy(element,
                      static_cast<const std::uint8_t*>(map.data) + offset + (at[0] + k) * bytes,
                      static_cast<std::size_t>(bytes));
        }
      }
    }
    reinterpret_cast<Barrier*>(barrier)->complete(lines * 128);
  });
}

inline float e4m3(std::uint8_t code) {
  static const std::vector<float> values = [] {
    std::vector<float> list;
    for (int i = 0; i < 256; ++i)
      list.push_back(flexact::moe::decode_e4m3(static_cast<std::uint8_t>(i)));
    return list;
  }();
  return values[code];
}

// An operand's rows of 32 bytes, 16 elements or 32 codes.
inline std::vector<float> operand(std::uint64_t descriptor, int rows, bool codes, unsigned format) {
  const auto field = [&](int from, int bits) {
    return static_cast<std::uint32_t>(descriptor >> from & ((1u << bits) - 1));
  };
  if (field(46, 3) != 1 || field(61, 3) != 2)
    complain("no descriptor of sm_100a for 128-byte lines");
  if (field(49, 3) != 0 || field(52, 1) != 0)
    complain("a base offset, or an absolute leading offset");
  std::vector<float> values;
  for (int row = 0; row < rows; ++row) {
    for (int byte = 0; byte < 32; byte += codes ? 1 : 2) {
      const std::uint32_t address = (field(0, 14) << 4) +
                                    static_cast<std::uint32_t>(row / 8) * (field(32, 14) << 4) +
                                    static_cast<std::uint32_t>(row % 8 * 128 + byte);
      std::uint16_t bits;
      std::memcpy(&bits, shared_window() + swizzled(address), sizeof bits);
      values.push_back(codes         ? e4m3(static_cast<std::uint8_t>(bits))
                       : format == 1 ? __bfloat162float({bits})
                                     : __half2float({bits}));
    }
  }
  return values;
}

inline void multiply(std::uint32_t to, std::uint64_t a, std::uint64_t b, std::uint32_t instruction,
                     bool codes, bool adds) {
  const auto field = [&](int from, int bits) { return instruction >> from & ((1u << bits) - 1); };
  if (field(0, 4) != 0 || field(4, 2) != 1 || field(13, 4) != 0 || field(30, 2) != 0 ||
      field(7, 3) != field(10, 3) || field(7, 3) > (codes ? 0 : 1))
    complain("another instruction than dense products of such rows in fp32");
  const auto columns = static_cast<int>(field(17, 6) * 8),
             rows = static_cast<int>(field(24, 5) * 16);
  if (rows != 128 || (to >> 16) != 0) complain("sums of a tile begin in lane 0 of all 128");
  const std::vector<float> left = operand(a, rows, codes, field(7, 3)),
                           right = operand(b, columns, codes, field(10, 3));
  const int depth = codes ? 32 : 16;
  for (int row = 0; row < rows; ++row) {
    auto& lane = Engine::current().sums[static_cast<std::size_t>(row)];
    for (int column = 0; column < columns; ++column) {
      const float* const x = &left[static_cast<std::size_t>(row * depth)];
      const float* const y = &right[static_cast<std::size_t>(column * depth)];
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += x[k] * y[k];
      float& at = lane.at((to & 0xffff) + static_cast<unsigned>(column));
      at = adds ? at + sum : sum;
    }
  }
}

// Loads that a thread has asked for, which are there after it has waited.
struct PendingLoad {
  std::uint32_t address;
  float* to;
  unsigned count;
};
inline std::vector<PendingLoad>& pending_loads() {
  static std::vector<std::vector<PendingLoad>> of_thread(1024);
  return of_thread[threadIdx.x];
}

}  // namespace emulated

// ---- the names that kernels call these by

namespace cutlass::arch {
using ClusterBarrier = emulated::Barrier;
using ClusterTransactionBarrier = emulated::Barrier;
inline void fence_barrier_init() {}
template <std::uint32_t kCount>
void warpgroup_reg_alloc() {}
template <std::uint32_t kCount>
void warpgroup_reg_dealloc() {}
}  // namespace cutlass::arch

namespace cute {

using TmaDescriptor = CUtensorMap;
namespace TMA {
enum class CacheHintSm90 : std::uint64_t { EVICT_NORMAL };
}
struct SM90_TMA_LOAD_2D {
  static void copy(const void* map, std::uint64_t* barrier, std::uint64_t, void* to, int first,
                   int second) {
    emulated::copy_box(static_cast<const CUtensorMap*>(map), barrier, to, {first, second, 0, 0});
  }
};
struct SM90_TMA_LOAD_4D {
  static void copy(const void* map, std::uint64_t* barrier, std::uint64_t, void* to, int first,
                   int second, int third, int fourth) {
    emulated::copy_box(static_cast<const CUtensorMap*>(map), barrier, to,
                       {first, second, third, fourth});
  }
};
inline void prefetch_tma_descriptor(const TmaDescriptor*) {}

// Declared for headers that sm_90a's kernels share; not called.
namespace SM90::GMMA {
enum class ScaleOut { Zero, One };
}
std::uint32_t cast_smem_ptr_to_uint(const void*);
void warpgroup_commit_batch();
void warpgroup_arrive();
template <int kLeft>
void warpgroup_wait();
void warpgroup_fence_operand(float&);

}  // namespace cute

namespace flexact::cuda {

inline void wait_for_predecessors() {}
inline void let_successor_start() {}

inline std::uint32_t shared_address(const void* at) {
  return static_cast<std::uint32_t>(static_cast<const std::uint8_t*>(at) -
                                    emulated::shared_window());
}
inline float load_shared(const float* at) {
  return *at;
}
inline void store_shared(float* at, float value) {
  *at = value;
}
inline uint4 load_shared16(std::uint32_t address) {
  uint4 value;
  if (address % 16 != 0) emulated::complain("a load that is not aligned");
  std::memcpy(&value, emulated::shared_window() + address, sizeof value);
  return value;
}
inline void store_shared16(std::uint32_t address, const std::uint32_t (&word)[4]) {
  if (address % 16 != 0) emulated::complain("a store that is not aligned");
  std::memcpy(emulated::shared_window() + address, word, sizeof word);
}
void store_matrices(std::uint32_t, const std::uint32_t (&)[4]);

namespace sm100 {

inline std::uint8_t* dynamic_shared() {
  return emulated::shared_window() + 1024;
}
inline void allocate_sums(std::uint32_t* address) {
  if (threadIdx.x % 32 == 0) {
    if (emulated::Engine::current().allocated)
      emulated::complain("tensor memory was taken already");
    emulated::Engine::current().allocated = true;
    *address = 0;
  }
  __syncwarp();
}
inline void release_sums(std::uint32_t address) {
  __syncwarp();
  if (threadIdx.x % 32 != 0) return;
  if (address != 0 || !emulated::Engine::current().idle())
    emulated::complain("tensor memory is in use");
  emulated::Engine::current().allocated = false;
}
inline void fence_before_meeting() {}
inline void fence_after_meeting() {}
// Any thread of the warp.
inline bool is_elected() {
  __syncwarp();
  return threadIdx.x % 32 == 21;
}
inline void meet_pair(int pair) {
  emulated::Block::current().meet_some(pair, 64);
}
inline int this_thread() {
  return static_cast<int>(threadIdx.x);
}
template <typename Element>
void multiply(std::uint32_t sums, std::uint64_t rows, std::uint64_t weights,
              std::uint32_t instruction, bool adds) {
  constexpr bool kCodes = sizeof(Element) == 1;
  emulated::Engine::current().product(
      [=] { emulated::multiply(sums, rows, weights, instruction, kCodes, adds); });
}
inline void arrive_after_products(void* barrier) {
  emulated::Engine::current().product([=] { static_cast<emulated::Barrier*>(barrier)->arrive(); });
}
template <int kCount>
void load_sums(std::uint32_t address, float (&value)[kCount]) {
  __syncwarp();
  if (address >> 16 != threadIdx.x / 32 % 4 * 32)
    emulated::complain("a warp does not see these lanes");
  std::fill_n(value, kCount, std::numeric_limits<float>::quiet_NaN());
  emulated::pending_loads().push_back({address, value, kCount});
}
inline void wait_for_sums() {
  __syncwarp();
  for (const auto& load : emulated::pending_loads()) {
    const auto& lane = emulated::Engine::current().sums[(load.address >> 16) + threadIdx.x % 32];
    for (unsigned i = 0; i < load.count; ++i) load.to[i] = lane.at((load.address & 0xffff) + i);
  }
  emulated::pending_loads().clear();
}
template <int kCount>
void take_sums(float (&)[kCount]) {}

}  // namespace sm100
}  // namespace flexact::cuda
