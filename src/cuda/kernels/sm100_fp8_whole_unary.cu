// GEMM1 of layers without a gate in fp8_tensor and fp8_channel, where activated values are rounded to E4M3 afterwards.
#include "sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_whole_unary, Whole, Unary, Largest)
