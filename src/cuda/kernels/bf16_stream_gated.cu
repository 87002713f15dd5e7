// The first half of gated layers of a few tokens.
#include "stream_bf16.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_gated, Gated, Bf16)
