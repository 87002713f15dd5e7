// What a layer of mxfp4_fp8 needs beside GEMM1, and what no activation is linked into: GEMM2 and the rows' ways.
#include "moe_rows_fp4.cuh"
#include "moe_rows_fp8.cuh"
#include "sm90_mxfp4_fp8_gemm.cuh"

FLEXACT_MXFP4_FP8_GEMM_KERNEL(flexact_gemm_mxfp4_fp8_plain, Plain)
