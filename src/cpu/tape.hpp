// A function compiled for the CPU: a linear tape of vector instructions.
//
//   graph → tape:  parameter-only nodes are hoisted (computed once per run), patterns such as
//                  x*sigmoid(b*x) and a*b+c become one instruction, slots are reused by liveness.
//   run:           one instruction at a time over a block of up to 256 elements whose slots stay in
//                  L1, so dispatch costs a few cycles per 256 elements and nothing is allocated.
//
// Special values are those of the expression language: min, max, relu and clamp propagate NaN,
// comparisons with NaN are false except !=, functions have IEEE limits at 0 and ±inf. Results below
// the normal range may flush to zero. An element's result does not depend on its position.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "activation/graph.hpp"
#include "cpu/isa.hpp"

namespace flexact::cpu {

// What a tape computes in. Inputs, parameters and results are fp32 either way.
enum class Arithmetic {
  Fp32,  // vectors; errors as docs/numerics.md states them
  Fp64,  // the C library's functions, one element at a time: within 0.6 fp32 ulp for every
         // function of the catalogue, the same bits on every instruction set
};

struct TapeProgram;  // see tape_program.hpp

// Immutable; copies share the program; run() may be called from many threads at once.
class Tape {
 public:
  // Throws Unsupported where this machine lacks `isa`.
  explicit Tape(const activation::Graph& graph, Isa isa = selected_isa(),
                Arithmetic arithmetic = Arithmetic::Fp32);

  // y[i] = f(g[i], u[i]) for i < n, in fp32. `u` is not read (and may be null) where the function
  // is unary; then `g` is x. `parameters` holds the function's parameters() values (one row of the
  // value table) and may be null where it has none. y may be g or u themselves, but not overlap
  // them otherwise. Any alignment, any n; fastest where n is a multiple of 256 (a whole GEMM tile
  // at once rather than row by row).
  void run(const float* g, const float* u, float* y, std::size_t n,
           const float* parameters) const noexcept;

  Isa isa() const noexcept { return isa_; }
  Arithmetic arithmetic() const noexcept { return arithmetic_; }
  bool gated() const noexcept;
  // Instructions run per element, and per run for parameters alone.
  int instruction_count() const noexcept;
  // A readable listing, one instruction a line.
  std::string to_string() const;

 private:
  Isa isa_;
  Arithmetic arithmetic_;
  std::shared_ptr<const TapeProgram> program_;
};

}  // namespace flexact::cpu
