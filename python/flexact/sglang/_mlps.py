"""Dense and shared MLPs: found by their structure, proven by probe values, replaced where they differ.

An MLP is a module that owns linear layers up and down. The proof leaves its own `forward` in place and
exchanges only those layers: the ones going up return chosen values, the one going down keeps what it
is given. Whatever lies between, a module, a function call or a clamp, is what the layer computes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from flexact import probe
from flexact.sglang import _values
from flexact.sglang._stop import stop

_SHARED = re.compile(r"share", re.I)
# Two roundings of the format: what a kernel that rounds the gate before the product may differ by.
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


class ActAndMul(nn.Module):
    """The activation between the projections of one MLP.

    Args:
        entry: The resolved activation.
        layer: Absolute layer number.
        pairing: "concat" for [..., 2I] → [..., I]; "none" for a unary function; "gate" for the gate's half
            of f(g) * u, whose product the module around it computes.
    """

    def __init__(self, entry: Any, layer: int, pairing: str) -> None:
        super().__init__()
        self.pairing = pairing
        # Values of this layer as constants: nothing is looked up while tokens are computed.
        self.activation = _values.constant(entry, layer)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 2I] or [..., I] of any floating dtype → [..., I] of the same dtype."""
        import flexact

        self.calls += 1
        if self.pairing == "gate":
            x = torch.cat((x, torch.ones_like(x)), dim=-1)
        return flexact.act_and_mul(x, self.activation, pairing="none" if self.pairing == "none" else "concat")


class Mlp:
    """What the plugin knows about one MLP of one layer."""

    def __init__(self, name: str, module: nn.Module, layer: int, role: str, entry: Any) -> None:
        self.name, self.module, self.layer, self.role, self.entry = name, module, layer, role, entry
        self.ups, self.down = _projections(module)
        self.activation: ActAndMul | None = None
        self.error: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether flexact computes the activation."""
        return self.activation is not None

    @property
    def calls(self) -> int:
        """How often flexact has computed it."""
        return self.activation.calls if self.activation else 0

    def describe(self) -> dict[str, Any]:
        """The MLP's row in the report."""
        return {
            "name": self.name,
            "layer": self.layer,
            "role": self.role,
            "function": self.entry.name,
            "formula": self.entry.activation.function.formula,
            "from": self.entry.source,
            "computed_by": "flexact" if self.is_ours else "sglang",
            "reason": "proven by probe values" if self.is_ours else "SGLang's module computes exactly this",
            "relative_error": self.error,
            "calls": self.calls,
        }

    def install(self, dtype: torch.dtype) -> None:
        """Proves what the MLP computes; replaces its activation where that is something else."""
        called: list[tuple[str, str]] = []
        self.error = self._probe(dtype, called)
        if self.error <= _TOLERANCE[dtype]:
            return
        if len(called) != 1:
            stop(
                f"{self._where()} computes another function, written into the class itself: there is no"
                " activation module"
                f" to replace (found {len(called)})"
            )
        name, pairing = called[0]
        if pairing == "half":
            pairing = "gate" if self.entry.gated else "none"
        self.activation = ActAndMul(self.entry, self.layer, pairing)
        setattr(self.module, name, self.activation)
        self.error = self._probe(dtype, [])
        self.activation.calls = 0
        if not self.error <= _TOLERANCE[dtype]:
            stop(
                f"{self._where()} still computes another function after its {name} was replaced (relative"
                f" error {self.error:.2g})"
            )

    def _where(self) -> str:
        return (
            f"{self.name}: the configuration asks for {self.entry.name}"
            f" ({self.entry.activation.function.formula}), and"
            f" SGLang's {type(self.module).__name__}"
        )

    def _probe(self, dtype: torch.dtype, called: list[tuple[str, str]]) -> float:
        """The largest relative error over the probe values.

        `called` receives (name, kind) of the activation modules that took part.
        """
        width = _width_in(self.down)
        device = next((p.device for p in self.down.parameters()), torch.device("cpu"))
        gate, up = probe.values(width, dtype, device)
        outputs = _as_projected(self.ups, gate, up, gated=self.entry.gated, where=self._where())
        children = {
            name: child
            for name, child in self.module.named_children()
            if not _is_linear(child) and not any(True for _ in child.children() if _is_linear(_))
        }
        handles = [child.register_forward_hook(probe.watch(name, called)) for name, child in children.items()]
        try:
            for up_name, output in outputs.items():
                _pretend(self.ups[up_name], output)
            self.down.forward = probe.keep
            with torch.no_grad():
                self.module(*_arguments(self.module, self.ups, gate, dtype, device))
            raise _Unseen("its down projection was not called")
        except probe.Kept as kept:
            actual = kept.value
        except Exception as error:
            stop(f"{self._where()} cannot be verified: {type(error).__name__}: {error}")
        finally:
            for handle in handles:
                handle.remove()
            for linear in (*self.ups.values(), self.down):
                linear.__dict__.pop("forward", None)
        gate, up = gate.double().cpu(), up.double().cpu()
        h, scale = (torch.cat((gate, up), dim=-1), gate * up) if self.entry.gated else (gate, gate)
        expected = _values.reference(self.entry, self.layer, h, "concat" if self.entry.gated else "none")
        return probe.relative_error(actual, expected, scale.abs(), dtype)


class _Unseen(Exception):
    pass


def _pretend(linear: nn.Module, output: torch.Tensor) -> None:
    # SGLang's own linear layers return (output, bias); torch's, and those that stand in for torch's in
    # models taken from transformers, return the output.
    returns_pair = type(linear).forward.__module__.startswith("sglang.srt.layers.")
    result = (output, None) if returns_pair else output
    linear.forward = lambda *args, **kwargs: result


