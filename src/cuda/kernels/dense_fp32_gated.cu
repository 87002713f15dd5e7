// act_and_mul of fp32 rows with a gate.
#include "dense_rows.cuh"

FLEXACT_DENSE_KERNELS(flexact_act_fp32_gated, true, float)
