"""What transformers computes with an activation written out by hand, for the tokens an engine saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Activation = Callable[[torch.Tensor], torch.Tensor]


class Handwritten(torch.nn.Module):
    """A module around a function, in the place of transformers' own activation."""

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def swish(beta: float) -> Activation:
    """x * sigmoid(beta * x), without any library's own activation."""
    return lambda x: x * torch.sigmoid(beta * x)


def load(folder: Path, choose: Callable[[str], Activation] | None = None) -> Any:
    """The model in float32 with its activations replaced.

    Args:
        folder: The checkpoint.
        choose: The activation for the module of this name; None leaves the model as it is.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the loop that calls act_fn
    replaced = 0
    for name, module in model.named_modules():
        if choose is not None and hasattr(module, "act_fn"):
            module.act_fn = Handwritten(choose(name))
            replaced += 1
    assert choose is None or replaced > 0, "no activation was replaced"
    return model


def largest_difference(outputs: list[dict[str, Any]], model: Any) -> float:
    """The largest |log-probability difference| over all prompt and output tokens of `outputs`."""
    worst = 0.0
    for output in outputs:
        ids = output["prompt_ids"] + output["ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        expected = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        actual = torch.tensor(output["prompt_logprobs"] + output["logprobs"], dtype=torch.float64)
        worst = max(worst, (expected - actual).abs().max().item())
    return worst


def greedy(model: Any, prompt_ids: list[int], count: int) -> list[int]:
    """The `count` tokens that the model itself continues with."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt_ids]),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=2,
        )
    return output[0, len(prompt_ids) :].tolist()
