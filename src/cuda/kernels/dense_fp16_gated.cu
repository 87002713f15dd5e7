// act_and_mul of fp16 rows with a gate.
#include "dense_rows.cuh"

FLEXACT_DENSE_KERNELS(flexact_act_fp16_gated, true, __half)
