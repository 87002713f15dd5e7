"""Finding out what a module computes by running it: values to probe with, and where layers and MLPs lie.

A host's class is not read, it is executed: projections going up return chosen values, the one going
down keeps what it is given, and whatever lies between is what the layer computes.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

# Parts of a multimodal or hybrid model that have activations of their own, outside the text layers.
OTHER_PART = re.compile(
    r"(^|[._])(visual|vision|audio|image|vit|speech|projector|connector|resampler|tower)", re.I
)
# By class name; case matters ("SeedOssMLP" has no state-space model in it).
NOT_AN_MLP = re.compile(
    r"Attention|Attn|Mamba|SSM|Conv|Delta|Router|Indexer|Compress|Lightning|R[wW][kK][vV]|Retention"
)
# What the projections are called.
DOWN = ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "w2", "linear_2", "wo", "dense_out")
GATE = ("gate_proj", "w1", "wi_0", "gate")
UP = ("up_proj", "w3", "wi_1", "up", "linear_v")


def values(width: int, dtype: torch.dtype, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up [n, width]: a dense grid where functions bend, a coarse one out to where limits lie."""
    grid = torch.cat(
        [
            torch.linspace(-12, 12, 961, dtype=torch.float32),
            torch.logspace(1.1, 3, 40),
            -torch.logspace(1.1, 3, 40),
            torch.logspace(-6, -1, 40),
            -torch.logspace(-6, -1, 40),
            torch.zeros(1),
        ]
    )
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(grid.numel(), generator=generator, dtype=torch.float32) * 4
    up[::17] *= 40  # beyond any limit on the up projection
    rows = -(-grid.numel() // width)
    padding = rows * width - grid.numel()
    gate = torch.cat((grid, torch.ones(padding))).reshape(rows, width)
    up = torch.cat((up, torch.ones(padding))).reshape(rows, width)
    return gate.to(dtype=dtype, device=device), up.to(dtype=dtype, device=device)


def relative_error(actual: Any, expected: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest relative error, after the noise that fp32 arithmetic may leave where terms cancel.

    Args:
        actual: What was computed.
        expected: The reference, float64.
        scale: The magnitude of the terms that the reference is made of.
        dtype: What it was computed in.
    """
    if not torch.is_tensor(actual) or actual.shape != expected.shape:
        return float("inf")
    noise = 16 * 2.0**-24 * scale + torch.finfo(dtype).tiny
    error = ((actual.double().cpu() - expected).abs() - noise).clamp_min(0) / expected.abs().clamp_min(1e-300)
    finite = expected.abs() < torch.finfo(dtype).max
    return error[finite].nan_to_num(nan=float("inf")).max().item()


class Kept(BaseException):
    """Ends a probed forward at the down projection, whose input it carries."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def keep(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the forward of a projection going down."""
    raise Kept(x)


def watch(name: str, called: list[tuple[str, str]]) -> Any:
    """A forward hook that appends (name, kind) where a module changes its input, as activations do."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not (inputs and torch.is_tensor(inputs[0]) and torch.is_tensor(output)):
            return
        # Modules that leave their input alone (dropout in inference) are no activation.
        if output is inputs[0] or (output.shape == inputs[0].shape and torch.equal(output, inputs[0])):
            return
        if inputs[0].shape[-1] == 2 * output.shape[-1]:
            called.append((name, "concat"))
        elif inputs[0].shape[-1] == output.shape[-1]:
            called.append((name, "half"))  # unary: the whole of an ungated MLP, or the gate's half

    return hook


def layer_lists(model: nn.Module, layers: int | None) -> list[tuple[str, nn.ModuleList]]:
    """(name, list) of each list of text layers: as long as the configuration counts, else the longest."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and not OTHER_PART.search(name)
    ]
    if layers is not None:
        return [
            (name, module) for name, module in lists if len(module) == layers and not _is_nested(name, lists)
        ]
    longest = max((len(module) for _, module in lists), default=0)
    return [
        (name, module) for name, module in lists if len(module) == longest and not _is_nested(name, lists)
    ]


def _is_nested(name: str, lists: list[tuple[str, nn.ModuleList]]) -> bool:
    """Whether this list lies inside a layer of another one (experts as a list, say)."""
    return any(name.startswith(f"{other}.") for other, _ in lists)


def inside_other(name: str, layer: nn.Module, list_name: str, index: int) -> bool:
    """Whether the module is a part of an attention or state-space block."""
    path = name.removeprefix(f"{list_name}.{index}").strip(".").split(".")
    module = layer
    for part in path[:-1] if path != [""] else ():
        module = getattr(module, part)
        if NOT_AN_MLP.search(type(module).__name__):
            return True
    return False
