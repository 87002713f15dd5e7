// GEMM1 of layers without a gate.
#include "sm90_bf16_gemm.cuh"

FLEXACT_GEMM_KERNEL(flexact_gemm_bf16_unary, Unary, __nv_bfloat16)
