"""From config.json to exactly one activation for each layer and role, or an error that says why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from flexact._core import (
    LayerActivations,
    ModelActivations,
    ResolvedActivation,
    function_from_stack,
    known_stacks,
    resolve_config_path,
    resolve_config_text,
)
from flexact.errors import InvalidArgument

__all__ = [
    "LayerActivations",
    "ModelActivations",
    "ResolvedActivation",
    "entries",
    "entry",
    "function_from_stack",
    "known_stacks",
    "resolve_config",
]


def resolve_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Any,
    overrides: Mapping[str, Any] | str | None = None,
    *,
    from_stack: str = "",
) -> ModelActivations:
    """Resolves the activation of every layer and role of a model.

    Args:
        source: A model folder, a config file, a mapping with the file's content, or a configuration
            object with `to_dict()` as transformers' are (a file's bytes say more: prefer a path).
        overrides: What a serving engine's override argument holds, merged over the file.
        from_stack: Another stack whose activation names are meant; see `known_stacks()`.

    Raises:
        ConfigError: The configuration is not certain; `where` is a JSON pointer.
        Unsupported: It is understood, and no one function is what its family computes.
        IoError: The file cannot be read.
    """
    merged = overrides if isinstance(overrides, str) else json.dumps(overrides) if overrides else ""
    if isinstance(source, str | os.PathLike):
        return resolve_config_path(os.fspath(source), merged, from_stack)
    if not isinstance(source, Mapping):
        if not hasattr(source, "to_dict"):
            raise InvalidArgument(
                f"cannot read a configuration from {type(source).__name__}",
                hint="a path, a mapping or an object with to_dict()",
            )
        source = source.to_dict()
    # NaN and Infinity pass through as such: the resolver refuses them and says where they stand.
    return resolve_config_text(json.dumps(source), merged, from_stack)


ROLES = ("routed", "shared", "dense")


def entry(activations: ModelActivations, layer: int, role: str) -> ResolvedActivation | None:
    """The activation of `layer` (absolute number) in `role`; None where the layer has no such role."""
    layers = activations.layers
    if not activations.layers_known:
        return getattr(layers[0], role) if layers else None
    for item in layers if layer >= len(layers) or layers[layer].index != layer else (layers[layer],):
        if item.index == layer:
            return getattr(item, role)
    return None


def entries(activations: ModelActivations) -> list[tuple[int, str, ResolvedActivation]]:
    """All (layer, role, activation) of a model."""
    return [
        (item.index, role, found)
        for item in activations.layers
        for role in ROLES
        if (found := getattr(item, role)) is not None
    ]
