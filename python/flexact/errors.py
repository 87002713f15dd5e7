"""Exception classes, one for each error code of the C++ library.

Every error says what was wrong, where, and what is allowed. Catch `Error` for all of them, or the
built-in class (`ValueError`, `NotImplementedError`, `RuntimeError`, `OSError`) that each also is.
"""

from __future__ import annotations


class Error(Exception):
    """Base of every error that flexact raises on purpose.

    Attributes:
        message: What was wrong.
        where: A JSON pointer, a position in an expression or a path; may be empty.
        hint: What is allowed, or what to do; may be empty.
    """

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text} ({hint})" if hint else text)
        self.message = message
        self.where = where
        self.hint = hint

    @property
    def code(self) -> str:
        """The C++ error code, which is the class's name."""
        return type(self).__name__

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Worker processes send their errors home by pickle; the composed text alone would lose the parts.
        return type(self), (self.message, self.where, self.hint)


class InvalidArgument(Error, ValueError):
    """A call with a value outside its documented range."""


class ConfigError(Error, ValueError):
    """config.json or an override cannot be resolved with certainty."""


class ExpressionError(Error, ValueError):
    """An expression does not parse, type-check or stay within its limits."""


class Unsupported(Error, NotImplementedError):
    """Understood, but no backend here can compute it."""


class DeviceError(Error, RuntimeError):
    """A device, driver or run-time tool failed."""


class IoError(Error, OSError):
    """A file cannot be read or written."""


class InternalError(Error, RuntimeError):
    """A defect of this library."""


__all__ = [
    "ConfigError",
    "DeviceError",
    "Error",
    "ExpressionError",
    "InternalError",
    "InvalidArgument",
    "IoError",
    "Unsupported",
]
