"""The activation of dense and shared MLPs: act_and_mul, and act_and_quantise before FP8 projections."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch

from flexact import _core
from flexact._core import Activation
from flexact.activation import require_scopes
from flexact.errors import InvalidArgument
from flexact.formats import quantise_activations
from flexact.moe import activation_values as values_of_layer

__all__ = ["act_and_mul", "act_and_quantise"]

_KERNEL_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_PAIRINGS = ("concat", "up_first", "interleaved", "none")


def act_and_mul(
    x: torch.Tensor,
    activation: Activation,
    *,
    pairing: str = "concat",
    layer: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Applies an activation to the output of a (fused gate and) up projection.

    Tensors of float32, bfloat16 and float16 run on the CPU's vector kernels or, on a GPU, on a Triton
    kernel when no gradient is needed; all others run as torch operations printed from the same graph,
    gradients included.

    Args:
        x: [..., 2I] with gate and up as `pairing` says; [..., I] with pairing "none".
        activation: The activation. A unary f with a gate means f(g) * u.
        pairing: "concat", "up_first", "interleaved" or "none".
        layer: The absolute layer number; needed where values differ by layer.
        out: Where the result goes, [..., I] of x's dtype; not with gradients.

    Returns:
        [..., I] in x's dtype.

    Raises:
        InvalidArgument: Shapes, dtypes and pairing contradict each other.
    """
    activation = _checked(x, activation, pairing)
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    shape = (*x.shape[:-1], x.shape[-1] if pairing == "none" else x.shape[-1] // 2)
    if out is not None and (needs_gradient or out.shape != shape or out.dtype != x.dtype):
        raise InvalidArgument(
            f"out is {list(out.shape)} {out.dtype}", hint=f"{list(shape)} {x.dtype}, and no gradients"
        )
    kernels = x.dtype in _KERNEL_DTYPES and (x.is_cpu or (x.is_cuda and _triton() is not None))
    if needs_gradient or not kernels:
        result = activation(*_split(x, pairing), layer=layer)
        return result if out is None else out.copy_(result)
    return _run(x, activation, pairing, layer, out)


def act_and_quantise(
    x: torch.Tensor,
    activation: Activation,
    *,
    format: str = "fp8_block",
    pairing: str = "concat",
    layer: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`act_and_mul` with its result quantised to E4M3 from fp32, with no rounding before.

    One Triton kernel for CUDA tensors of float32, bfloat16 and float16; torch operations elsewhere.

    Args:
        x: As for `act_and_mul`, and so are the arguments that are not described here.
        activation: See `act_and_mul`.
        format: "fp8_block", one scale for 128 values of a row, or "fp8_channel", one a row.
        pairing: See `act_and_mul`.
        layer: See `act_and_mul`.

    Returns:
        Codes [..., I] and fp32 scales, [..., ceil(I / 128)] or [...], as
        `flexact.formats.quantise_activations` gives them.

    Raises:
        InvalidArgument: Shapes, dtypes and pairing contradict each other, or x needs a gradient.
    """
    activation = _checked(x, activation, pairing)
    if format not in ("fp8_block", "fp8_channel"):
        raise InvalidArgument(f"format {format!r}", hint="fp8_block or fp8_channel")
    if torch.is_grad_enabled() and x.requires_grad:
        raise InvalidArgument("x needs a gradient, which quantised values have not", hint="x.detach()")
    kernels = _triton() if x.is_cuda and x.dtype in _KERNEL_DTYPES else None
    if kernels is None:
        return quantise_activations(activation(*_split(x.float(), pairing), layer=layer), format)
    rows, values = _rows(x), _values(activation, layer)
    with torch.cuda.device(x.device):
        table = kernels.on_device(values, x.device)
        codes, scales = kernels.dense_fp8.run(activation.function, table, pairing, rows, format)
    leading = x.shape[:-1]
    return codes.view(*leading, codes.shape[-1]), scales.view(*leading, *scales.shape[1:])


def _checked(x: torch.Tensor, activation: Activation, pairing: str) -> Activation:
    """The activation as the pairing needs it."""
    if pairing not in _PAIRINGS:
        raise InvalidArgument(f"pairing {pairing!r}", hint=", ".join(_PAIRINGS))
    if x.dim() == 0 or (pairing != "none" and x.shape[-1] % 2):
        raise InvalidArgument(f"x is {list(x.shape)}", hint="[..., 2I]; [..., I] with pairing 'none'")
    if pairing == "none" and activation.function.is_gated:
        raise InvalidArgument(f"{activation.function.name} needs a gate", hint="a pairing other than 'none'")
    return activation if pairing == "none" else activation.gated()


def _rows(x: torch.Tensor) -> torch.Tensor:
    """X as a matrix whose rows are contiguous."""
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty((0, 0))
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _values(activation: Activation, layer: int | None) -> torch.Tensor:
    require_scopes(
        activation, {} if layer is None else {"per_layer": layer}, "pass layer=…; a dense MLP has no experts"
    )
    return values_of_layer(activation, layer=layer or 0)


def _split(x: torch.Tensor, pairing: str) -> tuple[torch.Tensor, ...]:
    if pairing == "none":
        return (x,)
    if pairing == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return (first, second) if pairing == "concat" else (second, first)


def _run(
    x: torch.Tensor, activation: Activation, pairing: str, layer: int | None, out: torch.Tensor | None
) -> torch.Tensor:
    width = x.shape[-1] if pairing == "none" else x.shape[-1] // 2
    rows, values = _rows(x), _values(activation, layer)
    # Written in place only where no row of x can be overwritten before it is read.
    direct = out is not None and out.is_contiguous() and out.device == x.device and not _share_memory(out, x)
    result = out if direct else torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    if not x.is_cpu:
        kernels = _triton()
        with torch.cuda.device(x.device):
            table = kernels.on_device(values, x.device)
            kernels.dense.run(activation.function, table, pairing, rows, result.view(-1, width))
        return result if out is None or direct else out.copy_(result)
    _core.act_and_mul(
        activation.function,
        values.data_ptr(),
        *values.shape,
        pairing,
        _KERNEL_DTYPES[x.dtype],
        rows.shape[0],
        width,
        rows.data_ptr(),
        rows.stride(0),
        result.data_ptr(),
        width,
    )
    return result if out is None or direct else out.copy_(result)


@functools.lru_cache(maxsize=1)
def _triton() -> Any:
    """The Triton backend's Python side; None where the package triton is absent."""
    try:
        from flexact.triton import dense, dense_fp8, plan
    except ImportError:
        return None
    return types.SimpleNamespace(dense=dense, dense_fp8=dense_fp8, on_device=plan.on_device)


def _share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata
