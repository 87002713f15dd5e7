// GEMM1 of gated layers: one kernel for each cluster size.
#include "sm90_bf16_gemm.cuh"

FLEXACT_GEMM_KERNEL(flexact_gemm_gated, Gated, 1)
FLEXACT_GEMM_KERNEL(flexact_gemm_gated_pair, Gated, 2)
