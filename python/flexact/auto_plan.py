"""A layer that two backends have made ready: each call goes to the one that is chosen for its token count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from flexact.backend_choice import Choice
from flexact.layer_plan import LayerPlan

if TYPE_CHECKING:
    from flexact.device_plan import DevicePlan
    from flexact.triton.plan import TritonPlan

__all__ = ["AutoPlan"]


class AutoPlan(LayerPlan):
    """Plans that read the same weights, by backend.

    Which one runs is decided by the number of tokens alone, so a captured graph stays what it was.

    Attributes:
        choice: The backends by token count.
        plans: The plans by backend.
    """

    def __init__(self, choice: Choice, plans: Mapping[str, DevicePlan | TritonPlan]) -> None:
        self.choice = choice
        self.plans = dict(plans)
        first = next(iter(self.plans.values()))
        self.problem = first.problem
        self.function = first.function

    def _run(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        plan = self.plans[self.choice.of(hidden_states.shape[0])]
        return plan.run(hidden_states, topk_weights, topk_ids, activation_values=values, out=out)

    def reserve(self, tokens: int, **options: Any) -> None:
        """Has each backend do what its first call of up to `tokens` tokens would do; see its own plan."""
        for name, plan in self.plans.items():
            if most := self.choice.most(name, tokens):
                plan.reserve(most, **options)

    def workspace_bytes(self, tokens: int) -> int:
        """See `LayerPlan`."""
        return max(plan.workspace_bytes(self.choice.most(name, tokens)) for name, plan in self.plans.items())

    @property
    def resident_bytes(self) -> int:
        """Bytes that the plans own: copies of biases."""
        return sum(plan.resident_bytes for plan in self.plans.values())

    def launch_of(self, tokens: int) -> str:
        """How a call of so many tokens is launched, in words."""
        return self.plans[self.choice.of(tokens)].launch_of(tokens)

    def describe(self) -> str:
        """One line: the choice with its reasons, then each backend's own line."""
        lines = "; ".join(plan.describe() for plan in self.plans.values())
        return f"auto: {self.choice.describe()}: {lines}"
