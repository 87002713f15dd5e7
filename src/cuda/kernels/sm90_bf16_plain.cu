// GEMM2: no function.
#include "sm90_bf16_gemm.cuh"

FLEXACT_GEMM_KERNEL(flexact_gemm_bf16_plain, Plain, __nv_bfloat16)
