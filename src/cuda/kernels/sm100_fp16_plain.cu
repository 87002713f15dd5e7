// GEMM2: no function.
#include "sm100_bf16_gemm.cuh"

FLEXACT_SM100_GEMM_KERNEL(flexact_gemm_fp16_plain, Plain, __half)
