"""Triton or CUTLASS: which of the two computes a layer on a GPU, where nobody asks for one of them.

The choice is made once, when a layer is made ready, for all token counts. It depends on the problem's
format and sizes and on the device, and in a call on the number of tokens alone. In this order:

1. *Measured.* `triton/beside_cutlass` has tables of both backends' times, one a device; another device with
   the same chip (compute capability and number of multiprocessors) uses them too. Of the shapes that were
   measured in the problem's format the nearest one counts: the least sum of |log2| of the ratios of E, k, H
   and I, which may be 2 at most (one size four times as large, or two twice); of equally near ones the first.
   Of its token counts the nearest by ratio does, for counts from a quarter of the smallest to four times the
   largest, or without end where that has 64 tokens an expert. CUTLASS is taken where Triton took 1.01 times
   as long or longer.
2. *Not measured.* On compute capability 9.0 the FP8 formats go to CUTLASS where an expert has 64 tokens or
   more on average, arithmetic being the limit there; everything else goes to Triton.
3. *One of them* for all token counts in the FP4 formats, whose scales CUTLASS copies into an order of its
   own: the faster one in the geometric mean of what was measured, else Triton. A plan lets go of the
   originals; a call of `fused_moe` cannot, and goes to Triton. So does a layer whose copy would be larger by
   more than 2 % of its weights: the copy is in whole tiles of 128 × 128.

What the chosen backend refuses, the other one computes: that is `flexact.moe`'s part. Made with
`scripts/collect_backend_choice.py`; `python -m flexact.backend_choice` prints the choice for a shape.
"""

from __future__ import annotations

import argparse
import functools
import importlib.resources
import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flexact._core import MoeProblem, copied_scale_bytes
from flexact.formats import FP4_FORMATS, FP8_FORMATS

__all__ = ["BACKENDS", "Choice", "Device", "choose", "device_of", "only"]

BACKENDS = ("triton", "cutlass")
_FARTHEST = 2.0  # of a shape that speaks for another one
_REACH = 4  # beyond the smallest and the largest token count that was measured
_FASTER = 1.01  # a ratio of two times
_MOST_GROWTH = 1.02  # of a layer's memory
_ROWS = 64  # tokens of an expert, from which unmeasured FP8 layers go to CUTLASS
_MOST = 1 << 40  # tokens, more than any call has
_SIZES = ("experts", "top_k", "hidden", "intermediate")


@dataclass(frozen=True)
class Part:
    """What computes calls of `first` tokens and more, up to the next part, and why."""

    first: int
    backend: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The backends of a layer by token count.

    Attributes:
        parts: Ascending; the first one begins with no token.
    """

    parts: tuple[Part, ...]

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend that some token count is computed by."""
        return tuple(dict.fromkeys(part.backend for part in self.parts))

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [part.first for part in self.parts]

    def of(self, tokens: int) -> str:
        """The backend of calls of so many tokens."""
        return self.parts[bisect_right(self._starts, tokens) - 1].backend

    def most(self, backend: str, tokens: int) -> int:
        """The largest call of at most so many tokens that the backend computes; 0: none."""
        ends = [*self._starts[1:], tokens + 1]
        return max(
            min(end - 1, tokens) if part.backend == backend and part.first <= tokens else 0
            for part, end in zip(self.parts, ends, strict=True)
        )

    def describe(self) -> str:
        """In words: ranges of token counts, backends, reasons."""
        if len(self.parts) == 1:
            return f"{self.parts[0].backend} ({self.parts[0].reason})"
        ends: list[int | None] = [part.first - 1 for part in self.parts[1:]]
        ranges = [
            f"from {part.first} tokens on" if end is None else f"up to {end}"
            for part, end in zip(self.parts, [*ends, None], strict=True)
        ]
        return ", ".join(
            f"{part.backend} {text} ({part.reason})" for part, text in zip(self.parts, ranges, strict=True)
        )


def only(backend: str, reason: str) -> Choice:
    """One backend for all token counts."""
    return Choice((Part(0, backend, reason),))


@dataclass(frozen=True)
class Device:
    """What a choice depends on beside the problem."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int


@functools.lru_cache(maxsize=64)
def device_of(index: int | None) -> Device:
    """A GPU of this machine; None: torch's current one."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    capability = (properties.major, properties.minor)
    return Device(properties.name, capability, properties.multi_processor_count)


def tables() -> list[dict[str, Any]]:
    """The shipped tables."""
    folder = importlib.resources.files("flexact.triton") / "beside_cutlass"
    found = sorted(folder.iterdir(), key=lambda each: each.name) if folder.is_dir() else []
    return [json.loads(each.read_text()) for each in found if each.name.endswith(".json")]


@functools.lru_cache(maxsize=64)
def _table(device: Device) -> dict[str, Any] | None:
    """The table for a device: its own, else one of the same chip."""
    chip = {"capability": list(device.capability), "multiprocessors": device.multiprocessors}
    fit = [each for each in tables() if each["device"] == device.name or chip.items() <= each.items()]
    return min(fit, key=lambda each: (each["device"] != device.name, each["device"]), default=None)


