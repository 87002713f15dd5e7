// What an FP4 layer needs beside GEMM1, and what no activation is linked into: GEMM2 and the rows' ways.
#include "moe_rows_fp4.cuh"
#include "sm90_fp4_gemm.cuh"

FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_mxfp4_plain, Plain, Mx)
FLEXACT_FP4_GEMM_KERNEL(flexact_gemm_nvfp4_plain, Plain, Nv)
