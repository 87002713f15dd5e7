// The way of rows to where FP4 weights meet them, and the order of the weights' scales.
#include "moe_rows_fp4.cuh"
