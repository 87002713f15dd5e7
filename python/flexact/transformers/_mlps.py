"""Dense and shared MLPs: found by their structure, proven by probe values, converted where asked for.

transformers has no interface for them, so `flexact.transformers.convert` puts a module in the place
of the activation inside each. That the MLP then computes what is configured is shown by running it:
its projections going up return probe values, the one going down keeps what it is given.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import flexact
from flexact import probe
from flexact.errors import ConfigError, Unsupported
from flexact.transformers import _probe
from flexact.transformers._unbound import UnboundActivation

_DOWN = (*probe.DOWN, "Wo", "output_linear")
_SHARED = re.compile(r"share", re.I)
_EXPERT = re.compile(r"\.experts\.(?:expert_)?(\d+)$")


class ActAndMul(nn.Module):
    """The activation of one MLP, in the place of the class's own.

    Parameters of the module that it replaces stay under their names: a checkpoint that is saved has
    them, and learned values are read from them at each step.

    Args:
        original: The module in whose place it stands.
        activation: What the MLP computes, gated where it has a gate.
        values: One row of parameter values.
        pairing: "concat": it is given [gate | up]; "gate": it is given the gate, and its result is
            multiplied by up; "none": a unary function.
        learned: Parameters of the function that are parameters of `original`.
    """

    def __init__(
        self, original: nn.Module, activation: Any, values: list[float], pairing: str, learned: list[str]
    ) -> None:
        super().__init__()
        # Not a submodule: its parameters are this module's now.
        self.__dict__["original"] = original
        for name, parameter in original.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in original.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in original._non_persistent_buffers_set)
        self.activation = activation
        self.values = values
        self.pairing = pairing
        self.learned = learned
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        """[..., 2I] or [..., I] → [..., I]; with "gate" something that multiplies by up."""
        self.calls += 1
        return _Gate(self, x) if self.pairing == "gate" else self.compute(x)

    @torch.compiler.disable
    def compute(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The activation of x, of [gate | up], or of gate and up."""
        function = self.activation.function
        if self.learned and torch.is_grad_enabled():
            named = {p.name: v for p, v in zip(function.parameters, self.values, strict=True)}
            named |= {name: getattr(self, name) for name in self.learned}
            split = len(inputs) == 1 and function.is_gated
            return self.activation(*(inputs[0].chunk(2, -1) if split else inputs), parameters=named)
        x = torch.cat(torch.broadcast_tensors(*inputs), dim=-1) if len(inputs) == 2 else inputs[0]
        pairing = "concat" if function.is_gated else "none"
        return flexact.act_and_mul(x, _constant(function, self._row()), pairing=pairing)

    def _row(self) -> tuple[float, ...]:
        names = [p.name for p in self.activation.function.parameters]
        return tuple(
            getattr(self, name).item() if name in self.learned else value
            for name, value in zip(names, self.values, strict=True)
        )

    def extra_repr(self) -> str:
        """What print() shows between the parentheses."""
        return self.activation.function.name


@functools.lru_cache(maxsize=4096)
def _constant(function: Any, values: tuple[float, ...]) -> Any:
    """An activation with plain numbers for values."""
    return flexact.Activation(function, dict(zip((p.name for p in function.parameters), values, strict=True)))


class _Gate:
    """The gate on its way to `act(gate) * up`, so that a function of both sees both before any rounding."""

    def __init__(self, owner: ActAndMul, gate: torch.Tensor) -> None:
        self._owner, self._gate = owner, gate

    def __mul__(self, up: Any) -> torch.Tensor:
        if not isinstance(up, torch.Tensor):
            return NotImplemented
        return self._owner.compute(self._gate, up)

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("mul", "__mul__", "__rmul__", "multiply") and len(args) == 2:
            first, second = args
            return first * second if isinstance(first, cls) else second * first
        return NotImplemented


