"""Dense and shared MLPs: found by their structure, proven by probe values, replaced where they differ.

An MLP is a module that owns linear layers up and down, or a decoder layer that holds both outside its
attention. The proof leaves its own `forward` in place and exchanges only those layers: the ones going up
return chosen values, the one going down keeps what it is given. Whatever lies between, a module, a
function call or a clamp, is what the layer computes.

Where it differs, an activation module between the two is replaced. Where there is none, because the class
calls a function, what reaches the down projection is computed anew from what left the up projections; that
is done only where the class was proven to compute its family's own activation and nothing else.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from flexact import probe
from flexact.sglang import _values
from flexact.sglang._counts import Count
from flexact.sglang._stop import stop

_SHARED = re.compile(r"share", re.I)
# Experts as modules of their own (SGLang's Mixtral for quantised weights).
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)$")
# Two roundings of the format: what a kernel that rounds the gate before the product may differ by.
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


class ActAndMul(nn.Module):
    """The activation between the projections of one MLP.

    Args:
        entry: The resolved activation.
        layer: Absolute layer number.
        expert: Number of the expert, for values per expert.
        pairing: "concat" or "interleaved" for [..., 2I] → [..., I]; "none" for a unary function; "gate" for
            the gate's half of f(g) * u, whose product the module around it computes.
        device: Where it computes: an operator and a table of values there, which compiled models and CUDA
            graphs can hold.
    """

    def __init__(
        self, entry: Any, layer: int, pairing: str, *, expert: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        import flexact.dense  # noqa: F401  # the operator

        self.pairing = pairing
        self.count = Count()
        # Values of this layer as constants: nothing is looked up while tokens are computed.
        activation = _values.constant(entry, layer, expert=expert)
        function = activation.function if pairing == "none" else activation.function.gated()
        rows = activation.values(0, (0, 1))
        self.canonical = function.canonical
        self.table = torch.tensor(rows, dtype=torch.float32).to(device) if rows[0] else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., 2I] or [..., I] in float32, bfloat16 or float16 → [..., I] in the same."""
        self.count.bump()
        if self.pairing == "gate":
            x = torch.cat((x, torch.ones_like(x)), dim=-1)
        pairing = "concat" if self.pairing == "gate" else self.pairing
        return torch.ops.flexact.act_and_mul(x, self.canonical, self.table, pairing=pairing)


@dataclass(frozen=True)
class Projections:
    """The linear layers of one MLP."""

    ups: dict[str, nn.Module]  # by their path in the module that is probed
    down: nn.Module
    passed: tuple[nn.Module, ...] = ()  # attention of a decoder layer that holds its MLP itself


