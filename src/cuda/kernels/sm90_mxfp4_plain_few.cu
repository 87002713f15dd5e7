// GEMM2 in mxfp4, where experts have few rows: no function.
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_mxfp4_plain_few, Plain, Mx, FewRows)
