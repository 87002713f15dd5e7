// The kernels for AVX-512: six rows by 64 columns in 24 of 32 registers.
#include <immintrin.h>

#include "cpu/gemm.hpp"

namespace flexact::cpu {

namespace {
#include "cpu/gemm_avx512.inl"
}  // namespace

extern const IsaKernels kKernelsAvx512 = {
    .bf16 = kBf16,
    .fp16 = kFp16,
    .fp32 = kFp32,
    .bf16_rows = nullptr,
    .rows = {widen, finish, store, combine},
};

}  // namespace flexact::cpu
