// GEMM1 of layers without a gate in mxfp4.
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_mxfp4_unary, Unary, Mx, ManyRows)
