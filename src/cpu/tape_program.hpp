// The compiled form of a tape, and the kernels of one instruction set that run it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexact::cpu {

// Elements per block, and the scratch that all slots of a block share: with the block's inputs and
// output it stays within half of a 48 KiB L1.
inline constexpr std::size_t kTapeBlock = 256;
inline constexpr std::size_t kTapeScratch = 6144;

// a, b, c, d are the operands. The multiplications by a last operand, which is 1 where a function
// stands alone, save a pass over the block.
enum class TapeOp : std::uint8_t {
  Copy,
  Neg,
  Add,
  Sub,
  Mul,
  Mul3,  // a * b * c
  Div,
  Fma,   // a * b + c
  Fms,   // a * b - c
  Fnma,  // c - a * b
  Powi,  // a ^ exponent
  Exp,
  Exp2,
  Expm1,
  Log,
  Log1p,
  Sqrt,
  Rsqrt,
  Abs,
  Sign,
  Floor,
  Tanh,
  Erf,
  OnePlusErf,  // 1 + erf(a)
  Softplus,
  Relu,
  SigmoidProduct,   // a * sigmoid(b * c) * d: sigmoid, silu, swish, glu, swiglu, …
  GeluProduct,      // gelu(a) * b
  GeluTanhProduct,  // gelu_tanh(a) * b
  MishProduct,      // tanh(softplus(a)) * b
  Min,
  Max,
  MinBound,    // min(a, b) where b is never NaN
  MaxBound,    // max(a, b) where b is never NaN
  ClampBound,  // a clamped to [b, c], which are never NaN
  WhereLt,     // a < b ? c : d
  WhereLe,
  WhereEq,
  WhereNe,
};

enum class Place : std::uint8_t {
  Gate,     // the caller's g (or x)
  Up,       // the caller's u
  Uniform,  // one value for the whole run
  Slot,     // a block in scratch
  Output,   // the caller's y
};

struct Operand {
  Place place = Place::Gate;
  std::uint16_t index = 0;
};

struct Instruction {
  TapeOp op = TapeOp::Copy;
  std::int8_t exponent = 0;
  Operand destination;
  Operand operands[4];
};

// Where a uniform comes from before the uniform instructions run.
struct UniformSource {
  std::int32_t parameter = -1;  // column of the value table, or
  double constant = 0;
};

// What a kernel reads: views into a TapeProgram. Plain arrays, since kernels are compiled for their
// ISA and must not instantiate library templates.
struct TapeView {
  const UniformSource* sources = nullptr;  // uniforms 0 … source_count-1
  std::size_t source_count = 0;
  const Instruction* prologue = nullptr;  // on uniforms, once per run
  std::size_t prologue_count = 0;
  const Instruction* body = nullptr;  // on blocks; the last one writes the output
  std::size_t body_count = 0;
  std::size_t uniforms = 0;
  std::size_t slots = 0;
  bool reads_gate = false;
  bool reads_up = false;
};

using TapeRun = void (*)(const TapeView& tape, const float* g, const float* u, float* y,
                         std::size_t n, const float* parameters) noexcept;

// One instruction set's kernels. Counts are in elements, any alignment.
struct TapeKernels {
  std::size_t width;
  TapeRun run;
  // Widening is exact; narrowing rounds to nearest even and keeps NaN.
  void (*from_bf16)(const std::uint16_t* in, float* out, std::size_t n) noexcept;
  void (*from_fp16)(const std::uint16_t* in, float* out, std::size_t n) noexcept;
  void (*to_bf16)(const float* in, std::uint16_t* out, std::size_t n) noexcept;
  void (*to_fp16)(const float* in, std::uint16_t* out, std::size_t n) noexcept;
  // in[2n] → even[n], odd[n].
  void (*deinterleave)(const float* in, float* even, float* odd, std::size_t n) noexcept;
};

// The kernels of `isa`. Throws Unsupported where this machine lacks it.
enum class Isa;
const TapeKernels& tape_kernels(Isa isa);

// The same in fp64, one element at a time, for every machine.
void run_tape_fp64(const TapeView& tape, const float* g, const float* u, float* y, std::size_t n,
                   const float* parameters) noexcept;

extern const TapeKernels kTapeKernelsScalar;
#if defined(__x86_64__)
extern const TapeKernels kTapeKernelsAvx2;
extern const TapeKernels kTapeKernelsAvx512;
#endif

}  // namespace flexact::cpu
