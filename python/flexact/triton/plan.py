"""Plans and single calls on top of `Block`: checks, values on the device, results."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import torch

from flexact import _core
from flexact._core import Function, MoeProblem
from flexact.errors import InvalidArgument, Unsupported
from flexact.layer_plan import LayerPlan, tensor_view
from flexact.triton.moe import Block, interpreted

__all__ = ["TritonPlan", "block", "check_device", "run"]


# The most tokens that was reserved for, by block, rows of values, tensors given and types of ids.
_reserved: dict[Any, int] = {}


class TritonPlan(LayerPlan):
    """A layer made ready. The weights stay where they are: this plan refers to the caller's tensors."""

    def __init__(
        self,
        problem: MoeProblem,
        function: Function,
        weights: Mapping[str, torch.Tensor],
        values: torch.Tensor,
    ) -> None:
        self.problem = problem
        self.function = function
        self._weights = dict(weights)
        self._device = check_device(self._weights)
        check_weights(problem, self._weights)
        self._values = on_device(values, self._device)
        self._block = block(problem, function, self._device)

    def _run(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        table = self._values if values is None else on_device(values, self._device)
        return run(self._block, hidden_states, self._weights, topk_weights, topk_ids, table, out)

    def warm_up(self, tokens: int, id_dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64)) -> int:
        """Compiles all that calls of up to `tokens` tokens can need, before a graph is captured."""
        return self._block.warm_up(self._weights, self._values, tokens, id_dtypes)

    def reserve(self, tokens: int, id_dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64)) -> None:
        """Does what a first call of `tokens` tokens would do: compiles, and lets torch's allocator grow.

        Layers that agree in problem and function share their kernels, so only the first of them has
        anything to do.
        """
        done = (self._block, self._values.shape[0], frozenset(self._weights), id_dtypes)
        if _reserved.get(done, 0) < tokens:
            self.warm_up(tokens, id_dtypes)
            _reserved[done] = tokens

    def workspace_bytes(self, tokens: int) -> int:
        """See `LayerPlan`."""
        return self._block.workspace_bytes(tokens)

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights that this plan owns: none, it reads the caller's."""
        return 0

    def launch_of(self, tokens: int) -> str:
        """How a call of so many tokens is launched, in words."""
        return self._block.describe_launch(tokens)

    def describe(self) -> str:
        """One line: backend, format, function."""
        return self._block.describe()


def run(
    compiled: Block,
    hidden_states: torch.Tensor,
    weights: dict[str, torch.Tensor],
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Checks what belongs to the call, and runs it."""
    problem = compiled.problem
    device = check_device(
        {"hidden_states": hidden_states, "topk_weights": topk_weights, "topk_ids": topk_ids, **weights}
    )
    tokens = hidden_states.shape[0]
    expected = (
        ("hidden_states", hidden_states, (tokens, problem.hidden), (problem.io_dtype,)),
        ("topk_weights", topk_weights, (tokens, problem.top_k), ("float32",)),
        ("topk_ids", topk_ids, (tokens, problem.top_k), ("int32", "int64")),
    )
    for name, tensor, shape, dtypes in expected:
        if tuple(tensor.shape) != shape or _name(tensor.dtype) not in dtypes:
            raise InvalidArgument(
                f"{list(tensor.shape)} {_name(tensor.dtype)}", name, f"{list(shape)} {' or '.join(dtypes)}"
            )
    columns = len(compiled.function.parameters)
    if (
        values.dim() != 2
        or values.shape[1] != columns
        or (columns and values.shape[0] not in (1, problem.experts))
    ):
        raise InvalidArgument(
            f"{list(values.shape)}", "activation_values", f"[1 or {problem.experts}, {columns}]"
        )
    shape = (tokens, problem.hidden) if problem.combine else (tokens, problem.top_k, problem.hidden)
    if out is None:
        out = torch.empty(shape, dtype=hidden_states.dtype, device=device)
    elif (
        tuple(out.shape) != shape
        or out.dtype != hidden_states.dtype
        or not out.is_contiguous()
        or out.device != hidden_states.device
    ):
        raise InvalidArgument(
            f"out is {list(out.shape)} {out.dtype} on {out.device}",
            hint=f"a contiguous {list(shape)} {hidden_states.dtype} tensor on {device}",
        )
    return compiled.run(hidden_states, weights, topk_weights, topk_ids, values, out)


@functools.lru_cache(maxsize=4096)
def _block(fields: tuple[object, ...], canonical: str, device: str, numerics: str | None) -> Block:
    problem = MoeProblem(**dict(zip(_FIELDS, fields, strict=True)))
    return Block(problem, Function.from_canonical(canonical), torch.device(device))


_FIELDS = (
    "experts", "top_k", "hidden", "intermediate", "format", "io_dtype", "pairing", "bias13", "bias2",
    "router_weight_on_input", "combine", "routed_scaling_factor",
)  # fmt: skip


def block(problem: MoeProblem, function: Function, device: torch.device) -> Block:
    """The `Block` of a problem; layers that agree in it share one."""
    fields = tuple(getattr(problem, name) for name in _FIELDS)
    return _block(fields, function.canonical, str(device), os.environ.get("FLEXACT_NUMERICS"))


def check_device(tensors: Mapping[str, torch.Tensor]) -> torch.device:
    """The device that all of them are on, one that Triton computes on."""
    name, first = next(iter(tensors.items()))
    device = first.device
    for other, tensor in tensors.items():
        if tensor.device != device:
            raise InvalidArgument(
                f"{other} is on {tensor.device}, {name} on {device}", hint="all tensors on one device"
            )
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        raise Unsupported(
            f"the Triton kernels do not run on {device.type} tensors",
            hint="CUDA tensors; on the CPU: backend 'cpu'",
        )
    return device


@functools.lru_cache(maxsize=4096)
def _uploaded(rows: tuple[float, ...], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(shape).to(device)


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A parameter table where the kernels read it. A table on the host is copied once, then remembered."""
    if values.device == device:
        return values.to(torch.float32).contiguous()
    if values.device.type != "cpu":
        raise InvalidArgument(f"activation_values is on {values.device}", hint=f"on {device} or the CPU")
    rows = values.to(torch.float32).reshape(-1).tolist()
    return _uploaded(tuple(rows), tuple(values.shape), device)


def check_weights(problem: MoeProblem, weights: Mapping[str, torch.Tensor]) -> None:
    """Raises InvalidArgument where weights or scales contradict the problem."""
    for name, tensor in weights.items():
        # Two values to a byte, eight to a word: rows that are not contiguous have no such words.
        if tensor.dtype == torch.uint8 and tensor.stride(-1) != 1:
            raise InvalidArgument("the last stride is not 1", name, "rows that are contiguous")
    _core.validate_weights(problem, {name: tensor_view(tensor) for name, tensor in weights.items()})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
