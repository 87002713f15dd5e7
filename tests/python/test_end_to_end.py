"""SGLang with the plugin computes what transformers computes with the activation written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sglang")

from sglang_jobs import Outcome, run
from tiny_models import PROMPTS, build
from transformers_reference import greedy, largest_difference, load, swish

BETA = 1.2
OVERRIDE = {"hidden_act": "swish", "activation_params": {"beta": BETA}}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture(scope="module")
def served(mixtral: Path) -> Outcome:
    outcome = run(
        mixtral, override=OVERRIDE, steps=("generate", "report", "update_weights", "read_weights", "memory")
    )
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


@pytest.fixture(scope="module")
def served_without_plugin(mixtral: Path) -> Outcome:
    outcome = run(mixtral, override=OVERRIDE, stock=True)
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


def test_three_prompts_give_text(served: Outcome) -> None:
    outputs = served.answers["generate"]
    assert len(outputs) == len(PROMPTS)
    assert all(output["text"] and len(output["ids"]) == 10 for output in outputs)


def test_tokens_and_log_probabilities_equal_transformers(served: Outcome, mixtral: Path) -> None:
    reference = load(mixtral, lambda name: swish(BETA))
    for output in served.answers["generate"]:
        assert greedy(reference, output["prompt_ids"], 10) == output["ids"]
    assert largest_difference(served.answers["generate"], reference) <= TOLERANCE


def test_another_function_in_the_reference_is_noticed(served: Outcome, mixtral: Path) -> None:
    """The tolerance tells the functions apart: silu, and zeros, are a hundred times further away."""
    for wrong in (swish(1.0), lambda x: x * 0):
        assert (
            largest_difference(served.answers["generate"], load(mixtral, lambda name, f=wrong: f))
            >= 100 * TOLERANCE
        )


def test_without_the_plugin_the_same_override_is_silu(served_without_plugin: Outcome, mixtral: Path) -> None:
    """Unmodified SGLang ignores the activation: what the first test claims fails without the plugin."""
    outputs = served_without_plugin.answers["generate"]
    assert largest_difference(outputs, load(mixtral, lambda name: swish(1.0))) <= TOLERANCE
    assert largest_difference(outputs, load(mixtral, lambda name: swish(BETA))) >= 100 * TOLERANCE


def test_every_layer_ran_and_says_what(served: Outcome) -> None:
    (state,) = served.answers["report"]
    assert [row["layer"] for row in state["experts"]] == [0, 1]
    for row in state["experts"]:
        assert row["computed_by"] == "flexact" and row["function"] == "swish" and row["calls"] >= 10
        assert row["relative_error"] < 1e-4


def test_one_copy_of_the_weights_is_resident(served: Outcome) -> None:
    stock = 4 * (2 * 96 * 64 + 64 * 96) * 4  # experts x (w13 + w2) x float32
    for resident in served.answers["memory"]:
        # Tiles are padded to whole vectors, which shows on a model of this size only.
        assert stock <= resident <= 1.02 * stock


def test_updating_packed_weights_is_refused(served: Outcome) -> None:
    success, message = served.answers["update_weights"][:2]
    assert success == "False"
    assert "update_weights_from_disk is not supported" in message and "packed" in message


def test_reading_packed_weights_gives_nothing(served: Outcome) -> None:
    assert served.answers["read_weights"] == "None"
