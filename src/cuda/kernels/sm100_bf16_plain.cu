// GEMM2: no function.
#include "sm100_bf16_gemm.cuh"

FLEXACT_SM100_GEMM_KERNEL(flexact_gemm_bf16_plain, Plain, __nv_bfloat16)
