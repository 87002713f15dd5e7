// GEMM2 in mxfp4_fp8: no function.
#include "sm90_mxfp4_fp8_gemm.cuh"

FLEXACT_MXFP4_FP8_GEMM_KERNEL(flexact_gemm_mxfp4_fp8_plain, Plain)
