// GEMM1 of gated layers.
#include "sm90_bf16_gemm.cuh"

FLEXACT_GEMM_KERNEL(flexact_gemm_bf16_gated, Gated, __nv_bfloat16)
