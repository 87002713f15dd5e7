"""What each format gives the kernels. A new format is a new row, and the policies that it names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton

from flexact._core import Tile
from flexact.triton import gemm, operands, operands_fp4, operands_fp8, operands_vector, quantise
from flexact.triton.dependent import options

# Of at most so many rows a tile quantises or arranges activations itself: with few rows a kernel less is
# worth more.
_FEW_ROWS = 32
_GROUP = 128

Given = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Operand:
    """One side of a GEMM as a kernel takes it: a tensor, and what its policy needs beside it."""

    tensor: torch.Tensor
    extra: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Intermediate:
    """What lies between the two GEMMs.

    Attributes:
        written: The tensor that gate_up stores to, and what `store` needs beside it.
        store: How it stores (gemm.store_rows and its like).
        read: Launches what is left to do, and returns what down reads.
    """

    written: Operand
    store: Any
    read: Callable[[], Operand]


@dataclass(frozen=True)
class Vector:
    """What the kernels without tensor cores (vector.py) need of a format.

    Attributes:
        operands: The policy of both (operands_vector.py).
        inputs: As Format's; there are no boxes.
        intermediate: As Format's: what lies between the first, or gemm.gate_up, and the second.
        weights: As Format's.
        scratch: As Format's.
        each: Values of K whose products are one sum of a lane.
    """

    operands: Any
    inputs: Callable[[torch.Tensor, torch.Tensor, int, Given, Tile, bool], Operand]
    intermediate: Callable[[int, int, torch.dtype, torch.device, Given, Tile, Tile], Intermediate]
    weights: Callable[[str, Given, str], Operand]
    scratch: Callable[[int, int, int, int, int, Tile], int]
    each: int


@dataclass(frozen=True)
class Format:
    """The kernels' view of a weight × activation format.

    Attributes:
        operands: The policy of both GEMMs (operands.py and its like).
        inputs: (hidden states, topk_ids, experts, given, tile, whether boxes of rows will be copied) → the
            first GEMM's activations; launches their quantisation where that is a kernel.
        intermediate: (rows, I, dtype, device, given, tile of gate_up, tile of down) → what lies between the
            GEMMs.
        weights: (name "w13" or "w2", given, pairing) → a weight side.
        scratch: (tokens, pairs, H, I, bytes of the io dtype, tile) → bytes that the two above allocate.
        step: Values of K in an element of the weight tensor.
        halves: Whether a tile loads gate and up one by one.
        copied: Nothing that belongs to a token row lies outside of it: rows may be copied into another order.
        by_token: What a tile of few rows reads beside a row of activations is made of that row: rows may be
            the tokens, or memory that nobody wrote, which come to nothing.
        narrow: The policy of tiles of fewer than four warps, where it is another one.
        vector: The kernels without tensor cores, where the format has them.
    """

    operands: Any
    inputs: Callable[[torch.Tensor, torch.Tensor, int, Given, Tile, bool], Operand]
    intermediate: Callable[[int, int, torch.dtype, torch.device, Given, Tile, Tile], Intermediate]
    weights: Callable[[str, Given, str], Operand]
    scratch: Callable[[int, int, int, int, int, Tile], int]
    step: int = 1
    halves: bool = False
    copied: bool = False
    by_token: bool = False
    narrow: Any = None
    vector: Vector | None = None

    def policy(self, tile: Tile) -> Any:
        """The operand policy of a tile."""
        return self.narrow if self.narrow is not None and tile.warps < 4 else self.operands


def _kept(operand: Operand, store: Any) -> Intermediate:
    """Nothing is left to do between the GEMMs."""
    return Intermediate(operand, store, lambda: operand)


# --- bf16, fp16, and FP4 beside bf16 --------------------------------------------------------------


def _plain_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool
) -> Operand:
    return Operand(x)


def _plain_intermediate(
    pairs: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile,
) -> Intermediate:  # fmt: skip
    return _kept(Operand(torch.empty((pairs, width), dtype=dtype, device=device)), gemm.store_rows)


def _plain_scratch(tokens: int, pairs: int, hidden: int, width: int, size: int, tile: Tile) -> int:
    return pairs * width * size


def _plain_weights(name: str, given: Given, pairing: str) -> Operand:
    return Operand(given[name])


def _words(packed: torch.Tensor) -> torch.Tensor:
    """Packed E2M1 [E, N, K/2] as words of eight values [E, N, K/8]; the same memory."""
    return packed.view(torch.int32)


def _codes(scale: torch.Tensor) -> torch.Tensor:
    """Codes of scales as kernels read them: bytes, or the same memory as words where rows are not aligned."""
    aligned = scale.stride(1) % 16 == 0
    whole = scale.is_contiguous() and scale.numel() % 4 == 0 and scale.data_ptr() % 4 == 0
    return scale if aligned or not whole else scale.view(-1).view(torch.int32)


def _mx_weights(name: str, given: Given, pairing: str) -> Operand:
    scale = given[f"{name}_scale"]
    return Operand(_words(given[name]), (_codes(scale), *scale.stride()))


def _nv_weights(name: str, given: Given, pairing: str) -> Operand:
    whole = given[f"{name}_global_scale"]
    scale = given[f"{name}_scale"].view(torch.uint8)
    return Operand(_words(given[name]), (_codes(scale), *scale.stride(), whole, *_by_half(whole)))


def _by_half(numbers: torch.Tensor) -> tuple[int, int]:
    """Strides between experts and between gate and up of [E, 2] or [E]."""
    return numbers.stride(0), numbers.stride(1) if numbers.dim() == 2 else 0


_PLAIN_VECTOR = Vector(
    operands=operands_vector.plain,
    inputs=_plain_inputs,
    intermediate=_plain_intermediate,
    weights=_plain_weights,
    scratch=_plain_scratch,
    each=1,
)


# --- bf16 activations in planes, beside FP4 without tensor cores ----------------------------------


def _plane(width: int) -> int:
    """Words of a plane: whole multiples of 16, as Triton knows its copies to be aligned by."""
    return 16 * triton.cdiv(width, 128)


def _plane_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool
) -> Operand:
    rows, k = x.shape
    out = torch.empty((rows, 8 * _plane(k)), dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(k))
    quantise.in_planes[(rows, triton.cdiv(k, block))](
        x, x.stride(0), out, out.stride(0), _plane(k), k,
        BLOCK=block, num_warps=max(1, block // 256), **options(x.device),
    )  # fmt: skip
    return _plane_words(out)


def _plane_words(planes: torch.Tensor) -> Operand:
    return Operand(planes.view(torch.int32), (planes.shape[1] // 8,))


def _plane_intermediate(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile,
) -> Intermediate:  # fmt: skip
    planes = torch.empty((rows, 8 * _plane(width)), dtype=dtype, device=device)
    return Intermediate(
        Operand(planes, (_plane(width),)), quantise.store_planes, lambda: _plane_words(planes)
    )


def _plane_scratch(tokens: int, pairs: int, hidden: int, width: int, size: int, tile: Tile) -> int:
    return 8 * (tokens * _plane(hidden) + pairs * _plane(width)) * size


_plane_vector = functools.partial(
    Vector, inputs=_plane_inputs, intermediate=_plane_intermediate, scratch=_plane_scratch
)


def _mx_byte_weights(name: str, given: Given, pairing: str) -> Operand:
    scale = given[f"{name}_scale"]
    return Operand(_words(given[name]), (scale, *scale.stride()))


def _nv_byte_weights(name: str, given: Given, pairing: str) -> Operand:
    scale, whole = given[f"{name}_scale"].view(torch.uint8), given[f"{name}_global_scale"]
    return Operand(_words(given[name]), (scale, *scale.stride(), whole, *_by_half(whole)))


# --- bf16 activations in lane order ---------------------------------------------------------------


def _whole(width: int) -> int:
    """A row's length in lane order: up to whole 32s."""
    return 32 * triton.cdiv(width, 32)


