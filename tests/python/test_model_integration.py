"""A Llama and a Mixtral with an override of beta generate through SGLang and through transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import build
from transformers_reference import greedy, largest_difference, load, swish

BETA = 1.2
OVERRIDE = {"hidden_act": "swish", "activation_params": {"beta": BETA}}
VOCABULARY = 384


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param))


def test_generates_ten_tokens_with_its_own_activation(model: Path) -> None:
    pytest.importorskip("sglang")
    from sglang_jobs import run

    outcome = run(model, override=OVERRIDE)
    assert outcome.code == 0, outcome.stderr[-3000:]
    reference = load(model, lambda name: swish(BETA))
    for output in outcome.answers["generate"]:
        assert len(output["ids"]) == 10
        assert all(0 <= token < VOCABULARY for token in output["ids"])
        assert greedy(reference, output["prompt_ids"], 10) == output["ids"]
    assert largest_difference(outcome.answers["generate"], reference) <= 1e-4
