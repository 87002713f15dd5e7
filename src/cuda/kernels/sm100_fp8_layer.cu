// What an FP8 layer needs beside GEMM1, and what no activation is linked into: GEMM2 and the rows' ways.
#include "moe_rows_fp8.cuh"
#include "sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_block_plain, Blocks, Plain, Rows)
FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_whole_plain, Whole, Plain, Rows)
