"""Compiles the kernels of several launches at the same time, before the first of them is started.

Most of the time of a compilation is spent in LLVM and in the assembler, which need no interpreter lock, so
threads do: what a plan needs is ready after the longest of its kernels and not after their sum. Each kernel
is compiled once, however many launches, functions and threads need it: one thread at a time has something
compiled, others wait and find it done.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

from flexact.triton.functions import compilation_cache, compilation_lock


@contextlib.contextmanager
def only_compiling() -> Iterator[dict[str, Any]]:
    """What this thread launches meanwhile is compiled and not launched; other threads launch as ever.

    Yields the compiled kernels by name, filled as they are made.
    """
    kernels: dict[str, Any] = {}
    thread = threading.get_ident()
    with compilation_lock:
        run = JITFunction.run

        def compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            if threading.get_ident() != thread:
                return run(self, *arguments, grid=grid, warmup=warmup, **options)
            kernels[self.__name__] = run(self, *arguments, grid=grid, warmup=True, **options)
            return kernels[self.__name__]

        JITFunction.run = compiled
        try:
            yield kernels
        finally:
            JITFunction.run = run


class _Compilers(ThreadPoolExecutor):
    """Threads that compile a kernel each and, on a GPU, load it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(len(os.sched_getaffinity(0)), "flexact-compile")
        self._device = device
        self.futures: list[Future[Any]] = []

    def submit(self, compile: Callable[[], Any]) -> Future[Any]:  # type: ignore[override]
        self.futures.append(super().submit(self._compile, compile))
        return self.futures[-1]

    def _compile(self, compile: Callable[[], Any]) -> Any:
        kernel = compile()
        if self._device.type == "cuda":
            # Some of Triton's versions build a launcher for each kernel with the C compiler. What cannot
            # be loaded says so when it is launched.
            with contextlib.suppress(Exception), torch.cuda.device(self._device):
                kernel.run  # noqa: B018
        return kernel


@contextlib.contextmanager
def compiled_together(device: torch.device) -> Iterator[None]:
    """What this thread would launch meanwhile is compiled for `device`, all of it at the same time.

    Raises what the first kernel that does not compile raises.
    """
    with compilation_cache(False), only_compiling(), _Compilers(device) as compilers:
        # Errors are not left to Triton, which would stay in this mode.
        with AsyncCompileMode(compilers, ignore_errors=True):
            yield
        for future in compilers.futures:
            future.result()
