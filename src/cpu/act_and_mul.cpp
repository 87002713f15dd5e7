// The activation of dense and shared MLPs: rows of gate and up in, rows of activation out, on the
// same tape as the MoE kernels. Memory-bound, so a block is widened, computed and narrowed while in
// L1.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu/backend.hpp"
#include "cpu/isa.hpp"
#include "cpu/pool.hpp"
#include "cpu/tape.hpp"
#include "cpu/tape_program.hpp"
#include "flexact/backend.hpp"
#include "flexact/error.hpp"

namespace flexact {

namespace {

using cpu::Pool;
using cpu::Tape;
using cpu::TapeKernels;

// Elements of a block, and the work below which waking another thread costs more than it saves.
constexpr std::int64_t kBlock = 1024;
constexpr std::int64_t kElementsPerTask = 16 * kBlock;

[[noreturn]] void reject(const std::string& where, const std::string& what,
                         const std::string& hint) {
  throw Error(ErrorCode::InvalidArgument, what, where, hint);
}

void validate(const Function& function, const ParameterTable& values, Pairing pairing, DType dtype,
              std::int64_t rows, std::int64_t intermediate, const void* x, std::int64_t x_stride,
              void* out, std::int64_t out_stride) {
  const std::string name = "act_and_mul";
  if (dtype != DType::Float32 && dtype != DType::BFloat16 && dtype != DType::Float16) {
    reject(name + " dtype", "dtype " + std::string(to_string(dtype)) + " is not an activation type",
           "float32, bfloat16 or float16");
  }
  if (to_string(pairing) == "unknown") reject(name + " pairing", "not a pairing", {});
  if (pairing == Pairing::Separate) {
    reject(name + " pairing", "gate and up in two tensors",
           "concat, up_first, interleaved or none");
  }
  if (pairing == Pairing::None && function.arity() == Arity::Gated) {
    reject(name + " pairing", function.name() + " needs a gate", "a pairing other than none");
  }
  // Within these, no offset in bytes overflows.
  constexpr std::int64_t kMaxExtent = std::int64_t{1} << 40;
  constexpr std::int64_t kMaxBytes = std::int64_t{1} << 60;
  const auto within = [](std::int64_t value) { return value >= 0 && value <= kMaxExtent; };
  if (!within(rows) || !within(intermediate)) {
    reject(name, "a size out of range", "rows and intermediate from 0 to 2^40");
  }
  const std::int64_t width = pairing == Pairing::None ? intermediate : 2 * intermediate;
  if (rows > 1 && (x_stride < width || out_stride < intermediate)) {
    reject(name, "rows overlap",
           "strides of at least " + std::to_string(width) + " (x) and " +
               std::to_string(intermediate) + " (out)");
  }
  if (rows > 1 && (std::max(x_stride, out_stride) > kMaxBytes / 4 / rows)) {
    reject(name, "strides out of range", "tensors of at most 2^60 bytes");
  }
  if (rows > 0 && intermediate > 0) {
    if (x == nullptr || out == nullptr) reject(name, "a null tensor", "x and out");
    const auto misaligned = [&](const void* p) {
      return reinterpret_cast<std::uintptr_t>(p) % static_cast<std::uintptr_t>(size_of(dtype)) != 0;
    };
    if (misaligned(x) || misaligned(out)) {
      reject(name, "a pointer is not aligned to its elements",
             "tensors of " + std::string(to_string(dtype)));
    }
    if (x == out && rows > 1 && x_stride != out_stride) {
      reject(name, "the output lies over the input with another stride",
             "out apart from x, or x itself with its stride");
    }
  }
  const auto parameters = static_cast<std::int64_t>(function.parameters().size());
  if (values.columns != parameters || values.rows != 1 ||
      (parameters > 0 && values.data == nullptr)) {
    reject(
        name + " values",
        "a table of [" + std::to_string(values.rows) + ", " + std::to_string(values.columns) + "]",
        "[1, " + std::to_string(parameters) + "]: a dense MLP has no experts");
  }
}

std::size_t element_size(DType dtype) noexcept {
  return dtype == DType::Float32 ? 4 : 2;
}

const void* advance(const void* p, std::int64_t elements, DType dtype) noexcept {
  return static_cast<const std::byte*>(p) +
         elements * static_cast<std::int64_t>(element_size(dtype));
}

// Widens n elements; fp32 is left where it is.
const float* widen(const TapeKernels& kernels, DType dtype, const void* in, float* buffer,
                   std::int64_t n) noexcept {
  const auto count = static_cast<std::size_t>(n);
  switch (dtype) {
    case DType::BFloat16:
      kernels.from_bf16(static_cast<const std::uint16_t*>(in), buffer, count);
      return buffer;
    case DType::Float16:
      kernels.from_fp16(static_cast<const std::uint16_t*>(in), buffer, count);
      return buffer;
    default:
      return static_cast<const float*>(in);
  }
}

// What all blocks of one call have in common.
struct Call {
  const Tape& tape;
  const TapeKernels& kernels;
  const float* parameters;
  Pairing pairing;
  DType dtype;
  std::int64_t intermediate;

