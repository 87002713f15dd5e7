"""What the GPU benchmark works out without a GPU: statistics, weights, rows for peers, refusals."""

import importlib
import json
import subprocess
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


def test_the_first_product_is_told_from_what_stands_around_it(program):
    kernels = [
        ("gather", 5.0),
        ("product", 60.0),
        ("silu", 7.0),
        ("quantise", 1.0),
        ("product", 40.0),
        ("sum", 9.0),
    ]
    assert program.first_product(kernels) == (60.0, 68.0)
    fused = [("gather", 5.0), ("product with silu", 61.0), ("product", 70.0), ("sum", 9.0)]
    assert program.first_product(fused) == (61.0, 61.0)


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
    start = {
        "kind": "start", "backend": "b", "precision": "bf16", "cache": "cold", "import_s": 1.0, "gpu_s": 2.0,
        "plan_s": 3.0, "call_s": 0.004, "reserve_s": 0.5,
    }  # fmt: skip
    assert program.text_of(cell).endswith("mish 2.0 us: x0.500")
    kernels = {"of": "mish", "first_product_us": 1.0, "with_activation_us": 1.5, "kernels": []}
    text = program.text_of(cell | {"kernels": [kernels]})
    assert text.endswith("x0.500\n    mish: first product 1.0 us, with what follows 1.5 us")
    assert program.text_of(dense).endswith("s 2.0 us: x0.500")
    assert "first call 4.0 ms" in program.text_of(start)
    assert "known" not in program.text_of(start)
    assert "known function 0.25 s; new" in program.text_of(start | {"known_s": 0.25})
    machine = {"kind": "machine", "device": "d", "torch": "1", "triton": "2"}
    assert program.text_of(machine) == "# d, torch 1, triton 2"


def test_a_start_up_tells_what_a_process_pays_once_from_what_a_new_function_costs(program, monkeypatch):
    monkeypatch.setattr(program, "description", lambda: {"device": "d", "torch": "1", "triton": "2"})
    run, jobs, folders = subprocess.run, [], []

    def one_for_all(command, **options):
        """Runs the second process alone, on the CPU."""
        jobs.append(json.loads(command[-1]))
        folders.append(options["env"]["FLEXACT_CACHE_DIR"])
        if len(jobs) != 2:
            return SimpleNamespace(stdout=json.dumps(dict.fromkeys(steps, 1.0)))
        command[2] = command[2].replace("print(", "benchmark_moe_kernels.DEVICE = 'cpu'\nprint(")
        return run(command, **options)

    steps = ("import_s", "gpu_s", "plan_s", "call_s", "reserve_s")
    monkeypatch.setattr(program.subprocess, "run", one_for_all)
    records = []
    options = SimpleNamespace(backend="cpu", beside=["triton"], precision="bf16", pairing="concat")
    program.start_up(options, records.append)
    assert [(record["backend"], record["cache"]) for record in records[1:]] == [
        (backend, cache)
        for backend in ("cpu", "triton")
        for cache in ("cold", "cold function", "cached")
    ]  # fmt: skip
    assert {key for key in records[2] if key.endswith("_s")} == {*steps, "known_s"}
    assert all(map(program.text_of, records))
    # A function is known that has filled the cache before, and the last is looked for in it.
    cold, new, cached, *others = jobs
    assert cold["known"] is None
    assert cold["new"] == new["known"] != new["new"]
    assert cached == new
    assert len(set(folders[:3])) == 1 and not set(folders[:3]) & set(folders[3:])
    assert {job["backend"] for job in others} == {"triton"}


def test_a_peer_that_a_new_run_left_out_stands_beside_our_new_time_and_says_so(program, tmp_path):
    collect = importlib.import_module("collect_gpu_peers")
    machine = {"kind": "machine", "device": "d", "torch": "1", "triton": "2", "commit": "0ld"}
    cell = {
        "kind": "cell", "model": "m", "tokens": 4, "activation": "silu", "precision": "bf16",
        "backend": "triton", "us": 20.0, "launch": "l",
    }  # fmt: skip
    found = {"variant": "v", "interval": [1.0, 2.0]}

    def run(name, commit, us, **peers):
        path = tmp_path / name
        path.write_text(json.dumps([machine | {"commit": commit}, cell | {"us": us} | peers]))
        return path

    other = found | {"us": 25.0, "speedup": 1.25}
    old = run("a", "0ld", 20.0, **{"deep-gemm": other, "marlin": other, "cutlass": other})
    new = run("b", "new", 10.0, marlin=found | {"us": 30.0, "speedup": 3.0})
    result = collect.added({}, [old], collect.rows_of, collect.key_of, lambda _: {})
    result = collect.added(result, [new], collect.rows_of, collect.key_of, lambda _: {})
    rows = [dict(zip(collect.COLUMNS, row, strict=True)) for row in collect.renewed(result["rows"], [new])]
    by_peer = {row["peer"]: row for row in rows if row["backend"] == "triton"}
    # What was measured together stays so; our other backend's time says nothing of the new kernels.
    assert set(by_peer) == {"deep-gemm", "marlin"}
    assert by_peer["marlin"]["speedup"] == 3.0
    assert by_peer["marlin"]["launches"] == "l"
    left_out = by_peer["deep-gemm"]
    assert (left_out["us"], left_out["peer us"], left_out["speedup"]) == (10.0, 25.0, 2.5)
    assert (left_out["interval"], left_out["commit"]) == (None, "new")
    assert left_out["launches"] == "the peer's time is of 0ld"
    # Another backend's cells are as they were.
    assert {row["us"] for row in rows if row["backend"] == "cutlass"} == {25.0}
