"""Activations on torch tensors: forward and gradients are printed by the core from one graph.

Half-precision tensors are computed in float32 and rounded once; float32 and float64 as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from flexact._core import Activation, Function
from flexact.activation import require_scopes
from flexact.errors import InvalidArgument

Compiled = Callable[..., torch.Tensor]


@functools.lru_cache(maxsize=1024)
def compiled(function: Function) -> dict[str, Compiled]:
    """The torch callables of a function, without autograd.

    "forward" takes `(g, u, *parameters)` or `(x, *parameters)`; so does each "gradient_NAME", the
    partial derivative by g, u, x or (p0, p1, …) a parameter.
    """
    namespace: dict[str, Any] = {}
    exec(compile(function.emit("torch"), f"<flexact {function.name}>", "exec"), namespace)
    return namespace


def _gradient(function: Function, index: int) -> Compiled:
    """The partial derivative by the index-th argument."""
    inputs = ["g", "u"] if function.is_gated else ["x"]
    name = inputs[index] if index < len(inputs) else f"p{index - len(inputs)}"
    return compiled(function)[f"gradient_{name}"]


class _Apply(torch.autograd.Function):
    """Forward and backward of one function; the arguments are its inputs, then its parameters."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Function, *arguments: torch.Tensor) -> torch.Tensor:
        result = compiled(function)["forward"](*arguments)
        # linear's result is its input, which autograd refuses to save as both.
        return result.view_as(result) if any(result is each for each in arguments) else result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        arguments = ctx.saved_tensors
        gradients = [
            (upstream * _gradient(ctx.function, index)(*arguments)).sum_to_size(argument.shape)
            if ctx.needs_input_grad[index + 1]
            else None
            for index, argument in enumerate(arguments)
        ]
        return None, *gradients


# torch.compile cannot look into the compiled Activation anyway; ActivationModule is what it can trace.
@torch.compiler.disable
def call(
    activation: Activation,
    *tensors: torch.Tensor,
    layer: int | None = None,
    expert: int | None = None,
    parameters: Mapping[str, float | torch.Tensor] | None = None,
) -> torch.Tensor:
    """Computes an activation on tensors; `activation(...)` is this function.

    Args:
        activation: A function with its parameter values.
        *tensors: `x` for a unary function, `g` and `u` for a gated one; any floating dtype and
            device, shapes that broadcast.
        layer: The absolute layer number; needed where values differ by layer.
        expert: The global expert number; needed where values differ by expert.
        parameters: Values in place of the activation's own, e.g. tensors that are being learned:
            they receive gradients.

    Returns:
        The activation, in the inputs' (promoted) dtype. Gradients of any order flow to every input.

    Raises:
        InvalidArgument: The number or dtype of the tensors does not fit the function.
    """
    dtype = _check(activation.function, tensors)
    compute = torch.promote_types(dtype, torch.float32)
    device = tensors[0].device
    values = _values(activation, layer, expert, parameters or {}, compute, device)
    result = _Apply.apply(activation.function, *(tensor.to(compute) for tensor in tensors), *values)
    return result.to(dtype)


class ActivationModule(torch.nn.Module):
    """An activation as a module: traceable by torch.compile, and its parameters can be learned.

    Attributes:
        activation: What it computes, with the values that it started from.
        learned: Names of the parameters that are `torch.nn.Parameter`s of this module.
    """

    def __init__(
        self,
        activation: Activation,
        *,
        learn: Sequence[str] = (),
        layer: int | None = None,
        expert: int | None = None,
    ) -> None:
        """Makes the module.

        Args:
            activation: The activation.
            learn: Parameters that become float32 `torch.nn.Parameter`s under their own names.
            layer: The absolute layer number; needed where values differ by layer.
            expert: The global expert number; needed where values differ by expert.
        """
        super().__init__()
        self.activation = activation
        self.learned = tuple(learn)
        function = activation.function
        values = _values(activation, layer, expert, {}, torch.float32, torch.device("cpu"))
        named = dict(zip((each.name for each in function.parameters), values, strict=True))
        for name in self.learned:
            if name not in named:
                raise InvalidArgument(f"{function.name} has no parameter {name!r}", hint=", ".join(named))
            self.register_parameter(name, torch.nn.Parameter(named[name]))
        # Plain numbers, so that a module without learned parameters has nothing to save or to move.
        self._constants = {name: value.item() for name, value in named.items()}
        self._inputs = 2 if function.is_gated else 1
        self._forward = compiled(function)["forward"]

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The activation of `x`, or of `g` and `u`, in the inputs' dtype."""
        if len(tensors) != self._inputs:
            raise InvalidArgument(f"got {len(tensors)} tensors", hint=f"{self._inputs}")
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        compute = torch.promote_types(dtype, torch.float32)
        values = [
            getattr(self, name).to(compute) if name in self.learned else value
            for name, value in self._constants.items()
        ]
        return self._forward(*(tensor.to(compute) for tensor in tensors), *values).to(dtype)

    def extra_repr(self) -> str:
        """What print() shows between the parentheses."""
        return self.activation.to_json()


def _check(function: Function, tensors: Sequence[torch.Tensor]) -> torch.dtype:
    expected = ("g", "u") if function.is_gated else ("x",)
    if len(tensors) != len(expected):
        raise InvalidArgument(
            f"{function.name} got {len(tensors)} tensors",
            hint=f"it takes {' and '.join(expected)}"
            + ("; gated() of it takes g and u" if len(tensors) == 2 else ""),
        )
    for name, tensor in zip(expected, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise InvalidArgument(f"{name} is {kind}", hint="a tensor of a floating dtype")
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _values(
    activation: Activation,
    layer: int | None,
    expert: int | None,
    replaced: Mapping[str, float | torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> list[torch.Tensor]:
    """The parameters in the function's order, as tensors of the compute dtype."""
    names = [each.name for each in activation.function.parameters]
    unknown = [name for name in replaced if name not in names]
    if unknown:
        raise InvalidArgument(
            f"{activation.function.name} has no parameter {unknown[0]!r}",
            hint=f"its parameters: {', '.join(names) or 'none'}",
        )
    table = [0.0] * len(names)
    if any(name not in replaced for name in names):
        known: dict[str, int | None] = {} if layer is None else {"per_layer": layer}
        if expert is not None:
            known["per_expert"] = None
        require_scopes(activation, known, "pass layer=…, expert=… or parameters={…}", replaced)
        first = expert or 0
        table = activation.values(layer or 0, (first, first + 1), initial=True)[0]
    values: list[float | torch.Tensor] = [
        replaced.get(name, value) for name, value in zip(names, table, strict=True)
    ]
    return [
        value.to(device=device, dtype=dtype)
        if isinstance(value, torch.Tensor)
        else torch.full((), value, dtype=dtype, device=device)
        for value in values
    ]