def _lane_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool
) -> Operand:
    # What is in order goes to the tensor core as it is copied; else every step arranges its block anew.
    if tile.warps < 4 or (tile.block_m <= _FEW_ROWS and not boxes):
        return Operand(x)
    rows, k = x.shape
    out = torch.empty((rows, _whole(k)), dtype=x.dtype, device=x.device)
    block = min(2048, triton.next_power_of_2(_whole(k)))
    quantise.arrange[(rows, triton.cdiv(_whole(k), block))](
        x, x.stride(0), out, out.stride(0), k,
        BLOCK=block, num_warps=max(1, block // 512), **options(x.device),
    )  # fmt: skip
    return Operand(out, (out.shape[1],))


def _lane_intermediate(
    pairs: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile,
) -> Intermediate:  # fmt: skip
    if down.warps < 4:
        return _plain_intermediate(pairs, width, dtype, device, given, tile, down)
    h = torch.empty((pairs, _whole(width)), dtype=dtype, device=device)
    return _kept(Operand(h, (h.shape[1],)), quantise.store_lanes)


def _lane_scratch(tokens: int, pairs: int, hidden: int, width: int, size: int, tile: Tile) -> int:
    return (tokens * _whole(hidden) + pairs * _whole(width)) * size


# --- E4M3 activations in groups of 128 ------------------------------------------------------------


def _group_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool,
    lanes: bool = False,
) -> Operand:  # fmt: skip
    if tile.block_m <= _FEW_ROWS and tile.block_k == _GROUP:
        return Operand(x)
    return _groups_to_codes(x, lanes)