  // One stretch of at most kBlock elements of one row: columns begin … begin + n.
  void run(const void* x_row, void* out_row, std::int64_t begin, std::int64_t n) const noexcept {
    alignas(64) float pairs[2 * kBlock];
    alignas(64) float gate[kBlock];
    alignas(64) float up[kBlock];
    const float* g = nullptr;
    const float* u = nullptr;
    const auto count = static_cast<std::size_t>(n);
    switch (pairing) {
      case Pairing::Interleaved:
        kernels.deinterleave(widen(kernels, dtype, advance(x_row, 2 * begin, dtype), pairs, 2 * n),
                             gate, up, count);
        g = gate;
        u = up;
        break;
      case Pairing::None:
        g = widen(kernels, dtype, advance(x_row, begin, dtype), gate, n);
        break;
      default: {
        const void* first = advance(x_row, begin, dtype);
        const void* second = advance(x_row, intermediate + begin, dtype);
        if (pairing == Pairing::UpFirst) std::swap(first, second);
        g = widen(kernels, dtype, first, gate, n);
        u = widen(kernels, dtype, second, up, n);
      }
    }
    void* out = const_cast<void*>(advance(out_row, begin, dtype));
    float* y = dtype == DType::Float32 ? static_cast<float*>(out) : gate;
    tape.run(g, u, y, count, parameters);
    if (dtype == DType::BFloat16) {
      kernels.to_bf16(y, static_cast<std::uint16_t*>(out), count);
    } else if (dtype == DType::Float16) {
      kernels.to_fp16(y, static_cast<std::uint16_t*>(out), count);
    }
  }
};

}  // namespace

void act_and_mul(const Function& function, const ParameterTable& values, Pairing pairing,
                 DType dtype, std::int64_t rows, std::int64_t intermediate, const void* x,
                 std::int64_t x_stride, void* out, std::int64_t out_stride) {
  validate(function, values, pairing, dtype, rows, intermediate, x, x_stride, out, out_stride);
  if (rows == 0 || intermediate == 0) return;
  const cpu::Isa isa = cpu::selected_isa();
  const Function lifted = pairing == Pairing::None ? function : function.gated();
  const bool precise = cpu::selected_numerics() == cpu::Numerics::Precise;
  const Tape tape(lifted.graph(), isa, precise ? cpu::Arithmetic::Fp64 : cpu::Arithmetic::Fp32);
  const Call call{tape, cpu::tape_kernels(isa), values.data, pairing, dtype, intermediate};

  // A task is a few whole rows, or a stretch of a long one; not where a stretch's output lies over
  // another's interleaved input.
  const bool whole_rows = out == x && pairing == Pairing::Interleaved;
  const std::int64_t stretch = whole_rows ? intermediate : std::min(intermediate, kElementsPerTask);
  const std::int64_t stretches = (intermediate + stretch - 1) / stretch;
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kElementsPerTask / stretch);
  const std::int64_t row_groups = (rows + rows_per_task - 1) / rows_per_task;
  const auto task = [&](std::int64_t index, std::int64_t) noexcept {
    const std::int64_t first_row = index / stretches * rows_per_task;
    const std::int64_t begin = index % stretches * stretch;
    const std::int64_t end = std::min(intermediate, begin + stretch);
    for (std::int64_t row = first_row; row < std::min(rows, first_row + rows_per_task); ++row) {
      const void* x_row = advance(x, row * x_stride, dtype);
      void* out_row = const_cast<void*>(advance(out, row * out_stride, dtype));
      for (std::int64_t column = begin; column < end; column += kBlock) {
        call.run(x_row, out_row, column, std::min(kBlock, end - column));
      }
    }
  };
  const std::int64_t tasks = row_groups * stretches;
  if (tasks < 4) {
    for (std::int64_t index = 0; index < tasks; ++index) task(index, tasks);
    return;
  }
  Pool& pool = Pool::instance();
  Pool::Session session(pool, static_cast<int>(std::min<std::int64_t>(pool.threads(), tasks / 2)));
  session.for_each(tasks, task);
}

}  // namespace flexact
