"""The activation of dense and shared MLPs: act_and_mul, and act_and_quantise before FP8 projections.

`torch.ops.flexact.act_and_mul` is the operator beneath: torch.compile traces it, and on a GPU it neither
waits nor allocates anything but its result, so a CUDA graph can hold it.
"""

from __future__ import annotations

import functools
import os
import types
from typing import Any

import torch

from flexact import _core
from flexact._core import Activation, Function
from flexact.activation import require_scopes
from flexact.errors import InvalidArgument, Unsupported
from flexact.formats import quantise_activations
from flexact.moe import Undifferentiable, _function, _say, _table, _wanted
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
    backend: str = "auto",
) -> torch.Tensor:
    """Applies an activation to the output of a (fused gate and) up projection.

    Tensors of float32, bfloat16 and float16 run on the CPU's vector kernels or, on a GPU, on a Triton
    kernel when no gradient is needed; all others run as torch operations printed from the same graph,
    gradients included. A backend that is named computes it, or refuses with the reason.

    Args:
        x: [..., 2I] with gate and up as `pairing` says; [..., I] with pairing "none".
        activation: The activation. A unary f with a gate means f(g) * u.
        pairing: "concat", "up_first", "interleaved" or "none".
        layer: The absolute layer number; needed where values differ by layer.
        out: Where the result goes, [..., I] of x's dtype; not with gradients.
        backend: "auto", "cpu", "triton" or "cutlass", the CUDA kernels, which run where they are named.

    Returns:
        [..., I] in x's dtype.

    Raises:
        InvalidArgument: Shapes, dtypes and pairing contradict each other.
        Unsupported: The backend that is named does not compute it.
    """
    _check(x, pairing)
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    shape = _result_shape(x, pairing)
    if out is not None and (needs_gradient or out.shape != shape or out.dtype != x.dtype):
        raise InvalidArgument(
            f"out is {list(out.shape)} {out.dtype}", hint=f"{list(shape)} {x.dtype}, and no gradients"
        )
    kernels = x.dtype in _KERNEL_DTYPES and (x.is_cpu or (x.is_cuda and _triton() is not None))
    if backend != "auto" and needs_gradient:
        raise Unsupported(f"backend {backend} has no gradients", hint="backend='auto'")
    if backend == "auto" and (needs_gradient or not kernels):
        result = _fitting(activation, pairing)(*_split(x, pairing), layer=layer)
        return result if out is None else out.copy_(result)
    canonical, rows = _described(activation, pairing, layer)
    values = torch.tensor(rows, dtype=torch.float32) if rows[0] else None
    if out is None:
        return torch.ops.flexact.act_and_mul(x, canonical, values, pairing=pairing, backend=backend)
    # Written in place only where no row of x can be overwritten before it is read.
    if out.is_contiguous() and out.device == x.device and not _share_memory(out, x):
        return _launch(x, canonical, values, pairing, out, backend)
    return out.copy_(torch.ops.flexact.act_and_mul(x, canonical, values, pairing=pairing, backend=backend))


