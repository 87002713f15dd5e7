// GEMM2 in FP8 with scales of whole rows: no function.
#include "sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_whole_plain, Whole, Plain, Rows)
