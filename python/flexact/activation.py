"""Activations by name, and functions of one's own.

`ActivationRegistry.get_activation("swish", {"beta": 1.5})` is an `Activation`: data (a function and
the values of its parameters) that can be called on torch tensors.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from flexact._core import Activation, ActivationRegistry, Function, Parameter
from flexact.errors import InvalidArgument

__all__ = ["Activation", "ActivationRegistry", "Function", "Parameter", "register_function"]


def register_function(
    name: str,
    expr: str,
    params: Mapping[str, float | None] | Iterable[Parameter | str] | None = None,
) -> Function:
    """Adds a function to the process's registry.

    Args:
        name: The new name; neither the catalogue nor an earlier call may hold it.
        expr: The expression, in `x` (unary) or `g` and `u` (gated), e.g. "x*sigmoid(beta*x)".
        params: The parameters and their order: a mapping from name to default (None: must be given),
            or names and `Parameter` objects. Left out: every name in the expression that is no
            variable, function or constant, in order of first use, without a default.

    Returns:
        The function; from now on `ActivationRegistry.get_activation(name, …)` finds it.

    Raises:
        InvalidArgument: The name is taken or reserved.
        ExpressionError: The expression is wrong; the message names the column.
    """
    return ActivationRegistry.register_function(name, expr, _parameters(params))


def require_scopes(
    activation: Activation, known: Mapping[str, Any], hint: str, replaced: Container[str] = ()
) -> None:
    """Refuses to guess where a value differs by layer or expert and the caller does not say which.

    Args:
        activation: The activation whose values are about to be used.
        known: What the caller knows: a layer number under "per_layer", the number of experts that
            the table is asked for under "per_expert" (None: one expert is chosen).
        hint: What to do instead.
        replaced: Names of the parameters whose values are not used.
    """
    for name, value in activation.params.items():
        for form, count in _forms(value) if name not in replaced else ():
            if form == "per_layer" and "per_layer" not in known:
                raise InvalidArgument("the value differs by layer", f"/{name}", hint)
            if form == "per_expert" and known.get("per_expert", 0) not in (None, count):
                raise InvalidArgument(f"there are values for {count} experts", f"/{name}", hint)
            if form == "tensor":
                raise InvalidArgument("the value is in the checkpoint", f"/{name}", hint)


def _forms(value: Any) -> set[tuple[str, int]]:
    """The scope forms that occur in a parameter value, with their lengths."""
    if not isinstance(value, dict):
        return set()
    ((form, content),) = value.items()
    return {(form, len(content))}.union(*map(_forms, content if isinstance(content, list) else ()))


def _parameters(params: Mapping[str, float | None] | Iterable[Parameter | str] | None) -> list[Parameter]:
    if params is None:
        return []
    if isinstance(params, str):
        raise InvalidArgument(f"params is the text {params!r}", hint="a mapping or a list of names")
    if isinstance(params, Mapping):
        return [Parameter(name, default) for name, default in params.items()]
    return [each if isinstance(each, Parameter) else Parameter(each) for each in params]
