"""The environment variables that the plugin reads."""

from __future__ import annotations

import os

from flexact.sglang._stop import stop

_ALLOWED = {
    # auto: SGLang's own kernel where it provably computes the right function, flexact's elsewhere;
    # always: flexact's in every expert layer; off: only SGLang's, and a refusal where it is not right.
    "FLEXACT_MOE": ("auto", "always", "off"),
    "FLEXACT_VERBOSE": ("0", "1", "2"),
    "FLEXACT_BACKEND": ("auto", "cpu", "triton", "cutlass"),
    "FLEXACT_UNTRIED_KERNELS": ("refuse", "run"),
}


def check() -> None:
    """Ends the process where a switch has a value that means nothing."""
    for name, allowed in _ALLOWED.items():
        if value(name) not in allowed:
            stop(f"{name}={os.environ[name]!r} is not one of {', '.join(allowed)}")


def value(name: str) -> str:
    """The switch's value, or its default (the first allowed one)."""
    return os.environ.get(name) or _ALLOWED[name][0]


def verbosity() -> int:
    """0: refusals only; 1: one line per model; 2: one line per layer."""
    return int(value("FLEXACT_VERBOSE"))
