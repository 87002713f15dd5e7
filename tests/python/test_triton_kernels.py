"""The Triton kernels in Triton's interpreter against fp64: every kernel, flag and function.

The interpreter replaces Triton's operations when kernels are imported, so it has a process of its own
(triton_cases.py); these tests judge what that process reports.
"""

import itertools
import json
import time
import types
from pathlib import Path

import flexact.moe
import pytest
import torch
from cli_tool import flexact as command
from flexact import ActivationRegistry, fused_moe
from flexact._core import LaunchTable
from script_lines import lines_of

pytest.importorskip("triton")

from flexact.triton import ahead, tune
from flexact.triton.shapes import SHAPES, Shape

CHIP = {"capability": [9, 0], "multiprocessors": 132}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    return lines_of("triton_cases.py", folder, "cpu", count=True, TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def blocks(reports):
    return [report for report in reports if "case" in report]


def test_every_kernel_is_as_near_to_fp64_as_torch_with_the_same_roundings(blocks):
    for report in blocks:
        assert report["finite"], report
        assert report["rms"] <= 1.1 * report["recipe_rms"] + 1e-6, report
        assert report["max"] <= 60 * report["recipe_rms"] + 1e-6, report


def test_every_function_of_the_catalogue_runs_in_a_kernel(blocks):
    ran = {report["case"].removeprefix("function ") for report in blocks}
    # Asked of a process of its own: other tests of this one register functions.
    catalogue = {row["name"] for row in json.loads(command("list", "--json").stdout)}
    assert catalogue
    assert catalogue <= ran


def test_dense_activation_equals_fp64_rounded_once(reports):
    dense = [report for report in reports if "dense" in report]
    assert len(dense) == 12
    for report in dense:
        assert report["error"] <= (6e-8 if report["dtype"] == "torch.float16" else 1e-7), report


def test_tuning_takes_the_fastest_of_candidates_that_agree(reports, tmp_path):
    tuned = [report for report in reports if "tuned" in report]
    assert [report["tuned"]["format"] for report in tuned] == ["bf16", "bf16", "mxfp4", "fp8_block"]
    for report in tuned:
        assert not [row for row in report["log"] if "error" in row]
        # The clock runs backwards.
        last = {row["kind"]: row["tile"] for row in report["log"]}
        entry = report["tuned"]
        assert entry["direct"] == (entry["tokens"] == 1)
        vector = entry.get("vector", False)
        assert vector == entry.get("fuse_combine", False) == entry["direct"]
        single = "vector " if vector else ""
        assert entry["gate_up"] == last[single + "gate_up" if entry["direct"] else "permuted gate_up"]
        assert entry["down"] == last[single + "down"]
        assert entry["permute"] == (not entry["direct"])
    for report in (report for report in reports if "odd_one" in report):
        assert [row.get("error") for row in report["odd_one"]] == [None, "the result differs", None]
        assert report["chosen"] == {"n": 2}
    # What was measured is a table that serving reads; entries of other shapes stay in it.
    path = tmp_path / "table.json"
    for report in tuned:
        tune.write_table(path, "a device", [report["tuned"]], CHIP)
    tune.write_table(path, "a device", [tuned[0]["tuned"]], CHIP)
    table = LaunchTable.from_json(path.read_text())
    assert (len(table), table.device) == (4, "a device")


@pytest.mark.parametrize("format", sorted(tune.DTYPES))
@pytest.mark.parametrize("gated", [True, False])
def test_every_candidate_of_tuning_is_a_launch_that_the_table_takes(format, gated):
    shape = Shape(8, 2, 1024, 512, gated)
    for block_m in {m for tokens in (1, 60, 150, 300, 9000) for m in tune.block_ms(shape, tokens, format)}:
        second = tune.second_tiles(block_m, gated, False, format)
        for up, down in itertools.product(tune.candidates("gate_up", block_m, gated, False, format), second):
            assert up["block_m"] == block_m and block_m % down["block_m"] == 0
            entry = {**shape_fields(shape), "format": format, "gate_up": up, "down": down}
            LaunchTable.from_json(json.dumps({"device": "d", "entries": [entry]}))


@pytest.mark.parametrize("format", sorted(tune.DTYPES))
def test_every_candidate_without_tensor_cores_is_a_launch_that_the_table_takes(format):
    shape = Shape(8, 2, 1024, 512)
    plain = {"direct": True, "vector": True, "fuse_combine": True}
    for which in ("gate_up", "down"):
        for tile in tune.vector_candidates(which, format):
            entry = {**shape_fields(shape), **plain, "format": format, "gate_up": tile, "down": tile}
            text = json.dumps({"device": "d", "entries": [entry]})
            if tune.FORMATS[format].vector is None:
                with pytest.raises(flexact.ConfigError, match="no kernels without tensor cores"):
                    LaunchTable.from_json(text)
            else:
                LaunchTable.from_json(text)


def shape_fields(shape):
    return {
        "format": "bf16", "experts": shape.experts, "top_k": shape.top_k, "hidden": shape.hidden,
        "intermediate": shape.intermediate, "gated": shape.gated, "tokens": 1,
    }  # fmt: skip


def test_tuning_compiles_each_kernel_once_and_all_that_it_measures():
    shape = SHAPES["qwen3-30b-a3b"]
    jobs = [job for tokens in (1, 16, 4096) for job in tune._jobs(shape, tokens, "bf16")]
    assert len(tune._jobs(shape, 16, "bf16")) == len(set(tune._jobs(shape, 16, "bf16")))
    ahead = {(job[0], *(v for k, v in job[1] if k in ("block_m", "block_n", "block_k"))) for job in jobs}
    for tokens in (1, 16, 4096):
        for block_m in tune.block_ms(shape, tokens):
            for which in ("gate_up", "down"):
                for tile in tune.candidates(which, block_m, shape.gated, direct=False):
                    assert (which, tile["block_m"], tile["block_n"], tile["block_k"]) in ahead
    assert {"vector gate_up", "vector down"} <= {job[0] for job in jobs}
    # Where the second GEMM cuts tiles, how many rows the first one's have is known to its kernel.
    heights = {(dict(job[1])["block_m"], job[-1]) for job in tune._jobs(shape, 1024, "fp8_tensor")}
    assert heights == {(64, 64), (128, 128), (64, 128)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--model or the layer's sizes"),
        (["--experts", "8"], "go together"),
        (["--model", "no-such-model"], "invalid choice"),
        (["--experts", "8", "--top-k", "2", "--hidden", "64", "--intermediate", "64"], "no GPU here"),
    ],
)
def test_tune_says_what_it_lacks(arguments, reason, capsys):
    if torch.cuda.is_available() and reason == "no GPU here":
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as exit:
        tune.main(arguments)
    assert exit.value.code == 2
    assert reason in capsys.readouterr().err


