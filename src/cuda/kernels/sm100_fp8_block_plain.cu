// GEMM2 in FP8 with scales by blocks of 128: no function.
#include "sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_block_plain, Blocks, Plain, Rows)
