"""The model card's claims about the shipped model, checked again."""

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MODEL = Path(__file__).parents[2] / "models" / "austen-moe-8m"
CARD = json.loads((MODEL / "evaluation.json").read_text())
CONFIG = json.loads((MODEL / "config.json").read_text())


class HandWrittenSwish(torch.nn.Module):
    """What the model was trained with, written without flexact."""

    def __init__(self, beta: float):
        super().__init__()
        self.beta = beta

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def windows(tokenizer):
    """The slice's token ids [W, 512]."""
    text = (MODEL / "heldout.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: CARD["slice"] * CARD["window"]]).view(-1, CARD["window"])


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@torch.no_grad()
def perplexity(model, windows, activation):
    for layer in model.model.layers:
        layer.mlp.experts.act_fn = activation
    inputs = torch.cat([torch.full_like(windows[:, :1], CONFIG["bos_token_id"]), windows[:, :-1]], dim=1)
    total = 0.0
    for i, t in zip(inputs.split(4), windows.split(4), strict=True):
        logits = model(i, use_cache=False).logits.double()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), t.flatten(), reduction="sum").item()
    return math.exp(total / windows.numel())


def test_the_files_are_complete_and_small():
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ):
        assert (MODEL / name).is_file(), name
    assert (MODEL / "model.safetensors").stat().st_size <= 25e6
    assert (MODEL / "heldout.txt").stat().st_size <= 300e3


def test_the_configuration_names_the_activation_of_the_card():
    assert CONFIG["hidden_act"] == "swish"
    assert CONFIG["activation_params"] == {"beta": CARD["beta"]}


def test_every_layer_resolves_to_swish_with_the_beta_of_the_card():
    flexact = pytest.importorskip("flexact")
    resolved = flexact.resolve_config(MODEL)
    assert [layer.index for layer in resolved.layers] == list(range(CONFIG["num_hidden_layers"]))
    for layer in resolved.layers:
        assert layer.routed.name == "swish"
        assert layer.routed.activation.params == {"beta": CARD["beta"]}
        assert layer.routed.gated and layer.shared is None and layer.dense is None
    assert resolved.warnings == []


def test_the_model_has_the_parameters_of_the_card(model):
    assert sum(p.numel() for p in model.parameters()) == CARD["parameters"] <= 10e6
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_tokenizer_begins_every_text_and_gives_it_back(tokenizer):
    text = "“Catherine” — naïve\nquotes, 12 £ and 漢字 survive"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == CONFIG["bos_token_id"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == CONFIG["vocab_size"]


def test_plain_silu_is_worse_on_held_out_text_by_what_the_card_says(model, windows):
    right = perplexity(model, windows, HandWrittenSwish(CARD["beta"]))
    silu = perplexity(model, windows, torch.nn.SiLU())
    assert right == pytest.approx(CARD["slice_right"], rel=1e-3)
    assert silu == pytest.approx(CARD["slice_silu"], rel=1e-3)
    assert silu / right >= 1.05


def test_the_card_beats_the_trigram_by_a_fifth():
    for name in ("test", "held", "slice"):
        assert CARD[f"{name}_right"] <= 0.8 * CARD[f"{name}_trigram"]
        assert CARD[f"{name}_silu"] >= 1.05 * CARD[f"{name}_right"]


def test_the_card_prints_the_measured_numbers():
    card = (MODEL / "README.md").read_text()
    for name in ("test_right", "test_silu", "test_trigram", "held_right", "held_silu", "held_trigram"):
        assert f"{CARD[name]:.2f}" in card, name
