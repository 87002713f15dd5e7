"""A Llama and a Mixtral with an override of beta generate through transformers, the Llama through SGLang.

Both hosts with flexact are held against transformers with the activation written by hand; so is the Mixtral
in SGLang, by test_end_to_end.py, whose engine it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import build
from transformers_reference import greedy, largest_difference, load, swish

BETA = 1.2
OVERRIDE = {"hidden_act": "swish", "activation_params": {"beta": BETA}}
VOCABULARY = 384


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_transformers_generates_what_the_hand_written_module_does(family: str, tmp_path: Path) -> None:
    import flexact.transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    model = build(family, tmp_path / "model")
    config = AutoConfig.from_pretrained(model)
    for key, value in OVERRIDE.items():
        setattr(config, key, value)
    ours = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32).eval()
    flexact.transformers.convert(ours)
    assert all(row["computed_by"] == "flexact" for row in flexact.transformers.explain(ours))
    reference = load(model, lambda name: swish(BETA))
    for prompt in ([5, 9, 40], list(range(60, 90))):
        tokens = greedy(ours, prompt, 10)
        assert len(tokens) == 10 and all(0 <= token < VOCABULARY for token in tokens)
        assert tokens == greedy(reference, prompt, 10)
        with torch.no_grad():
            expected, actual = (each(torch.tensor([prompt])).logits for each in (reference, ours))
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_sglang_generates_what_the_hand_written_module_does(tmp_path: Path) -> None:
    pytest.importorskip("sglang")
    from sglang_jobs import run

    model = build("llama", tmp_path / "model")
    outcome = run(model, override=OVERRIDE)
    assert outcome.code == 0, outcome.stderr[-3000:]
    reference = load(model, lambda name: swish(BETA))
    for output in outcome.answers["generate"]:
        assert len(output["ids"]) == 10
        assert all(0 <= token < VOCABULARY for token in output["ids"])
        assert greedy(reference, output["prompt_ids"], 10) == output["ids"]
    assert largest_difference(outcome.answers["generate"], reference) <= 1e-4
