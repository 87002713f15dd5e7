// The cost of each catalogue function on a tile in L1, per instruction set, over copying
// (identity).
//
//   python benchmark/record.py build/developer/benchmark/bench_cpu_tape
//
// In a MoE layer with hidden size H an intermediate element costs 6 H multiply-adds' worth of GEMM,
// so its activation may take 3 % of 6 H / (GEMM speed in flop/ns): about 0.8 ns at H = 2048 on one
// core with AVX512_BF16 (470 GFLOP/s).
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/tape.hpp"
#include "flexact/activation.hpp"
#include "sample_values.hpp"

namespace {

using flexact::Function;
using flexact::cpu::Arithmetic;
using flexact::cpu::Isa;
using flexact::cpu::Tape;

constexpr std::size_t kElements = 1024;

void run_tape(benchmark::State& state, const Function& function, Isa isa, Arithmetic arithmetic) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  // Aligned, as a GEMM's tile is.
  alignas(64) static float g[kElements], u[kElements], y[kElements];
  for (float& value : g) value = normal(random);
  for (float& value : u) value = normal(random);
  const std::vector<float> parameters = flexact::test::sample_parameters(function, 1)[0];
  const Tape tape(function.graph(), isa, arithmetic);
  for (auto _ : state) {
    tape.run(g, u, y, kElements, parameters.data());
    benchmark::ClobberMemory();
  }
  const double elements = static_cast<double>(state.iterations()) * kElements;
  state.counters["ns_per_element"] = benchmark::Counter(
      elements * 1e-9, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.counters["instructions"] = tape.instruction_count();
}

void compile_tape(benchmark::State& state, const Function& function) {
  for (auto _ : state) benchmark::DoNotOptimize(Tape(function.graph()));
}

}  // namespace

int main(int argc, char** argv) {
  for (Isa isa : flexact::cpu::supported_isas()) {
    if (isa == Isa::Avx512Bf16) continue;  // the same vector math as avx512
    for (const std::string& name : flexact::ActivationRegistry::instance().list()) {
      const Function function = Function::named(name);
      benchmark::RegisterBenchmark(("tape/" + std::string(to_string(isa)) + "/" + name).c_str(),
                                   [function, isa](benchmark::State& state) {
                                     run_tape(state, function, isa, Arithmetic::Fp32);
                                   });
    }
  }
  for (const std::string& name : flexact::ActivationRegistry::instance().list()) {
    const Function function = Function::named(name);
    benchmark::RegisterBenchmark(("tape/precise/" + name).c_str(),
                                 [function](benchmark::State& state) {
                                   run_tape(state, function, Isa::Scalar, Arithmetic::Fp64);
                                 });
  }
  for (const char* name : {"swiglu", "xielu"}) {
    const Function function = Function::named(name);
    benchmark::RegisterBenchmark(
        ("compile/" + std::string(name)).c_str(),
        [function](benchmark::State& state) { compile_tape(state, function); });
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