class Mlp:
    """What the plugin knows about one MLP of one layer."""

    def __init__(
        self, name: str, module: nn.Module, projections: Projections, layer: int, role: str, entry: Any
    ) -> None:
        self.name, self.module, self.layer, self.role, self.entry = name, module, layer, role, entry
        # One of many experts, each of which is a module: its values are its own.
        self.expert = int(found[1]) if role == "routed" and (found := _EXPERT.search(name)) else 0
        self.projections, self.ups, self.down = projections, projections.ups, projections.down
        self.activation: ActAndMul | None = None
        self.how = "SGLang's module computes exactly this"
        self.error: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether flexact computes the activation."""
        return self.activation is not None

    @property
    def count(self) -> Count | None:
        """Of the executions of flexact's activation."""
        return self.activation.count if self.activation else None

    @property
    def calls(self) -> int:
        """How often flexact has computed it."""
        return self.count.total if self.count else 0

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return next((p.device for p in self.down.parameters()), torch.device("cpu"))

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
            "reason": self.how,
            "relative_error": self.error,
            "calls": self.calls,
        }

    def install(self, dtype: torch.dtype, family: Any) -> None:
        """Proves what the MLP computes; replaces its activation where that is something else.

        Args:
            dtype: The model's.
            family: What the model's class would compute without any override, where that is known.
        """
        called: list[tuple[str, str]] = []
        self.error = self._probe(dtype, self.entry, called)
        if self.error <= _TOLERANCE[dtype]:
            return
        if len(called) == 1 and self._replace(*called[0], dtype):
            return
        if not any(
            self._probe(dtype, known, []) <= _TOLERANCE[dtype] for known in _as_classes_have_it(family)
        ):
            stop(
                f"{self._where()} computes another function, written into the class itself: there is no"
                f" activation module that could be replaced ({len(called)} found), and it is not proven to be"
                " the family's own and nothing else"
            )
        self._recompute(dtype)

    def _replace(self, name: str, pairing: str, dtype: torch.dtype) -> bool:
        """Exchanges the activation module `name`; puts it back and returns False where more is needed."""
        if pairing == "half":
            pairing = "gate" if self.entry.gated else "none"
        elif self.entry.pairing == "interleaved":
            pairing = "interleaved"
        activation = ActAndMul(self.entry, self.layer, pairing, expert=self.expert, device=self.device)
        parent, _, attribute = name.rpartition(".")
        owner = self.module.get_submodule(parent)
        before = getattr(owner, attribute)
        setattr(owner, attribute, activation)
        error = self._probe(dtype, self.entry, [])
        if not error <= _TOLERANCE[dtype]:
            setattr(owner, attribute, before)
            return False
        self.activation, self.error, self.how = activation, error, "its activation module is replaced"
        return True

    def _recompute(self, dtype: torch.dtype) -> None:
        """Has the down projection given the activation of what the up projections returned."""
        joint = "interleaved" if len(self.ups) == 1 and self.entry.pairing == "interleaved" else "concat"
        self.activation = ActAndMul(
            self.entry,
            self.layer,
            joint if self.entry.gated else "none",
            expert=self.expert,
            device=self.device,
        )
        _Recompute(self.ups, self.down, self.activation, where=self._where())
        self.error = self._probe(dtype, self.entry, [])
        self.how = "computed between its projections"
        if not self.error <= _TOLERANCE[dtype]:
            stop(
                f"{self._where()} still computes another function after its activation was computed anew"
                f" (relative error {self.error:.2g})"
            )

    def _where(self) -> str:
        return (
            f"{self.name}: the configuration asks for {self.entry.name}"
            f" ({self.entry.activation.function.formula}), and"
            f" SGLang's {type(self.module).__name__}"
        )

    def _probe(self, dtype: torch.dtype, entry: Any, called: list[tuple[str, str]]) -> float:
        """The largest relative error of the MLP against `entry`, over the probe values.

        `called` receives (path, kind) of the activation modules that took part.
        """
        width = _width_in(self.down)
        device = self.device
        gate, up = probe.values(width, dtype, device)
        outputs = _as_projected(self.ups, gate, up, entry, where=self._where())
        seen: list[str] = []  # projections up that have been called
        handles = [
            child.register_forward_hook(_watch(name, called, seen))
            for name, child in _between(self.module, self.projections.passed)
        ]
        try:
            for up_name, output in outputs.items():
                _pretend(self.ups[up_name], output, seen)
            self.down.forward = probe.keep
            for module in self.projections.passed:
                module.forward = _pass
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
            for module in (*self.ups.values(), self.down, *self.projections.passed):
                module.__dict__.pop("forward", None)
        gate, up = gate.double().cpu(), up.double().cpu()
        h, scale = (torch.cat((gate, up), dim=-1), gate * up) if entry.gated else (gate, gate)
        pairing = "concat" if entry.gated else "none"
        expected = _values.reference(entry, self.layer, h, pairing, expert=self.expert)
        return probe.relative_error(actual, expected, scale.abs(), dtype)


def _as_classes_have_it(family: Any) -> list[Any]:
    """What a class may compute for its family: the family's function, or that without its limit.

    SGLang's Phi3Small reads `gegelu_limit` and never uses it.
    """
    import flexact

    if family is None:
        return []
    function, known = family.activation.function, [family]
    if any(parameter.name == "limit" for parameter in function.parameters):
        values = json.loads(family.activation.to_json())
        values = {p.name: values[p.name] for p in function.parameters}
        if all(isinstance(value, (int, float)) for value in values.values()):
            unlimited = flexact.Activation(function, values | {"limit": 1e30})
            known.append(SimpleNamespace(activation=unlimited, gated=family.gated, pairing=family.pairing))
    return known


