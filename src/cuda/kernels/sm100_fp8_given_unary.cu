// GEMM1 of layers without a gate in fp8_tensor, where the checkpoint gives the scale of activated values.
#include "sm100_fp8_gemm.cuh"

FLEXACT_SM100_FP8_GEMM_KERNEL(flexact_gemm_fp8_given_unary, Whole, Unary, Given)
