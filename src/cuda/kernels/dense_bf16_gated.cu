// act_and_mul of bf16 rows with a gate.
#include "dense_rows.cuh"

FLEXACT_DENSE_KERNELS(flexact_act_bf16_gated, true, __nv_bfloat16)