def test_tuning_keeps_what_it_measured_and_notes_what_failed(monkeypatch, tmp_path, capsys):
    """The command with a GPU, its compilers and its clock replaced."""
    chip = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    for name, value in {
        "is_available": True, "get_device_name": "A GPU", "get_device_capability": (9, 0),
        "current_device": 0, "get_device_properties": chip, "mem_get_info": (0, 0), "empty_cache": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setenv("FLEXACT_CACHE_DIR", str(tmp_path))
    made, ended = [], []

    class Ahead:
        def __init__(self, cells, workers, arch):
            self.cells, self.arch = cells, arch

        def wait(self, cell, deadline):
            return ["gate_up: too many registers"] if cell[1] == 1 else []

        def end(self):
            ended.append(self.arch)

    def measure(bench, tokens, timer, note, deadline):
        if tokens == 16:
            raise RuntimeError("out of memory")
        note({"us": 5.0})
        tile = {"block_m": 16, "block_n": 32, "block_k": 128, "group_m": 1, "warps": 4, "stages": 2}
        return {**shape_fields(bench), "tokens": tokens, "gate_up": tile, "down": tile, "us": 5.0}

    monkeypatch.setattr(tune, "Ahead", Ahead)
    monkeypatch.setattr(tune, "Timer", lambda: None)
    monkeypatch.setattr(tune, "Bench", lambda shape, format: made.append(shape) or shape)
    monkeypatch.setattr(tune, "measure", measure)
    sizes = ["--experts", "8", "--top-k", "2", "--hidden", "64", "--intermediate", "32"]
    table, log = tmp_path / "table.json", tmp_path / "log.txt"
    options = ["--out", str(table), "--log", str(log)]
    assert tune.main([*sizes, *options, "--tokens", "1,16,64"]) == 1
    assert "2 launches of 3" in capsys.readouterr().out
    assert ended == [90]
    notes = [json.loads(line) for line in log.read_text().splitlines()]
    assert [note["error"] for note in notes if "error" in note] == [
        "gate_up: too many registers", "out of memory",
    ]  # fmt: skip
    assert tune.main(["--model", "mixtral-8x7b", *options, "--tokens", "1"]) == 0
    written = json.loads(table.read_text())
    assert {key: written[key] for key in ("device", *CHIP)} == {"device": "A GPU", **CHIP}
    assert [(each["experts"], each["hidden"], each["tokens"]) for each in written["entries"]] == [
        (8, 64, 1), (8, 64, 64), (8, 4096, 1),
    ]  # fmt: skip
    # Without time nothing is measured, and what the table had stays.
    assert tune.main([*sizes, *options, "--tokens", "4", "--seconds", "-1"]) == 1
    assert json.loads(table.read_text()) == written


def test_what_the_kernels_do_not_compute_is_refused_before_they_are_loaded():
    x, w13, w2 = torch.zeros(3, 32), torch.zeros(2, 48, 32), torch.zeros(2, 32, 24)
    ids, weights = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    silu = ActivationRegistry.get_activation("silu")

    def call(dtype, hidden_dtype=None, **options):
        hidden = x.to(hidden_dtype or dtype)
        return fused_moe(hidden, w13.to(dtype), w2.to(dtype), weights, ids, silu, backend="triton", **options)

    with pytest.raises(flexact.Unsupported, match="no Triton kernels for format fp32"):
        call(torch.float32, format="fp32")
    with pytest.raises(flexact.Unsupported, match="convert the hidden states to bfloat16"):
        call(torch.bfloat16, hidden_dtype=torch.float32)
    with pytest.raises(flexact.Unsupported, match="do not run on cpu tensors"):
        call(torch.bfloat16)
    with pytest.raises(flexact.Unsupported, match="do not run on cpu tensors"):
        flexact.moe.plan(w13.bfloat16(), w2.bfloat16(), silu, top_k=1, backend="triton")


def test_kernels_are_compiled_by_processes_that_touch_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FLEXACT_CACHE_DIR", str(tmp_path))
    cell = (SHAPES["qwen3-30b-a3b"], 1, "fp8_block")
    jobs = tune._jobs(*cell)
    few = [jobs[0], next(job for job in jobs if job[0] == "down" and job[6])]
    monkeypatch.setattr(tune, "_jobs", lambda *cell: few)
    compiling = tune.Ahead([cell], 1, 90)
    try:
        assert compiling.wait(cell, time.monotonic() + 300) == []
    finally:
        compiling.end()
    names = {path.stem for path in tmp_path.rglob("*.cubin")}
    assert names == {"gate_up", "down"}

    problem = {"experts": 4, "top_k": 2, "hidden": 256, "intermediate": 256, "format": "bf16"}
    problem |= {"io_dtype": "bfloat16", "pairing": "concat"}
    mish = ActivationRegistry.get_activation("mish").function
    device = ("a device without a table", (9, 0), 132, 232448)
    # A unary function does not fit a gated layer: that is said, and the other is compiled.
    calls = [(problem, mish.gated().canonical, device, 300), (problem, mish.canonical, device, 300)]
    failed = ahead.compile_calls(calls, 1)
    assert len(failed) == 1 and "at 300 tokens: CompilationError" in failed[0]
    names |= {path.stem for path in tmp_path.rglob("*.cubin")}
    assert names == {"gate_up", "down", "route_small", "combine"}


def test_each_kernel_is_compiled_once_whatever_threads_and_functions_need_it(tmp_path):
    one = dict.fromkeys(("route_small", "gate_up", "down", "combine"), 1)
    same, two, wide = lines_of("triton_together.py", tmp_path, "threads", count=True)
    assert same["compiled"] == one
    assert same["launched"] == dict.fromkeys(one, 4)
    # Only what depends on the function.
    assert two["compiled"] == {"gate_up": 2}
    assert two["launched"] == dict.fromkeys(one, 2)
    # Only what reads ids.
    assert wide["compiled"] == {"route_small": 1, "combine": 1}
    # A process that finds them in the cache, where FLEXACT_CACHE_DIR says.
    assert len(list((tmp_path / "triton" / "compiled").rglob("*.cubin"))) == 8
    again = lines_of("triton_together.py", tmp_path, "threads", "reserve", "mistake")
    for first, second in zip((same, two, wide), again, strict=False):
        assert second["compiled"] == {}
        assert second["read"] == first["compiled"]

    reserved, called, after = again[3:]
    assert set(reserved["compiled"]) == {"gate_up", "down", "down_and_combine"}
    assert called["compiled"] == called["read"] == {}
    assert called["launched"]["gate_up"] == 10
    # The function that does not compile has left nothing behind.
    assert after["compiled"] == {"gate_up": 1}
    assert after["launched"] == one


@pytest.mark.parametrize("arch", [90, 100])
def test_every_kernel_compiles_for_a_gpu_that_is_not_there_without_spills(arch, tmp_path):
    reports = lines_of(
        "triton_compile.py", tmp_path, str(arch), "bf16", TRITON_CACHE_DIR=str(tmp_path / "triton")
    )
    names = {report["kernel"] for report in reports}
    assert {"gate_up", "down", "combine", "count", "scan", "scatter"} <= names
    if arch == 90:
        assert {"route_small", "down_and_combine"} <= names
    for report in reports:
        assert report["stack"] == 0, report
        assert report["shared"] <= 232448, report
        if report["kernel"] in ("gate_up", "down") and report["tokens"] == 8192 and arch == 90:
            assert report["wgmma"], report
        if report["kernel"] in ("combine", "down_and_combine"):
            assert report["wide"] > 0, report


def test_forward_with_router_says_what_it_takes():
    from flexact.triton import triton_moe_forward

    arguments = [torch.zeros(2, 16), torch.zeros(16, 4), torch.zeros(4, 16, 8), torch.zeros(4, 8, 16)]
    with pytest.raises(flexact.InvalidArgument, match="swish_glu is gated"):
        triton_moe_forward(*arguments, activation_type=5, activation_params=[1.0])
    with pytest.raises(flexact.InvalidArgument, match="swish has 1 parameters: beta"):
        triton_moe_forward(*arguments, activation_type=1, activation_params=[])
    with pytest.raises(flexact.InvalidArgument, match="no activation has the id 77"):
        triton_moe_forward(*arguments, activation_type=77)


def test_shipped_launches_can_be_read_and_name_their_device():
    folder = Path(flexact.moe.__file__).parent / "triton" / "tuned"
    for path in folder.glob("*.json"):
        table = LaunchTable.from_json(path.read_text())
        assert len(table) > 0
        assert "".join(c if c.isalnum() else "_" for c in table.device) == path.stem


def test_a_device_without_a_table_takes_that_of_the_same_chip(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXACT_CACHE_DIR", str(tmp_path))
    from flexact.triton.moe import launch_table

    shipped = launch_table("NVIDIA H100 80GB HBM3", (9, 0), 132)
    assert len(shipped) > 0
    other = launch_table("a card of the same chip", (9, 0), 132)
    assert (len(other), other.device) == (len(shipped), shipped.device)
    assert len(launch_table("NVIDIA H100 PCIe", (9, 0), 114)) == 0
    # What was tuned here is preferred, layer by layer; the rest stays.
    tile = tune.candidates("gate_up", 16, True, False)[0]
    entry = {**shape_fields(SHAPES["qwen3-30b-a3b"]), "gate_up": tile, "down": tile}
    (tmp_path / "triton" / "tuned").mkdir(parents=True)
    tune.write_table(tmp_path / "triton" / "tuned" / "tuned_here.json", "tuned here", [entry], CHIP)
    mixed = launch_table("tuned here", (9, 0), 132)
    assert mixed.device == f"tuned here and {shipped.device}"
    assert len(mixed) == len(shipped) - 6 + 1
