"""Plans of C++ backends that read the caller's weights where they are and launch on a stream."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flexact import _core
from flexact._core import Function, MoeProblem
from flexact.errors import InvalidArgument, Unsupported
from flexact.formats import FP4_FORMATS

__all__ = ["DevicePlan"]


class DevicePlan:
    """A layer made ready on one device. A call runs on torch's current stream and waits for nothing.

    Scratch memory comes from torch's allocator at each call, so calls may be captured in a CUDA graph.

    Attributes:
        problem: What is computed.
        function: The activation's function.
        copied: Names of the weights that it has copies of: the given ones are not read any more.
    """

    def __init__(
        self,
        core: _core.Plan,
        problem: MoeProblem,
        function: Function,
        values: torch.Tensor,
        device: torch.device,
        kept: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Wraps a plan of the core.

        Args:
            core: The plan.
            problem: What it computes.
            function: The activation's function.
            values: Parameter values [E or 1, P].
            device: Where weights and calls are.
            kept: Weights by name, where nobody else may keep them; those that were copied are let go.
        """
        self._core = core
        self._device = device
        self._dtype = getattr(torch, problem.io_dtype)
        # The scales of FP4 weights are put in an order of their own (docs/cuda.md).
        self.copied = ("w13_scale", "w2_scale") if problem.format in FP4_FORMATS else ()
        self._kept = tuple(each for name, each in (kept or {}).items() if name not in self.copied)
        self._values = self._on_device(values)
        self.problem = problem
        self.function = function

    def run(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        *,
        activation_values: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the block on the current stream; see `flexact.moe.Plan.run`."""
        from flexact.moe import _output_shape, tensor_view

        values = self._values if activation_values is None else self._on_device(activation_values)
        given = {"hidden_states": hidden_states, "topk_weights": topk_weights, "topk_ids": topk_ids}
        for name, tensor in given.items():
            if tensor.device != self._device:
                raise InvalidArgument(f"{name} is on {tensor.device}", hint=f"on {self._device}")
            if tensor.dim() != 2:
                raise InvalidArgument("hidden_states, topk_weights and topk_ids are matrices")
        if hidden_states.stride(1) != 1:
            hidden_states = hidden_states.contiguous()
        shape = _output_shape(hidden_states, topk_ids, self.problem.combine)
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
        workspace = self._scratch(hidden_states.shape[0])
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        self._core.run_on(
            tensor_view(hidden_states),
            tensor_view(topk_weights),
            tensor_view(topk_ids),
            out.data_ptr(),
            values.data_ptr(),
            *values.shape,
            workspace.data_ptr(),
            workspace.numel(),
            stream,
        )
        return out

    def reserve(self, tokens: int, id_dtypes: tuple[torch.dtype, ...] = ()) -> None:
        """Lets torch's allocator grow to what a call of `tokens` tokens takes; ids may have any type."""
        self._scratch(tokens)

    def workspace_bytes(self, tokens: int) -> int:
        """Scratch bytes that `run` takes from torch's allocator for up to `tokens` tokens."""
        return self._core.workspace_bytes(tokens)

    def unpack(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Refused: the weights are the caller's own, as they were given."""
        raise Unsupported("this plan packs nothing", hint="the tensors that it was made from")

    @property
    def resident_bytes(self) -> int:
        """Bytes that this plan owns: copies of biases, and of the scales of FP4 weights."""
        return self._core.resident_bytes()

    def launch_of(self, tokens: int) -> str:
        """How a call is launched, in words: decided by the core for each call."""
        return self._core.describe()

    def describe(self) -> str:
        """One line: backend, kernel, tile, function."""
        return self._core.describe()

    def _scratch(self, tokens: int) -> torch.Tensor:
        # One element more, so that there is an address where nothing is needed.
        size = self._core.workspace_bytes(tokens) + 1
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        if values.dim() != 2:
            raise InvalidArgument(f"activation_values is {list(values.shape)}", hint="[E or 1, P]")
        if values.device != self._device and values.device.type != "cpu":
            raise InvalidArgument(
                f"activation_values is on {values.device}", hint=f"on {self._device} or the CPU"
            )
        return values.to(device=self._device, dtype=torch.float32).contiguous()
