"""One definition of an activation, correct and fast in every MoE kernel."""

from flexact._core import __version__
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

__all__ = [
    "ConfigError",
    "DeviceError",
    "Error",
    "ExpressionError",
    "InternalError",
    "InvalidArgument",
    "IoError",
    "Unsupported",
    "__version__",
]
