"""Shapes of published models' MoE layers, by the names that tuning and benchmarks take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One MoE layer as one device sees it.

    Attributes:
        experts: E on this device.
        top_k: Experts a token.
        hidden: H.
        intermediate: I.
        gated: Whether experts have a gate.
    """

    experts: int
    top_k: int
    hidden: int
    intermediate: int
    gated: bool = True


SHAPES = {
    "mixtral-8x7b": Shape(8, 2, 4096, 14336),
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "qwen3-235b-a22b": Shape(128, 8, 4096, 1536),
    # One of eight ranks: a token's experts that are elsewhere are not computed here, so the shape holds
    # the 32 local experts with all eight choices among them, the most that a rank can get.
    "deepseek-v3-ep8": Shape(32, 8, 7168, 2048),
    "gpt-oss-20b": Shape(32, 4, 2880, 2880),
    "nemotron-nano": Shape(128, 6, 2688, 1856, gated=False),
}
