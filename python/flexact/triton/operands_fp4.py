"""Operand policies with E2M1 weights, decoded in registers; the signature is operands.plain's.

Weights come as int32 words of eight values (`tensor.view(torch.int32)` of the packed bytes), so that a
few integer operations decode two values at a time. The product is formed transposed, w xᵀ: its first
operand may stay in registers, so that what was decoded there goes to the tensor cores as it is, where a
second operand would pass through shared memory. For this the columns of activations stand in the order in
which lanes decode (`small_floats.lane_order`): where formats.py has not arranged them, with few rows, they
are put in order here.

With bf16 activations a weight is the product of its value and its group's scale, exact in bf16. With E4M3
activations (mxfp4_fp8) the values stay E4M3, exactly, times powers of two: within 128 values of K a row's
groups are brought to the largest of their scales, and that scale is applied in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.numerics import dot, rounded
from flexact.triton.operands import load_rows, load_weights
from flexact.triton.operands_fp8 import load_codes
from flexact.triton.small_floats import e2m1_codes, e2m1_scale, e2m1_words, e8m0_to_float, lane_order, twice


@triton.jit
def mx_values(words, codes, ROWS: tl.constexpr, K: tl.constexpr, BY_WORD: tl.constexpr = False):
    """Weights in bf16 [ROWS, K] in lane order, from words [ROWS, K / 8] and E8M0 codes [ROWS, K / 32].

    Exact for scales up to 2; infinite or NaN above.
    """
    scale = tl.expand_dims(e2m1_scale(codes), 2)
    values = e2m1_words(tl.reshape(words, (ROWS, K // 32, 4)), scale, tl.bfloat16, ROWS, K)
    return _in_order(values, ROWS, K, BY_WORD)


@triton.jit
def _in_order(values, ROWS: tl.constexpr, K: tl.constexpr, BY_WORD: tl.constexpr):
    """What e2m1_words gives [.., t, e, h, s] as [ROWS, K], in the order of `lane_order`."""
    parts = tl.permute(values, (0, 1, 2, 5, 4, 3)) if BY_WORD else tl.permute(values, (0, 1, 5, 4, 2, 3))
    return tl.reshape(parts, (ROWS, K))


@triton.jit
def nv_values(words, codes, ROWS: tl.constexpr, K: tl.constexpr, BY_WORD: tl.constexpr = False):
    """Weights times 2^-8 in bf16 [ROWS, K] in lane order, from words and E4M3 codes (uint8) [ROWS, K / 16].

    Exact. 448 · 2^126 would leave bf16's range, so the factor that brings the values back is 2^8 too small.
    """
    scale = rounded(codes.to(tl.float8e4nv, bitcast=True).to(tl.float32) * 2.0**118, tl.bfloat16)
    # Two words share a scale.
    scale = tl.reshape(twice(scale), (ROWS, K // 32, 2, 1))
    scale = tl.reshape(tl.broadcast_to(scale, (ROWS, K // 32, 2, 2)), (ROWS, K // 32, 4))
    values = e2m1_words(tl.reshape(words, (ROWS, K // 32, 4)), scale, tl.bfloat16, ROWS, K)
    return _in_order(values, ROWS, K, BY_WORD)


@triton.jit
def mx_codes(words, codes, ROWS: tl.constexpr, K: tl.constexpr):
    """Weights in E4M3 [ROWS, K] in lane order and their scales, fp32 [ROWS], for K of one scale (up to 128).

    A weight is its value times 2^(6 - d), d being how many powers of two its group's scale lies below the
    row's largest: exact up to d = 11. Beyond it at most 2^-10 of the largest scale is lost.
    """
    wide = codes.to(tl.int32)
    top = tl.max(wide, 1)
    exponent = tl.expand_dims(wide - (top - 13)[:, None], 2)
    y = e2m1_codes(tl.reshape(words, (ROWS, K // 32, 4)), exponent, ROWS, K)
    return y, e8m0_to_float(top) * 0.015625


@triton.jit
def _weight_rows(n0, width, PAIRING: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile's rows of an expert's weights, clamped; with gate and up one half after the other."""
    if PAIRING == "none":
        rows = tl.minimum(n0 + tl.arange(0, BLOCK_N), width - 1)
    else:
        index = tl.arange(0, 2 * BLOCK_N)
        n = tl.minimum(n0 + index % BLOCK_N, width - 1)
        half = index // BLOCK_N
        rows = 2 * n + half if PAIRING == "interleaved" else half * width + n
    return rows


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
    if TMA_W and PAIRING == "interleaved":
        # A box brings them as they lie.
        words = tl.permute(tl.reshape(words, (BLOCK_N, 2, BLOCK_K // 8)), (1, 0, 2))
        words = tl.reshape(words, (2 * BLOCK_N, BLOCK_K // 8))
    COUNT: tl.constexpr = BLOCK_K // GROUP_K
    if w_extra[0].dtype.element_ty == tl.int32:
        codes = _codes_of_words(w_extra, expert, rows, k0 // GROUP_K, k_size // GROUP_K, rows.shape[0], COUNT)
    else:
        group = k0 // GROUP_K + tl.arange(0, COUNT)
        at = w_extra[0] + expert.to(tl.int64) * w_extra[1] + rows.to(tl.int64)[:, None] * w_extra[2]
        at += group[None, :] * w_extra[3]
        codes = tl.load(at) if EVEN_K else tl.load(at, mask=(group * GROUP_K < k_size)[None, :], other=0)
    return words, codes


@triton.jit
def _codes_of_words(w_extra, expert, rows, first, groups, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """Codes [ROWS, COUNT] of groups from `first` on, 0 past the last of `groups`, by whole words of four.

    Rows whose length is no multiple of 16 bytes start anywhere, and Triton copies ahead of use only what it
    knows to be aligned to 4 bytes. So the two words are loaded in which four codes lie, and shifted together.
    """
    WORDS: tl.constexpr = COUNT // 4 if COUNT > 4 else 1
    group = first + 4 * tl.arange(0, WORDS)[None, :]
    at = expert.to(tl.int64) * w_extra[1] + rows.to(tl.int64)[:, None] * w_extra[2] + group
    byte = (at & 3).to(tl.int32)
    # What follows a row's end is the next row's. A second word that has nothing of this one is not read.
    left = tl.minimum(groups - group, 4)
    lower = tl.load(w_extra[0] + (at >> 2), mask=left > 0, other=0)
    upper = tl.load(w_extra[0] + (at >> 2) + 1, mask=byte + left > 4, other=0)
    # A shift by 32 is none, so the upper word comes in two steps.
    low = lower.to(tl.uint32, bitcast=True) >> (8 * byte).to(tl.uint32)
    high = (upper.to(tl.uint32, bitcast=True) << 8) << (24 - 8 * byte).to(tl.uint32)
    past = (8 * tl.minimum(4 - left, 3)).to(tl.uint32)
    four = ((low | high) << past) >> past
    # Joined rather than shifted by a range: so the layout of the product reaches the load.
    if COUNT == 1:
        codes = four & 255
    elif COUNT == 2:
        codes = tl.join(four & 255, (four >> 8) & 255)
    else:
        even = tl.join(four & 255, (four >> 16) & 255)
        codes = tl.join(even, tl.join((four >> 8) & 255, four >> 24))
    return tl.reshape(codes, (ROWS, COUNT)).to(tl.uint8)


@triton.jit
def _load_arranged(
    a, a_stride, a_extra, rows, first_row, k0, k_size,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TMA_A: tl.constexpr, EVEN_K: tl.constexpr,
    BY_WORD: tl.constexpr,
):  # fmt: skip
    """The activation block [BLOCK_M, BLOCK_K] with its columns in lane order.

    a_extra: the rows' width where they were arranged before, which is K up to whole 32s; else empty.
    """
    if len(a_extra) > 0:
        x = load_rows(a, a_stride, rows, first_row, k0, a_extra[0], BLOCK_M, BLOCK_K, TMA_A, EVEN_K)
    else:
        x = load_rows(a, a_stride, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K)
        x = lane_order(x, 16, BLOCK_M, BLOCK_K, BY_WORD)
    return x


@triton.jit
def _halves(accumulator, PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Gate and up [BLOCK_M, BLOCK_N] of a transposed accumulator; the same twice with "none"."""
    if PAIRING == "none":
        g = tl.trans(accumulator)
        u = g
    else:
        g, u = tl.split(tl.permute(tl.reshape(accumulator, (2, BLOCK_N, BLOCK_M)), (2, 1, 0)))
        if PAIRING == "up_first":
            g, u = u, g
    return g, u


@triton.jit
def _mx_of(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr, BY_WORD: tl.constexpr,
):  # fmt: skip
    """`mx`, or with BY_WORD `mx_by_word`."""
    weight_rows = _weight_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((WIDTH, BLOCK_M), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x = _load_arranged(
            a, a_stride, a_extra, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K,
            BY_WORD,
        )  # fmt: skip
        words, codes = _load_packed(
            w, w_strides, w_extra, expert, weight_rows, n0, k0, k_size,
            32, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K,
        )  # fmt: skip
        accumulator = dot(mx_values(words, codes, WIDTH, BLOCK_K, BY_WORD), x.T, accumulator)
    g, u = _halves(accumulator, PAIRING, BLOCK_M, BLOCK_N)
    return g, u


@triton.jit
def mx(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """mxfp4: E8M0 scales of 32 values. w_extra: the scales and their (expert, row, column) strides."""
    g, u = _mx_of(
        a, a_stride, a_extra, rows, first_row, w, w_strides, w_extra, expert, n0, width, k_size,
        PAIRING, BLOCK_M, BLOCK_N, BLOCK_K, TMA_A, TMA_W, EVEN_K, False,
    )  # fmt: skip
    return g, u


@triton.jit
def mx_by_word(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """`mx` for tiles of fewer than four warps, which multiply without groups of warps."""
    g, u = _mx_of(
        a, a_stride, a_extra, rows, first_row, w, w_strides, w_extra, expert, n0, width, k_size,
        PAIRING, BLOCK_M, BLOCK_N, BLOCK_K, TMA_A, TMA_W, EVEN_K, True,
    )  # fmt: skip
    return g, u


@triton.jit
def _nv_of(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr, BY_WORD: tl.constexpr,
):  # fmt: skip
    """`nv`, or with BY_WORD `nv_by_word`."""
    weight_rows = _weight_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((WIDTH, BLOCK_M), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x = _load_arranged(
            a, a_stride, a_extra, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K,
            BY_WORD,
        )  # fmt: skip
        words, codes = _load_packed(
            w, w_strides, w_extra, expert, weight_rows, n0, k0, k_size,
            16, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K,
        )  # fmt: skip
        accumulator = dot(nv_values(words, codes, WIDTH, BLOCK_K, BY_WORD), x.T, accumulator)
    at = w_extra[4] + expert * w_extra[5]
    whole = tl.load(at) * 256.0  # nv_values' 2^-8
    g, u = _halves(accumulator, PAIRING, BLOCK_M, BLOCK_N)
    g *= whole
    if PAIRING == "none":
        u = g
    else:
        u *= tl.load(at + w_extra[6]) * 256.0
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
    g, u = _nv_of(
        a, a_stride, a_extra, rows, first_row, w, w_strides, w_extra, expert, n0, width, k_size,
        PAIRING, BLOCK_M, BLOCK_N, BLOCK_K, TMA_A, TMA_W, EVEN_K, False,
    )  # fmt: skip
    return g, u


@triton.jit
def nv_by_word(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """`nv` for tiles of fewer than four warps, which multiply without groups of warps."""
    g, u = _nv_of(
        a, a_stride, a_extra, rows, first_row, w, w_strides, w_extra, expert, n0, width, k_size,
        PAIRING, BLOCK_M, BLOCK_N, BLOCK_K, TMA_A, TMA_W, EVEN_K, True,
    )  # fmt: skip
    return g, u


@triton.jit
def mx_fp8(
    a, a_stride, a_extra, rows, first_row,
    w, w_strides, w_extra, expert, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TMA_A: tl.constexpr, TMA_W: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """mxfp4_fp8: E4M3 activations with a scale for 128 values, and weights as `mx` takes them.

    BLOCK_K is 128, so that a step has one scale a row on both sides. Codes were arranged when they were made.
    """
    weight_rows = _weight_rows(n0, width, PAIRING, BLOCK_N)
    WIDTH: tl.constexpr = BLOCK_N if PAIRING == "none" else 2 * BLOCK_N
    accumulator = tl.zeros((WIDTH, BLOCK_M), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        x, a_scale = load_codes(
            a, a_stride, a_extra, rows, first_row, k0, k_size, BLOCK_M, BLOCK_K, TMA_A, EVEN_K
        )
        if len(a_extra) == 0:
            x = lane_order(x, 8, BLOCK_M, BLOCK_K)
        words, codes = _load_packed(
            w, w_strides, w_extra, expert, weight_rows, n0, k0, k_size,
            32, PAIRING, BLOCK_N, BLOCK_K, TMA_W, EVEN_K,
        )  # fmt: skip
        y, w_scale = mx_codes(words, codes, WIDTH, BLOCK_K)
        product = dot(y, x.T, tl.zeros((WIDTH, BLOCK_M), tl.float32))
        accumulator += product * (w_scale[:, None] * a_scale[None, :])
    g, u = _halves(accumulator, PAIRING, BLOCK_M, BLOCK_N)
    return g, u
