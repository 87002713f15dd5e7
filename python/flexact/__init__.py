"""One definition of an activation, correct and fast in every MoE kernel.

Reading configurations and looking activations up needs nothing but the standard library. Whatever
computes on tensors imports torch when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flexact._core import Activation, ActivationRegistry, Function, Parameter, version
from flexact.activation import register_function
from flexact.config import resolve_config
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
    from flexact.dense import act_and_mul
    from flexact.moe import fused_moe

__version__ = version()

_NEEDS_TORCH = {"act_and_mul": "flexact.dense", "fused_moe": "flexact.moe"}
_SUBMODULES = ("dense", "moe", "torch_functions")

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
    if name in _NEEDS_TORCH:
        value = getattr(importlib.import_module(_NEEDS_TORCH[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"flexact.{name}")
    raise AttributeError(f"module 'flexact' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