def _groups_to_codes(x: torch.Tensor, lanes: bool = False) -> Operand:
    rows, k = x.shape
    groups = triton.cdiv(k, _GROUP)
    codes = torch.empty((rows, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, groups), dtype=torch.float32, device=x.device)
    # Of few rows more programs take a part each.
    block = min(2048 if rows > 8 else 512, triton.next_power_of_2(groups) * _GROUP)
    quantise.quantise_groups[(rows, triton.cdiv(k, block))](
        x, x.stride(0), codes, codes.stride(0), scales, scales.stride(0), k,
        LANES=lanes, BLOCK=block, num_warps=max(1, block // 512), **options(x.device),
    )  # fmt: skip
    return Operand(codes, (scales, scales.stride(0)))


def _group_intermediate(
    pairs: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile, lanes: bool = False,
) -> Intermediate:  # fmt: skip
    if tile.block_n % _GROUP:
        # Not rounded before it is quantised, so that the tile's width changes no bit.
        return _kept(
            Operand(torch.empty((pairs, width), dtype=torch.float32, device=device)), gemm.store_rows
        )
    codes = torch.empty((pairs, width), dtype=torch.float8_e4m3fn, device=device)
    scales = torch.empty((pairs, triton.cdiv(width, _GROUP)), dtype=torch.float32, device=device)
    store = quantise.store_groups_in_lanes if lanes else quantise.store_groups
    return _kept(Operand(codes, (scales, scales.stride(0))), store)


def _group_vector_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool
) -> Operand:
    return _groups_to_codes(x)


def _group_vector_intermediate(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile,
) -> Intermediate:  # fmt: skip
    h = torch.empty((rows, width), dtype=torch.float32, device=device)
    return Intermediate(Operand(h), gemm.store_rows, lambda: _groups_to_codes(h))


def _group_vector_scratch(tokens: int, pairs: int, hidden: int, width: int, size: int, tile: Tile) -> int:
    return tokens * (hidden + 4 * triton.cdiv(hidden, _GROUP)) + pairs * (
        5 * width + 4 * triton.cdiv(width, _GROUP)
    )


def _group_scratch(tokens: int, pairs: int, hidden: int, width: int, size: int, tile: Tile) -> int:
    def coded(rows: int, k: int) -> int:
        return rows * (k + 4 * triton.cdiv(k, _GROUP))

    return coded(tokens, hidden) + (4 * pairs * width if tile.block_n % _GROUP else coded(pairs, width))


def _block_weights(name: str, given: Given, pairing: str) -> Operand:
    scale = given[f"{name}_scale"]
    return Operand(given[name], (scale, *scale.stride()))


# --- E4M3 activations with one scale a row, or one in all -----------------------------------------


def _row_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool
) -> Operand:
    return _rows_to_codes(x, x, "row")


def _row_intermediate(
    pairs: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile,
) -> Intermediate:  # fmt: skip
    h = torch.empty((pairs, width), dtype=dtype, device=device)
    bits = torch.zeros(pairs, dtype=torch.int32, device=device)
    return Intermediate(
        Operand(h, (bits,)), quantise.store_row_largest, lambda: _rows_to_codes(h, bits, "rows")
    )


def _row_scratch(tokens: int, pairs: int, hidden: int, width: int, size: int, tile: Tile) -> int:
    return tokens * (hidden + 4) + pairs * (width * (size + 1) + 8)


def _channel_weights(name: str, given: Given, pairing: str) -> Operand:
    scale = given[f"{name}_scale"]
    return Operand(given[name], (scale, scale.stride(0), scale.stride(1), 0))


