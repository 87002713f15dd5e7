"""The Triton kernels in every quantised format on a GPU: the interpreter's cases, the launches that the
policy chooses at several sizes, the same bits in every run, replay of graphs."""

import json

import pytest
import torch
import triton_format_cases
from flexact import ActivationRegistry, formats, testing

FORMATS = formats.FP8_FORMATS + formats.FP4_FORMATS
SWISH = ActivationRegistry.get_activation("swish", {"beta": 1.5})
SIZES = [(1, 16, 4, 512, 384), (60, 8, 2, 1024, 512), (700, 8, 2, 512, 768), (2500, 4, 2, 640, 320)]


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    """Whatever was measured faster: these are the Triton kernels' tests."""
    monkeypatch.setenv("FLEXACT_BACKEND", "triton")


def all_cases():
    """(name, case, activation, launch); launch None: what the policy chooses."""
    if not torch.cuda.is_available():
        return
    yield from triton_format_cases.cases("cuda", everything=True)
    for format in FORMATS:
        for seed, (tokens, experts, top_k, hidden, intermediate) in enumerate(SIZES):
            case = testing.random_case(
                format, tokens=tokens, experts=experts, top_k=top_k, hidden=hidden, device="cuda",
                intermediate=intermediate, absent=0.1, seed=seed,
            )  # fmt: skip
            yield f"{format} policy M={tokens}", case, SWISH, None


@pytest.mark.parametrize("made", list(all_cases()), ids=lambda made: made[0])
def test_as_near_to_fp64_as_the_recipe_and_the_same_bits_again(made, record_property):
    name, case, activation, launch = made
    result = triton_format_cases.run(case, activation, launch)
    report = triton_format_cases.report(name, case, activation, result)
    for key in ("rms", "recipe_rms", "max", "to_recipe"):
        record_property(key, report[key])
    assert report["finite"], report
    assert report["rms"] <= 1.1 * report["recipe_rms"], report
    again = triton_format_cases.run(case, activation, launch)
    assert torch.equal(result.view(torch.int16), again.view(torch.int16))


def test_small_floats_and_quantisers_have_the_bits_of_the_reference():
    lines = [
        *triton_format_cases.conversions("cuda"),
        *triton_format_cases.quantisers("cuda"),
        *triton_format_cases.dense("cuda"),
    ]
    assert len(lines) == 14
    for line in lines:
        assert line["same"], json.dumps(line)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [2, 400])
def test_replay_of_a_graph_equals_an_eager_call_with_new_inputs(format, tokens):
    def made(seed):
        return testing.random_case(
            format, tokens=tokens, experts=8, top_k=2, hidden=256, intermediate=256,
            device="cuda", seed=seed,
        )  # fmt: skip

    case, other = made(1), made(2)
    block = triton_format_cases.block_of(case, SWISH, None)
    values = torch.tensor([[1.5]], device="cuda")
    weights, out = dict(case.weights), torch.empty_like(case.hidden_states)

    def call(into):
        return block.run(case.hidden_states, weights, case.topk_weights, case.topk_ids, values, into)

    call(out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(out)
    for name in ("hidden_states", "topk_weights", "topk_ids"):
        getattr(case, name).copy_(getattr(other, name))
    out.fill_(float("nan"))
    graph.replay()
    replayed = out.clone()
    assert torch.equal(replayed, call(torch.empty_like(out)))
    assert torch.isfinite(replayed).all()
