// The tape's kernels for the portable build.
#include "cpu/simd_scalar.hpp"
#include "cpu/tape_run.hpp"

namespace flexact::cpu {

namespace {
using scalar::Vec;
}

const TapeKernels kTapeKernelsScalar = {
    Vec::kWidth,
    TapeRunner<Vec>::run,
    widen<Vec, scalar::load_bf16>,
    widen<Vec, scalar::load_fp16>,
    narrow<Vec, scalar::store_bf16>,
    narrow<Vec, scalar::store_fp16>,
    deinterleave_all<Vec, scalar::deinterleave>,
};

}  // namespace flexact::cpu
