"""act_and_mul with its result quantised to E4M3: for dense and shared MLPs whose down projection is FP8.

The activated values are quantised from fp32, with no rounding before: one scale for 128 values of a row
("fp8_block") or one for the row ("fp8_channel"), the bits of `flexact.formats.quantise_activations`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from flexact._core import Function
from flexact.errors import InvalidArgument
from flexact.triton.functions import compilation_cache, jit_function
from flexact.triton.gemm import load_values
from flexact.triton.quantise import GROUP, quantise_block
from flexact.triton.small_floats import fp8_scale, reciprocal, to_e4m3

_compiled: set[object] = set()


@triton.jit
def _activated(
    x, start, width, values,
    ACTIVATION: tl.constexpr, PARAMETERS: tl.constexpr, PAIRING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns start … of a row's activation in fp32 [BLOCK]; 0 past its end."""
    column = start + tl.arange(0, BLOCK)
    inside = column < width
    parameters = load_values(values, 0, PARAMETERS, False)
    if PAIRING == "none":
        result = ACTIVATION(tl.load(x + column, mask=inside, other=0.0).to(tl.float32), *parameters)
    else:
        if PAIRING == "interleaved":
            twice = 2 * start + tl.arange(0, 2 * BLOCK)
            both = tl.load(x + twice, mask=twice < 2 * width, other=0.0)
            g, u = tl.split(tl.reshape(both, (BLOCK, 2)))
        else:
            g = tl.load(x + column, mask=inside, other=0.0)
            u = tl.load(x + width + column, mask=inside, other=0.0)
            if PAIRING == "up_first":
                g, u = u, g
        result = ACTIVATION(g.to(tl.float32), u.to(tl.float32), *parameters)
    return tl.where(inside, result, 0.0)


@triton.jit
def act_and_quantise_groups(
    x, x_stride, values, codes, codes_stride, scales, scales_stride, width,
    ACTIVATION: tl.constexpr, PARAMETERS: tl.constexpr, PAIRING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of a row, a multiple of 128, and a scale for each 128 of them.

    Args:
        x: [rows, 2 width], or [rows, width] with PAIRING "none".
        x_stride: Elements between its rows.
        values: The parameter table's row, fp32.
        codes: [rows, width] E4M3.
        codes_stride: Elements between its rows.
        scales: [rows, ceil(width / 128)] fp32.
        scales_stride: Elements between its rows.
        width: Columns of the result.
        ACTIVATION: The function, on fp32 blocks.
        PARAMETERS: Its parameters.
        PAIRING: How gate and up stand in a row.
        BLOCK: Columns of a program.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    value = _activated(x + row * x_stride, start, width, values, ACTIVATION, PARAMETERS, PAIRING, BLOCK)
    block, scale = quantise_block(tl.expand_dims(value, 0), 1, BLOCK)
    column = start + tl.arange(0, BLOCK)
    tl.store(codes + row * codes_stride + column, tl.reshape(block, (BLOCK,)), mask=column < width)
    group = start // GROUP + tl.arange(0, BLOCK // GROUP)
    at = scales + row * scales_stride + group
    tl.store(at, tl.reshape(scale, (BLOCK // GROUP,)), mask=group * GROUP < width)


@triton.jit
def act_and_quantise_rows(
    x, x_stride, values, codes, codes_stride, scales, width,
    ACTIVATION: tl.constexpr, PARAMETERS: tl.constexpr, PAIRING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row and its scale; scales is [rows] fp32, the rest as in act_and_quantise_groups.

    The row is activated twice, the second time from cache: nothing between is written.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    bits = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, width, BLOCK):
        value = _activated(x, start, width, values, ACTIVATION, PARAMETERS, PAIRING, BLOCK)
        bits = tl.maximum(bits, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    scale = fp8_scale(tl.max(bits, 0).to(tl.float32, bitcast=True))
    tl.store(scales + row, scale)
    inverse = reciprocal(scale)
    for start in range(0, width, BLOCK):
        value = _activated(x, start, width, values, ACTIVATION, PARAMETERS, PAIRING, BLOCK)
        column = start + tl.arange(0, BLOCK)
        tl.store(codes + row * codes_stride + column, to_e4m3(value * inverse), mask=column < width)


def run(
    function: Function, values: torch.Tensor, pairing: str, x: torch.Tensor, format: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launches the kernel of a format.

    Args:
        function: Gated, or unary with pairing "none".
        values: [1, P] float32 on x's device.
        pairing: "concat", "up_first", "interleaved" or "none".
        x: [rows, 2 I] (or [rows, I]), last stride 1.
        format: "fp8_block" or "fp8_channel".

    Returns:
        E4M3 codes [rows, I], and fp32 scales [rows, ceil(I / 128)] or [rows].
    """
    if format not in ("fp8_block", "fp8_channel"):
        raise InvalidArgument(f"format {format!r}", hint="fp8_block or fp8_channel")
    rows, columns = x.shape
    width = columns if pairing == "none" else columns // 2
    codes = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    groups = triton.cdiv(width, 128)
    shape = (rows, groups) if format == "fp8_block" else (rows,)
    scales = torch.empty(shape, dtype=torch.float32, device=x.device)
    if codes.numel() == 0:
        return codes, scales
    block = min(1024, triton.next_power_of_2(groups) * 128)
    settings = {
        "ACTIVATION": jit_function(function), "PARAMETERS": len(function.parameters), "PAIRING": pairing,
        "BLOCK": block, "num_warps": max(1, block // 256),
    }  # fmt: skip
    key = (function.fingerprint, pairing, x.dtype, format, block)
    with compilation_cache(key in _compiled):
        if format == "fp8_block":
            act_and_quantise_groups[(rows, triton.cdiv(width, block))](
                x, x.stride(0), values, codes, width, scales, groups, width, **settings
            )
        else:
            act_and_quantise_rows[(rows,)](x, x.stride(0), values, codes, width, scales, width, **settings)
        _compiled.add(key)
    return codes, scales
