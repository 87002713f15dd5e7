"""Programmatic dependent launch: a kernel is started while the one before it in the stream still runs.

Every kernel of a block calls `begin` first and is launched with `options`. It waits there until the kernel
before it has ended and its results can be seen; what is saved is the time between the end of one kernel and
the first instruction of the next, which with few tokens is a part of the whole. GPUs before sm_90 have no
such launch.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq, current_target

from flexact.triton.numerics import INTERPRETED


@triton.jit
def begin():
    """Waits for the kernel before, then lets the next one be started; nothing is read or written earlier.

    The next kernel waits in turn until this one has ended, and this one ends after the one before: so it may
    read whatever kernels before it wrote.
    """
    if not INTERPRETED:  # noqa: SIM102
        if cuda_capability_geq(9, 0):
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()


@functools.lru_cache(maxsize=64)
def options(device: torch.device) -> dict[str, bool]:
    """What a kernel that calls `begin` is launched with on a device, the one that Triton compiles for."""
    target = None if INTERPRETED else current_target()
    return {"launch_pdl": True} if target and target.backend == "cuda" and target.arch >= 90 else {}
