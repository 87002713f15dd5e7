"""Activations to E4M3, and into lane order: before the first GEMM, and between the two.

    format                hidden states                results of the first GEMM
    fp8_block, mxfp4_fp8  quantise_groups, or in the   in its epilogue where a tile covers whole groups of
                          GEMM's registers for few     128 (store_groups); else kept in fp32 and quantised
                          rows                         in the second GEMM's registers
    fp8_tensor, given     quantise_rows                in the epilogue (store_given)
    fp8_channel           quantise_rows                rounded to the io dtype, with the largest magnitudes
    fp8_tensor            largest, quantise_rows       (store_row_largest, store_largest); quantise_rows
    mxfp4, nvfp4          arrange, or in the GEMM's    in its epilogue (store_lanes)
                          registers for few rows

and for the kernels without tensor cores:

    fp8_block             quantise_groups              kept in fp32; quantise_groups
    mxfp4, nvfp4          in_planes                    in the epilogue (store_planes)

A scale is fp8_scale(largest magnitude), a code e4m3(value · (1 / scale)), each operation rounded as IEEE
does: the bits of `flexact.formats.quantise_activations`. Magnitudes are compared as integers, so that
atomics give the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.dependent import begin
from flexact.triton.numerics import rounded
from flexact.triton.small_floats import fp8_scale, lane_order, largest_magnitude, reciprocal, to_e4m3

GROUP = tl.constexpr(128)
# Brings what is multiplied by E2M1 values times 2^-126 into the middle of fp32's range. Exact; a magnitude of
# 2^64 and more becomes infinite.
PLANE_SCALE = tl.constexpr(2.0**64)


@triton.jit
def quantise_block(value, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """E4M3 codes [BLOCK_M, BLOCK_N] and scales [BLOCK_M, BLOCK_N / 128] of an fp32 block."""
    groups = tl.reshape(value, (BLOCK_M, BLOCK_N // GROUP, GROUP))
    scale = fp8_scale(largest_magnitude(groups, 2))
    codes = to_e4m3(groups * tl.expand_dims(reciprocal(scale), 2))
    return tl.reshape(codes, (BLOCK_M, BLOCK_N)), scale


@triton.jit
def quantise_groups(
    x, x_stride, codes, codes_stride, scales, scales_stride, k_size,
    LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of x to codes and a scale for each 128 values; the last group may be short.

    Args:
        x: [M, K].
        x_stride: Elements between its rows.
        codes: [M, K] E4M3.
        codes_stride: Elements between its rows.
        scales: [M, ceil(K / 128)] fp32.
        scales_stride: Elements between its rows.
        k_size: K; with LANES a multiple of 32.
        LANES: Whether codes stand in lane order.
        BLOCK: Columns of a program, a multiple of 128.
    """
    begin()
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + k, mask=k < k_size, other=0.0).to(tl.float32)
    block, scale = quantise_block(tl.expand_dims(value, 0), 1, BLOCK)
    if LANES:
        block = lane_order(block, 8, 1, BLOCK)
    tl.store(codes + row * codes_stride + k, tl.reshape(block, (BLOCK,)), mask=k < k_size)
    group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    at = scales + row * scales_stride + group
    tl.store(at, tl.reshape(scale, (BLOCK // GROUP,)), mask=group * GROUP < k_size)


@triton.jit
def arrange(x, x_stride, out, out_stride, k_size, BLOCK: tl.constexpr):
    """Rows of x with their columns in lane order, and zeros up to whole 32s.

    Args:
        x: [M, K].
        x_stride: Elements between its rows.
        out: [M, K up to whole 32s].
        out_stride: Elements between its rows, which is their length.
        k_size: K.
        BLOCK: Columns of a program, a multiple of 32.
    """
    begin()
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + k, mask=k < k_size, other=0.0)
    value = lane_order(tl.expand_dims(value, 0), 16, 1, BLOCK)
    tl.store(out + row * out_stride + k, tl.reshape(value, (BLOCK,)), mask=k < out_stride)


@triton.jit
def plane_place(column, plane):
    """Where a column of bf16 stands in a row of four planes, each of `plane` words of two numbers.

    Word w of plane j holds columns 8 w + j and 8 w + j + 4: what stands 16 bits apart in a word of eight
    E2M1 values, and words that belong to neighbouring words of values are neighbours.
    """
    return 2 * (column % 4 * plane + column // 8) + column // 4 % 2


@triton.jit
def in_planes(x, x_stride, out, out_stride, plane, k_size, BLOCK: tl.constexpr):
    """Rows of x in planes, times PLANE_SCALE.

    Args:
        x: [M, K], K a multiple of 8.
        x_stride: Elements between its rows.
        out: [M, 8 plane].
        out_stride: Elements between its rows.
        plane: Words of a plane.
        k_size: K.
        BLOCK: Columns of a program.
    """
    begin()
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + k, mask=k < k_size, other=0.0)
    value = rounded(value.to(tl.float32) * PLANE_SCALE, out.dtype.element_ty)
    tl.store(out + row * out_stride + plane_place(k, plane), value, mask=k < k_size)


@triton.jit
def _row_is_here(topk_ids, row, experts, TOP_K: tl.constexpr):
    """Whether any of a token's experts is on this rank; without ids (TOP_K 0) every row is."""
    here = row >= 0
    if TOP_K > 0:
        here = row < 0
        for slot in tl.static_range(TOP_K):
            expert = tl.load(topk_ids + row * TOP_K + slot)
            here = here | ((expert >= 0) & (expert < experts))
    return here


@triton.jit
def largest(x, x_stride, topk_ids, result, k_size, experts, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """result[0] = the bits of max |x| over rows with an expert here; result starts as 0.

    Args:
        x: [M, K].
        x_stride: Elements between its rows.
        topk_ids: [M, TOP_K], contiguous.
        result: [1] int32.
        k_size: K.
        experts: E.
        TOP_K: k.
        BLOCK: Columns of a step.
    """
    begin()
    row = tl.program_id(0).to(tl.int64)
    if _row_is_here(topk_ids, row, experts, TOP_K):
        bits = tl.zeros((BLOCK,), tl.int32)
        for k0 in range(0, k_size, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            value = tl.load(x + row * x_stride + k, mask=k < k_size, other=0.0).to(tl.float32)
            bits = tl.maximum(bits, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        tl.atomic_max(result, tl.max(bits, 0), sem="relaxed")


@triton.jit
def quantise_rows(
    x, x_stride, codes, codes_stride, known, scales, k_size,
    SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of x to codes with one scale a row or one for all.

    Args:
        x: [M, K].
        x_stride: Elements between its rows.
        codes: [M, K] E4M3.
        codes_stride: Elements between its rows.
        known: What SCALE takes the scale from.
        scales: fp32; [M], or [1] for "tensor". Not written for "given".
        k_size: K.
        SCALE: "row": of the row itself, which this kernel reads twice; "rows": of the bits of its largest
            magnitude known[row]; "tensor": of the bits known[0]; "given": the scale known[0].
        BLOCK: Columns of a step.
    """
    begin()
    row = tl.program_id(0).to(tl.int64)
    if SCALE == "given":
        scale = tl.load(known)
    elif SCALE == "row":
        bits = tl.zeros((BLOCK,), tl.int32)
        for k0 in range(0, k_size, BLOCK):
            k = k0 + tl.arange(0, BLOCK)
            value = tl.load(x + row * x_stride + k, mask=k < k_size, other=0.0).to(tl.float32)
            bits = tl.maximum(bits, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        scale = fp8_scale(tl.max(bits, 0).to(tl.float32, bitcast=True))
        tl.store(scales + row, scale)
    elif SCALE == "rows":
        scale = fp8_scale(tl.load(known + row).to(tl.float32, bitcast=True))
        tl.store(scales + row, scale)
    else:
        scale = fp8_scale(tl.load(known).to(tl.float32, bitcast=True))
        if row == 0:
            tl.store(scales, scale)
    inverse = reciprocal(scale)
    for k0 in range(0, k_size, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + k, mask=k < k_size, other=0.0).to(tl.float32)
        tl.store(codes + row * codes_stride + k, to_e4m3(value * inverse), mask=k < k_size)


# --- How gate_up stores; the signature is gemm.store_rows' ----------------------------------------


@triton.jit
def store_groups(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Codes and a scale for each 128 columns. extra: scales [rows, ceil(I / 128)] and their row stride.

    BLOCK_N is a multiple of 128, and a tile starts at one.
    """
    value = tl.where(keep, value, 0.0)
    codes, scale = quantise_block(value, BLOCK_M, BLOCK_N)
    _store_codes(out, stride, extra, rows, columns, keep, codes, scale, BLOCK_M, BLOCK_N)


@triton.jit
def store_groups_in_lanes(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """store_groups with the codes in lane order; the row's length is a multiple of 32."""
    value = tl.where(keep, value, 0.0)
    codes, scale = quantise_block(value, BLOCK_M, BLOCK_N)
    codes = lane_order(codes, 8, BLOCK_M, BLOCK_N)
    _store_codes(out, stride, extra, rows, columns, keep, codes, scale, BLOCK_M, BLOCK_N)


@triton.jit
def store_lanes(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rounds once to out's type and stores in lane order. extra: the row's length up to whole 32s.

    BLOCK_N is a multiple of 32, and a tile starts at one; what is added to the length is zero.
    """
    value = rounded(tl.where(keep, value, 0.0), out.dtype.element_ty)
    value = lane_order(value, 16, BLOCK_M, BLOCK_N)
    valid = tl.max(keep.to(tl.int32), 1) > 0
    at = out + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(at, value, mask=valid[:, None] & (columns < extra[0])[None, :])


@triton.jit
def store_planes(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rounds once to out's type and stores in planes, times PLANE_SCALE. extra: the words of one."""
    value *= PLANE_SCALE
    at = out + rows.to(tl.int64)[:, None] * stride + plane_place(columns, extra[0])[None, :]
    tl.store(at, rounded(value, out.dtype.element_ty), mask=keep)


@triton.jit
def _store_codes(
    out, stride, extra, rows, columns, keep, codes, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tl.store(out + rows.to(tl.int64)[:, None] * stride + columns[None, :], codes, mask=keep)
    # One column of each group says whether there is such a group.
    first = tl.min(tl.reshape(columns, (BLOCK_N // GROUP, GROUP)), 1)
    exists = tl.max(tl.reshape(keep.to(tl.int32), (BLOCK_M, BLOCK_N // GROUP, GROUP)), 2) > 0
    at = extra[0] + rows.to(tl.int64)[:, None] * extra[1] + (first // GROUP)[None, :]
    tl.store(at, scale, mask=exists)


@triton.jit
def store_given(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Codes with the checkpoint's scale. extra: that scale [1]."""
    codes = to_e4m3(value * reciprocal(tl.load(extra[0])))
    tl.store(out + rows.to(tl.int64)[:, None] * stride + columns[None, :], codes, mask=keep)


@triton.jit
def _store_and_largest(out, stride, rows, columns, keep, value):
    value = rounded(tl.where(keep, value, 0.0), out.dtype.element_ty)
    tl.store(out + rows.to(tl.int64)[:, None] * stride + columns[None, :], value, mask=keep)
    return tl.max(value.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def store_row_largest(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rounds once to out's type. extra: [rows] int32 bits of the rows' largest magnitudes, at first 0."""
    bits = _store_and_largest(out, stride, rows, columns, keep, value)
    valid = tl.max(keep.to(tl.int32), 1) > 0
    tl.atomic_max(extra[0] + rows, bits, mask=valid, sem="relaxed")


@triton.jit
def store_largest(
    out, stride, extra, rows, columns, keep, value, expert,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rounds once to out's type. extra: [1] int32 bits of the largest magnitude of all, at first 0."""
    bits = _store_and_largest(out, stride, rows, columns, keep, value)
    tl.atomic_max(extra[0], tl.max(bits, 0), sem="relaxed")
