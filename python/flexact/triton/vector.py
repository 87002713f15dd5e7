"""The two GEMMs for a handful of tokens, as products of matrix and vector without tensor cores.

With one token each weight is used once, and the time is that of reading them: every program reads its rows
straight into registers, many programs at a time, and nothing is staged in shared memory. Results are by
pair, as on the direct route; the second kernel adds up a token's experts itself. What depends on the format
is OPERANDS (operands_vector.py) and STORE, as in gemm.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.dependent import begin
from flexact.triton.gemm import load_values
from flexact.triton.numerics import rounded, through
from flexact.triton.operands import split_columns


@triton.jit(do_not_specialize=["top_k", "experts"])
def gate_up(
    x, x_stride, x_extra, w13, w13_strides, w13_extra, bias, bias_stride, values, topk_weights, topk_ids,
    h, h_stride, h_extra, top_k, hidden, intermediate, experts,
    OPERANDS: tl.constexpr, ACTIVATION: tl.constexpr, STORE: tl.constexpr, PARAMETERS: tl.constexpr,
    PER_EXPERT: tl.constexpr, PAIRING: tl.constexpr, BIAS: tl.constexpr, WEIGHT_INPUT: tl.constexpr,
    EXACT: tl.constexpr, EVEN_K: tl.constexpr, EACH: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of h for one pair; arguments as in `gemm.gate_up`; EACH: formats.Vector.each."""
    begin()
    pair = tl.program_id(1)
    n0 = tl.program_id(0) * BLOCK_N
    expert = tl.load(topk_ids + pair)
    if (expert >= 0) & (expert < experts):
        columns = n0 + tl.arange(0, BLOCK_N)
        g_rows, u_rows = split_columns(n0, intermediate, PAIRING, BLOCK_N)
        if PAIRING == "none":
            g_rows = tl.minimum(columns, intermediate - 1)
        g = tl.zeros((BLOCK_N, BLOCK_K // EACH), tl.float32)
        u = tl.zeros((BLOCK_N, BLOCK_K // EACH), tl.float32)
        g, u = OPERANDS(
            g, u, x, x_stride, x_extra, pair // top_k, w13, w13_strides, w13_extra, expert, True,
            n0, intermediate, hidden, PAIRING, BLOCK_N, BLOCK_K, EVEN_K, 1,
        )  # fmt: skip
        weight = tl.load(topk_weights + pair) if WEIGHT_INPUT else 1.0
        bias_row = bias + expert.to(tl.int64) * bias_stride
        parameters = load_values(values, expert, PARAMETERS, PER_EXPERT)
        gate = tl.sum(g, 1) * weight
        if BIAS:
            gate += tl.load(bias_row + g_rows).to(tl.float32)
        gate = through(gate, EXACT)
        if PAIRING == "none":
            result = ACTIVATION(gate, *parameters)
        else:
            up = tl.sum(u, 1) * weight
            if BIAS:
                up += tl.load(bias_row + u_rows).to(tl.float32)
            result = ACTIVATION(gate, through(up, EXACT), *parameters)
        row = pair + tl.arange(0, 1)
        keep = (columns < intermediate)[None, :]
        STORE(h, h_stride, h_extra, row, columns, keep, result[None, :], expert, 1, BLOCK_N)


@triton.jit(do_not_specialize=["experts"])
def down_and_combine(
    h, h_stride, h_extra, w2, w2_strides, w2_extra, bias, bias_stride, topk_weights, topk_ids, out,
    out_stride, intermediate, hidden, experts, scale,
    OPERANDS: tl.constexpr, BIAS: tl.constexpr, WEIGHT_OUTPUT: tl.constexpr, TOP_K: tl.constexpr,
    SLOTS: tl.constexpr, EVEN_K: tl.constexpr, EACH: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SLOTS = TOP_K, rounded up to a power of two; BLOCK_N / SLOTS columns of a token's result.

    A row of the tile is one expert's share of a column, so that the weights of all experts are read at the
    same time. Arguments as in `gemm.down` and `combine.combine`.
    """
    begin()
    COLUMNS: tl.constexpr = BLOCK_N // SLOTS
    token = tl.program_id(1)
    n0 = tl.program_id(0) * COLUMNS
    slot = tl.arange(0, BLOCK_N) % SLOTS
    pair = token * TOP_K + slot
    expert = tl.load(topk_ids + pair, mask=slot < TOP_K, other=-1)
    here = (expert >= 0) & (expert < experts)
    # Nothing of an absent expert is taken, not even its weight, which may be NaN.
    weight = tl.where(here, 1.0, 0.0)
    if WEIGHT_OUTPUT:
        weight = tl.load(topk_weights + pair, mask=here, other=0.0)
    products = tl.zeros((BLOCK_N, BLOCK_K // EACH), tl.float32)
    products, _ = OPERANDS(
        products, products, h, h_stride, h_extra, pair[:, None], w2, w2_strides, w2_extra,
        expert[:, None], here[:, None],
        n0, hidden, intermediate, "none", BLOCK_N, BLOCK_K, EVEN_K, SLOTS,
    )  # fmt: skip
    product = tl.sum(products, 1)
    if BIAS:
        row = tl.minimum(n0 + tl.arange(0, BLOCK_N) // SLOTS, hidden - 1)
        at = bias + expert.to(tl.int64) * bias_stride + row
        product += tl.load(at, mask=here, other=0.0).to(tl.float32)
    product = tl.where(here, product * weight, 0.0)
    total = tl.sum(tl.reshape(product, (COLUMNS, SLOTS)), 1)
    column = n0 + tl.arange(0, COLUMNS)
    at = out + token.to(tl.int64) * out_stride + column
    tl.store(at, rounded(total * scale, out.dtype.element_ty), mask=column < hidden)