class Mlp:
    """What flexact knows about one MLP of one layer."""

    def __init__(self, name: str, module: nn.Module, layer: int, role: str) -> None:
        self.name, self.layer, self.role = name, layer, role
        self.class_name = type(module).__name__
        match = _EXPERT.search(name)
        self.expert = int(match[1]) if match else 0
        self.path = ""
        self.place = ""  # the attribute that holds the activation
        self.function_name = self.formula = self.source = ""
        self.converted = False
        self.own_error: float | None = None
        self.error: float | None = None

    def describe(self, module: nn.Module) -> dict[str, Any]:
        """The MLP's row in the report."""
        return {
            "name": self.name,
            "layer": self.layer,
            "role": self.role,
            "function": self.function_name,
            "formula": self.formula,
            "from": self.source,
            "computed_by": "flexact" if self.converted else "transformers",
            "path": self.path,
            "own_error": self.own_error,
            "error": self.error,
            "calls": getattr(module, self.place).calls if self.converted else 0,
        }

    def install(self, module: nn.Module, resolution: Any) -> None:
        """Proves what the MLP computes, and puts flexact in the place of its activation."""
        entry, base = resolution.entry(self.layer, self.role), resolution.base_entry(self.layer, self.role)
        self.function_name, self.source = entry.name, entry.source
        activation = entry.activation.gated() if entry.gated else entry.activation
        self.formula = activation.function.formula
        changed = resolution.changed(self.layer, self.role)
        called: list[tuple[str, str]] = []
        try:
            self._examine(module, entry, base, called, resolution)
        except Unsupported as error:
            if changed:
                raise
            # Its own function is what is configured, and it was not asked to be another.
            self.path = f"left alone: {error.message}"
            return
        if not called:
            if changed:
                raise Unsupported(
                    f"{self.class_name} has no activation module to replace, and {entry.name} is configured",
                    self.name,
                    "a class that writes its activation into its forward cannot be converted",
                )
            self.error = self.own_error
            self.path = "proven to compute exactly this"
            return
        self.place, kind = called[0]
        values = self._values(entry, module, called, resolution)
        original = getattr(module, self.place)
        pairing = "concat" if kind == "concat" else "gate" if entry.gated else "none"
        made = ActAndMul(original, activation, values[0].tolist(), pairing, self._learned(entry, original))
        setattr(module, self.place, made)
        try:
            with torch.no_grad():
                self.error = self._judge(
                    self._probe(module, entry.gated, []), entry.activation, values, entry.gated
                )
        except Exception:
            setattr(module, self.place, original)
            raise
        made.calls, self.converted, self.path = 0, True, f"{self.class_name}.{self.place}"

    def _examine(
        self, module: nn.Module, entry: Any, base: Any, called: list[tuple[str, str]], resolution: Any
    ) -> None:
        """Proves the class's own function; `called` receives its activation module's (name, kind)."""
        for name, child in module.named_children():
            if isinstance(child, UnboundActivation):
                called.append((name, "half"))
                return
        own = self._probe(module, entry.gated, called)
        if len(called) > 1:
            names = ", ".join(name for name, _ in called)
            raise Unsupported(
                f"several modules of {self.class_name} stand between its projections ({names})", self.name
            )
        if base is not None:
            values = self._values(base, module, called, resolution)
            self.own_error = self._judge(own, base.activation, values, entry.gated)

    def _learned(self, entry: Any, original: nn.Module) -> list[str]:
        """Parameters of the function that are tensors of the module that stood here."""
        own = dict(original.named_parameters(recurse=False))
        return [
            name
            for name, value in entry.activation.params.items()
            if isinstance(value, dict) and f"{self.name}.{self.place}.{name}".endswith(_tensor(value))
            if name in own and _tensor(value)
        ]

    def _values(self, entry: Any, module: nn.Module, called: list[Any], resolution: Any) -> torch.Tensor:
        """The row of values in this layer; learned ones as they are in the module now."""
        learned = {}
        if len(called) == 1:
            self.place = called[0][0]
            original = getattr(module, self.place)
            names = self._learned(entry, original)
            learned = {_tensor(entry.activation.params[n]): getattr(original, n).item() for n in names}

        def read(name: str) -> list[float]:
            return [learned[name]] if name in learned else resolution.tensors(name)

        rows = entry.activation.values(self.layer, (self.expert, self.expert + 1), read)
        return torch.tensor(rows, dtype=torch.float64).reshape(1, -1)

    def _judge(self, own: torch.Tensor, activation: Any, values: torch.Tensor, gated: bool) -> float:
        gate, up = probe.values(_width(own), torch.float64, "cpu")
        h = torch.cat((gate, up), dim=-1) if gated else gate
        pairing = "concat" if gated else "none"
        return _probe.judge(
            own.reshape(gate.shape),
            lambda other, row: _probe.apply(other, h, pairing, row[0]),
            activation,
            values,
            gated,
            self.class_name,
            self.name,
        )

    def _probe(self, module: nn.Module, gated: bool, called: list[tuple[str, str]]) -> torch.Tensor:
        """What the MLP's own forward hands to its projection going down.

        `called` receives (name, kind) of the activation modules that took part.
        """
        ups, down = projections(module)
        gate, up = probe.values(_fan_in(down), torch.float64, "cpu")
        children = [(n, c) for n, c in module.named_children() if not is_linear(c)]
        hooks = [child.register_forward_hook(probe.watch(name, called)) for name, child in children]
        outputs = _as_projected(ups, gate, up, gated, self.name)
        try:
            for name, linear in ups.items():
                linear.forward = functools.partial(_give, outputs[name])
            down.forward = probe.keep
            with torch.no_grad():
                x = torch.zeros(len(gate), _fan_in(next(iter(ups.values()))), dtype=torch.float64)
                module(x, *[None] * (_required(module) - 1))
        except probe.Kept as kept:
            return kept.value.detach().cpu()
        except Exception as error:
            raise Unsupported(f"{self.class_name} cannot be probed: {error}", self.name) from error
        finally:
            for hook in hooks:
                hook.remove()
            for linear in (*ups.values(), down):
                linear.__dict__.pop("forward", None)
        raise Unsupported(f"{self.class_name} does not use its projection going down", self.name)


