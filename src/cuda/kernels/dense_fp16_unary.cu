// The activation of fp16 rows without a gate.
#include "dense_rows.cuh"

FLEXACT_DENSE_KERNELS(flexact_act_fp16_unary, false, __half)
