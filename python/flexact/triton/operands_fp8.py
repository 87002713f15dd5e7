"""Operand policies with E4M3 on both sides; the signature is operands.plain's.

`scaled` multiplies codes and applies scales once, at the end (fp8_tensor, fp8_channel). `blocks` brings
each 128 values of K to scale in fp32 before they are added up (fp8_block): a tile holds gate and up as two
accumulators, so that only one unscaled product is in registers beside them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.numerics import dot
from flexact.triton.operands import (
    block_rows,
    load_rows,
    load_weights,
    split,
    split_columns,
)
from flexact.triton.small_floats import fp8_scale, largest_magnitude, reciprocal, to_e4m3

GROUP = tl.constexpr(128)


@triton.jit
def load_codes(
    a, a_stride, a_extra, rows, first_row, k0, k_size,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TMA_A: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """E4M3 codes [BLOCK_M, BLOCK_K] within one group of 128, and their scales [BLOCK_M].

    Activations that are not codes yet are quantised here, in registers; then BLOCK_K is 128.

    a_extra: the codes' scales [rows, ceil(K / 128)] and their row stride; empty for other activations.
    """
    x = load_rows(a, a_stride, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K)
    if x.dtype == tl.float8e4nv:
        codes = x
        scale = tl.load(a_extra[0] + rows.to(tl.int64) * a_extra[1] + k0 // GROUP)
    else:
        value = x.to(tl.float32)
        scale = fp8_scale(largest_magnitude(value, 1))
        codes = to_e4m3(value * reciprocal(scale)[:, None])
    return codes, scale


@triton.jit
def half_rows(n0, width, half, PAIRING: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows of gate (half 0) or up (half 1) of a tile."""
    n = tl.minimum(n0 + tl.arange(0, BLOCK_N), width - 1)
    if PAIRING == "interleaved":
        rows = 2 * n + half
    elif PAIRING == "up_first":
        rows = (1 - half) * width + n
    else:
        rows = half * width + n
    return rows


@triton.jit
def first_blocks(n0, width, half, PAIRING: tl.constexpr):
    """The row of block scales that a tile's gate (half 0) or up (half 1) begins in, and the last one."""
    if PAIRING == "interleaved":
        # Pairs of rows: a block holds 64 of them.
        first = 2 * n0 // GROUP
        last = (2 * width - 1) // GROUP
    else:
        # Gate and up are cut into blocks each for itself.
        blocks = tl.cdiv(width, GROUP)
        lower = (1 - half) if PAIRING == "up_first" else half
        first = lower * blocks + n0 // GROUP
        last = lower * blocks + blocks - 1
    return first, last


@triton.jit
def _block_scales(
    w_extra, expert, n0, width, half, group,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The scales of the tile's columns for one group of K: a scalar where they agree, else [BLOCK_N]."""
    scales, stride_e, stride_n, stride_k = w_extra
    at = scales + expert.to(tl.int64) * stride_e + group * stride_k
    first, last = first_blocks(n0, width, half, PAIRING)
    scale = tl.load(at + first * stride_n)
    if WIDE:
        second = tl.load(at + tl.minimum(first + 1, last) * stride_n)
        scale = tl.where(tl.arange(0, BLOCK_N) < BLOCK_N // 2, scale, second)
    return scale


@triton.jit
def _load_half(
    w, w_strides, expert, rows, n0, half, k0, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Weight rows [BLOCK_N, BLOCK_K] of one half. With TMA_W, w is a box of [E, 2, I, K] or [E, I, 2, K]."""
    if TMA_W:
        if PAIRING == "interleaved":
            block = w.load([expert, n0, half, k0])
        elif PAIRING == "up_first":
            block = w.load([expert, 1 - half, n0, k0])
        else:
            block = w.load([expert, half, n0, k0])
        block = tl.reshape(block, (BLOCK_N, BLOCK_K))
    else:
        k = k0 + tl.arange(0, BLOCK_K)
        at = w + expert.to(tl.int64) * w_strides[0] + rows.to(tl.int64)[:, None] * w_strides[1]
        if EVEN_K:
            block = tl.load(at + k[None, :] * w_strides[2])
        else:
            block = tl.load(at + k[None, :] * w_strides[2], mask=(k < k_size)[None, :], other=0.0)
    return block


@triton.jit
def _promote(accumulator, product, a_scale, w_scale, WIDE: tl.constexpr):
    """Accumulator + product · a_scale · w_scale; w_scale is a row where WIDE, else a scalar."""
    scale = a_scale[:, None] * w_scale[None, :] if WIDE else (a_scale * w_scale)[:, None]
    return accumulator + product * scale


@triton.jit
def blocks(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """fp8_block. w_extra: scales of 128 × 128 weights and their (expert, row, column) strides.

    BLOCK_K is 128, or 64 where both sides are codes; a tile's columns lie in at most two blocks: BLOCK_N is
    at most 128, or 256 with pairing "none".
    """
    GATED: tl.constexpr = PAIRING != "none"
    # Whether a tile's columns lie in two blocks; rows that alternate fill a block twice as fast.
    WIDE: tl.constexpr = BLOCK_N * (2 if PAIRING == "interleaved" else 1) > 128
    rows_g = half_rows(n0, width, 0, PAIRING, BLOCK_N)
    g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if GATED:
        rows_u = half_rows(n0, width, 1, PAIRING, BLOCK_N)
        u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x, a_scale = load_codes(
            a, a_stride, a_extra, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K
        )
        group = k0 // GROUP
        y = _load_half(
            w, w_strides, expert, rows_g, n0, 0, k0, k_size, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K
        )
        s = _block_scales(w_extra, expert, n0, width, 0, group, PAIRING, BLOCK_N, WIDE)
        if GATED:
            z = _load_half(
                w, w_strides, expert, rows_u, n0, 1, k0, k_size, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K
            )
            t = _block_scales(w_extra, expert, n0, width, 1, group, PAIRING, BLOCK_N, WIDE)
        nothing = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        g = _promote(g, dot(x, y.T, nothing), a_scale, s, WIDE)
        if GATED:
            u = _promote(u, dot(x, z.T, nothing), a_scale, t, WIDE)
    if not GATED:
        u = g
    return g, u


@triton.jit
def scaled(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """fp8_tensor and fp8_channel: codes times codes, then one scale a row and one a column.

    a_extra: scales and the stride between rows (0: one for all). w_extra: scales, the stride between
    experts, and those between columns and between halves: (E, 1, 0) with [E, 2I], (2, 0, 1) with [E, 2].
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
    a_scale = tl.load(a_extra[0] + rows.to(tl.int64) * a_extra[1])[:, None]
    at = w_extra[0] + expert.to(tl.int64) * w_extra[1]
    if PAIRING == "none":
        n = tl.minimum(n0 + tl.arange(0, BLOCK_N), width - 1)
        g = accumulator * (a_scale * tl.load(at + n * w_extra[2])[None, :])
        u = g
    else:
        g, u = split(accumulator, PAIRING, BLOCK_M, BLOCK_N)
        n_g, n_u = split_columns(n0, width, PAIRING, BLOCK_N)
        g *= a_scale * tl.load(at + n_g * w_extra[2])[None, :]
        u *= a_scale * tl.load(at + n_u * w_extra[2] + w_extra[3])[None, :]
    return g, u
