// The first half of gated layers of a few tokens, nvfp4 weights.
#include "stream_fp4.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_nvfp4_gated, Gated, Nvfp4)
