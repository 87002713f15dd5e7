"""Operand policies with E2M1 weights, decoded in registers; the signature is operands.plain's.

Weights come as int32 words of eight values (`tensor.view(torch.int32)` of the packed bytes), so that a
few integer operations decode two values at a time. With bf16 activations a weight is the product of its
value and its group's scale, exact in bf16. With E4M3 activations (mxfp4_fp8) the values stay E4M3, exactly,
times powers of two: within 128 values of K a row's groups are brought to the largest of their scales, and
that scale is applied in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.numerics import INTERPRETED, dot, rounded
from flexact.triton.operands import block_rows, load_rows, load_weights, split
from flexact.triton.operands_fp8 import load_codes
from flexact.triton.small_floats import e2m1_scale, e2m1_words, e8m0_to_float, to_e4m3


@triton.jit
def _wide(value):
    """bf16 to fp32 by its bits: the interpreter's conversion loses subnormals."""
    bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _times(a, b):
    """The product in bf16, rounded once; the interpreter has no arithmetic in that type."""
    return rounded(_wide(a) * _wide(b), tl.bfloat16) if INTERPRETED else a * b


@triton.jit
def mx_values(words, codes, ROWS: tl.constexpr, K: tl.constexpr):
    """Weights in bf16 [ROWS, K] from words [ROWS, K / 8] and E8M0 codes [ROWS, K / 32].

    Exact for scales up to 2; NaN above.
    """
    groups = tl.reshape(e2m1_words(words, tl.bfloat16, ROWS, K // 8), (ROWS, K // 32, 32))
    return tl.reshape(_times(groups, tl.expand_dims(e2m1_scale(codes), 2)), (ROWS, K))


@triton.jit
def nv_values(words, codes, ROWS: tl.constexpr, K: tl.constexpr):
    """Weights times 2^-8 in bf16 [ROWS, K] from words and E4M3 codes (uint8) [ROWS, K / 16]; exact.

    448 · 2^126 would leave bf16's range, so the factor that brings the values back is 2^8 too small.
    """
    scale = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32) * 2.0**118
    groups = tl.reshape(e2m1_words(words, tl.bfloat16, ROWS, K // 8), (ROWS, K // 16, 16))
    return tl.reshape(_times(groups, tl.expand_dims(rounded(scale, tl.bfloat16), 2)), (ROWS, K))


@triton.jit
def mx_codes(words, codes, ROWS: tl.constexpr, K: tl.constexpr):
    """Weights in E4M3 [ROWS, K] and their scale in fp32 [ROWS], for K of one scale (at most 128).

    A weight is its value times 2^(1 - d), d being how many powers of two its group's scale lies below the
    row's largest: exact up to d = 9, beyond it to nearest even, with at most 2^-10 of the largest scale lost.
    """
    wide = codes.to(tl.int32)
    top = tl.max(wide, 1)
    # 2^14 brings the value back and 2^(1-d) places it; long before d = 24 nothing is left of it in E4M3.
    factor = ((30 - tl.minimum(top[:, None] - wide, 24)) << 10).to(tl.int16).to(tl.float16, bitcast=True)
    groups = tl.reshape(e2m1_words(words, tl.float16, ROWS, K // 8), (ROWS, K // 32, 32))
    y = groups * tl.expand_dims(factor, 2)
    placed = to_e4m3(y.to(tl.float32)) if INTERPRETED else y.to(tl.float8e4nv)
    return tl.reshape(placed, (ROWS, K)), e8m0_to_float(top) * 0.5


@triton.jit
def _load_packed(
    w, w_strides, w_extra, expert, rows, n0, k0, k_size,
    GROUP_K: tl.constexpr, PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Words [weight rows, BLOCK_K / 8] and group scales [weight rows, BLOCK_K / GROUP_K].

    w_extra begins with the scales and their (expert, row, column) strides.
    """
    words = load_weights(
        w, w_strides, expert, rows, n0, k0 // 8, k_size // 8, PAIRING, BLOCK_N, BLOCK_K // 8, TMA_W, EVEN_K
    )
    group = k0 // GROUP_K + tl.arange(0, BLOCK_K // GROUP_K)
    at = w_extra[0] + expert.to(tl.int64) * w_extra[1] + rows.to(tl.int64)[:, None] * w_extra[2]
    if EVEN_K:
        codes = tl.load(at + group[None, :] * w_extra[3])
    else:
        codes = tl.load(at + group[None, :] * w_extra[3], mask=(group * GROUP_K < k_size)[None, :], other=0)
    return words, codes


@triton.jit
def mx(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """mxfp4: E8M0 scales of 32 values. w_extra: the scales and their (expert, row, column) strides."""
    weight_rows = block_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x = load_rows(a, a_stride, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K)
        words, codes = _load_packed(
            w, w_strides, w_extra, expert, weight_rows, n0, k0, k_size,
            32, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K,
        )  # fmt: skip
        accumulator = dot(x, mx_values(words, codes, WIDTH, BLOCK_K).T, accumulator)
    if PAIRING == "none":
        g, u = accumulator, accumulator
    else:
        g, u = split(accumulator, PAIRING, BLOCK_M, BLOCK_N)
    return g, u


@triton.jit
def nv(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """nvfp4: E4M3 scales of 16 values, and fp32 scales of gate and of up.

    w_extra: the scales and their (expert, row, column) strides, the global scales, the stride between
    experts and that between gate and up.
    """
    weight_rows = block_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x = load_rows(a, a_stride, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K)
        words, codes = _load_packed(
            w, w_strides, w_extra, expert, weight_rows, n0, k0, k_size,
            16, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K,
        )  # fmt: skip
        accumulator = dot(x, nv_values(words, codes, WIDTH, BLOCK_K).T, accumulator)
    at = w_extra[4] + expert * w_extra[5]
    whole = tl.load(at) * 256.0  # nv_values' 2^-8
    if PAIRING == "none":
        g = accumulator * whole
        u = g
    else:
        g, u = split(accumulator, PAIRING, BLOCK_M, BLOCK_N)
        g *= whole
        u *= tl.load(at + w_extra[6]) * 256.0
    return g, u


@triton.jit
def mx_fp8(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """mxfp4_fp8: E4M3 activations with a scale for 128 values, and weights as `mx` takes them.

    BLOCK_K is 128, so that a step has one scale a row on both sides.
    """
    weight_rows = block_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x, a_scale = load_codes(
            a, a_stride, a_extra, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K
        )
        words, codes = _load_packed(
            w, w_strides, w_extra, expert, weight_rows, n0, k0, k_size,
            32, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K,
        )  # fmt: skip
        y, w_scale = mx_codes(words, codes, WIDTH, BLOCK_K)
        product = dot(x, y.T, tl.zeros((BLOCK_M, WIDTH), tl.float32))
        accumulator += product * (a_scale[:, None] * w_scale[None, :])
    if PAIRING == "none":
        g, u = accumulator, accumulator
    else:
        g, u = split(accumulator, PAIRING, BLOCK_M, BLOCK_N)
    return g, u
