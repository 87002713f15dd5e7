// GEMM2 by pairs of CTAs.
#include "sm90_bf16_pair.cuh"

FLEXACT_PAIR_KERNEL(flexact_pair_weights_plain, Plain, Weights)
FLEXACT_PAIR_KERNEL(flexact_pair_rows_plain, Plain, Rows)
