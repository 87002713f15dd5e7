// The second half of layers of a few tokens, mxfp4 weights.
#include "stream_fp4.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_mxfp4_down, Down, Mxfp4)
