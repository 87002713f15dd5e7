// The first half of layers without a gate of a few tokens, E4M3 with other scales.
#include "stream_fp8.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_fp8_whole_unary, Unary, Fp8Whole)
