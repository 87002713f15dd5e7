// The first half of layers without a gate of a few tokens.
#include "stream_bf16.cuh"

FLEXACT_STREAM_KERNEL(flexact_stream_unary, Unary, Bf16)