def _tensor_inputs(
    x: torch.Tensor, ids: torch.Tensor, experts: int, given: Given, tile: Tile, boxes: bool
) -> Operand:
    if "a13_scale" in given:
        return _rows_to_codes(x, given["a13_scale"], "given")
    bits = torch.zeros(1, dtype=torch.int32, device=x.device)
    block = min(4096, triton.next_power_of_2(x.shape[1]))
    quantise.largest[(x.shape[0],)](
        x, x.stride(0), ids, bits, x.shape[1], experts,
        TOP_K=ids.shape[1], BLOCK=block, num_warps=max(1, block // 512), **options(x.device),
    )  # fmt: skip
    return _rows_to_codes(x, bits, "tensor")


def _tensor_intermediate(
    pairs: int, width: int, dtype: torch.dtype, device: torch.device, given: Given, tile: Tile,
    down: Tile,
) -> Intermediate:  # fmt: skip
    if "a2_scale" in given:
        codes = torch.empty((pairs, width), dtype=torch.float8_e4m3fn, device=device)
        written = Operand(codes, (given["a2_scale"],))
        return Intermediate(written, quantise.store_given, lambda: Operand(codes, (given["a2_scale"], 0)))
    h = torch.empty((pairs, width), dtype=dtype, device=device)
    bits = torch.zeros(1, dtype=torch.int32, device=device)
    return Intermediate(
        Operand(h, (bits,)), quantise.store_largest, lambda: _rows_to_codes(h, bits, "tensor")
    )


def _tensor_weights(name: str, given: Given, pairing: str) -> Operand:
    scale = given[f"{name}_scale"]
    by_expert, by_half = _by_half(scale)
    return Operand(given[name], (scale, by_expert, 0, by_half))


def _rows_to_codes(x: torch.Tensor, known: torch.Tensor, source: str) -> Operand:
    """`source` as quantise_rows' SCALE."""
    rows, k = x.shape
    codes = torch.empty((rows, k), dtype=torch.float8_e4m3fn, device=x.device)
    each = source in ("row", "rows")
    scales = known
    if source != "given":
        scales = torch.empty(rows if each else 1, dtype=torch.float32, device=x.device)
    block = min(4096, triton.next_power_of_2(k))
    quantise.quantise_rows[(rows,)](
        x, x.stride(0), codes, codes.stride(0), known, scales, k,
        SCALE=source, BLOCK=block, num_warps=max(1, block // 512), **options(x.device),
    )  # fmt: skip
    return Operand(codes, (scales, 1 if each else 0))


_PLAIN = Format(
    operands=operands.plain,
    inputs=_plain_inputs,
    intermediate=_plain_intermediate,
    weights=_plain_weights,
    scratch=_plain_scratch,
    copied=True,
    by_token=True,
    vector=_PLAIN_VECTOR,
)

FORMATS = {
    "bf16": _PLAIN,
    "fp16": _PLAIN,
    "fp8_block": Format(
        operands=operands_fp8.blocks,
        inputs=_group_inputs,
        intermediate=_group_intermediate,
        weights=_block_weights,
        scratch=_group_scratch,
        halves=True,
        by_token=True,
        vector=Vector(
            operands=operands_vector.blocks,
            inputs=_group_vector_inputs,
            intermediate=_group_vector_intermediate,
            weights=_block_weights,
            scratch=_group_vector_scratch,
            each=16,
        ),
    ),
    "fp8_tensor": Format(
        operands=operands_fp8.scaled,
        inputs=_tensor_inputs,
        intermediate=_tensor_intermediate,
        weights=_tensor_weights,
        scratch=_row_scratch,
        vector=Vector(
            operands=operands_vector.scaled,
            inputs=_tensor_inputs,
            intermediate=_tensor_intermediate,
            weights=_tensor_weights,
            scratch=_row_scratch,
            each=16,
        ),
    ),
    "fp8_channel": Format(
        operands=operands_fp8.scaled,
        inputs=_row_inputs,
        intermediate=_row_intermediate,
        weights=_channel_weights,
        scratch=_row_scratch,
        vector=Vector(
            operands=operands_vector.scaled,
            inputs=_row_inputs,
            intermediate=_row_intermediate,
            weights=_channel_weights,
            scratch=_row_scratch,
            each=16,
        ),
    ),
    "mxfp4": Format(
        operands=operands_fp4.mx,
        narrow=operands_fp4.mx_by_word,
        vector=_plane_vector(operands_vector.mx, weights=_mx_byte_weights, each=32),
        inputs=_lane_inputs,
        intermediate=_lane_intermediate,
        weights=_mx_weights,
        scratch=_lane_scratch,
        step=8,
        copied=True,
        by_token=True,
    ),
    "nvfp4": Format(
        operands=operands_fp4.nv,
        narrow=operands_fp4.nv_by_word,
        vector=_plane_vector(operands_vector.nv, weights=_nv_byte_weights, each=16),
        inputs=_lane_inputs,
        intermediate=_lane_intermediate,
        weights=_nv_weights,
        scratch=_lane_scratch,
        step=8,
        copied=True,
        by_token=True,
    ),
    "mxfp4_fp8": Format(
        operands=operands_fp4.mx_fp8,
        inputs=functools.partial(_group_inputs, lanes=True),
        intermediate=functools.partial(_group_intermediate, lanes=True),
        weights=_mx_byte_weights,
        scratch=_group_scratch,
        step=8,
        by_token=True,
    ),
}
