"""Operand policies of the kernels without tensor cores (vector.py): rows of weights times one row.

A policy is one JIT function with the signature of `plain` below. It adds to sums that are not yet added up
across lanes, so that a caller may add those of several experts first. Weights and the row are read by the
lanes that multiply them, 16 bytes of weights at a time, and no lane hands anything on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.operands import split_columns
from flexact.triton.operands_fp8 import first_blocks, half_rows
from flexact.triton.small_floats import e2m1_pairs, e8m0_to_float

GROUP = tl.constexpr(128)


@triton.jit
def _tile_rows(n0, width, half, PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, SLOTS: tl.constexpr):
    """Weight rows of a tile; SLOTS neighbours are one row of as many experts."""
    if SLOTS == 1:
        rows = half_rows(n0, width, half, PAIRING, BLOCK_N)
    else:
        rows = tl.minimum(n0 + tl.arange(0, BLOCK_N) // SLOTS, width - 1)
    return rows


@triton.jit
def _rows_of(w, strides, expert, rows):
    return w + expert.to(tl.int64) * strides[0] + rows.to(tl.int64)[:, None] * strides[1]


@triton.jit
def plain(
    g, u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """bf16 and fp16.

    Args:
        g: Sums of gate, fp32 [BLOCK_N, BLOCK_K / k], k being formats.Vector.each.
        u: Those of up, which stay as they are with PAIRING "none".
        a: Activations.
        a_stride: Elements between their rows.
        a_extra: A tuple for formats that need more; here empty.
        row: The row's number; with SLOTS above 1 those of the tile's rows, [BLOCK_N, 1], and so are
            expert and here.
        w: Weights.
        w_strides: (expert, row, column), in elements.
        w_extra: As a_extra, for the weights.
        expert: The expert's number.
        here: Whether there is such an expert: else nothing is read, and nothing is added.
        n0: The first output column.
        width: Output columns in all.
        k_size: Length of the sum.
        PAIRING: How gate and up stand in the matrix.
        BLOCK_N: Output columns.
        BLOCK_K: Columns of a step.
        EVEN_K: Whether k_size is a multiple of BLOCK_K.
        SLOTS: How many neighbouring rows of the tile are one output column, in as many experts. Above 1 there
            are BLOCK_N / SLOTS columns, and PAIRING is "none".
    """
    at_a = a + row.to(tl.int64) * a_stride
    at_g = _rows_of(w, w_strides, expert, _tile_rows(n0, width, 0, PAIRING, BLOCK_N, SLOTS))
    at_u = _rows_of(w, w_strides, expert, _tile_rows(n0, width, 1, PAIRING, BLOCK_N, SLOTS))
    for k0 in range(0, k_size, BLOCK_K):
        k = tl.broadcast_to(k0 + tl.arange(0, BLOCK_K)[None, :], (BLOCK_N, BLOCK_K))
        mask = (k < (k0 + BLOCK_K if EVEN_K else k_size)) & here
        value = tl.load(at_a + k, mask=mask, other=0.0).to(tl.float32)
        step = k * w_strides[2]
        g += tl.load(at_g + step, mask=mask, other=0.0).to(tl.float32) * value
        if PAIRING != "none":
            u += tl.load(at_u + step, mask=mask, other=0.0).to(tl.float32) * value
    return g, u


@triton.jit
def blocks(
    g, u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """fp8_block: codes times codes; every 16 products are added up before they are brought to scale.

    a_extra: scales of 128 codes and their row stride. w_extra: as operands_fp8.blocks has them. BLOCK_K is
    a multiple of 128, and BLOCK_N at most 64, so that its rows lie in one block.
    """
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    at_a = a + row.to(tl.int64) * a_stride
    at_scale = a_extra[0] + row.to(tl.int64) * a_extra[1]
    at_g = _rows_of(w, w_strides, expert, _tile_rows(n0, width, 0, PAIRING, BLOCK_N, SLOTS))
    at_u = _rows_of(w, w_strides, expert, _tile_rows(n0, width, 1, PAIRING, BLOCK_N, SLOTS))
    at_block = w_extra[0] + expert.to(tl.int64) * w_extra[1]
    of_g, _ = first_blocks(n0, width, 0, PAIRING)
    of_u, _ = first_blocks(n0, width, 1, PAIRING)
    g = tl.reshape(g, (BLOCK_N, GROUPS, GROUP // 16))
    u = tl.reshape(u, (BLOCK_N, GROUPS, GROUP // 16))
    for k0 in range(0, k_size, BLOCK_K):
        k = tl.broadcast_to(k0 + tl.arange(0, BLOCK_K)[None, :], (BLOCK_N, BLOCK_K))
        mask = (k < (k0 + BLOCK_K if EVEN_K else k_size)) & here
        group = k0 // GROUP + tl.arange(0, GROUPS)[None, :]
        known = (group * GROUP < k_size) & here
        scale = tl.load(at_scale + group, mask=known, other=0.0)
        at_group = at_block + group * w_extra[3]
        value = tl.load(at_a + k, mask=mask, other=0.0).to(tl.float32)
        step = k * w_strides[2]
        codes = tl.load(at_g + step, mask=mask, other=0.0)
        s = tl.load(at_group + of_g * w_extra[2], mask=known, other=0.0) * scale
        if PAIRING != "none":
            up_codes = tl.load(at_u + step, mask=mask, other=0.0)
            t = tl.load(at_group + of_u * w_extra[2], mask=known, other=0.0) * scale
        g += _by_group(codes, value, BLOCK_N, GROUPS) * s[:, :, None]
        if PAIRING != "none":
            u += _by_group(up_codes, value, BLOCK_N, GROUPS) * t[:, :, None]
    return tl.reshape(g, (BLOCK_N, BLOCK_K // 16)), tl.reshape(u, (BLOCK_N, BLOCK_K // 16))


@triton.jit
def scaled(
    g, u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """fp8_tensor and fp8_channel: codes times codes, then the row's scale and those of the columns.

    a_extra and w_extra: as operands_fp8.scaled has them.
    """
    at_a = a + row.to(tl.int64) * a_stride
    rows_g = _tile_rows(n0, width, 0, PAIRING, BLOCK_N, SLOTS)
    at_g = _rows_of(w, w_strides, expert, rows_g)
    at_u = _rows_of(w, w_strides, expert, _tile_rows(n0, width, 1, PAIRING, BLOCK_N, SLOTS))
    of_g = tl.zeros((BLOCK_N, BLOCK_K // 16), tl.float32)
    of_u = tl.zeros((BLOCK_N, BLOCK_K // 16), tl.float32)
    for k0 in range(0, k_size, BLOCK_K):
        k = tl.broadcast_to(k0 + tl.arange(0, BLOCK_K)[None, :], (BLOCK_N, BLOCK_K))
        mask = (k < (k0 + BLOCK_K if EVEN_K else k_size)) & here
        value = tl.load(at_a + k, mask=mask, other=0.0).to(tl.float32)
        step = k * w_strides[2]
        codes = tl.load(at_g + step, mask=mask, other=0.0)
        if PAIRING != "none":
            up_codes = tl.load(at_u + step, mask=mask, other=0.0)
        of_g += _by_lane(codes, value, BLOCK_N, BLOCK_K)
        if PAIRING != "none":
            of_u += _by_lane(up_codes, value, BLOCK_N, BLOCK_K)
    # Nobody wrote the row of an expert that is not here.
    scale = tl.load(a_extra[0] + row.to(tl.int64) * a_extra[1], mask=here, other=0.0)
    at = w_extra[0] + expert.to(tl.int64) * w_extra[1]
    if PAIRING == "none":
        n = rows_g[:, None]
        g += of_g * (tl.load(at + n * w_extra[2], mask=here & (n >= 0), other=0.0) * scale)
    else:
        n_g, n_u = split_columns(n0, width, PAIRING, BLOCK_N)
        g += of_g * (tl.load(at + n_g * w_extra[2]) * scale)[:, None]
        u += of_u * (tl.load(at + n_u * w_extra[2] + w_extra[3]) * scale)[:, None]
    return g, u


@triton.jit
def _by_lane(codes, value, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Sums of 16 products, which a lane has to itself: [BLOCK_N, BLOCK_K / 16]."""
    product = codes.to(tl.float32) * value
    return tl.sum(tl.reshape(product, (BLOCK_N, BLOCK_K // 16, 16)), 2)


@triton.jit
def _by_group(codes, value, BLOCK_N: tl.constexpr, GROUPS: tl.constexpr):
    """Sums of 16 products, which a lane has to itself: [BLOCK_N, GROUPS, 8]."""
    product = codes.to(tl.float32) * value
    return tl.sum(tl.reshape(product, (BLOCK_N, GROUPS, GROUP // 16, 16)), 3)


@triton.jit
def _fp4(
    g, u, of_g, of_u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SLOTS: tl.constexpr, GROUP_K: tl.constexpr,
):  # fmt: skip
    """E2M1 words of eight values with a code of their scale for every GROUP_K values.

    a holds rows in planes (quantise.store_planes), as words; a_extra: the words of a plane. w_extra begins
    with the codes and their (expert, row, column) strides. of_g and of_u are gate's and up's factors, of
    which 2^(126-64) is a part.
    """
    WORDS: tl.constexpr = BLOCK_K // 8
    EACH: tl.constexpr = GROUP_K // 8
    at_a = a + row.to(tl.int64) * a_stride
    rows_g = _tile_rows(n0, width, 0, PAIRING, BLOCK_N, SLOTS)
    rows_u = _tile_rows(n0, width, 1, PAIRING, BLOCK_N, SLOTS)
    at_g = _rows_of(w, w_strides, expert, rows_g)
    at_u = _rows_of(w, w_strides, expert, rows_u)
    codes_g = _rows_of(w_extra[0], (w_extra[1], w_extra[2]), expert, rows_g)
    codes_u = _rows_of(w_extra[0], (w_extra[1], w_extra[2]), expert, rows_u)
    # Weights are read a step ahead.
    words, code = _words_of(
        at_g, w_strides, codes_g, w_extra, here, 0, k_size, BLOCK_N, BLOCK_K, EVEN_K, GROUP_K
    )
    if PAIRING != "none":
        up_words, up_code = _words_of(
            at_u, w_strides, codes_u, w_extra, here, 0, k_size, BLOCK_N, BLOCK_K, EVEN_K, GROUP_K
        )
    for k0 in range(0, k_size, BLOCK_K):
        word = tl.broadcast_to(k0 // 8 + tl.arange(0, WORDS)[None, :], (BLOCK_N, WORDS))
        mask = (word < (k0 // 8 + WORDS if EVEN_K else k_size // 8)) & here
        x0 = tl.load(at_a + word, mask=mask, other=0)
        x1 = tl.load(at_a + a_extra[0] + word, mask=mask, other=0)
        x2 = tl.load(at_a + 2 * a_extra[0] + word, mask=mask, other=0)
        x3 = tl.load(at_a + 3 * a_extra[0] + word, mask=mask, other=0)
        ahead = k0 + BLOCK_K
        more = here & (ahead < k_size)
        next_words, next_code = _words_of(
            at_g, w_strides, codes_g, w_extra, more, ahead, k_size, BLOCK_N, BLOCK_K, EVEN_K, GROUP_K
        )
        if PAIRING != "none":
            next_up_words, next_up_code = _words_of(
                at_u, w_strides, codes_u, w_extra, more, ahead, k_size, BLOCK_N, BLOCK_K, EVEN_K, GROUP_K
            )
        g += _by_scale(words, x0, x1, x2, x3, BLOCK_N, EACH) * (_scale(code, GROUP_K) * of_g)
        words, code = next_words, next_code
        if PAIRING != "none":
            u += _by_scale(up_words, x0, x1, x2, x3, BLOCK_N, EACH) * (_scale(up_code, GROUP_K) * of_u)
            up_words, up_code = next_up_words, next_up_code
    return g, u


@triton.jit
def _words_of(
    at, w_strides, codes, w_extra, here, k0, k_size,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, GROUP_K: tl.constexpr,
):  # fmt: skip
    """Words [BLOCK_N, BLOCK_K / 8] and codes [BLOCK_N, BLOCK_K / GROUP_K] of a step; 0 past the end."""
    word = tl.broadcast_to(k0 // 8 + tl.arange(0, BLOCK_K // 8)[None, :], (BLOCK_N, BLOCK_K // 8))
    group = k0 // GROUP_K + tl.arange(0, BLOCK_K // GROUP_K)[None, :]
    group = tl.broadcast_to(group, (BLOCK_N, BLOCK_K // GROUP_K))
    mask = (word < ((k0 + BLOCK_K if EVEN_K else k_size) // 8)) & here
    known = (group < (k0 + BLOCK_K if EVEN_K else k_size) // GROUP_K) & here
    words = tl.load(at + word * w_strides[2], mask=mask, other=0)
    return words, tl.load(codes + group * w_extra[3], mask=known, other=0)


@triton.jit
def _scale(code, GROUP_K: tl.constexpr):
    if GROUP_K == 32:  # noqa: SIM108
        scale = e8m0_to_float(code)
    else:
        scale = code.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    return scale


@triton.jit
def _by_scale(words, x0, x1, x2, x3, BLOCK_N: tl.constexpr, EACH: tl.constexpr):
    """Sums of the products of EACH words, which a lane has to itself."""
    total = tl.zeros(words.shape, tl.float32)
    total = _add_products(total, words, x0, 0)
    total = _add_products(total, words, x1, 4)
    total = _add_products(total, words, x2, 8)
    total = _add_products(total, words, x3, 12)
    return tl.sum(tl.reshape(total, (BLOCK_N, total.shape[1] // EACH, EACH)), 2)


@triton.jit
def _add_products(total, words, x, FROM: tl.constexpr):
    """Total plus the values of each word at bits FROM and FROM + 16 times the two bf16 numbers of x."""
    low, high = e2m1_pairs(words, FROM)
    x_low = (x << 16).to(tl.float32, bitcast=True)
    x_high = (x & -65536).to(tl.float32, bitcast=True)
    total += low * x_low
    total += high * x_high
    return total


@triton.jit
def mx(
    g, u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """mxfp4: E8M0 scales of 32 values. w_extra: their codes and (expert, row, column) strides."""
    g, u = _fp4(
        g, u, 2.0**62, 2.0**62, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width,
        k_size,
        PAIRING, BLOCK_N, BLOCK_K, EVEN_K, SLOTS, 32,
    )  # fmt: skip
    return g, u


@triton.jit
def nv(
    g, u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
    PAIRING: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """nvfp4: E4M3 scales of 16 values, fp32 scales of gate and of up; w_extra as operands_fp4.nv has it."""
    at = w_extra[4] + expert.to(tl.int64) * w_extra[5]
    of_g = tl.load(at, mask=here, other=0.0) * 2.0**62
    of_u = of_g
    if PAIRING != "none":
        of_u = tl.load(at + w_extra[6], mask=here, other=0.0) * 2.0**62
    g, u = _fp4(
        g, u, of_g, of_u, a, a_stride, a_extra, row, w, w_strides, w_extra, expert, here, n0, width, k_size,
        PAIRING, BLOCK_N, BLOCK_K, EVEN_K, SLOTS, 16,
    )  # fmt: skip
    return g, u
