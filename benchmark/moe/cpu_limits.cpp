// Limits by loops that do one thing only.
#include "cpu_limits.hpp"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <fstream>
#include <new>

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

__attribute__((target("avx512f"))) void read_512(const std::byte* data, std::size_t bytes) {
  __m512i sum[8];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += 512) {
#pragma GCC unroll 8
    for (std::size_t j = 0; j < 8; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(data + i + 64 * j + 8192), _MM_HINT_T0);
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

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

double peak_gflops([[maybe_unused]] bool bf16) {
#if defined(__x86_64__)
  const auto measure = [](double (*loop)(long)) {
    loop(100000);
    const double begin = thread_seconds();
    const double operations = loop(4000000);
    return operations / (thread_seconds() - begin) * 1e-9;
  };
  if (bf16) return cpu::is_supported(cpu::Isa::Avx512Bf16) ? measure(bf16_loop) : 0;
  if (cpu::is_supported(cpu::Isa::Avx512)) return measure(fp32_loop_512);
  if (cpu::is_supported(cpu::Isa::Avx2)) return measure(fp32_loop_256);
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

double ReadBandwidth::measure() const {
  const double begin = thread_seconds();
#if defined(__x86_64__)
  if (cpu::is_supported(cpu::Isa::Avx512)) {
    read_512(data_, bytes_);
  } else {
    read_any(data_, bytes_);
  }
#else
  read_any(data_, bytes_);
#endif
  return static_cast<double>(bytes_) / (thread_seconds() - begin) * 1e-9;
}

}  // namespace flexact::benchmark