def _as_projected(
    ups: dict[str, nn.Module], gate: torch.Tensor, up: torch.Tensor, *, gated: bool, where: str
) -> dict[str, torch.Tensor]:
    """What each projection going up returns, by name."""
    if len(ups) == 1:
        return dict.fromkeys(ups, torch.cat((gate, up), dim=-1) if gated else gate)
    gates = [name for name in ups if name in probe.GATE]
    others = [name for name in ups if name in probe.UP]
    if gated and len(ups) == 2 and len(gates) == len(others) == 1:
        return {gates[0]: gate, others[0]: up}
    stop(f"{where} cannot be verified: which of {', '.join(ups)} is the gate is not known")


def _arguments(
    module: nn.Module, ups: dict[str, nn.Module], gate: torch.Tensor, dtype: torch.dtype, device: Any
) -> list[Any]:
    """A first argument of the right shape, and None for others without a default."""
    hidden = _width_in(next(iter(ups.values())))
    required = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return [torch.zeros(gate.shape[0], hidden, dtype=dtype, device=device), *([None] * (len(required) - 1))]


def _is_linear(module: nn.Module) -> bool:
    from sglang.srt.layers.linear import LinearBase

    return isinstance(module, (LinearBase, nn.Linear))


def _width_in(linear: nn.Module) -> int:
    for name in ("input_size_per_partition", "in_features", "input_size"):
        if hasattr(linear, name):
            return getattr(linear, name)
    raise _Unseen(f"{type(linear).__name__} does not say how wide it is")


def _projections(module: nn.Module) -> tuple[dict[str, nn.Module], nn.Module | None]:
    """The linear layers that a module owns itself: going up by name, and the one going down."""
    from sglang.srt.layers.linear import RowParallelLinear

    linears = {name: child for name, child in module.named_children() if _is_linear(child)}
    downs = [
        name for name, child in linears.items() if isinstance(child, RowParallelLinear) or name in probe.DOWN
    ]
    if len(downs) != 1:
        return {}, None
    ups = {name: child for name, child in linears.items() if name != downs[0]}
    return ups, linears[downs[0]]


def find(model: nn.Module, layers: int | None) -> Iterator[tuple[str, nn.Module, int]]:
    """(name, module, layer) of each MLP in the text model's layers.

    Args:
        model: SGLang's model.
        layers: How many layers the configuration counts; None where it does not say.
    """
    for list_name, container in probe.layer_lists(model, layers):
        for index, layer in enumerate(container):
            for name, module in layer.named_modules(prefix=f"{list_name}.{index}"):
                if probe.NOT_AN_MLP.search(type(module).__name__) or any(
                    probe.NOT_AN_MLP.search(type(child).__name__) for child in module.children()
                ):
                    continue
                ups, down = _projections(module)
                if ups and down is not None and not probe.inside_other(name, layer, list_name, index):
                    yield name, module, index


def install(model: nn.Module, current: Any, *, dtype: torch.dtype) -> None:
    """Verifies every MLP of the loaded model, and replaces activations that differ."""
    plan = current.plan
    if current.is_draft:
        return  # checked before: nothing but SGLang's default in it
    known = plan.activations.layers_known
    count = len(plan.layers) if known else None
    found = list(find(model, count))
    for name, module, layer in found:
        role = _role(name, plan, layer)
        if role is None:
            stop(
                f"{name}: SGLang's {type(module).__name__} is an MLP that the configuration resolves to no"
                " activation"
            )
        mlp = Mlp(name, module, layer, role, plan.entry(layer, role))
        mlp.install(dtype)
        current.mlps.append(mlp)
    _refuse_unseen(model, current)


def _role(name: str, plan: Any, layer: int) -> str | None:
    order = ("shared", "dense") if _SHARED.search(name) else ("dense", "shared")
    return next((role for role in order if plan.entry(layer, role) is not None), None)


def _refuse_unseen(model: nn.Module, current: Any) -> None:
    """Ends the process where the configuration speaks of an MLP that was not found."""
    from flexact.sglang._experts import layers_on_other_ranks

    if not current.plan.activations.layers_known:
        if not current.mlps and not current.experts:
            stop(f"{type(model).__name__}: no MLP of it could be found, so its activation cannot be verified")
        return
    absent = layers_on_other_ranks(model)
    seen = {(mlp.layer, mlp.role) for mlp in current.mlps} | {
        (layer.layer_id, layer.role) for layer in current.experts
    }
    # SGLang holds shared experts as rows of the routed ones, where it fuses them.
    seen |= {(layer.layer_id, "shared") for layer in current.experts if layer.module.num_fused_shared_experts}
    for layer, role, _ in current.plan.entries():
        if layer in absent or (layer, role) in seen:
            continue
        # A family that the resolver does not know has every role resolved, whatever the layer has.
        others = {other for other in ("routed", "dense") if current.plan.entry(layer, other) is not None}
        if others == {"routed", "dense"} and any((layer, other) in seen for other in others):
            continue
        what = {"routed": "the experts", "shared": "the shared MLP", "dense": "the MLP"}
        what = "the MLP or the experts" if others == {"routed", "dense"} else what[role]
        stop(
            f"{type(model).__name__}: {what} of layer {layer} could not be found in SGLang's class, so the"
            " activation cannot"
            " be verified: it is computed outside FusedMoE and outside a module that owns projections up"
            " and down, a path"
            " that is not hooked"
        )
