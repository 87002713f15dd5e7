"""Operand policies: how a format's blocks are loaded, multiplied and scaled along K.

A policy is one JIT function with the signature of `plain` below. The GEMM kernels take it as a
`constexpr` and contain nothing else that depends on a format: a new format is a new policy.

The weight block of a tile has BLOCK_N rows, or 2 · BLOCK_N where gate and up are computed together. Its
rows stand in this order, which `split` undoes in registers:

    PAIRING      rows of the block           rows of w13
    none         n0 + 0 … BLOCK_N-1          the same
    concat       gate rows, then up rows     n0 …, then I + n0 …
    up_first     up rows, then gate rows     n0 …, then I + n0 …
    interleaved  g, u, g, u, …               2 n0 + 0 … 2 BLOCK_N-1

With a tensor descriptor the two halves are one three-dimensional box [2, BLOCK_N, BLOCK_K] of w13 seen as
[2E, I, H], so that one copy fetches both, one multiplication consumes them, and no weight is repacked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.numerics import dot


@triton.jit
def block_rows(n0, width, PAIRING: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows of an expert's weight matrix that a tile multiplies, clamped to `width` columns.

    Args:
        n0: The tile's first output column.
        width: Output columns in all (I, or H for the down projection).
        PAIRING: How gate and up stand in the matrix.
        BLOCK_N: Output columns of the tile.
    """
    if PAIRING == "none":
        rows = tl.minimum(n0 + tl.arange(0, BLOCK_N), width - 1)
    elif PAIRING == "interleaved":
        rows = tl.minimum(2 * n0 + tl.arange(0, 2 * BLOCK_N), 2 * width - 1)
    else:
        index = tl.arange(0, 2 * BLOCK_N)
        rows = index // BLOCK_N * width + tl.minimum(n0 + index % BLOCK_N, width - 1)
    return rows


@triton.jit
def split(accumulator, PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Gate and up [BLOCK_M, BLOCK_N] of an accumulator [BLOCK_M, 2 BLOCK_N]; no data moves."""
    if PAIRING == "interleaved":
        g, u = tl.split(tl.reshape(accumulator, (BLOCK_M, BLOCK_N, 2)))
    else:
        g, u = tl.split(tl.permute(tl.reshape(accumulator, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))
    if PAIRING == "up_first":
        g, u = u, g
    return g, u


@triton.jit
def split_columns(n0, width, PAIRING: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where gate's and up's per-row values (a bias, a scale) of a tile stand, clamped to `width`."""
    n = tl.minimum(n0 + tl.arange(0, BLOCK_N), width - 1)
    if PAIRING == "interleaved":
        g, u = 2 * n, 2 * n + 1
    elif PAIRING == "up_first":
        g, u = width + n, n
    else:
        g, u = n, width + n
    return g, u


@triton.jit
def load_weights(
    w, strides, expert, rows, n0, k0, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """The weight block [rows of it, BLOCK_K] that starts at column k0.

    Args:
        w: A tensor descriptor with TMA_W, else a pointer.
        strides: (expert, row, column) of the weight tensor, in elements.
        expert: The expert's number.
        rows: `block_rows` of the tile.
        n0: The tile's first output column.
        k0: The block's first column.
        k_size: Columns in all.
        PAIRING: See the module.
        BLOCK_N: Output columns of the tile.
        BLOCK_K: Columns of the block.
        TMA_W: Whether w is a descriptor.
        EVEN_K: Whether k_size is a multiple of BLOCK_K.
    """
    if TMA_W:
        if PAIRING == "none":
            block = w.load([expert, n0, k0]).reshape(BLOCK_N, BLOCK_K)
        elif PAIRING == "interleaved":
            block = w.load([expert, 2 * n0, k0]).reshape(2 * BLOCK_N, BLOCK_K)
        else:
            block = w.load([2 * expert, n0, k0]).reshape(2 * BLOCK_N, BLOCK_K)
    else:
        k = k0 + tl.arange(0, BLOCK_K)
        at = w + expert.to(tl.int64) * strides[0] + rows.to(tl.int64)[:, None] * strides[1]
        if EVEN_K:
            block = tl.load(at + k[None, :] * strides[2])
        else:
            block = tl.load(at + k[None, :] * strides[2], mask=(k < k_size)[None, :], other=0.0)
    return block


@triton.jit
def load_rows(
    a, stride, rows, first_row, k0, k_size,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TMA_A: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """The activation block [BLOCK_M, BLOCK_K]: gathered by row number, or a box with TMA_A."""
    if TMA_A:
        block = a.load([first_row, k0])
    else:
        k = k0 + tl.arange(0, BLOCK_K)
        at = a + rows.to(tl.int64)[:, None] * stride + k[None, :]
        if EVEN_K:  # noqa: SIM108
            block = tl.load(at)
        else:
            block = tl.load(at, mask=(k < k_size)[None, :], other=0.0)
    return block


@triton.jit
def plain(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """bf16 × bf16 and fp16 × fp16: gate and up of a tile in fp32; the same twice with "none".

    Args:
        a: Activations: a pointer, or a descriptor with TMA_A.
        a_stride: Elements between their rows.
        a_extra: A tuple for formats that need more (scales and their strides); here empty.
        rows: Row numbers [BLOCK_M], all of them valid to read.
        first_row: The first of them where they are consecutive (TMA_A).
        w: Weights: a pointer, or a descriptor with TMA_W.
        w_strides: (expert, row, column), in elements.
        w_extra: As a_extra, for the weights.
        expert: The tile's expert.
        n0: The tile's first output column.
        width: Output columns in all.
        k_size: Length of the sum.
        PAIRING: See the module; "none" for the down projection.
        BLOCK_M: Rows of the tile.
        BLOCK_N: Output columns of the tile.
        BLOCK_K: Columns of a step.
        TMA_A: Whether a is a descriptor.
        TMA_W: Whether w is a descriptor.
        EVEN_K: Whether k_size is a multiple of BLOCK_K.
    """
    weight_rows = block_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x = load_rows(a, a_stride, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K)
        y = load_weights(
            w, w_strides, expert, weight_rows, n0, k0, k_size, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K
        )
        accumulator = dot(x, y.T, accumulator)
    if PAIRING == "none":
        g, u = accumulator, accumulator
    else:
        g, u = split(accumulator, PAIRING, BLOCK_M, BLOCK_N)
    return g, u
