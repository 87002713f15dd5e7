"""What an experts class computes, found out by running it.

The class's own forward, as it was before any implementation was chosen, runs on a small stand-in: the
module's own code, flags, activation and limits, with two experts of permutation matrices in float64.
So gate and up reach the activation exactly, and layout, biases, the place of the router's weight and
whatever else the class does show in the output.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import flexact
from flexact import probe
from flexact.errors import Error

_EXPERTS = 2
_HIDDEN = 8
# Where classes keep the numbers of their formulas.
_ATTRIBUTES = {"limit": "limit", "swiglu_limit": "limit", "alpha": "alpha", "swiglu_alpha": "alpha"}
# Modules that compute in float32, or round, whatever they are given agree to this; all others exactly.
_EXACT = 1e-12
_TOLERANCE = {
    torch.float64: 2e-5,
    torch.float32: 2e-5,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}


@dataclass(frozen=True)
class Layout:
    """How an experts module keeps its weights, by the flags that transformers' decorator sets."""

    gated: bool
    concatenated: bool
    transposed: bool
    bias: bool
    norm: bool  # of each expert's output, before the router's weight

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module; older releases lack some of the flags."""
        flags = {
            "gated": ("has_gate", True),
            "concatenated": ("is_concatenated", True),
            "transposed": ("is_transposed", False),
            "bias": ("has_bias", False),
            "norm": ("has_post_expert_norm", False),
        }
        return cls(**{key: bool(getattr(module, name, default)) for key, (name, default) in flags.items()})

    @property
    def pairing(self) -> str:
        """Gate and up as flexact names it."""
        if not self.gated:
            return "none"
        return "concat" if self.concatenated else "interleaved"

    @property
    def up(self) -> str:
        """The parameter of the projection going up."""
        return "gate_up_proj" if self.gated else "up_proj"

    def names(self) -> tuple[str, str]:
        """The two weights: up and down."""
        return self.up, "down_proj"

    def biases(self) -> tuple[str, str]:
        """The two biases."""
        return f"{self.up}_bias", "down_proj_bias"


def is_experts(module: nn.Module) -> bool:
    """Whether a module goes through transformers' experts interface."""
    # The decorator wraps forward and sets these; subclasses inherit both.
    return hasattr(type(module).forward, "__wrapped__") and all(
        name in module.__dict__ for name in ("has_gate", "is_transposed", "config")
    )


def own_forward(module: nn.Module) -> Callable[..., torch.Tensor]:
    """The class's forward as it was written, under however many dispatchers."""
    return inspect.unwrap(type(module).forward)


@dataclass(frozen=True)
class Stand:
    """A stand-in and what to feed it with: tokens [T, H], ids [T, 1], weights [T, 1]."""

    module: nn.Module
    layout: Layout
    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    def own(self) -> torch.Tensor:
        """What the class itself computes, [T, H]."""
        with torch.no_grad():
            return own_forward(self.module)(self.module, self.x, self.ids, self.weights)

    def reference(self, activation: Any, values: torch.Tensor) -> torch.Tensor:
        """What it has to compute: the block's definition, token by expert, in float64."""
        up, down, biases = self._weights()
        out = torch.zeros_like(self.x, dtype=torch.float64)
        for expert in range(_EXPERTS):
            rows = self.ids[:, 0] == expert
            h = self.x[rows].double() @ up[expert].T + biases[0][expert]
            y = apply(activation, h, self.layout.pairing, values[min(expert, len(values) - 1)])
            y = y @ down[expert].T + biases[1][expert]
            if self.layout.norm:
                y = self.module.post_expert_norm(y)
            out[rows] = y * self.weights[rows].double()
        return out

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        up, down = (getattr(self.module, name).detach().double() for name in self.layout.names())
        if self.layout.transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        biases = [getattr(self.module, name, None) for name in self.layout.biases()]
        return up, down, [torch.zeros(_EXPERTS, 1) if b is None else b.detach().double() for b in biases]


def apply(activation: Any, h: torch.Tensor, pairing: str, values: torch.Tensor) -> torch.Tensor:
    """The activation of h [n, 2I] (unary: [n, I]) with one row of parameter values."""
    named = {p.name: float(v) for p, v in zip(activation.function.parameters, values, strict=True)}
    if pairing == "none":
        return activation(h, parameters=named)
    gate, up = (h[..., 0::2], h[..., 1::2]) if pairing == "interleaved" else h.chunk(2, dim=-1)
    return activation.gated()(gate, up, parameters=named)


