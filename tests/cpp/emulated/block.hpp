// A block of CUDA threads on the CPU: each thread is a fibre that runs until it meets others.
// Enough of CUDA's names to compile a kernel, and only those.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#define FLEXACT_EMULATED
#define __device__
#define __forceinline__ inline
#define __global__ inline
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

struct uint4 {
  std::uint32_t x, y, z, w;
};
struct uint2 {
  std::uint32_t x, y;
};
inline uint2 make_uint2(std::uint32_t x, std::uint32_t y) {
  return {x, y};
}
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}

struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return {0x7fff};
  return {static_cast<std::uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}

// As wide as its bits: the host's conversions round to nearest even.
struct __half {
  std::uint16_t bits;
};
struct __half2 {
  __half x, y;
};
inline __half __float2half_rn(float value) {
  return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(value))};
}
inline float __half2float(__half value) {
  return static_cast<float>(std::bit_cast<_Float16>(value.bits));
}
inline __half2 __floats2half2_rn(float low, float high) {
  return {__float2half_rn(low), __float2half_rn(high)};
}

namespace emulated {

// What threads of a group hand to each other at one meeting.
struct Meeting {
  int arrived = 0;
  unsigned round = 0;
  std::array<std::array<std::uint32_t, 12>, 32> given{}, last{};
};

class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  struct Index {
    unsigned x = 0, y = 0, z = 0;
  };
  Index thread, block, size, grid;

  // Runs kernel() as `threads` threads.
  void run(int threads, Index at, const std::function<void()>& kernel) {
    block = at;
    size.x = static_cast<unsigned>(threads);
    body_ = &kernel;
    all_ = {};
    groups_ = {};
    warps_.assign(static_cast<std::size_t>(threads) / 32, {});
    fibres_.resize(static_cast<std::size_t>(threads));
    done_ = 0;
    for (auto& fibre : fibres_) {
      if (!fibre) fibre = std::make_unique<Fibre>();
      fibre->finished = false;
      getcontext(&fibre->context);
      fibre->context.uc_stack.ss_sp = fibre->stack.data();
      fibre->context.uc_stack.ss_size = fibre->stack.size();
      fibre->context.uc_link = &scheduler_;
      makecontext(&fibre->context, &Block::enter, 0);
    }
    // A round in which nobody finishes and no group meets would be a deadlock.
    while (done_ < threads) {
      progress_ = false;
      for (std::size_t i = 0; i < fibres_.size(); ++i) {
        if (fibres_[i]->finished) continue;
        running_ = i;
        thread.x = static_cast<unsigned>(i);
        swapcontext(&scheduler_, &fibres_[i]->context);
      }
      if (!progress_ && !(idle && idle()))
        throw std::runtime_error("threads wait for each other for ever");
    }
  }

  // Work that is done when all threads wait for something; false where there is none.
  std::function<bool()> idle;

  // A thread goes on when something has become true, and whoever makes it so says progress().
  template <typename Condition>
  void wait_until(Condition condition) {
    const std::size_t me = running_;
    while (!condition()) {
      swapcontext(&fibres_[me]->context, &scheduler_);
      running_ = me;
      thread.x = static_cast<unsigned>(me);
    }
  }
  void progress() { progress_ = true; }

  void meet_all() { meet(all_, static_cast<int>(fibres_.size()), {}); }
  // `count` threads of the block, of eight such groups at most.
  void meet_some(int group, int count) {
    meet(groups_[static_cast<std::size_t>(group)], count, {});
  }
  // What every thread of the warp gave.
  const Meeting& meet_warp(const std::array<std::uint32_t, 12>& given) {
    Meeting& meeting = warps_[running_ / 32];
    meet(meeting, 32, given);
    return meeting;
  }

 private:
  struct Fibre {
    ucontext_t context{};
    bool finished = false;
    std::array<char, 65536> stack;
  };

  static void enter() {
    Block& self = current();
    (*self.body_)();
    self.fibres_[self.running_]->finished = true;
    ++self.done_;
    self.progress_ = true;
  }

