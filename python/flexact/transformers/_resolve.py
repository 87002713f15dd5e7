"""From a loaded model to one activation per layer and role.

What is resolved is the bytes of config.json where the model was loaded from a folder or the hub's
cache: transformers renames, fills in and drops keys while it loads. What the program changed
afterwards (`config.activation_params = …`) is merged over the bytes. A model that was built from a
configuration object is resolved from that object.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flexact
from flexact import config as flexact_config
from flexact.checkpoint import Checkpoint
from flexact.config import ModelActivations, ResolvedActivation
from flexact.errors import ConfigError

logger = logging.getLogger("flexact")

# Keys that transformers writes for itself; they say nothing about a layer.
_BOOKKEEPING = {"dtype", "torch_dtype", "transformers_version", "quantization_config", "name_or_path"}
_PARAMS = "activation_params"


class Resolution:
    """The activations of one configuration, as written and as they were without activation_params.

    Attributes:
        bound: What the layers are to compute.
        base: What transformers' own classes, which do not read activation_params, compute; None where
            the configuration means nothing without them.
        base_error: Why `base` is None.
    """

    def __init__(self, raw: Mapping[str, Any], bound: ModelActivations, tensors: Callable[..., Any]) -> None:
        self.bound = bound
        self.base_error = ""
        self.tensors = tensors
        try:
            self.base: ModelActivations | None = flexact.resolve_config(_without_params(raw))
        except ConfigError as error:
            self.base, self.base_error = None, str(error)

    def entry(self, layer: int, role: str) -> ResolvedActivation | None:
        """What `layer` computes in `role`."""
        return flexact_config.entry(self.bound, layer, role)

    def base_entry(self, layer: int, role: str) -> ResolvedActivation | None:
        """What transformers' class computes there."""
        return None if self.base is None else flexact_config.entry(self.base, layer, role)

    def entries(self) -> list[tuple[int, str, ResolvedActivation]]:
        """All (layer, role, activation); one layer stands for all where their number is unknown."""
        return flexact_config.entries(self.bound)

    def changed(self, layer: int, role: str) -> bool:
        """Whether activation_params give this layer something else than transformers' class computes."""
        entry, base = self.entry(layer, role), self.base_entry(layer, role)
        return entry is not None and (base is None or entry.activation != base.activation)


def resolve(model: Any) -> Resolution:
    """The activations of a loaded model, by its own configuration.

    Raises:
        flexact.ConfigError: The configuration is not certain.
    """
    config = model.config
    file = _file_of(config)
    tensors = _reader(model, file)
    if file is None:
        raw = config.to_dict()
        bound = flexact.resolve_config(raw)
    else:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
        changes = _changes(type(config).from_pretrained(file.parent).to_dict(), config.to_dict())
        bound = flexact.resolve_config(file, overrides=changes)
        raw = _merged(raw, changes)
    for warning in bound.warnings:
        logger.info("%s: %s", file or type(config).__name__, warning)
    return Resolution(raw, bound, tensors)


def for_part(model: Any, part: Any, whole: Resolution) -> Resolution:
    """The resolution that `part`, a configuration inside `model.config`, belongs to.

    The text model is the whole's. Another model inside it (a talker, say) is resolved by its own
    configuration.
    """
    pointer = _pointer(model.config, part)
    if not pointer or any(entry.source.startswith(f"{pointer}/") for _, _, entry in whole.entries()):
        return whole
    raw = part.to_dict()
    return Resolution(raw, flexact.resolve_config(raw), whole.tensors)


def _file_of(config: Any) -> Path | None:
    name = getattr(config, "name_or_path", "") or ""
    if not name:
        return None
    if (Path(name) / "config.json").is_file():
        return Path(name) / "config.json"
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
    except ValueError:  # a folder that is gone, or no hub name
        return None
    return Path(found) if isinstance(found, str) else None


def _pointer(config: Any, part: Any, pointer: str = "") -> str | None:
    """The JSON pointer of a configuration inside another one."""
    if part is config:
        return pointer
    for name in getattr(type(config), "sub_configs", {}):
        child = getattr(config, name, None)
        if child is not None and hasattr(child, "to_dict"):
            found = _pointer(child, part, f"{pointer}/{name}")
            if found is not None:
                return found
    return None


def _changes(before: Any, after: Mapping[str, Any]) -> dict[str, Any]:
    """What `after` has that `before` had not, as overrides: objects member by member."""
    changes: dict[str, Any] = {}
    for key, value in after.items():
        if key in _BOOKKEEPING or str(key).startswith("_"):
            continue
        old = before.get(key) if isinstance(before, Mapping) else None
        if isinstance(value, Mapping) and isinstance(old, Mapping) and key != _PARAMS:
            if inner := _changes(old, value):
                changes[key] = inner
        elif value != old:
            changes[key] = value
    if isinstance(before, Mapping) and before.get(_PARAMS) is not None and _PARAMS not in after:
        changes[_PARAMS] = None
    return changes


def _merged(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(raw)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(old, value) if both else value
    return merged


def _without_params(raw: Any) -> Any:
    if isinstance(raw, Mapping):
        return {key: _without_params(value) for key, value in raw.items() if key != _PARAMS}
    return [_without_params(item) for item in raw] if isinstance(raw, list) else raw


def _reader(model: Any, file: Path | None) -> Callable[[str], list[float]]:
    """Reads a tensor that activation_params name: from the checkpoint, else from the model itself."""
    checkpoint = Checkpoint(file.parent) if file is not None else None

    def read(name: str) -> list[float]:
        try:
            if checkpoint is not None:
                return checkpoint.read(name)
        except ConfigError:
            if name not in _own_tensors(model):
                raise
        own = _own_tensors(model)
        if name not in own:
            raise ConfigError(f"the model has no tensor {name!r}", "/activation_params")
        return own[name].detach().double().cpu().flatten().tolist()

    return read


def _own_tensors(model: Any) -> dict[str, Any]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