def stand_in(module: nn.Module, dtype: torch.dtype = torch.float64) -> Stand:
    """A small copy of an experts module that shares its code, its flags and its activation."""
    layout = Layout.of(module)
    width = _HIDDEN // 2 if layout.gated else _HIDDEN
    small = copy.copy(module)
    small.__dict__ = {**module.__dict__, "_modules": dict(module._modules), "_parameters": {}}
    small.__dict__.pop("_flexact", None)
    for name in ("num_experts", "num_local_experts"):
        if name in small.__dict__:
            small.__dict__[name] = _EXPERTS
    generator = torch.Generator().manual_seed(5)
    shift = torch.eye(_HIDDEN, dtype=torch.float64)
    up = torch.stack([shift.roll(1, 0), shift.roll(3, 0)])
    down = torch.stack([shift.roll(2, 0), shift.roll(5, 0)])[:, :, :width]
    tensors = dict(zip(layout.names(), (up, down), strict=True))
    if layout.transposed:
        tensors = {name: tensor.transpose(1, 2).contiguous() for name, tensor in tensors.items()}
    if layout.bias:
        for name, size in zip(layout.biases(), (up.shape[1], _HIDDEN), strict=True):
            tensors[name] = torch.randint(-8, 9, (_EXPERTS, size), generator=generator).double() / 4
    for name in dict.keys(module.__dict__["_parameters"]):
        # Scales of quantised classes: neutral. A parameter that is None stays None.
        tensor = tensors.pop(name, None)
        if tensor is None and not _is_none(module, name):
            tensor = torch.ones(_EXPERTS, 1, 1, dtype=torch.float64)
        small._parameters[name] = None if tensor is None else nn.Parameter(tensor.to(dtype))
    if layout.norm:
        small._modules["post_expert_norm"] = nn.RMSNorm(_HIDDEN, eps=1e-3, dtype=dtype)
    gate, up_values = probe.values(width, torch.float64, "cpu")
    x = torch.cat((gate, up_values), dim=-1) if layout.gated else gate
    ids = torch.arange(len(x)).remainder(_EXPERTS)[:, None]
    return Stand(small, layout, x.to(dtype), ids, (0.5 + ids.double() * 0.25).to(dtype))


def _is_none(module: nn.Module, name: str) -> bool:
    return dict.__getitem__(module.__dict__["_parameters"], name) is None


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, relative where the value is larger than one."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = (actual.double() - expected).abs() / (1 + expected.abs())
    return difference.nan_to_num(nan=float("inf")).max().item()


def check_own(module: nn.Module, activation: Any, values: torch.Tensor, where: str) -> float:
    """Proves that an experts class computes `activation` and nothing nearer to another function.

    Returns:
        The error.

    Raises:
        flexact.ConfigError: It computes something else; the message names what comes nearest.
    """
    stand = stand_in(module)
    what = type(module).__name__
    hints = {
        parameter: float(module.__dict__[name])
        for name, parameter in _ATTRIBUTES.items()
        if isinstance(module.__dict__.get(name), int | float)
    }
    return judge(stand.own(), stand.reference, activation, values, stand.layout.gated, what, where, hints)


def check_layout(module: nn.Module, where: str) -> None:
    """Proves how a class whose own activation says nothing uses its weights and its `act_fn`."""
    stand = stand_in(module)
    stand.module._modules["act_fn"] = nn.SiLU()
    silu = flexact.ActivationRegistry.get_activation("silu")
    silu = silu.gated() if stand.layout.gated else silu
    what = f"{type(module).__name__} with silu in the place of its activation"
    judge(stand.own(), stand.reference, silu, torch.empty(1, 0), stand.layout.gated, what, where)


def judge(
    own: torch.Tensor,
    reference: Callable[[Any, torch.Tensor], torch.Tensor],
    activation: Any,
    values: torch.Tensor,
    gated: bool,
    what: str,
    where: str,
    hints: Mapping[str, float] | None = None,
) -> float:
    """Whether `own` is `activation`: near enough, and no function of the catalogue is nearer.

    Args:
        own: What was computed.
        reference: What a function with these values [1 or E, P] gives, in float64.
        activation: What it should be.
        values: Its values.
        gated: Whether there is a gate.
        what: Who computed it, for the message.
        where: Where, for the message.
        hints: Values that other functions may have been given, by parameter.

    Returns:
        The error.

    Raises:
        flexact.ConfigError: It is something else.
    """
    found = error(own, reference(activation, values))
    if found <= _EXACT:
        return found
    best, name = min(
        (error(own, reference(other, row)), other.function.name)
        for other, row in _candidates(activation, values, gated, hints or {})
    )
    # What was rounded is as far from the right function as from its nearest neighbours.
    if found <= _TOLERANCE[own.dtype] and found <= 4 * best:
        return found
    nearest = f"{name} (error {best:.2g})" if best < 1e-2 else "none of the catalogue's functions"
    raise flexact.ConfigError(
        f"{what} does not compute {activation.function.name}, which the configuration means without"
        f" activation_params (error {found:.2g}); nearest is {nearest}",
        where,
    )


def _candidates(
    activation: Any, values: torch.Tensor, gated: bool, hints: Mapping[str, float]
) -> list[tuple[Any, torch.Tensor]]:
    """Every function of the catalogue that can stand in such a layer, with the values it shares."""
    row = dict(hints)
    row |= {p.name: float(v) for p, v in zip(activation.function.parameters, values[0], strict=True)}
    candidates = []
    for listed in flexact.ActivationRegistry.list():
        name = listed if isinstance(listed, str) else listed.name
        function = flexact.Function.named(name)
        if function.is_gated and not gated:
            continue
        wanted = {p.name: row.get(p.name, p.default) for p in function.parameters}
        if None in wanted.values():
            continue
        try:
            other = flexact.ActivationRegistry.get_activation(name, wanted)
        except Error:
            continue  # the shared value lies outside this function's domain
        other = other.gated() if gated else other
        candidates.append((other, torch.tensor([list(wanted.values())], dtype=torch.float64)))
    return candidates
