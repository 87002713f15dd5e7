// What this machine can do at best: the limits that a kernel's speed is compared with.
#pragma once

#include <sched.h>

#include <cstddef>
#include <functional>
#include <string>

namespace flexact::benchmark {

// Processor time of the calling thread in seconds: other processes on its processor do not count.
double thread_seconds();
double wall_seconds();
// Fixes the calling thread to one processor.
void pin_to(int processor);
// The same until the end of the block.
class Pinned {
 public:
  explicit Pinned(int processor);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_{};
};

// Register-resident multiply-adds.
enum class Peak { Dot512, Fma512, Fma256 };
// "vdpbf16ps", "fp32 fma 512", "fp32 fma 256".
const char* to_string(Peak peak) noexcept;
// GFLOP/s of the calling thread in about `milliseconds`, by processor time. 0: not on this machine.
double peak_gflops(Peak peak, double milliseconds = 30);

// A buffer far larger than the caches, on huge pages where there are any.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(std::size_t bytes);
  ~ReadBandwidth();
  ReadBandwidth(const ReadBandwidth&) = delete;
  ReadBandwidth& operator=(const ReadBandwidth&) = delete;
  // GB/s of the calling thread over the given part of the buffer, by processor time.
  double measure(int part = 0, int parts = 1) const;

 private:
  std::byte* data_;
  std::size_t bytes_;
};

// The sum of rate(0) … rate(threads - 1), run at the same time, each on a processor of its own: the
// caller's `processor` first.
double together(int threads, int processor, const std::function<double(int)>& rate);

}  // namespace flexact::benchmark
