// What one thread of this machine can do at best: the limits that a kernel's speed is compared
// with.
#pragma once

#include <cstddef>
#include <string>

namespace flexact::benchmark {

// Processor time of the calling thread in seconds: other processes on its processor do not count.
double thread_seconds();
double wall_seconds();
// Fixes the calling thread to one processor.
void pin_to(int processor);
std::string processor_name();

// GFLOP/s of register-resident multiply-adds: vdpbf16ps where `bf16`, else fp32. 0: not on this
// machine.
double peak_gflops(bool bf16);

// A buffer far larger than the caches, on huge pages where there are any.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(std::size_t bytes);
  ~ReadBandwidth();
  ReadBandwidth(const ReadBandwidth&) = delete;
  ReadBandwidth& operator=(const ReadBandwidth&) = delete;
  // GB/s of one pass over the buffer.
  double measure() const;

 private:
  std::byte* data_;
  std::size_t bytes_;
};

}  // namespace flexact::benchmark
