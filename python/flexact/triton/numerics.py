"""What differs between a device and Triton's interpreter, in one place; and rounding.

The interpreter (TRITON_INTERPRET=1) multiplies bf16 blocks as integers and truncates where a device
rounds. Kernels therefore multiply through `dot` and round through `rounded`, which on a device are the
plain operations.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def dot(a, b, accumulator):
    """`accumulator + a @ b` in fp32."""
    if INTERPRETED:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    else:
        result = tl.dot(a, b, accumulator)
    return result


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """An fp32 block to `dtype`, to nearest even, once."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        up = bits + 0x7FFF + ((bits >> 16) & 1)
        # A NaN stays one whatever its payload.
        bits = tl.where(value != value, 0x7FC00000, up)
        result = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(dtype)
    return result


@triton.jit
def through(value, EXACT: tl.constexpr):
    """`value`, in exact mode rounded to the type EXACT on the way as unfused hosts do."""
    if EXACT is not None:
        value = rounded(value, EXACT).to(tl.float32)
    return value
