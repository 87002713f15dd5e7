"""The two grouped GEMMs of the block, with everything element-wise in their epilogues.

`gate_up`: the gathered token rows times w13, both halves in one tile; then router weight where it belongs
to the input, bias, the activation in fp32, one rounding. The 2I-wide product is never written.
`down`: those rows times w2, bias, router weight, one rounding; a row for each (token, slot) pair, which
`combine.py` adds up in slot order. `down_and_combine` does both for a handful of tokens.

What depends on the format is OPERANDS (operands.py) and STORE; the activation is ACTIVATION, the function
that the core printed. Both are constexpr JIT functions: no kernel branches on either.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.dependent import begin
from flexact.triton.numerics import rounded, through
from flexact.triton.operands import split_columns
from flexact.triton.tiles import (
    direct_leader,
    direct_rows,
    ordered,
    sorted_tile,
    token_pairs,
    token_rows,
)


@triton.jit
def load_values(values, expert, PARAMETERS: tl.constexpr, PER_EXPERT: tl.constexpr):
    """The activation's parameter values for a tile, fp32 scalars, from the table [E or 1, PARAMETERS]."""
    row = values
    if PER_EXPERT:
        row += expert * PARAMETERS
    result = ()
    for i in tl.static_range(PARAMETERS):
        result = result + (tl.load(row + i),)  # noqa: RUF005
    return result


