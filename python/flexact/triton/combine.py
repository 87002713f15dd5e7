"""The sum over a token's experts, in slot order: the same bits in every run."""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.numerics import rounded


@triton.jit(do_not_specialize=["first_column"])
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


@triton.jit
def down_and_combine(
    h, h_stride, w2, w2_strides, bias, bias_stride, topk_weights, topk_ids, out, out_stride,
    intermediate, hidden, experts, scale,
    BIAS: tl.constexpr, WEIGHT_OUTPUT: tl.constexpr, TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The down projection and the sum for one token, without tensor cores: for a handful of tokens.

    One program reads BLOCK_N rows of each of the token's experts once, so that all of w2's bytes are in
    flight at the same time and neither a product per pair nor another kernel is needed. Arguments as in
    `gemm.down` and `combine`; h is by pair.
    """
    token = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < hidden
    total = tl.zeros((BLOCK_N,), tl.float32)
    for slot in tl.static_range(TOP_K):
        pair = token * TOP_K + slot
        expert = tl.load(topk_ids + pair)
        here = (expert >= 0) & (expert < experts)
        w_row = w2 + expert.to(tl.int64) * w2_strides[0] + row.to(tl.int64)[:, None] * w2_strides[1]
        products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for k0 in range(0, intermediate, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            mask = (k < intermediate) & here
            x = tl.load(h + pair.to(tl.int64) * h_stride + k, mask=mask, other=0.0)
            w = tl.load(w_row + k[None, :] * w2_strides[2], mask=mask[None, :] & inside[:, None], other=0.0)
            products += w.to(tl.float32) * x.to(tl.float32)[None, :]
        part = tl.sum(products, 1)
        if BIAS:
            at = bias + expert.to(tl.int64) * bias_stride + row
            part += tl.load(at, mask=inside & here, other=0.0).to(tl.float32)
        if WEIGHT_OUTPUT:
            part *= tl.load(topk_weights + pair)
        # Nothing of an absent expert is taken, not even its weight, which may be NaN.
        total += tl.where(here, part, 0.0)
    tl.store(
        out + token.to(tl.int64) * out_stride + row, rounded(total * scale, out.dtype.element_ty), mask=inside
    )
