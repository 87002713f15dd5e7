// The tape's kernels for AVX2 + FMA + F16C.
#if defined(__x86_64__)

#include "cpu/simd_avx2.hpp"
#include "cpu/tape_run.hpp"

namespace flexact::cpu {

namespace {
using avx2::Vec;
}

const TapeKernels kTapeKernelsAvx2 = {
    Vec::kWidth,
    TapeRunner<Vec>::run,
    widen<Vec, avx2::load_bf16>,
    widen<Vec, avx2::load_fp16>,
    narrow<Vec, avx2::store_bf16>,
    narrow<Vec, avx2::store_fp16>,
    deinterleave_all<Vec, avx2::deinterleave>,
};

}  // namespace flexact::cpu

#endif
