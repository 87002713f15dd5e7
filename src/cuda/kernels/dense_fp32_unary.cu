// The activation of fp32 rows without a gate.
#include "dense_rows.cuh"

FLEXACT_DENSE_KERNELS(flexact_act_fp32_unary, false, float)
