// Limits by loops that do one thing only, and their C form for the programs in Python.
#include "cpu_limits.hpp"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "cpu/isa.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace flexact::benchmark {

namespace {

double seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Keeps `value` and what made it.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

#if defined(__x86_64__)
constexpr int kChains = 24;  // more than latency × throughput of any machine

__attribute__((target("avx512f,avx512bf16"))) double bf16_loop(long rounds) {
  __m512 sum[kChains];
  for (auto& s : sum) s = _mm512_setzero_ps();
  const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_dpbf16_ps(sum[c], a, a);
    asm volatile("");
  }
  __m512 total = sum[0];
  for (auto& s : sum) total = _mm512_add_ps(total, s);
  keep(total);
  return static_cast<double>(rounds) * kChains * 64;
}

__attribute__((target("avx512f"))) double fp32_loop_512(long rounds) {
  __m512 sum[kChains];
  for (auto& s : sum) s = _mm512_setzero_ps();
  __m512 a = _mm512_set1_ps(1.0f);
  for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_fmadd_ps(a, a, sum[c]);
    asm volatile("" : "+v"(a));
  }
  __m512 total = sum[0];
  for (auto& s : sum) total = _mm512_add_ps(total, s);
  keep(total);
  return static_cast<double>(rounds) * kChains * 32;
}

__attribute__((target("avx2,fma"))) double fp32_loop_256(long rounds) {
  __m256 sum[12];
  for (auto& s : sum) s = _mm256_setzero_ps();
  __m256 a = _mm256_set1_ps(1.0f);
  for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < 12; ++c) sum[c] = _mm256_fmadd_ps(a, a, sum[c]);
    asm volatile("" : "+x"(a));
  }
  __m256 total = sum[0];
  for (auto& s : sum) total = _mm256_add_ps(total, s);
  keep(total);
  return static_cast<double>(rounds) * 12 * 16;
}

template <bool PREFETCH>
__attribute__((target("avx512f"))) void read_512(const std::byte* data, std::size_t bytes) {
  __m512i sum[8];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += 512) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < 8; ++j) {
      if constexpr (PREFETCH) {
        _mm_prefetch(reinterpret_cast<const char*>(data + i + 64 * j + 8192), _MM_HINT_T0);
      }
      sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(data + i + 64 * j));
    }
  }
  for (auto& s : sum) keep(s);
}
#endif

void read_any(const std::byte* data, std::size_t bytes) {
  unsigned long sum[8] = {};
  const auto* words = reinterpret_cast<const unsigned long*>(data);
  for (std::size_t i = 0; i < bytes / sizeof(long); i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sum[j] ^= words[i + j];
  }
  for (auto& s : sum) keep(s);
}

}  // namespace

double thread_seconds() {
  return seconds(CLOCK_THREAD_CPUTIME_ID);
}
double wall_seconds() {
  return seconds(CLOCK_MONOTONIC);
}

void pin_to(int processor) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(processor, &mask);
  sched_setaffinity(0, sizeof mask, &mask);
}

Pinned::Pinned(int processor) {
  sched_getaffinity(0, sizeof before_, &before_);
  pin_to(processor);
}
Pinned::~Pinned() {
  sched_setaffinity(0, sizeof before_, &before_);
}

const char* to_string(Peak peak) noexcept {
  switch (peak) {
    case Peak::Dot512:
      return "vdpbf16ps";
    case Peak::Fma512:
      return "fp32 fma 512";
    case Peak::Fma256:
      return "fp32 fma 256";
  }
  return "unknown";
}

double peak_gflops([[maybe_unused]] Peak peak, [[maybe_unused]] double milliseconds) {
#if defined(__x86_64__)
  const auto measure = [milliseconds](double (*loop)(long)) {
    constexpr long kRounds = 20000;
    loop(kRounds);
    const double begin = thread_seconds();
    double operations = 0, taken = 0;
    while (taken < milliseconds * 1e-3) {
      operations += loop(kRounds);
      taken = thread_seconds() - begin;
    }
    return operations / taken * 1e-9;
  };
  switch (peak) {
    case Peak::Dot512:
      return cpu::is_supported(cpu::Isa::Avx512Bf16) ? measure(bf16_loop) : 0;
    case Peak::Fma512:
      return cpu::is_supported(cpu::Isa::Avx512) ? measure(fp32_loop_512) : 0;
    case Peak::Fma256:
      return cpu::is_supported(cpu::Isa::Avx2) ? measure(fp32_loop_256) : 0;
  }
#endif
  return 0;
}

ReadBandwidth::ReadBandwidth(std::size_t bytes) : bytes_(bytes) {
  void* mapping =
      mmap(nullptr, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(mapping);
  madvise(mapping, bytes + (2 << 20), MADV_HUGEPAGE);
  for (std::size_t i = 0; i < bytes; i += 64) data_[i] = static_cast<std::byte>(i >> 6);
}

ReadBandwidth::~ReadBandwidth() {
  munmap(data_, bytes_ + (2 << 20));
}

double ReadBandwidth::measure(int part, int parts) const {
  const std::size_t bytes = bytes_ / static_cast<std::size_t>(parts) / 4096 * 4096;
  const std::byte* data = data_ + static_cast<std::size_t>(part) * bytes;
  const auto rate = [&](void (*read)(const std::byte*, std::size_t)) {
    const double begin = thread_seconds();
    read(data, bytes);
    return static_cast<double>(bytes) / (thread_seconds() - begin) * 1e-9;
  };
#if defined(__x86_64__)
  // Processors differ in which of the two is faster.
  if (cpu::is_supported(cpu::Isa::Avx512)) {
    return std::max(rate(read_512<true>), rate(read_512<false>));
  }
#endif
  return rate(read_any);
}

double together(int threads, int processor, const std::function<double(int)>& rate) {
  if (threads == 1) return rate(0);
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::atomic<int> ready{0};
  std::vector<std::thread> team;
  for (int i = 0; i < threads; ++i) {
    team.emplace_back([&, i] {
      pin_to((processor + i) % processors);
      ++ready;
      while (ready < threads) {
      }
      rates[static_cast<std::size_t>(i)] = rate(i);
    });
  }
  double sum = 0;
  for (std::thread& thread : team) thread.join();
  for (const double r : rates) sum += r;
  return sum;
}

}  // namespace flexact::benchmark

extern "C" double flexact_peak_gflops() {
  using flexact::benchmark::Peak;
  const double dot = flexact::benchmark::peak_gflops(Peak::Dot512);
  return dot > 0 ? dot : flexact::benchmark::peak_gflops(Peak::Fma256);
}
extern "C" double flexact_read_gbs() {
  static const flexact::benchmark::ReadBandwidth memory(std::size_t{1} << 29);
  return memory.measure();
}