@triton.jit
def store_rows(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """STORE for results that stay in the kernel's own type: rounds once and stores.

    Args:
        out: Where rows go.
        stride: Elements between rows.
        extra: A tuple for formats that store more (scales and their strides); here empty.
        rows: Row numbers [BLOCK_M].
        columns: Column numbers [BLOCK_N].
        keep: Which elements exist [BLOCK_M, BLOCK_N].
        value: fp32 [BLOCK_M, BLOCK_N].
        expert: The tile's expert.
        BLOCK_M: Rows.
        BLOCK_N: Columns.
    """
    at = out + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(at, rounded(value, out.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["pairs", "top_k", "experts", "group_m"])
def gate_up(
    x, x_stride, x_extra, w13, w13_strides, w13_extra, bias, bias_stride, values, topk_weights, topk_ids,
    tiles, tile_count, pair_of_row, h, h_stride, h_extra, pairs, top_k, hidden, intermediate, experts,
    group_m,
    OPERANDS: tl.constexpr, ACTIVATION: tl.constexpr, STORE: tl.constexpr, PARAMETERS: tl.constexpr,
    PER_EXPERT: tl.constexpr, PAIRING: tl.constexpr, BIAS: tl.constexpr, WEIGHT_INPUT: tl.constexpr,
    EXACT: tl.constexpr, DIRECT: tl.constexpr, BY_TOKEN: tl.constexpr, TMA_X: tl.constexpr,
    TMA_W: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """Computes h = act(x w13ᵀ): [pairs, I] in sorted order, by pair where DIRECT, by tile where BY_TOKEN.

    Args:
        x: Hidden states [M, H]; with TMA_X a descriptor, of their copy in sorted order [pairs, H] or,
            BY_TOKEN, of themselves.
        x_stride: Elements between their rows.
        x_extra: What OPERANDS needs beside x.
        w13: Weights, a descriptor with TMA_W.
        w13_strides: (expert, row, column).
        w13_extra: What OPERANDS needs beside w13.
        bias: [E, 2I] or [E, I] in the order of w13's rows.
        bias_stride: Elements between its rows.
        values: Parameter table, fp32.
        topk_weights: [M, k] fp32, contiguous.
        topk_ids: [M, k], contiguous.
        tiles: The tile table (sorted).
        tile_count: Its length (sorted).
        pair_of_row: [pairs] (sorted).
        h: The result.
        h_stride: Elements between its rows.
        h_extra: What STORE needs beside h.
        pairs: M k.
        top_k: k.
        hidden: H.
        intermediate: I.
        experts: E.
        group_m: See tiles.ordered.
        OPERANDS: The format's policy.
        ACTIVATION: The function, on fp32 blocks.
        STORE: How results are stored.
        PARAMETERS: Columns of the table.
        PER_EXPERT: Whether the table has a row for each expert.
        PAIRING: How gate and up stand in w13.
        BIAS: Whether there is one.
        WEIGHT_INPUT: Router weight on the input.
        EXACT: None, or the type that g and u are rounded to first.
        DIRECT: 0, or a power of two not below the number of pairs.
        BY_TOKEN: A direct tile's rows are the tokens, of which there are at most BLOCK_M.
        TMA_X: Rows of x are consecutive in a tile.
        TMA_W: w13 is a descriptor.
        EVEN_K: H is a multiple of BLOCK_K.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Output columns of a tile.
        BLOCK_K: Step along H.
        PERSISTENT: Programs loop over tiles.
    """
    begin()
    tiles_n = tl.cdiv(intermediate, BLOCK_N)
    tiles_m = pairs if DIRECT > 0 else tl.load(tile_count)
    end = tiles_m * tiles_n if PERSISTENT else tl.minimum(tl.program_id(0) + 1, tiles_m * tiles_n)
    for index in range(tl.program_id(0), end, tl.num_programs(0)):
        if DIRECT > 0:
            n0 = index % tiles_n * BLOCK_N
            m = index // tiles_n
            expert, before = direct_leader(
                m, topk_ids, pairs, experts, DIRECT, DIRECT if BY_TOKEN else BLOCK_M
            )
            first = 0
        else:
            m, n = ordered(index, tiles_m, tiles_n, group_m)
            n0 = n * BLOCK_N
            expert, first, rows, valid = sorted_tile(m, tiles, BLOCK_M, 1)
            pair = tl.load(pair_of_row + rows)
        if expert >= 0:
            if BY_TOKEN:
                # Tokens that this expert was not chosen for are computed too: their rows cost nothing.
                rows, valid = token_rows(m, pairs // top_k, BLOCK_M)
                # Boxes end where x ends; what stands beside its rows is read by number.
                source = tl.minimum(tl.arange(0, BLOCK_M), pairs // top_k - 1)
            else:
                if DIRECT > 0:
                    rows, valid = direct_rows(m, expert, before, topk_ids, pairs, DIRECT, BLOCK_M)
                    pair = rows
                source = rows if TMA_X else pair // top_k
            # Gate and up; the same twice where there is no gate.
            g, u = OPERANDS(
                x, x_stride, x_extra, source, first,
                w13, w13_strides, w13_extra, expert, n0, intermediate, hidden,
                PAIRING, BLOCK_M, BLOCK_N, BLOCK_K, TMA_X, TMA_W, EVEN_K,
            )  # fmt: skip
            if WEIGHT_INPUT:
                # w · (W x) for W (w x): the same product, rounded once less.
                weight = tl.load(topk_weights + pair)[:, None]
                g *= weight
                u *= weight

            # The bias, then the activation in fp32.
            parameters = load_values(values, expert, PARAMETERS, PER_EXPERT)
            columns = n0 + tl.arange(0, BLOCK_N)
            if PAIRING == "none":
                if BIAS:
                    at = bias + expert * bias_stride + tl.minimum(columns, intermediate - 1)
                    g += tl.load(at).to(tl.float32)[None, :]
                result = ACTIVATION(through(g, EXACT), *parameters)
            else:
                if BIAS:
                    at_g, at_u = split_columns(n0, intermediate, PAIRING, BLOCK_N)
                    g += tl.load(bias + expert * bias_stride + at_g).to(tl.float32)[None, :]
                    u += tl.load(bias + expert * bias_stride + at_u).to(tl.float32)[None, :]
                result = ACTIVATION(through(g, EXACT), through(u, EXACT), *parameters)

            keep = valid[:, None] & (columns < intermediate)[None, :]
            STORE(h, h_stride, h_extra, rows, columns, keep, result, expert, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["pairs", "top_k", "experts", "group_m"])
def down(
    h, h_stride, h_extra, w2, w2_strides, w2_extra, bias, bias_stride, topk_weights, topk_ids,
    tiles, tile_count, pair_of_row, y, y_stride, pairs, top_k, intermediate, hidden, experts, first_column,
    group_m,
    OPERANDS: tl.constexpr, BIAS: tl.constexpr, WEIGHT_OUTPUT: tl.constexpr, DIRECT: tl.constexpr,
    SLOTS: tl.constexpr, TMA_H: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Computes y[pair] = topk_weight · (h w2ᵀ + bias) for y_stride columns from first_column on.

    Args:
        h: As gate_up wrote it; a descriptor with TMA_H, where a tile's rows are consecutive.
        h_stride: Elements between its rows.
        h_extra: What OPERANDS needs beside h.
        w2: Weights, a descriptor with TMA_W.
        w2_strides: (expert, row, column).
        w2_extra: What OPERANDS needs beside w2.
        bias: [E, H].
        bias_stride: Elements between its rows.
        topk_weights: [M, k] fp32, contiguous.
        topk_ids: [M, k], contiguous.
        tiles: The tile table (sorted).
        tile_count: Its length (sorted).
        pair_of_row: [pairs] (sorted).
        y: [pairs, y_stride].
        y_stride: Columns of y.
        pairs: M k.
        top_k: k.
        intermediate: I.
        hidden: H.
        experts: E.
        first_column: The column of the output that y starts with.
        group_m: See tiles.ordered.
        OPERANDS: The format's policy.
        BIAS: Whether there is one.
        WEIGHT_OUTPUT: Multiply by the router weight.
        DIRECT: See gate_up.
        SLOTS: 0, or with gate_up's BY_TOKEN a power of two not below k.
        TMA_H: h is a descriptor.
        TMA_W: w2 is a descriptor.
        EVEN_K: I is a multiple of BLOCK_K.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Output columns of a tile.
        BLOCK_K: Step along I.
        PERSISTENT: Programs loop over tiles.
        PARTS: Tiles for each of the table, which has those of gate_up (sorted).
    """
    begin()
    # y holds the columns [first_column, last_column).
    last_column = tl.minimum(hidden, first_column + y_stride)
    tiles_n = tl.cdiv(last_column - first_column, BLOCK_N)
    tiles_m = pairs if DIRECT > 0 else tl.load(tile_count) * PARTS
    end = tiles_m * tiles_n if PERSISTENT else tl.minimum(tl.program_id(0) + 1, tiles_m * tiles_n)
    for index in range(tl.program_id(0), end, tl.num_programs(0)):
        if DIRECT > 0:
            n0 = first_column + index % tiles_n * BLOCK_N
            m = index // tiles_n
            expert, before = direct_leader(m, topk_ids, pairs, experts, DIRECT, DIRECT if SLOTS else BLOCK_M)
            first = 0
        else:
            m, n = ordered(index, tiles_m, tiles_n, group_m)
            n0 = first_column + n * BLOCK_N
            expert, first, rows, valid = sorted_tile(m, tiles, BLOCK_M, PARTS)
        if expert >= 0:
            if SLOTS:
                first = m * BLOCK_M
                rows, valid = token_rows(m, pairs // top_k, BLOCK_M)
            elif DIRECT > 0:
                rows, valid = direct_rows(m, expert, before, topk_ids, pairs, DIRECT, BLOCK_M)
            accumulator, _ = OPERANDS(
                h, h_stride, h_extra, rows, first,
                w2, w2_strides, w2_extra, expert, n0, hidden, intermediate,
                "none", BLOCK_M, BLOCK_N, BLOCK_K, TMA_H, TMA_W, EVEN_K,
            )  # fmt: skip
            bias_row = bias + expert * bias_stride
            # Pairs and weights are loaded after the sum, so that no register holds them meanwhile.
            if SLOTS:
                # A token has a pair with this expert, or none, or more where its ids repeat.
                pair_of_slot, mine = token_pairs(expert, topk_ids, pairs, top_k, SLOTS, BLOCK_M)
                last = tl.full((BLOCK_M,), -1, tl.int32)
                for _nth in range(0, tl.max(tl.sum(mine.to(tl.int32), 1), 0)):
                    # Not the nth by a scan: Triton 3.6 does not compile one of so few columns.
                    pair = tl.min(tl.where(mine & (pair_of_slot > last[:, None]), pair_of_slot, pairs), 1)
                    _store_tile(accumulator, n0, first_column, last_column, bias_row, topk_weights, y,
                                y_stride, tl.minimum(pair, pairs - 1), pair < pairs, expert, BIAS,
                                WEIGHT_OUTPUT, BLOCK_M, BLOCK_N)  # fmt: skip
                    last = pair
            else:
                pair = rows if DIRECT > 0 else tl.load(pair_of_row + rows)
                _store_tile(accumulator, n0, first_column, last_column, bias_row, topk_weights, y, y_stride,
                            pair, valid, expert, BIAS, WEIGHT_OUTPUT, BLOCK_M, BLOCK_N)  # fmt: skip


@triton.jit
def _store_tile(
    value, n0, first_column, last_column, bias_row, topk_weights, y, y_stride, pair, valid, expert,
    BIAS: tl.constexpr, WEIGHT_OUTPUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The tile's rows to those of its pairs."""
    weight = tl.load(topk_weights + pair) if WEIGHT_OUTPUT else 1.0
    if BLOCK_N >= 128:
        # By halves, which the accumulator's layout gives for nothing: fewer registers are live.
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(tl.permute(tl.reshape(value, (BLOCK_M, 2, HALF)), (0, 2, 1)))
        _store_down(left, n0, first_column, last_column, bias_row, weight, y, y_stride, pair, valid,
                    expert, BIAS, WEIGHT_OUTPUT, BLOCK_M, HALF)  # fmt: skip
        _store_down(right, n0 + HALF, first_column, last_column, bias_row, weight, y, y_stride, pair,
                    valid, expert, BIAS, WEIGHT_OUTPUT, BLOCK_M, HALF)  # fmt: skip
    else:
        _store_down(value, n0, first_column, last_column, bias_row, weight, y, y_stride, pair, valid,
                    expert, BIAS, WEIGHT_OUTPUT, BLOCK_M, BLOCK_N)  # fmt: skip


@triton.jit
def _store_down(
    value, n0, first_column, last_column, bias_row, weight, y, y_stride, pair, valid, expert,
    BIAS: tl.constexpr, WEIGHT_OUTPUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bias, router weight, one rounding."""
    columns = n0 + tl.arange(0, BLOCK_N)
    if BIAS:
        value += tl.load(bias_row + tl.minimum(columns, last_column - 1)).to(tl.float32)[None, :]
    if WEIGHT_OUTPUT:
        value *= weight[:, None]
    keep = valid[:, None] & (columns < last_column)[None, :]
    store_rows(y, y_stride, (), pair, columns - first_column, keep, value, expert, BLOCK_M, BLOCK_N)