def act_and_quantise(
    x: torch.Tensor,
    activation: Activation,
    *,
    format: str = "fp8_block",
    pairing: str = "concat",
    layer: int | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`act_and_mul` with its result quantised to E4M3 from fp32, with no rounding before.

    One Triton kernel for CUDA tensors of float32, bfloat16 and float16; torch operations elsewhere.

    Args:
        x: As for `act_and_mul`, and so are the arguments that are not described here.
        activation: See `act_and_mul`.
        format: "fp8_block", one scale for 128 values of a row, or "fp8_channel", one a row.
        pairing: See `act_and_mul`.
        layer: See `act_and_mul`.
        backend: "auto", "triton" or "cutlass", the CUDA kernels, which run where they are named.

    Returns:
        Codes [..., I] and fp32 scales, [..., ceil(I / 128)] or [...], as
        `flexact.formats.quantise_activations` gives them.

    Raises:
        InvalidArgument: Shapes, dtypes and pairing contradict each other, or x needs a gradient.
        Unsupported: The backend that is named does not compute it.
    """
    _check(x, pairing)
    activation = _fitting(activation, pairing)
    if format not in ("fp8_block", "fp8_channel"):
        raise InvalidArgument(f"format {format!r}", hint="fp8_block or fp8_channel")
    if torch.is_grad_enabled() and x.requires_grad:
        raise InvalidArgument("x needs a gradient, which quantised values have not", hint="x.detach()")
    if backend != "auto":
        _check_backend(backend, x)
        if backend == "cpu":
            raise Unsupported("the backend cpu has no kernel that quantises", hint="auto, triton or cutlass")
    if backend == "cutlass":
        return _quantise_on_gpu(x, activation, format, pairing, layer)
    kernels = _triton() if x.is_cuda and x.dtype in _KERNEL_DTYPES else None
    if kernels is None:
        return quantise_activations(activation(*_split(x.float(), pairing), layer=layer), format)
    rows, values = _rows(x), _values(activation, layer)
    with torch.cuda.device(x.device):
        table = kernels.on_device(values, x.device)
        codes, scales = kernels.dense_fp8.run(activation.function, table, pairing, rows, format)
    leading = x.shape[:-1]
    return codes.view(*leading, codes.shape[-1]), scales.view(*leading, *scales.shape[1:])


def _check(x: torch.Tensor, pairing: str) -> None:
    if pairing not in _PAIRINGS:
        raise InvalidArgument(f"pairing {pairing!r}", hint=", ".join(_PAIRINGS))
    if x.dim() == 0 or (pairing != "none" and x.shape[-1] % 2):
        raise InvalidArgument(f"x is {list(x.shape)}", hint="[..., 2I]; [..., I] with pairing 'none'")


def _check_backend(backend: str, x: torch.Tensor) -> None:
    """Nothing stands in for a backend that was named."""
    _wanted(backend)
    device = _core.backend_device(backend)
    if x.device.type != device:
        raise Unsupported(
            f"backend {backend} computes {device} tensors, and x is on {x.device}", hint="the other device"
        )
    if x.dtype not in _KERNEL_DTYPES:
        raise Unsupported(
            f"act_and_mul has no kernel for {x.dtype}", hint=", ".join(map(str, _KERNEL_DTYPES))
        )
    if backend == "triton" and _triton() is None:
        raise Unsupported("act_and_mul on a GPU needs Triton", hint="pip install triton")


def _fitting(activation: Activation, pairing: str) -> Activation:
    """The activation as the pairing needs it."""
    if pairing == "none" and activation.function.is_gated:
        raise InvalidArgument(f"{activation.function.name} needs a gate", hint="a pairing other than 'none'")
    return activation if pairing == "none" else activation.gated()


@torch.compiler.assume_constant_result
def _described(activation: Activation, pairing: str, layer: int | None) -> tuple[str, list[list[float]]]:
    """The function's canonical string, and the parameters' values in its order."""
    activation = _fitting(activation, pairing)
    return activation.function.canonical, _values(activation, layer).tolist()


def _result_shape(x: torch.Tensor, pairing: str) -> tuple[int, ...]:
    return (*x.shape[:-1], x.shape[-1] if pairing == "none" else x.shape[-1] // 2)


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


@functools.lru_cache(maxsize=1024)
def _named(canonical: str, pairing: str) -> Function:
    function = _function(canonical)
    if pairing == "none" and function.is_gated:
        raise InvalidArgument(f"{function.name} needs a gate", hint="a pairing other than 'none'")
    return function if pairing == "none" else function.gated()


@functools.lru_cache(maxsize=1024)
def _plan(function: Function, pairing: str, dtype: torch.dtype, result: str, numerics: str | None) -> Any:
    """The CUDA kernels with the function linked in. `numerics` is read by the core; here it is a key."""
    plan = _core.plan_dense("cutlass", function, pairing=pairing, dtype=_KERNEL_DTYPES[dtype], result=result)
    _say(plan.describe())
    return plan


def _run_on_gpu(
    function: Function,
    values: torch.Tensor,
    pairing: str,
    rows: torch.Tensor,
    out: torch.Tensor,
    result: str = "",
    scales: torch.Tensor | None = None,
) -> None:
    """Launches the CUDA kernel on the current stream; rows and out are matrices."""
    plan = _plan(function, pairing, rows.dtype, result, os.environ.get("FLEXACT_NUMERICS"))
    strides = (0, 0) if scales is None else (*scales.stride(), 0)[:2]
    plan.run(
        x=rows.data_ptr(),
        x_stride=rows.stride(0),
        out=out.data_ptr(),
        out_stride=out.stride(0),
        rows=out.shape[0],
        intermediate=out.shape[1],
        scales=0 if scales is None else scales.data_ptr(),
        scale_row_stride=strides[0],
        scale_group_stride=strides[1],
        values=values.data_ptr(),
        value_columns=values.shape[1],
        stream=torch.cuda.current_stream(rows.device).cuda_stream,
    )


def _values_on_device(values: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    if values is None:
        return torch.empty((1, 0), dtype=torch.float32, device=device)
    if values.is_cuda:
        return values.to(dtype=torch.float32).contiguous()
    # Copied once for a set of values, so that a captured call copies nothing.
    return _uploaded(tuple(values.flatten().tolist()), device)


@functools.lru_cache(maxsize=1024)
def _uploaded(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32, device=device)


def _quantise_on_gpu(
    x: torch.Tensor, activation: Activation, format: str, pairing: str, layer: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = _rows(x), _result_shape(x, pairing)[-1]
    codes = torch.empty((rows.shape[0], width), dtype=torch.float8_e4m3fn, device=x.device)
    groups = -(-width // 128)
    shape = (rows.shape[0], groups) if format == "fp8_block" else (rows.shape[0],)
    scales = torch.empty(shape, dtype=torch.float32, device=x.device)
    values = _values_on_device(_values(activation, layer), x.device)
    _run_on_gpu(activation.function, values, pairing, rows, codes, format, scales)
    leading = x.shape[:-1]
    return codes.view(*leading, width), scales.view(*leading, *scales.shape[1:])


def _launch(
    x: torch.Tensor,
    canonical: str,
    values: torch.Tensor | None,
    pairing: str,
    out: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """Computes into `out`, which is contiguous and shares no memory with x."""
    if backend != "auto":
        _check_backend(backend, x)
    if x.dtype not in _KERNEL_DTYPES:
        raise Unsupported(
            f"act_and_mul has no kernel for {x.dtype}", hint=", ".join(map(str, _KERNEL_DTYPES))
        )
    function = _named(canonical, pairing)
    rows, width = _rows(x), out.shape[-1]
    if backend == "cutlass":
        table = _table(function, values) if values is None or not values.is_cuda else values
        _run_on_gpu(function, _values_on_device(table, x.device), pairing, rows, out.view(-1, width))
        return out
    if x.is_cuda:
        kernels = _triton()
        if kernels is None:
            raise Unsupported("act_and_mul on a GPU needs Triton", hint="pip install triton")
        with torch.cuda.device(x.device):
            table = kernels.on_device(torch.empty((1, 0)) if values is None else values, x.device)
            kernels.dense.run(function, table, pairing, rows, out.view(-1, width))
        return out
    table = _table(function, values)
    _core.act_and_mul(
        function,
        table.data_ptr(),
        *table.shape,
        pairing,
        _KERNEL_DTYPES[x.dtype],
        rows.shape[0],
        width,
        rows.data_ptr(),
        rows.stride(0),
        out.data_ptr(),
        width,
    )
    return out


# --- The operator ---------------------------------------------------------------------------------

_library = torch.library.Library("flexact", "FRAGMENT")
_library.define(
    "act_and_mul(Tensor x, str activation, Tensor? activation_values=None, *, str pairing='concat', "
    "str backend='auto') -> Tensor"
)


def _act_and_mul(
    x: torch.Tensor,
    activation: str,
    activation_values: torch.Tensor | None = None,
    *,
    pairing: str = "concat",
    backend: str = "auto",
) -> torch.Tensor:
    _check(x, pairing)
    out = torch.empty(_result_shape(x, pairing), dtype=x.dtype, device=x.device)
    return _launch(x, activation, activation_values, pairing, out, backend)


_library.impl("act_and_mul", _act_and_mul, "CPU")
_library.impl("act_and_mul", _act_and_mul, "CUDA")


@torch.library.register_fake("flexact::act_and_mul", lib=_library)
def _act_and_mul_meta(
    x: torch.Tensor,
    activation: str,
    activation_values: torch.Tensor | None = None,
    *,
    pairing: str = "concat",
    backend: str = "auto",
) -> torch.Tensor:
    _check(x, pairing)
    return x.new_empty(_result_shape(x, pairing))


@torch.library.impl(_library, "act_and_mul", "Autograd")
def _act_and_mul_autograd(*args: Any, **kwargs: Any) -> torch.Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        result = torch.ops.flexact.act_and_mul(*args, **kwargs)
    tracked = [each for each in args if isinstance(each, torch.Tensor) and each.requires_grad]
    if tracked and torch.is_grad_enabled():
        return Undifferentiable.apply(result, "act_and_mul", *tracked)
    return result


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
