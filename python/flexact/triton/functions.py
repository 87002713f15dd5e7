"""The core's printed functions as Triton JIT functions.

Triton reads the source of what it compiles from a file, so each function's text is written once, under
FLEXACT_CACHE_DIR, to a file named by its fingerprint. Triton's own cache then goes by the text.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triton import knobs

from flexact._core import Function

# Held by the thread that compiles, or makes a function: where Triton caches is a setting of the process.
compilation_lock = threading.RLock()


def cache_folder() -> Path:
    """Where this package keeps what it can make again: FLEXACT_CACHE_DIR, else ~/.cache/flexact."""
    root = os.environ.get("FLEXACT_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "flexact"
    )
    return Path(root) / "triton"


def jit_function(function: Function) -> Any:
    """`flexact_act(g, u, p0, …)` or `(x, p0, …)` as a JIT function on fp32 blocks: one for each function."""
    with compilation_lock:
        return _jit_function(function)


@functools.lru_cache(maxsize=1024)
def _jit_function(function: Function) -> Any:
    text = function.emit("triton")
    name = f"flexact_function_{function.fingerprint}"
    path = cache_folder() / "functions" / f"{name}.py"
    if not path.is_file() or path.read_text() != text:
        _write(path, text)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.flexact_act


def _write(path: Path, text: str) -> None:
    """Atomically: other processes may read or write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp") as file:
        file.write(text)
    os.replace(file.name, path)


@contextlib.contextmanager
def compilation_cache(compiled: bool) -> Iterator[None]:
    """What is compiled meanwhile is cached under FLEXACT_CACHE_DIR, where that is set, and nothing else is.

    One thread at a time compiles.

    Args:
        compiled: Nothing will be compiled, so there is nothing to do.
    """
    if compiled:
        yield
        return
    with compilation_lock:
        if not os.environ.get("FLEXACT_CACHE_DIR"):
            yield
            return
        before = knobs.cache.dir
        knobs.cache.dir = str(cache_folder() / "compiled")
        try:
            yield
        finally:
            knobs.cache.dir = before
