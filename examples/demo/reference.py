"""transformers as the witness: the same weights, the activation written by hand, no flexact.

Also the other host: where SGLang cannot be installed, the model runs here with flexact's experts
implementation (`with_flexact`).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

BATCH = 4
HISTOGRAM = (-6.0, 6.0, 96)  # of the gate's values: from, to, bins


class ByHand(nn.Module):
    """An activation written out in torch, which also counts the values that it sees."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        low, high, bins = HISTOGRAM
        self.histogram = torch.zeros(bins)
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.histogram += torch.histc(x.detach().float(), len(self.histogram), self.low, self.high)
        return self.function(x)


class Model:
    """The model in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="eager"
        ).eval()

    def use(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ByHand:
        """Puts a hand-written activation into every layer's experts."""
        activation = ByHand(function)
        for layer in self.model.model.layers:
            layer.mlp.experts.act_fn = activation
        return activation

    @contextlib.contextmanager
    def with_flexact(self, folder: Path, override: dict | None = None) -> Iterator[None]:
        """Every layer's experts through flexact, as config.json and the override say."""
        import flexact.transformers

        config = AutoConfig.from_pretrained(folder)
        for key, value in (override or {}).items():
            setattr(config, key, value)
        byhand = self.model
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, experts_implementation="flexact"
        ).eval()
        flexact.transformers.convert(self.model)
        try:
            yield
        finally:
            self.model = byhand

    @torch.no_grad()
    def log_probabilities(
        self, windows: list[list[int]], progress: Callable[[int], None]
    ) -> list[list[float]]:
        """log p of every token but the first of each window [W][L] → [W][L - 1]."""
        out: list[list[float]] = []
        for first in range(0, len(windows), BATCH):
            ids = torch.tensor(windows[first : first + BATCH])
            logits = self.model(ids[:, :-1], use_cache=False).logits
            chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
            out += chosen.tolist()
            progress(len(out))
        return out

    @torch.no_grad()
    def texts(self, prompts: list[str], count: int) -> list[str]:
        """A continuation of each prompt."""
        torch.manual_seed(7)
        out = []
        for prompt in prompts:
            ids = self.tokenizer(prompt, return_tensors="pt")
            answer = self.model.generate(
                **ids, max_new_tokens=count, do_sample=True, temperature=0.7, top_k=40
            )
            out.append(self.tokenizer.decode(answer[0, ids.input_ids.shape[1] :], skip_special_tokens=True))
        return out
