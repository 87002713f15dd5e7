"""What every plan of a layer is: one way to call it, whichever backend computes, and its checks."""

from __future__ import annotations

import abc

import torch

from flexact import _core
from flexact._core import Function, MoeProblem
from flexact.errors import InvalidArgument

__all__ = ["CorePlan", "LayerPlan", "output_shape", "tensor_view"]

_DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "float8_e4m3",
    torch.uint8: "uint8",
    torch.int32: "int32",
    torch.int64: "int64",
}


class LayerPlan(abc.ABC):
    """A layer made ready.

    Attributes:
        problem: What is computed.
        function: The activation's function.
    """

    problem: MoeProblem
    function: Function

    def run(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        *,
        activation_values: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the block, on a GPU on torch's current stream.

        Args:
            hidden_states: [M, H] in the problem's io dtype.
            topk_weights: [M, k], float32.
            topk_ids: [M, k], int32 or int64.
            activation_values: Values in place of the plan's own, [E or 1, P] float32.
            out: Where the result goes: contiguous, [M, H] or [M, k, H] without combine. It must not
                overlap hidden_states.

        Returns:
            `out`, or a new tensor.
        """
        return self._run(hidden_states, topk_weights, topk_ids, activation_values, out)

    @abc.abstractmethod
    def _run(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor: ...

    @abc.abstractmethod
    def reserve(self, tokens: int) -> None:
        """Does what a first call of up to `tokens` tokens would do before it computes."""

    @abc.abstractmethod
    def workspace_bytes(self, tokens: int) -> int:
        """Scratch bytes that `run` uses for up to `tokens` tokens, on a GPU out of torch's allocator."""

    @property
    @abc.abstractmethod
    def resident_bytes(self) -> int:
        """Bytes that this plan owns."""

    @abc.abstractmethod
    def describe(self) -> str:
        """One line: backend, kernel, tile, function."""


class CorePlan(LayerPlan):
    """A plan of one of the core's backends, whose calls have their tensors on one device."""

    def __init__(
        self,
        core: _core.Plan,
        problem: MoeProblem,
        function: Function,
        values: torch.Tensor,
        device: torch.device,
    ) -> None:
        self._core = core
        self._device = device
        self._dtype: torch.dtype = getattr(torch, problem.io_dtype)
        self._values = self._on_device(values)
        self.problem = problem
        self.function = function

    def _run(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        values = self._values if values is None else self._on_device(values)
        given = {"hidden_states": hidden_states, "topk_weights": topk_weights, "topk_ids": topk_ids}
        for name, tensor in given.items():
            if tensor.device != self._device:
                raise InvalidArgument(f"{name} is on {tensor.device}", hint=f"on {self._device}")
            if tensor.dim() != 2:
                raise InvalidArgument("hidden_states, topk_weights and topk_ids are matrices")
        if hidden_states.stride(1) != 1:
            hidden_states = hidden_states.contiguous()
        shape = output_shape(hidden_states, topk_ids, self.problem.combine)
        if out is None:
            out = torch.empty(shape, dtype=self._dtype, device=self._device)
        elif (
            out.shape != shape
            or out.dtype != self._dtype
            or not out.is_contiguous()
            or out.device != self._device
        ):
            raise InvalidArgument(
                f"out is {list(out.shape)} {out.dtype} on {out.device}",
                hint=f"a contiguous {list(shape)} {self._dtype} tensor on {self._device}",
            )
        self._launch(hidden_states, topk_weights, topk_ids, values, out)
        return out

    @abc.abstractmethod
    def _launch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Computes into `out`; everything is checked but for the types and sizes that the core checks."""

    def workspace_bytes(self, tokens: int) -> int:
        """See `LayerPlan`."""
        return self._core.workspace_bytes(tokens)

    @property
    def resident_bytes(self) -> int:
        """Bytes that this plan owns: packed weights, or copies of biases and of FP4 weights' scales."""
        return self._core.resident_bytes()

    def describe(self) -> str:
        """See `LayerPlan`."""
        return self._core.describe()

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        if values.dim() != 2:
            raise InvalidArgument(f"activation_values is {list(values.shape)}", hint="[E or 1, P]")
        if values.device != self._device and values.device.type != "cpu":
            raise InvalidArgument(
                f"activation_values is on {values.device}", hint=f"on {self._device} or the CPU"
            )
        return values.to(device=self._device, dtype=torch.float32).contiguous()


def output_shape(hidden_states: torch.Tensor, topk_ids: torch.Tensor, combine: bool) -> torch.Size:
    """[M, H], or [M, k, H] without combine."""
    tokens, hidden = hidden_states.shape
    return torch.Size((tokens, hidden) if combine else (tokens, topk_ids.shape[1], hidden))


def tensor_view(tensor: torch.Tensor) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
    """A tensor as the core takes it: address, dtype, shape, strides."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgument(f"a tensor of {tensor.dtype}", hint=", ".join(_DTYPES.values()))
    return tensor.data_ptr(), dtype, tuple(tensor.shape), tensor.stride()
