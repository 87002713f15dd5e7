// GEMM1 of gated layers by pairs of CTAs.
#include "sm90_bf16_pair.cuh"

FLEXACT_PAIR_KERNEL(flexact_pair_weights_gated, Gated, Weights)
FLEXACT_PAIR_KERNEL(flexact_pair_rows_gated, Gated, Rows)
