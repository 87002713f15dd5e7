// The tape's kernels for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include "cpu/simd_avx512.hpp"
#include "cpu/tape_run.hpp"

namespace flexact::cpu {

namespace {
using avx512::Vec;
}

const TapeKernels kTapeKernelsAvx512 = {
    Vec::kWidth,
    TapeRunner<Vec>::run,
    widen<Vec, avx512::load_bf16>,
    widen<Vec, avx512::load_fp16>,
    narrow<Vec, avx512::store_bf16>,
    narrow<Vec, avx512::store_fp16>,
    deinterleave_all<Vec, avx512::deinterleave>,
};

}  // namespace flexact::cpu

#endif
