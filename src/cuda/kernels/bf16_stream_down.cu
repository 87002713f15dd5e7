// The second half of layers of a few tokens.
#include "stream_bf16.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_down, Down, Bf16)
