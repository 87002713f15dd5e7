// GEMM2 in nvfp4: no function.
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_nvfp4_plain, Plain, Nv, ManyRows)
