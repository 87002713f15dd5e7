"""flexact.transformers on a GPU: the shipped model beside float64, generation, graphs, gradients."""

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.12")

import flexact.transformers as adapter  # noqa: E402
from transformers_reference import Handwritten, load, swish  # noqa: E402

AUSTEN = Path(__file__).resolve().parents[2] / "models" / "austen-moe-8m"
BETA = json.loads((AUSTEN / "config.json").read_text())["activation_params"]["beta"]
DEVICE = "cuda"


def model_in(dtype, implementation="flexact"):
    return transformers.AutoModelForCausalLM.from_pretrained(
        AUSTEN, dtype=dtype, experts_implementation=implementation, attn_implementation="eager"
    ).to(DEVICE)


@pytest.fixture(scope="module")
def exact():
    """The model in float64 with swish written by hand, its tokens and their logits."""
    model = load(AUSTEN, lambda name: swish(BETA)).double()
    generator = torch.Generator().manual_seed(4)
    # One row and several: few pairs, which tiles search, and so many that they are sorted.
    tokens = [torch.randint(0, 256, shape, generator=generator) for shape in ((1, 7), (2, 100))]
    with torch.no_grad():
        return model, tokens, [model(ids).logits for ids in tokens]


def error(model, tokens, wanted):
    """The median over tokens: where two experts are nearly alike, rounding sends a token to the other one."""
    with torch.no_grad():
        got = [model(ids.to(DEVICE)).logits.double().cpu() for ids in tokens]
    each = [((a - b).norm(dim=-1) / b.norm(dim=-1)).flatten() for a, b in zip(got, wanted, strict=True)]
    return torch.cat(each).median().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_shipped_model_is_as_near_to_fp64_as_its_own_classes_with_swish_by_hand(dtype, exact):
    _, tokens, wanted = exact
    ours, eager = model_in(dtype), model_in(dtype, "eager")
    for layer in eager.model.layers:
        layer.mlp.experts.act_fn = Handwritten(swish(BETA))
    assert error(ours, tokens, wanted) <= 1.2 * error(eager, tokens, wanted)
    rows = [row for row in adapter.explain(ours) if row["role"] == "routed"]
    assert rows
    for row in rows:
        assert (row["path"], row["calls"]) == ("the module's own weights", len(tokens))


def test_generated_tokens_are_the_likeliest_of_the_model_in_fp64(exact):
    reference, tokens, _ = exact
    ids = tokens[0].to(DEVICE)
    made = model_in(torch.bfloat16).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0
    ).cpu()  # fmt: skip
    with torch.no_grad():
        logits = reference(made).logits[0, ids.shape[1] - 1 : -1]
    chosen = logits.gather(1, made[0, ids.shape[1] :, None])[:, 0]
    # bf16 may decide between two that are nearly alike otherwise.
    assert (logits.max(1).values - chosen).max() <= 0.1


def test_a_graph_of_a_block_gives_the_bits_of_an_eager_call_with_new_inputs():
    model = model_in(torch.bfloat16)
    block = model.model.layers[0].mlp
    x, other = torch.randn(2, 1, 9, model.config.hidden_size, device=DEVICE).bfloat16()
    with torch.no_grad():
        wanted = block(other)
        block(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = block(x)
        x.copy_(other)
        graph.replay()
    first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731
    assert torch.equal(first(result), first(wanted))


def test_gradients_are_those_of_the_model_in_fp64(exact):
    reference, tokens, _ = exact
    ids = tokens[0]
    model = model_in(torch.float32).train()
    model(ids.to(DEVICE), labels=ids.to(DEVICE)).loss.backward()
    reference.zero_grad()
    reference(ids, labels=ids).loss.backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            want = wanted[name].grad
            off = (parameter.grad.cpu().double() - want).norm()
            assert off <= 1e-3 * want.norm() + 1e-9, name
