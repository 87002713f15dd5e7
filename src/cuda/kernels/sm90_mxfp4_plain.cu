// GEMM2 in mxfp4: no function.
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_mxfp4_plain, Plain, Mx, ManyRows)
