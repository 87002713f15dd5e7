// The ways of rows to FP8 codes.
#include "moe_rows_fp8.cuh"
