"""The Triton backend: kernels and their launches. What is launched how is decided in the core.

`Block` is one problem and function on one device; `flexact.fused_moe` and `flexact.moe.plan` use it for
CUDA tensors.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`flexact.triton.triton_moe_forward`, loaded when it is asked for."""
    if name == "triton_moe_forward":
        from flexact.triton.forward import triton_moe_forward

        return triton_moe_forward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
