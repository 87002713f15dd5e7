// The first half of gated layers of a few tokens.
#include "sm90_bf16_stream.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_gated, Gated)
