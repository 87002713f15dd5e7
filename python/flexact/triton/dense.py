"""act_and_mul for dense and shared MLPs: one pass at the memory's speed, any function and layout."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from flexact._core import Function
from flexact.triton.functions import compilation_cache, jit_function
from flexact.triton.gemm import load_values
from flexact.triton.numerics import rounded


@triton.jit(do_not_specialize=["rows"])
def act_and_mul(
    x, x_stride, values, out, out_stride, rows, width,
    ACTIVATION: tl.constexpr, PARAMETERS: tl.constexpr, PAIRING: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile [ROWS, BLOCK] of the result.

    Args:
        x: [rows, 2 width], or [rows, width] with PAIRING "none".
        x_stride: Elements between its rows.
        values: The parameter table's row, fp32.
        out: [rows, width].
        out_stride: Elements between its rows.
        rows: How many.
        width: Columns of the result.
        ACTIVATION: The function, on fp32 blocks.
        PARAMETERS: Its parameters.
        PAIRING: How gate and up stand in a row.
        ROWS: Rows of a program.
        BLOCK: Columns of a program.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    start = tl.program_id(1) * BLOCK
    column = start + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    at = x + row * x_stride
    parameters = load_values(values, 0, PARAMETERS, False)
    if PAIRING == "none":
        result = ACTIVATION(tl.load(at + column, mask=inside, other=0.0).to(tl.float32), *parameters)
    else:
        if PAIRING == "interleaved":
            # Twice the columns in the order of memory, then apart in registers.
            twice = 2 * start + tl.arange(0, 2 * BLOCK)[None, :]
            both = tl.load(at + twice, mask=(row < rows) & (twice < 2 * width), other=0.0)
            g, u = tl.split(tl.reshape(both, (ROWS, BLOCK, 2)))
        else:
            first = tl.load(at + column, mask=inside, other=0.0)
            second = tl.load(at + width + column, mask=inside, other=0.0)
            if PAIRING == "concat":
                g, u = first, second
            else:
                g, u = second, first
        result = ACTIVATION(g.to(tl.float32), u.to(tl.float32), *parameters)
    tl.store(out + row * out_stride + column, rounded(result, out.dtype.element_ty), mask=inside)


def tile_of(rows: int, width: int) -> tuple[int, int, int]:
    """Rows and columns of a program, and its warps: eight elements a lane, no lane past a row's end.

    The block is the largest power of two that divides the width; a width that none of 64 or more divides
    loses the lanes past its end.
    """
    block = min(1024, width & -width)
    if block < 64:
        block = min(256, triton.next_power_of_2(width))
    elements = 1024 if rows * width >= 1 << 19 else 256
    tile_rows = max(1, elements // block)
    return tile_rows, block, max(1, tile_rows * block // 256)


_compiled: set[Any] = set()


def run(
    function: Function, values: torch.Tensor, pairing: str, x: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Launches the kernel.

    Args:
        function: Gated, or unary with pairing "none".
        values: [1, P] float32 on x's device.
        pairing: "concat", "up_first", "interleaved" or "none".
        x: [rows, 2 I] (or [rows, I]), last stride 1.
        out: [rows, I], last stride 1.
    """
    rows, width = out.shape
    if out.numel() == 0:
        return out
    tile_rows, block, warps = tile_of(rows, width)
    key = (function.fingerprint, pairing, x.dtype, tile_rows, block)
    with compilation_cache(key in _compiled):
        act_and_mul[(triton.cdiv(rows, tile_rows), triton.cdiv(width, block))](
            x, x.stride(0), values, out, out.stride(0), rows, width,
            ACTIVATION=jit_function(function), PARAMETERS=len(function.parameters), PAIRING=pairing,
            ROWS=tile_rows, BLOCK=block, num_warps=warps,
        )  # fmt: skip
        _compiled.add(key)
    return out
