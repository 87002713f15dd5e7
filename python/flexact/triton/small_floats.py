"""The 8- and 4-bit floats in Triton: rounding to E4M3, and decoding E2M1 and E8M0 in registers.

Everything is written in Triton's own operations, so the interpreter runs what ships, with three exceptions,
spelled out for it: it truncates where a device converts to E4M3 with one rounding instruction, and it has no
assembly, by which a device multiplies both halves of a word and chooses bytes. docs/formats.md has the
layouts; `flexact.formats` is the same on tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flexact.triton.numerics import INTERPRETED, rounded


@triton.jit
def to_e4m3(value):
    """An fp32 block to E4M3: to nearest even, saturating at ±448; NaN stays NaN."""
    if INTERPRETED:
        bits = value.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        # Below 2^-6 steps are 2^-9, which is what fp32 has around 2^14.
        shifted = magnitude.to(tl.float32, bitcast=True) + 16384.0
        small = shifted.to(tl.uint32, bitcast=True) - 0x46800000
        large = tl.minimum(((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960, 0x7E)
        code = tl.where(magnitude < 0x3C800000, small, large)
        code = tl.where(magnitude > 0x7F800000, 0x7F, code) | ((bits >> 24) & 0x80)
        result = code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    else:
        result = value.to(tl.float8e4nv)
    return result


@triton.jit
def fp8_scale(largest):
    """The scale of E4M3 codes by a group's largest magnitude: max(largest, 1e-10) / 448, NaN for NaN."""
    return tl.div_rn(tl.maximum(largest, 1e-10, propagate_nan=tl.PropagateNan.ALL), 448.0)


@triton.jit
def reciprocal(scale):
    """1 / scale, rounded as IEEE division does, so that codes agree bit for bit with the reference."""
    return tl.div_rn(1.0, scale)


@triton.jit
def largest_magnitude(value, AXIS: tl.constexpr):
    """Max |value| along an axis; NaN if there is one."""
    bits = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, AXIS)
    # As integers magnitudes keep their order, with NaN above infinity.
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def e8m0_to_float(code):
    """2^(code - 127) in fp32; 255 is NaN, and 2^-127 subnormal."""
    wide = code.to(tl.int32)
    bits = tl.where(wide == 0, 0x00400000, tl.where(wide == 255, 0x7FC00000, wide << 23))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def e2m1_scale(code):
    """What words of `e2m1_words` in bf16 are multiplied by for an E8M0 scale: 2^126 · 2^(code - 127), twice.

    That is within bf16 up to code 128, a scale of 2. Above it, where weights would be larger than 8, the
    factor is infinite (129) or NaN, as for 255: such a checkpoint fails visibly.
    """
    twice = code.to(tl.uint32) * 0x00800080 + 0x3F003F00
    return tl.minimum(twice, 0x7FC07FC0).to(tl.int32, bitcast=True)


@triton.jit
def twice(value):
    """A 16-bit float in both halves of a word."""
    return value.to(tl.uint16, bitcast=True).to(tl.int32) * 0x00010001


