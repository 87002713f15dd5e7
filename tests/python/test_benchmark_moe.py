"""What the GPU benchmark works out without a GPU: statistics, weights, rows for peers, refusals."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flexact import ActivationRegistry
from flexact.triton.shapes import Shape

pytest.importorskip("triton")
FOLDER = Path(__file__).parents[2] / "benchmark"


@pytest.fixture(scope="module")
def program():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("benchmark_moe_kernels")
    finally:
        sys.path.remove(str(FOLDER))


def test_ratios_are_medians_of_pairs_with_an_interval(program):
    # Rounds in which everything is slower still give the ratio of a pair.
    rows = [[10.0 * slow, 20.0 * slow, 5.0] for slow in range(1, 22)]
    found = program.compared(rows, {"twice": "a", "fixed": "b"})
    assert found["twice"]["speedup"] == 2
    assert found["twice"]["interval"] == [2, 2]
    assert found["fixed"]["us"] == 5
    assert found["fixed"]["interval"][0] < found["fixed"]["speedup"] < found["fixed"]["interval"][1]


def test_against_all_is_the_catalogue_and_every_function_gets_its_parameters(program):
    names = program.others_of(SimpleNamespace(against=["all"], activation="silu"))
    assert "silu" not in names
    assert {"mish", "situ", "xielu", "prelu"} <= set(names)
    for name in names:
        act = program.activation_of(name, {})
        values = act.values(0, (0, 1))[0]
        assert len(values) == len(ActivationRegistry.get_function(name).parameters)
    assert program.activation_of("swish", {"beta": 1.7}).values(0, (0, 1))[0] == pytest.approx([1.7])


@pytest.mark.parametrize("precision", ["bf16", "fp8_block", "mxfp4", "nvfp4"])
def test_weights_are_those_that_a_plan_takes(program, precision, monkeypatch):
    monkeypatch.setattr(program, "DEVICE", "cpu")
    weights = program.make_weights(Shape(2, 1, 128, 64), precision, "concat")
    packed = 2 if "fp4" in precision else 1
    assert weights["w13"].shape == (2, 128, 128 // packed)
    assert weights["w2"].shape == (2, 128, 64 // packed)
    if precision == "nvfp4":
        assert weights["w13_global_scale"].shape == (2,)


@pytest.mark.parametrize("name", ["torch-grouped", "deep-gemm", "marlin", "triton-kernels"])
def test_a_peer_refuses_what_it_does_not_compute(program, name):
    peer = importlib.import_module(program.PEERS[name])
    weights = {"w13": torch.zeros(2, 8, 4)}
    with pytest.raises(ValueError, match=r"compared|comparison"):
        next(iter(peer.variants(Shape(2, 1, 8, 4), weights, None, "situ")))


def test_rows_of_an_expert_are_padded_to_whole_tiles(program):
    peer = importlib.import_module("peers.deep_gemm")
    ids = torch.tensor([[2, 0], [2, 1], [2, 0], [0, 2]])
    rows, row, expert_of_row = peer.layout_of(ids, 4, 4)
    assert rows == 12  # 3, 1 and 4 pairs
    assert sorted(row.tolist()) == sorted(set(row.tolist()))
    for pair, expert in enumerate(ids.flatten().tolist()):
        assert expert_of_row[row[pair]] == expert
    assert (expert_of_row == -1).sum() == rows - ids.numel()
    assert all(len(set(expert_of_row[i : i + 4].tolist()) - {-1}) == 1 for i in range(0, rows, 4))


def test_a_record_of_every_kind_has_a_line(program):
    pair = {"us": 2.0, "variant": "v", "speedup": 0.5, "interval": [0.4, 0.6]}
    cell = {
        "kind": "cell", "model": "m", "tokens": 4, "activation": "silu", "precision": "bf16", "us": 4.0,
        "tflop_s": 1.0, "gb_s": 2.0, "limit": 0.5, "mish": pair,
    }  # fmt: skip
    dense = {
        "kind": "dense",
        "model": "m",
        "rows": 4,
        "activation": "silu",
        "us": 4.0,
        "gb_s": 2.0,
        "s": pair,
    }
    start = {"kind": "start", "cache": "empty", "import_s": 1.0, "first_s": 2.0, "warm_up_s": 3.0}
    assert program.text_of(cell).endswith("mish 2.0 us: x0.500")
    assert program.text_of(dense).endswith("s 2.0 us: x0.500")
    assert "first result 2.00 s" in program.text_of(start)