def _required(module: nn.Module) -> int:
    """How many arguments its forward insists on; those after the first are used after the projection down."""
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )


def _tensor(value: dict[str, Any]) -> str:
    """The tensor that a parameter is bound to, or nothing."""
    return value.get("tensor", "") if isinstance(value.get("tensor"), str) else ""


def _give(output: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return output


def _width(own: torch.Tensor) -> int:
    return own.shape[-1]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a projection: torch's, a quantised one derived from it, or GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _fan_in(linear: nn.Module) -> int:
    return linear.in_features if hasattr(linear, "in_features") else linear.weight.shape[0]


def projections(module: nn.Module) -> tuple[dict[str, nn.Module], nn.Module | None]:
    """The linear layers that a module owns itself: going up by name, and the one going down."""
    linears = {name: child for name, child in module.named_children() if is_linear(child)}
    downs = [name for name in linears if name in _DOWN]
    if len(downs) != 1:
        return {}, None
    return {name: child for name, child in linears.items() if name != downs[0]}, linears[downs[0]]


def _as_projected(
    ups: dict[str, nn.Module], gate: torch.Tensor, up: torch.Tensor, gated: bool, where: str
) -> dict[str, torch.Tensor]:
    """What each projection going up returns, by name."""
    if len(ups) == 1:
        return dict.fromkeys(ups, torch.cat((gate, up), dim=-1) if gated else gate)
    gates = [name for name in ups if name in probe.GATE]
    others = [name for name in ups if name in probe.UP]
    if gated and len(ups) == 2 and len(gates) == len(others) == 1:
        return {gates[0]: gate, others[0]: up}
    raise Unsupported(f"which of {', '.join(ups)} is the gate is not known", where)


def find(model: nn.Module, layers: int | None) -> Iterator[tuple[str, nn.Module, int]]:
    """(name, module, layer) of each MLP in the text model's layers."""
    for list_name, container in probe.layer_lists(model, layers):
        for index, layer in enumerate(container):
            for name, module in layer.named_modules(prefix=f"{list_name}.{index}"):
                parts = (module, *(child for child in module.children() if not is_linear(child)))
                if any(probe.NOT_AN_MLP.search(type(part).__name__) for part in parts):
                    continue
                ups, down = projections(module)
                if ups and down is not None and not probe.inside_other(name, layer, list_name, index):
                    yield name, module, index


def convert(model: nn.Module, resolution: Any, known: dict[str, Mlp], *, routed: set[int]) -> None:
    """Converts every MLP of the model; `known` receives them by name.

    Args:
        model: The model.
        resolution: Its activations.
        known: What was converted before, and what is now.
        routed: Layers whose routed experts flexact computes.
    """
    count = len(resolution.bound.layers) if resolution.bound.layers_known else None
    for name, module, layer in find(model, count):
        role = _role(name, resolution, layer)
        if role is None:
            raise ConfigError(f"the configuration resolves {type(module).__name__} to no activation", name)
        if name in known and known[name].converted:
            _take_back(module, known.pop(name))
        mlp = Mlp(name, module, layer, role)
        mlp.install(module, resolution)
        known[name] = mlp
    seen = {(mlp.layer, mlp.role) for mlp in known.values()} | {(layer, "routed") for layer in routed}
    _refuse_unseen(model, resolution, seen)


def _take_back(module: nn.Module, mlp: Mlp) -> None:
    setattr(module, mlp.place, getattr(module, mlp.place).original)


def _refuse_unseen(model: nn.Module, resolution: Any, seen: set[tuple[int, str]]) -> None:
    """What would go on to compute another activation than is configured is an error."""
    for layer, role, entry in resolution.entries():
        known = (layer, role) in seen if resolution.bound.layers_known else any(r == role for _, r in seen)
        if known or not resolution.changed(layer, role):
            continue
        if _stands_for_another(resolution, layer, role, seen):
            continue
        raise Unsupported(
            f"{type(model).__name__}: the {role} MLP or experts could not be found, and {entry.name} is"
            " configured",
            f"layer {layer}",
            "only modules that own their projections up and down, and the experts interface, are converted",
        )


def _stands_for_another(resolution: Any, layer: int, role: str, seen: set[tuple[int, str]]) -> bool:
    """Whether a family that the resolver does not know has another role in this layer."""
    roles = {other for other in ("routed", "shared", "dense") if resolution.entry(layer, other) is not None}
    return len(roles) == 3 and any((layer, other) in seen for other in roles - {role})


def unconverted(resolution: Any, known: dict[str, Mlp]) -> list[str]:
    """Shared and dense roles whose activation_params nobody computes yet."""
    done = {(mlp.layer, mlp.role) for mlp in known.values()}
    return [
        f"{role} MLP of layer {layer}"
        for layer, role, _ in resolution.entries()
        if role != "routed" and resolution.changed(layer, role) and (layer, role) not in done
        if not _stands_for_another(resolution, layer, role, {(layer, "routed")})
    ]


def _role(name: str, resolution: Any, layer: int) -> str | None:
    if _EXPERT.search(name):
        return "routed" if resolution.entry(layer, "routed") is not None else None
    order = ("shared", "dense") if _SHARED.search(name) else ("dense", "shared")
    return next((role for role in order if resolution.entry(layer, role) is not None), None)


def revert(model: nn.Module, known: dict[str, Mlp]) -> None:
    """Puts the classes' own activations back."""
    for name, mlp in known.items():
        if mlp.converted:
            _take_back(model.get_submodule(name), mlp)
    known.clear()
