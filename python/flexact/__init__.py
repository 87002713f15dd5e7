"""One definition of an activation, correct and fast in every MoE kernel.

Reading configurations and looking activations up needs nothing but the standard library. Whatever
computes on tensors imports torch when it is first used. Importing the package loads nothing at all: a
host that finds `flexact.sglang` by entry point must be able to import it whatever else is broken.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flexact.errors import (
    ConfigError,
    DeviceError,
    Error,
    ExpressionError,
    InternalError,
    InvalidArgument,
    IoError,
    Unsupported,
)

if TYPE_CHECKING:
    from flexact._core import Activation, ActivationRegistry, Function, Parameter
    from flexact.activation import register_function
    from flexact.config import resolve_config
    from flexact.dense import act_and_mul
    from flexact.moe import fused_moe

    __version__: str

# Where each name is defined; those of dense and moe need torch.
_HOMES = {
    "Activation": "flexact._core",
    "ActivationRegistry": "flexact._core",
    "Function": "flexact._core",
    "Parameter": "flexact._core",
    "act_and_mul": "flexact.dense",
    "fused_moe": "flexact.moe",
    "register_function": "flexact.activation",
    "resolve_config": "flexact.config",
}
_SUBMODULES = ("activation", "config", "dense", "formats", "moe", "testing", "torch_functions")

__all__ = [
    "Activation",
    "ActivationRegistry",
    "ConfigError",
    "DeviceError",
    "Error",
    "ExpressionError",
    "Function",
    "InternalError",
    "InvalidArgument",
    "IoError",
    "Parameter",
    "Unsupported",
    "__version__",
    "act_and_mul",
    "fused_moe",
    "register_function",
    "resolve_config",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name == "__version__":
        value = importlib.import_module("flexact._core").version()
    elif name in _SUBMODULES:
        return importlib.import_module(f"flexact.{name}")
    else:
        raise AttributeError(f"module 'flexact' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