@triton.jit
def lane_order(
    value, BITS: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, BY_WORD: tl.constexpr = False
):  # fmt: skip
    """The columns [ROWS, K] of an activation in the order in which a lane decodes weights; no value changes.

    A sum over K has no order of its own. A lane of the tensor core holds pairs (or quads, of bytes) of
    neighbouring columns in places that are eight apart, and a word of eight E2M1 values is in one lane. So
    the columns of activations are put where the decoded values of a word come to lie, and weights go from
    memory to the tensor core without changing lanes. Within 32 columns, with lane t of four:

        BITS  place in the lane's order     column
        16    16 s + 8 h + 2 t + e          8 t + 4 e + 2 s + h
        8     16 e + 4 t + 2 s + h          8 t + 4 e + 2 s + h
        16    8 t + 4 s + 2 h + e           8 t + 4 e + 2 s + h      BY_WORD

    BY_WORD is for tiles of fewer than four warps: their tensor core instruction has no order of its own for
    what a lane holds of both operands, and Triton leaves a lane eight neighbouring columns of each.
    """
    parts = tl.reshape(value, (ROWS, K // 32, 4, 2, 2, 2))
    # [.., t, e, the bit of 2, the bit of 1] to the order of the table.
    if BITS == 8:
        parts = tl.permute(parts, (0, 1, 3, 2, 4, 5))
    elif BY_WORD:
        parts = tl.permute(parts, (0, 1, 2, 4, 5, 3))
    else:
        parts = tl.permute(parts, (0, 1, 4, 5, 2, 3))
    return tl.reshape(parts, (ROWS, K))


@triton.jit
def _moved(word, BITS: tl.constexpr):
    return word << BITS if BITS >= 0 else word >> -BITS


@triton.jit
def _two(word, FROM: tl.constexpr, EXPONENT: tl.constexpr):
    """Two nibbles of each word, at bits FROM and FROM + 16, as two 16-bit floats side by side.

    A nibble's two exponent bits and its mantissa bit go to bit EXPONENT and up, its sign to bit 15.
    """
    MASK: tl.constexpr = (7 << EXPONENT) | (7 << (EXPONENT + 16))
    if EXPONENT == 6:
        # One multiplication makes both shifted copies of the nibble, which do not meet: bits 6-9 and 12-15.
        UP: tl.constexpr = FROM % 8
        copies = ((word >> (FROM - UP)) & (0x000F000F << UP)) * ((1 << (6 - UP)) | (1 << (12 - UP)))
        two = copies & (MASK - 0x7FFF8000)
    else:
        two = (_moved(word, EXPONENT - FROM) & MASK) | (_moved(word, 12 - FROM) & -0x7FFF8000)
    return two


@triton.jit
def e2m1_pairs(words, FROM: tl.constexpr):
    """The values of each word at bits FROM and FROM + 16, in fp32 and times 2^-126, exactly."""
    # As in _two for bf16, whose halves are those of fp32.
    UP: tl.constexpr = FROM % 8
    copies = ((words >> (FROM - UP)) & (0x000F000F << UP)) * ((1 << (6 - UP)) | (1 << (12 - UP)))
    low = ((copies << 16) & -0x7E400000).to(tl.float32, bitcast=True)
    high = (copies & -0x7E400000).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def bf16_product(a, b):
    """The product in bf16, rounded once; the interpreter has no arithmetic in that type."""
    return rounded(_wide(a) * _wide(b), tl.bfloat16) if INTERPRETED else a * b


@triton.jit
def _wide(value):
    """bf16 to fp32 by its bits: the interpreter's conversion loses subnormals."""
    bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _half(word, FROM: tl.constexpr, dtype: tl.constexpr):
    return (word >> FROM).to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def _scaled(two, scale, dtype: tl.constexpr):
    """The halves of each word times those of `scale`, [.., 2].

    One instruction for both, and named: what compilers make of two products copies every word first.
    """
    if INTERPRETED:
        low, high = _half(two, 0, dtype), _half(two, 16, dtype)
        if dtype == tl.bfloat16:
            low = bf16_product(low, _half(scale, 0, dtype))
            high = bf16_product(high, _half(scale, 16, dtype))
        else:
            low, high = low * _half(scale, 0, dtype), high * _half(scale, 16, dtype)
    else:
        # Plus -0, which changes no product: before Hopper bf16 has no multiplication alone.
        if dtype == tl.bfloat16:
            both = tl.inline_asm_elementwise(
                "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [two, scale, -0x7FFF8000], tl.int32, True, 1
            )
        else:
            both = tl.inline_asm_elementwise(
                "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [two, scale, -0x7FFF8000], tl.int32, True, 1
            )
        low, high = _half(both, 0, dtype), _half(both, 16, dtype)
    return tl.join(low, high)


@triton.jit
def e2m1_words(words, scale, dtype: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr):
    """Eight E2M1 values of each int32 word, as `dtype` (bf16 or fp16), times a word's scale.

    A nibble's bits stand at the type's lowest exponent bits, so before `scale` the value is the true one
    times 2^-126 (bf16) or 2^-14 (fp16), exactly, with 0.5 as a subnormal: the multiplication that brings it
    back carries a group's scale.

    Args:
        words: [ROWS, K / 32, 4].
        scale: In both halves of int32 words, of the same shape or one that broadcasts to it.
        dtype: Of the values and of scale's halves.
        ROWS: Weight rows.
        K: Values of a row.

    Returns:
        [ROWS, K / 32, 4, 2 (e), 2 (h), 2 (s)] for nibble 4 e + 2 s + h.
    """
    # bf16: exponent from bit 7, mantissa's top bit 6; fp16: 10 and 9. The sign goes from bit 3 to 15.
    EXPONENT: tl.constexpr = 6 if dtype == tl.bfloat16 else 9
    scale = tl.broadcast_to(scale, (ROWS, K // 32, 4))
    p0 = _scaled(_two(words, 0, EXPONENT), scale, dtype)
    p1 = _scaled(_two(words, 4, EXPONENT), scale, dtype)
    p2 = _scaled(_two(words, 8, EXPONENT), scale, dtype)
    p3 = _scaled(_two(words, 12, EXPONENT), scale, dtype)
    return tl.join(tl.join(p0, p1), tl.join(p2, p3))


@triton.jit
def chosen_bytes(low, high, selector):
    """Four of two words' eight bytes: byte i is the one that nibble i of the selector, below 8, names."""
    if INTERPRETED:
        upper = high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32
        both = upper | low.to(tl.uint32, bitcast=True).to(tl.uint64)
        result = tl.zeros_like(both)
        nibbles = tl.zeros_like(both) + selector
        for i in tl.static_range(4):
            at = (nibbles >> (4 * i)) & 7
            result |= ((both >> (8 * at)) & 255) << (8 * i)
        result = result.to(tl.uint32).to(tl.int32, bitcast=True)
    else:
        result = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], tl.int32, True, 1
        )
    return result


@triton.jit
def _four_bytes(word):
    """Bytes of each word as E4M3, [.., 2, 2] by the lower and the upper bit of their number."""
    b0 = word.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    b1 = (word >> 8).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    b2 = (word >> 16).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    b3 = (word >> 24).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return tl.join(tl.join(b0, b1), tl.join(b2, b3))


@triton.jit
def e2m1_codes(words, exponent, ROWS: tl.constexpr, K: tl.constexpr):
    """Eight E2M1 values of each int32 word in E4M3, times 2^(exponent - 7), in lane order [ROWS, K].

    A word's magnitudes are chosen from the eight that there are, in bytes. Exact from 2 on and, but for 0.5,
    which goes to nothing, for 1; below that all go to nothing.

    Args:
        words: [ROWS, K / 32, 4].
        exponent: E4M3's exponent field of 1.0, int32 [ROWS, K / 32, 1], at most 13.
        ROWS: Weight rows.
        K: Values of a row.
    """
    low = exponent * 0x08080800 + 0x03FFF800  # 0, 0.5, 1, 1.5
    high = exponent * 0x08080808 + 0x14100C08  # 2, 3, 4, 6
    select = words & tl.where(exponent > 0, 0x77777777, 0)
    # The signs of even nibbles stand at the middle of bytes, those of odd ones at their ends.
    moved = words << 4
    first = chosen_bytes(low, high, select) | (chosen_bytes(moved, words, 0x5140) & -0x7F7F7F80)
    second = chosen_bytes(low, high, select >> 16) | (chosen_bytes(moved, words, 0x7362) & -0x7F7F7F80)
    # [.., t, h, s, e]
    y = tl.join(_four_bytes(first), _four_bytes(second))
    return tl.reshape(tl.permute(y, (0, 1, 5, 2, 4, 3)), (ROWS, K))
