"""What each format gives the kernels. A new format is a new row, and the policies that it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flexact.triton import gemm, operands


@dataclass(frozen=True)
class Operand:
    """One side of a GEMM as a kernel takes it: a tensor, and what its policy needs beside it."""

    tensor: torch.Tensor
    extra: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Format:
    """The kernels' view of a weight × activation format.

    Attributes:
        operands: The policy of both GEMMs (operands.py).
        store: How gate_up stores h (gemm.store_rows and its like).
        inputs: Hidden states → the first GEMM's activations; here a quantisation would be launched.
        intermediate: (pairs, I, dtype, device) → the h that gate_up writes and down reads.
        weights: (name "w13" or "w2", given tensors) → a weight side.
        bits: Bits of a weight element.
        combines: Whether `down_and_combine` reads these weights.
    """

    operands: Any
    store: Any
    inputs: Callable[[torch.Tensor, dict[str, torch.Tensor]], Operand]
    intermediate: Callable[[int, int, torch.dtype, torch.device], Operand]
    weights: Callable[[str, dict[str, torch.Tensor]], Operand]
    bits: int = 16
    combines: bool = True


def _plain_intermediate(pairs: int, width: int, dtype: torch.dtype, device: torch.device) -> Operand:
    return Operand(torch.empty((pairs, width), dtype=dtype, device=device))


_PLAIN = Format(
    operands=operands.plain,
    store=gemm.store_rows,
    inputs=lambda hidden_states, given: Operand(hidden_states),
    intermediate=_plain_intermediate,
    weights=lambda name, given: Operand(given[name]),
)

FORMATS = {"bf16": _PLAIN, "fp16": _PLAIN}
