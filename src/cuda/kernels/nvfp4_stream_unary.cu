// The first half of layers without a gate of a few tokens, nvfp4 weights.
#include "stream_fp4.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_nvfp4_unary, Unary, Nvfp4)