def choose(problem: MoeProblem, device: Device, *, may_copy: bool = True) -> Choice:
    """The backends of a problem's layers on a device, before anything is refused.

    Args:
        problem: What is computed.
        device: Where.
        may_copy: Whether the caller lets go of weights that a plan has a copy of.
    """
    if problem.format in FP4_FORMATS and not may_copy:
        return only("triton", "CUTLASS would hold the scales a second time")
    table = _table(device)
    cells = nearest(problem, table["entries"]) if table else []
    where = f"measured on {table['device']}" if table else ""
    if cells:
        sizes = "E{experts} k{top_k} H{hidden} I{intermediate}".format(**cells[0])
        own = all(cells[0][name] == getattr(problem, name) for name in _SIZES)
        where += f" for {sizes}" + ("" if own else ", the nearest shape")
    if problem.format in FP4_FORMATS:
        return _one(problem, cells, where)
    many = -(-_ROWS * problem.experts // problem.top_k)  # tokens from which on arithmetic is the limit
    first, last = 1, 0
    if cells:
        first, last = math.ceil(cells[0]["tokens"] / _REACH), cells[-1]["tokens"] * _REACH
        if cells[-1]["tokens"] >= many:
            last = _MOST
    middles = [math.isqrt(low["tokens"] * high["tokens"]) for low, high in itertools.pairwise(cells)]

    def at(tokens: int) -> tuple[str, str]:
        if first <= tokens <= last:
            return _faster(cells[sum(tokens > middle for middle in middles)]), where
        return _by_sizes(problem, device, enough=tokens >= many)

    starts = sorted({0, first, min(last + 1, _MOST), many, *(middle + 1 for middle in middles)})
    parts: list[Part] = []
    for start in starts:
        # A call of no tokens launches nothing: whoever computes one token takes it.
        backend, reason = at(max(start, 1))
        if not parts or parts[-1].backend != backend:
            parts.append(Part(start, backend, reason))
    return Choice(tuple(parts))


def nearest(problem: MoeProblem, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of the shape that speaks for a problem, by token count; none: no shape is near."""
    gated = problem.pairing != "none"
    shapes: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["format"] == problem.format and entry["gated"] == gated:
            shapes.setdefault(tuple(entry[name] for name in _SIZES), []).append(entry)

    def distance(sizes: tuple[int, ...]) -> float:
        return sum(
            abs(math.log2(size / getattr(problem, name))) for name, size in zip(_SIZES, sizes, strict=True)
        )

    best = min(shapes, key=distance, default=None)
    if best is None or distance(best) > _FARTHEST:
        return []
    return sorted(shapes[best], key=lambda entry: entry["tokens"])


def _faster(cell: dict[str, Any]) -> str:
    return "cutlass" if cell["speedup"] >= _FASTER else "triton"


def _one(problem: MoeProblem, cells: list[dict[str, Any]], where: str) -> Choice:
    """For all token counts."""
    if not cells:
        return only("triton", "not measured here")
    if (larger := _growth(problem)) > _MOST_GROWTH:
        return only("triton", f"with scales in whole tiles CUTLASS would hold {larger:.3f} times the weights")
    mean = math.exp(sum(math.log(cell["speedup"]) for cell in cells) / len(cells))
    backend = "cutlass" if mean >= _FASTER else "triton"
    return only(backend, f"{where}, the mean of {len(cells)} token counts")


def _growth(problem: MoeProblem) -> float:
    """What a layer in FP4 takes in CUTLASS's order of the scales, by what it takes in a checkpoint."""
    matrices = 2 if problem.pairing == "none" else 3
    weights = matrices * problem.experts * problem.hidden * problem.intermediate
    scales = weights / (16 if problem.format == "nvfp4" else 32)
    return (weights / 2 + copied_scale_bytes(problem)) / (weights / 2 + scales)


def _by_sizes(problem: MoeProblem, device: Device, *, enough: bool) -> tuple[str, str]:
    if device.capability == (9, 0) and problem.format in FP8_FORMATS and enough:
        return "cutlass", f"not measured here; FP8, and {_ROWS} tokens an expert or more"
    return "triton", "not measured here"


def main() -> None:
    """Prints the choice for a shape, by the shipped tables; needs no GPU."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in _SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, required=True)
    parser.add_argument("--format", default="bf16")
    parser.add_argument("--pairing", default="concat")
    parser.add_argument("--device", default="NVIDIA H200", help="as nvidia-smi names it")
    options = vars(parser.parse_args())
    name = options.pop("device")
    # A device that has no table of its own is taken for a Hopper one.
    own = next((each for each in tables() if each["device"] == name), None)
    capability = tuple(own["capability"]) if own else (9, 0)
    device = Device(name, capability, own["multiprocessors"] if own else 132)
    for part in choose(MoeProblem(**options), device).parts:
        print(f"from {part.first:>6} tokens: {part.backend:<8} {part.reason}")


if __name__ == "__main__":
    main()
