// The first half of layers without a gate of a few tokens.
#include "sm90_bf16_stream.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_unary, Unary)
