// GEMM1 of layers without a gate by pairs of CTAs.
#include "sm90_bf16_pair.cuh"

FLEXACT_PAIR_KERNEL(flexact_pair_weights_unary, Unary, Weights)
FLEXACT_PAIR_KERNEL(flexact_pair_rows_unary, Unary, Rows)
