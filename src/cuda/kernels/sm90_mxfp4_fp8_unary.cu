// GEMM1 of layers without a gate in mxfp4_fp8.
#include "sm90_mxfp4_fp8_gemm.cuh"

FLEXACT_MXFP4_FP8_GEMM_KERNEL(flexact_gemm_mxfp4_fp8_unary, Unary)
