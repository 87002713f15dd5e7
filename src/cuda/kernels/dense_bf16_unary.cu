// The activation of bf16 rows without a gate.
#include "dense_rows.cuh"

FLEXACT_DENSE_KERNELS(flexact_act_bf16_unary, false, __nv_bfloat16)