class _Recompute:
    """Hooks that keep what the up projections return and hand its activation to the down projection."""

    def __init__(
        self, ups: dict[str, nn.Module], down: nn.Module, activation: ActAndMul, *, where: str
    ) -> None:
        names = _in_order(ups, gated=activation.pairing != "none", where=where)
        self.kept: list[torch.Tensor | None] = [None] * len(names)
        self.activation = activation
        for index, name in enumerate(names):
            ups[name].register_forward_hook(functools.partial(self._keep, index))
        down.register_forward_pre_hook(self._hand_over)

    def _keep(self, index: int, module: nn.Module, inputs: Any, output: Any) -> None:
        self.kept[index] = output[0] if isinstance(output, tuple) else output

    def _hand_over(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        h = self.kept[0] if len(self.kept) == 1 else torch.cat(self.kept, dim=-1)
        self.kept = [None] * len(self.kept)
        return (self.activation(h), *inputs[1:])


class _Unseen(Exception):
    pass


def _pass(*args: Any, **kwargs: Any) -> torch.Tensor:
    """In the place of attention: the hidden states as they came."""
    given = (*args, *kwargs.values())
    return next(value for value in given if torch.is_tensor(value) and value.is_floating_point())


def _pretend(linear: nn.Module, output: torch.Tensor, seen: list[str]) -> None:
    # SGLang's own linear layers return (output, bias); torch's, and those that stand in for torch's in
    # models taken from transformers, return the output.
    returns_pair = type(linear).forward.__module__.startswith("sglang.srt.layers.")
    result = (output, None) if returns_pair else output

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(type(linear).__name__)
        return result

    linear.forward = forward


def _between(
    module: nn.Module, passed: tuple[nn.Module, ...], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the outermost parts that hold no linear layer: what an activation may be."""
    for name, child in module.named_children():
        if _is_linear(child) or child in passed:
            continue
        if any(_is_linear(inner) for inner in child.modules()):
            yield from _between(child, passed, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def _watch(name: str, called: list[tuple[str, str]], seen: list[str]) -> Any:
    """`probe.watch` from the moment on when a projection up has been called."""
    watching = probe.watch(name, called)

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if seen:
            watching(module, inputs, output)

    return hook


def _as_projected(
    ups: dict[str, nn.Module], gate: torch.Tensor, up: torch.Tensor, entry: Any, *, where: str
) -> dict[str, torch.Tensor]:
    """What each projection going up returns, by name."""
    names = _in_order(ups, gated=entry.gated, where=where)
    if len(names) == 1 and not entry.gated:
        return {names[0]: gate}
    if len(names) == 1 and entry.pairing == "interleaved":
        return {names[0]: torch.stack((gate, up), dim=-1).flatten(-2)}
    if len(names) == 1:
        return {names[0]: torch.cat((gate, up), dim=-1)}
    return dict(zip(names, (gate, up), strict=True))


def _in_order(ups: dict[str, nn.Module], *, gated: bool, where: str) -> list[str]:
    """The names of the projections up, the gate first; one name where they are one linear layer."""
    if len(ups) == 1:
        return list(ups)
    gates = [name for name in ups if name.rpartition(".")[2] in probe.GATE]
    others = [name for name in ups if name.rpartition(".")[2] in probe.UP]
    if gated and len(ups) == 2 and len(gates) == len(others) == 1:
        return [gates[0], others[0]]
    stop(f"{where} cannot be verified: which of {', '.join(ups)} is the gate is not known")


def _arguments(
    module: nn.Module, ups: dict[str, nn.Module], gate: torch.Tensor, dtype: torch.dtype, device: Any
) -> list[Any]:
    """Hidden states where the module takes them, and None for other arguments without a default."""
    hidden = _width_in(next(iter(ups.values())))
    names = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    given: list[Any] = [None] * max(1, len(names))
    # A decoder layer takes the positions first.
    given[names.index("hidden_states") if "hidden_states" in names else 0] = torch.zeros(
        gate.shape[0], hidden, dtype=dtype, device=device
    )
    return given


def _is_linear(module: nn.Module) -> bool:
    from sglang.srt.layers.linear import LinearBase

    return isinstance(module, (LinearBase, nn.Linear))


def _width_in(linear: nn.Module) -> int:
    for name in ("input_size_per_partition", "in_features", "input_size"):
        if hasattr(linear, name):
            return getattr(linear, name)
    raise _Unseen(f"{type(linear).__name__} does not say how wide it is")


def _projections(module: nn.Module) -> Projections | None:
    """The linear layers that a module owns itself, one of which goes down; None where it is no MLP."""
    return _sorted_out({name: child for name, child in module.named_children() if _is_linear(child)})


def _spread_projections(layer: nn.Module) -> Projections | None:
    """The same of a whole decoder layer, its attention aside: OPT and BERT have no module for the MLP."""
    passed = tuple(child for child in layer.children() if probe.NOT_AN_MLP.search(type(child).__name__))
    if not passed:
        return None
    inside = {id(inner) for module in passed for inner in module.modules()}
    return _sorted_out(
        {name: m for name, m in layer.named_modules() if _is_linear(m) and id(m) not in inside}, passed
    )


def _sorted_out(linears: dict[str, nn.Module], passed: tuple[nn.Module, ...] = ()) -> Projections | None:
    from sglang.srt.layers.linear import RowParallelLinear

    downs = [
        name
        for name, child in linears.items()
        if isinstance(child, RowParallelLinear) or name.rpartition(".")[2] in probe.DOWN
    ]
    ups = {name: child for name, child in linears.items() if name not in downs}
    return Projections(ups, linears[downs[0]], passed) if len(downs) == 1 and ups else None


def find(model: nn.Module, layers: int | None) -> Iterator[tuple[str, nn.Module, Projections, int]]:
    """(name, module, projections, layer) of each MLP in the text model's layers.

    Args:
        model: SGLang's model.
        layers: How many layers the configuration counts; None where it does not say.
    """
    for list_name, container in probe.layer_lists(model, layers):
        for index, layer in enumerate(container):
            found = list(_in_layer(layer, list_name, index))
            if not found and (spread := _spread_projections(layer)) is not None:
                found = [(f"{list_name}.{index}", layer, spread)]
            for name, module, projections in found:
                yield name, module, projections, index


def _in_layer(layer: nn.Module, list_name: str, index: int) -> Iterator[tuple[str, nn.Module, Projections]]:
    for name, module in layer.named_modules(prefix=f"{list_name}.{index}"):
        if any(probe.NOT_AN_MLP.search(type(part).__name__) for part in (module, *module.children())):
            continue
        projections = _projections(module)
        if projections is not None and not probe.inside_other(name, layer, list_name, index):
            yield name, module, projections


def install(model: nn.Module, current: Any, *, dtype: torch.dtype) -> None:
    """Verifies every MLP of the loaded model, and replaces activations that differ."""
    plan = current.plan
    if current.is_draft:
        return  # checked before: nothing but SGLang's default in it
    known = plan.activations.layers_known
    count = len(plan.layers) if known else None
    parts = {
        id(part)
        for experts in current.experts
        for owned in getattr(experts.module, "parts", ())
        for part in owned.modules()
    }
    for name, module, projections, layer in find(model, count):
        if id(module) in parts:
            continue
        role = _role(name, plan, layer)
        if role is None:
            stop(
                f"{name}: SGLang's {type(module).__name__} is an MLP that the configuration resolves to no"
                " activation"
            )
        mlp = Mlp(name, module, projections, layer, role, plan.entry(layer, role))
        mlp.install(dtype, plan.family_entry(layer, role))
        current.mlps.append(mlp)
    _refuse_unseen(model, current)


def reserve(current: Any, tokens: int, dtype: torch.dtype) -> None:
    """On a GPU: compiles what steps of up to `tokens` tokens can need, before a graph is captured."""
    done = set()
    for mlp in current.mlps:
        if not mlp.is_ours or mlp.device.type != "cuda":
            continue
        activation, width = mlp.activation, _width_in(mlp.down)
        columns = width if activation.pairing in ("none", "gate") else 2 * width
        key = (activation.canonical, activation.pairing, columns)
        if key not in done:
            done.add(key)
            for rows in (1, tokens):
                activation(torch.zeros(rows, columns, dtype=dtype, device=mlp.device))


def _role(name: str, plan: Any, layer: int) -> str | None:
    order = ("shared", "dense") if _SHARED.search(name) else ("dense", "shared")
    if _EXPERT.search(name):
        order = ("routed",)
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