  void meet(Meeting& meeting, int count, const std::array<std::uint32_t, 12>& given) {
    const std::size_t me = running_;
    meeting.given[me % 32] = given;
    const unsigned round = meeting.round;
    if (++meeting.arrived == count) {
      meeting.arrived = 0;
      meeting.last = meeting.given;
      ++meeting.round;
      progress_ = true;
      return;
    }
    while (meeting.round == round) {
      swapcontext(&fibres_[me]->context, &scheduler_);
      running_ = me;
      thread.x = static_cast<unsigned>(me);
    }
  }

  ucontext_t scheduler_{};
  std::vector<std::unique_ptr<Fibre>> fibres_;
  const std::function<void()>* body_ = nullptr;
  Meeting all_;
  std::array<Meeting, 8> groups_;
  std::vector<Meeting> warps_;
  std::size_t running_ = 0;
  int done_ = 0;
  bool progress_ = false;
};

}  // namespace emulated

#define threadIdx (emulated::Block::current().thread)
#define blockIdx (emulated::Block::current().block)
#define blockDim (emulated::Block::current().size)
#define gridDim (emulated::Block::current().grid)

inline void __syncthreads() {
  emulated::Block::current().meet_all();
}
inline void __syncwarp() {
  emulated::Block::current().meet_warp({});
}
inline unsigned __ballot_sync(unsigned, bool yes) {
  const emulated::Meeting& warp = emulated::Block::current().meet_warp({yes ? 1u : 0u});
  unsigned mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane) mask |= warp.last[lane][0] << lane;
  return mask;
}
inline std::uint32_t __shfl_xor_sync(unsigned, std::uint32_t value, int distance) {
  const unsigned lane = threadIdx.x % 32;
  const emulated::Meeting& warp = emulated::Block::current().meet_warp({value});
  return warp.last[lane ^ static_cast<unsigned>(distance)][0];
}
inline float __shfl_xor_sync(unsigned mask, float value, int distance) {
  return std::bit_cast<float>(__shfl_xor_sync(mask, std::bit_cast<std::uint32_t>(value), distance));
}
inline unsigned long long __shfl_up_sync(unsigned, unsigned long long value, int distance) {
  const unsigned lane = threadIdx.x % 32, below = static_cast<unsigned>(distance);
  const emulated::Meeting& warp = emulated::Block::current().meet_warp(
      {static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32)});
  const auto& given = warp.last[lane < below ? lane : lane - below];
  return static_cast<unsigned long long>(given[1]) << 32 | given[0];
}
inline int __reduce_add_sync(unsigned, int value) {
  const emulated::Meeting& warp =
      emulated::Block::current().meet_warp({static_cast<std::uint32_t>(value)});
  std::uint32_t sum = 0;
  for (const auto& given : warp.last) sum += given[0];
  return static_cast<int>(sum);
}
inline std::uint32_t __reduce_max_sync(unsigned, std::uint32_t value) {
  const emulated::Meeting& warp = emulated::Block::current().meet_warp({value});
  std::uint32_t largest = 0;
  for (const auto& given : warp.last) largest = std::max(largest, given[0]);
  return largest;
}
// One thread runs at a time.
template <typename T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, *at + value);
}
inline std::uint32_t __float_as_uint(float value) {
  return std::bit_cast<std::uint32_t>(value);
}
inline float __uint_as_float(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline std::uint32_t atomicMax(std::uint32_t* at, std::uint32_t other) {
  const std::uint32_t before = *at;
  *at = std::max(before, other);
  return before;
}
// Byte i of the result is byte `selector`'s i-th digit of `high` and `low`.
inline std::uint32_t __byte_perm(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  const std::uint64_t both = std::uint64_t{high} << 32 | low;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<std::uint32_t>(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}
inline int __popc(unsigned mask) {
  return std::popcount(mask);
}
inline float __ldg(const float* at) {
  return *at;
}
inline uint4 __ldcs(const uint4* at) {
  return *at;
}
using std::max;
using std::min;
