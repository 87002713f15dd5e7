// GEMM1 of layers without a gate.
#include "sm100_bf16_gemm.cuh"

FLEXACT_SM100_GEMM_KERNEL(flexact_gemm_bf16_unary, Unary, __nv_bfloat16)
