// GEMM2: no function.
#include "sm90_bf16_gemm.cuh"

FLEXACT_GEMM_KERNEL(flexact_gemm_fp16_plain, Plain, __half)
