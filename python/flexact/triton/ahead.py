"""Compiles kernels for a GPU that this process does not touch: in parallel, and beside a measurement.

Within `only_compiling` a launch puts its kernel into Triton's cache and launches nothing. Tensors lie on the
CPU: what a kernel is compiled for are their types, alignments and strides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class Elsewhere:
    """What Triton asks of a driver in order to compile, answered for an NVIDIA GPU of `arch` (90: Hopper)."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        """The GPU."""
        return self._target

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        """The default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie."""
        return torch.device("cpu")


def compile_for(arch: int) -> None:
    """Has this process compile for GPUs of `arch`; it can launch nothing from then on."""
    driver.set_active(Elsewhere(arch))


@contextlib.contextmanager
def only_compiling() -> Iterator[dict[str, Any]]:
    """Yields the compiled kernels by name, filled as they are made."""
    kernels: dict[str, Any] = {}
    run = JITFunction.run

    def compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels[self.__name__] = run(self, *arguments, grid=grid, warmup=True, **options)
        return kernels[self.__name__]

    JITFunction.run = compiled
    try:
        yield kernels
    finally:
        JITFunction.run = run
