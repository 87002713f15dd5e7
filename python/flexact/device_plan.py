"""Plans of C++ backends that read the caller's weights where they are and launch on a stream."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flexact import _core
from flexact._core import Function, MoeProblem
from flexact.errors import Unsupported
from flexact.formats import FP4_FORMATS
from flexact.layer_plan import CorePlan, tensor_view

__all__ = ["DevicePlan"]


class DevicePlan(CorePlan):
    """A layer made ready on one device. A call runs on torch's current stream and waits for nothing.

    Scratch memory comes from torch's allocator at each call, so calls may be captured in a CUDA graph.

    Attributes:
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
        super().__init__(core, problem, function, values, device)
        # The scales of FP4 weights are put in an order of their own (docs/cuda.md).
        self.copied = ("w13_scale", "w2_scale") if problem.format in FP4_FORMATS else ()
        self._kept = tuple(each for name, each in (kept or {}).items() if name not in self.copied)

    def _launch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
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

    def reserve(self, tokens: int, id_dtypes: tuple[torch.dtype, ...] = ()) -> None:
        """Lets torch's allocator grow to what a call of `tokens` tokens takes; ids may have any type."""
        self._scratch(tokens)

    def unpack(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Refused: the weights are the caller's own, as they were given."""
        raise Unsupported("this plan packs nothing", hint="the tensors that it was made from")

    def launch_of(self, tokens: int) -> str:
        """How a call is launched, in words: decided by the core for each call."""
        return self._core.describe()

    def _scratch(self, tokens: int) -> torch.Tensor:
        # One element more, so that there is an address where nothing is needed.
        size = self._core.workspace_bytes(tokens) + 1
        return torch.empty(size, dtype=torch.uint8, device=self._device)
