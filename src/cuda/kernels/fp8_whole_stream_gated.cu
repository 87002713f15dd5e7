// The first half of gated layers of a few tokens, E4M3 with other scales.
#include "stream_fp8.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_fp8_whole_gated, Gated, Fp8Whole)
