// GEMM1 of gated layers in fp8_block.
#include "sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_block_gated, Blocks, Gated, Groups)
