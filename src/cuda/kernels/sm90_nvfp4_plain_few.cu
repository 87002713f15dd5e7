// GEMM2 in nvfp4, where experts have few rows: no function.
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_nvfp4_plain_few, Plain, Nv, FewRows)
