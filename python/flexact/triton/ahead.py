"""Compiles kernels for a GPU that this process does not touch: in parallel, and beside a measurement.

Within `only_compiling` a launch puts its kernel into Triton's cache and launches nothing. Tensors lie on the
CPU: what a kernel is compiled for are their types, alignments and strides.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from flexact._core import Function, MoeProblem
from flexact.triton import moe
from flexact.triton.compiling import only_compiling

# A call: its problem's fields, its function's canonical text, its device (moe.device_facts), its tokens.
Call = tuple[dict[str, Any], str, tuple[str, tuple[int, int], int, int], int]


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


@functools.lru_cache(maxsize=1)
def _memory(elements: int) -> torch.Tensor:
    """Memory that nobody reads or writes takes none."""
    return torch.empty(elements, dtype=torch.bfloat16)


def _compile_call(call: Call) -> str:
    fields, canonical, (name, capability, multiprocessors, shared), tokens = call
    try:
        problem, function = MoeProblem(**fields), Function.from_canonical(canonical)
        block = moe.Block(
            problem,
            function,
            torch.device("cpu"),
            moe.launch_table(name, capability, multiprocessors),
            (multiprocessors, shared),
        )
        experts, hidden, inner = problem.experts, problem.hidden, problem.intermediate
        rows = inner * (1 if problem.pairing == "none" else 2)
        memory = _memory(experts * rows * hidden)
        weights = {
            "w13": memory.view(experts, rows, hidden),
            "w2": memory[: experts * hidden * inner].view(experts, hidden, inner),
        }
        x = torch.empty(tokens, hidden, dtype=torch.bfloat16)
        scale = torch.empty(tokens, problem.top_k)
        ids = torch.empty(tokens, problem.top_k, dtype=torch.int32)
        values = torch.empty(1, len(function.parameters))
        with only_compiling():
            block.run(x, weights, scale, ids, values, torch.empty_like(x))
    except Exception as error:
        return f"{function.name} at {tokens} tokens: {type(error).__name__} {str(error)[:200]}"
    return ""


def compile_calls(calls: Iterable[Call], workers: int) -> list[str]:
    """Compiles what calls on bf16 weights need, into Triton's cache; returns what went wrong."""
    calls = list(calls)
    major, minor = calls[0][2][1]
    with multiprocessing.get_context("spawn").Pool(workers, compile_for, (10 * major + minor,)) as pool:
        return [failed for failed in pool.imap_unordered(_compile_call, calls, chunksize=1) if failed]
