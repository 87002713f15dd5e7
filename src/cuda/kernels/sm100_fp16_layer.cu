// What a layer needs beside GEMM1, and what no activation is linked into: GEMM2 and the rows' ways.
#include "moe_rows.cuh"
#include "sm100_bf16_gemm.cuh"

FLEXACT_SM100_GEMM_KERNEL(flexact_gemm_fp16_plain, Plain, __half)
