// GEMM1 of gated layers in nvfp4, where experts have few rows.
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_nvfp4_gated_few, Gated, Nv, FewRows)
