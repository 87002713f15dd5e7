"""The sum over a token's experts, in slot order: the same bits in every run."""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.dependent import begin
from flexact.triton.numerics import rounded


@triton.jit(do_not_specialize=["experts"])
def combine(
    y, y_stride, topk_ids, out, out_stride, columns, first_column, experts, scale,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes out[token, first_column + c] = scale · Σ_slot y[token k + slot, c], fp32, rounded once.

    Args:
        y: [M k, y_stride], weighted; rows of ids outside 0 … E-1 were never written and are not read.
        y_stride: Elements between rows.
        topk_ids: [M, k], contiguous.
        out: [M, H].
        out_stride: Elements between its rows.
        columns: Columns of y that are valid.
        first_column: Where they go.
        experts: E.
        scale: The routed scaling factor.
        TOP_K: k.
        BLOCK: Columns of a program.
    """
    begin()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in tl.static_range(TOP_K):
        expert = tl.load(topk_ids + token * TOP_K + slot)
        here = (expert >= 0) & (expert < experts)
        at = y + (token * TOP_K + slot) * y_stride + column
        total += tl.load(at, mask=inside & here, other=0.0).to(tl.float32)
    value = rounded(total * scale, out.dtype.element_ty)
    tl.store(out + token * out_stride + first_column + column, value, mask=inside)
