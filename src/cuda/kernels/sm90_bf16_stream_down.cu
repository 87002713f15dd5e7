// The second half of layers of a few tokens.
#include "sm90_bf16_stream.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_down, Down)
