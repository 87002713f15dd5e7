// The dense act_and_mul over rows of 2I numbers: how near to the memory's speed.
//
//   FLEXACT_NUM_THREADS=1 python benchmark/record.py
//   build/developer/benchmark/bench_cpu_act_and_mul
//
// gigabytes_per_second counts what must move: two numbers in and one out for each result. "copy" is
// memcpy of the same number of bytes in and out, half each.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "flexact/backend.hpp"
#include "sample_values.hpp"

namespace {

using namespace flexact;

void run(benchmark::State& state, const Function& function, DType dtype, std::int64_t rows,
         std::int64_t width) {
  const std::size_t element = dtype == DType::Float32 ? 4 : 2;
  std::vector<std::uint16_t> x(static_cast<std::size_t>(rows * 2 * width) * element / 2);
  std::vector<std::uint16_t> out(x.size() / 2);
  std::mt19937 random(1);
  // Halves and floats near ±1 whatever the type is.
  for (std::uint16_t& value : x) value = static_cast<std::uint16_t>(0x3c00 | (random() & 0x83ff));
  const std::vector<float> values = test::sample_parameters(function, 1)[0];
  const ParameterTable table{values.data(), 1, static_cast<std::int64_t>(values.size())};
  for (auto _ : state) {
    act_and_mul(function, table, Pairing::Concat, dtype, rows, width, x.data(), 2 * width,
                out.data(), width);
    benchmark::ClobberMemory();
  }
  const double results = static_cast<double>(state.iterations() * rows * width);
  state.counters["gigabytes_per_second"] = benchmark::Counter(
      results * 3e-9 * static_cast<double>(element), benchmark::Counter::kIsRate);
  state.counters["ns_per_element"] =
      benchmark::Counter(results * 1e-9, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void copy(benchmark::State& state, std::int64_t bytes) {
  std::vector<char> from(static_cast<std::size_t>(bytes / 2), 1), to(from.size());
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::ClobberMemory();
  }
  state.counters["gigabytes_per_second"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(bytes) * 1e-9,
      benchmark::Counter::kIsRate);
}

}  // namespace

int main(int argc, char** argv) {
  struct Shape {
    std::int64_t rows, width;
  };
  for (const Shape& shape : {Shape{1, 14336}, Shape{16, 14336}, Shape{512, 14336}}) {
    const std::string size = std::to_string(shape.rows) + "x" + std::to_string(shape.width);
    benchmark::RegisterBenchmark(("copy/bfloat16/" + size).c_str(), [=](benchmark::State& state) {
      copy(state, shape.rows * shape.width * 6);
    });
    for (const char* name : {"bilinear", "swiglu", "geglu", "situ"}) {
      for (DType dtype : {DType::BFloat16, DType::Float32}) {
        const Function function = Function::named(name);
        benchmark::RegisterBenchmark(
            (std::string(name) + "/" + std::string(to_string(dtype)) + "/" + size).c_str(),
            [=](benchmark::State& state) { run(state, function, dtype, shape.rows, shape.width); });
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
