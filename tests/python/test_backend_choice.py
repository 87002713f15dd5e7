"""How "auto" chooses between Triton and CUTLASS: the rule, its tables, refusals, plans of both."""

import importlib.util
import json
import math
import os
from pathlib import Path

import flexact
import flexact.moe
import pytest
import torch
from flexact import ActivationRegistry, _core, backend_choice
from flexact.auto_plan import AutoPlan
from flexact.backend_choice import Choice, Device, Part, choose

ROOT = Path(__file__).parents[2]
SWISH = ActivationRegistry.get_activation("swish", {"beta": 1.5})
HOPPER = Device("A GPU", (9, 0), 132)
CUDA = torch.device("cuda", 0)
QWEN = {"experts": 128, "top_k": 8, "hidden": 2048, "intermediate": 768}


def problem(**fields):
    return _core.MoeProblem(**{**QWEN, "format": "fp8_block", **fields})


def cells(speedups, **fields):
    """Entries of a table: {tokens: ratio}."""
    return [
        {"format": "fp8_block", **QWEN, "gated": True, "tokens": tokens, "speedup": speedup, **fields}
        for tokens, speedup in speedups.items()
    ]


@pytest.fixture
def table(monkeypatch):
    """Puts a table for HOPPER in place of the shipped ones."""

    def use(entries, device=HOPPER.name, multiprocessors=132):
        chip = {"capability": [9, 0], "multiprocessors": multiprocessors}
        monkeypatch.setattr(
            backend_choice, "tables", lambda: [{"device": device, **chip, "entries": entries}]
        )
        backend_choice._table.cache_clear()

    use([])
    yield use
    backend_choice._table.cache_clear()


def parts(choice):
    return [(part.first, part.backend) for part in choice.parts]


def test_of_the_measured_token_counts_the_nearest_by_ratio_decides(table):
    table(cells({1: 0.9, 16: 1.1, 256: 0.95, 4096: 1.2}))
    choice = choose(problem(), HOPPER)
    assert parts(choice) == [(0, "triton"), (5, "cutlass"), (65, "triton"), (1025, "cutlass")]
    for tokens, backend in (
        (0, "triton"),
        (4, "triton"),
        (5, "cutlass"),
        (64, "cutlass"),
        (10**6, "cutlass"),
    ):
        assert choice.of(tokens) == backend
    assert choice.backends == ("triton", "cutlass")
    assert "measured on A GPU for E128 k8 H2048 I768" in choice.describe()
    assert "up to 4" in choice.describe() and "from 1025 tokens on" in choice.describe()


@pytest.mark.parametrize(
    ("speedup", "backend"), [(1.01, "cutlass"), (1.005, "triton"), (1.0, "triton"), (0.9, "triton")]
)
def test_cutlass_is_taken_where_it_was_faster_by_a_hundredth(table, speedup, backend):
    table(cells(dict.fromkeys((1, 64, 4096), speedup)))
    assert choose(problem(), HOPPER).backends == (backend,)


def test_beyond_what_was_measured_sizes_decide(table):
    """Up to four times the largest count, unless that has 64 tokens an expert: 1024 here."""
    table(cells({8: 0.9, 64: 1.1}))
    assert parts(choose(problem(), HOPPER)) == [
        (0, "triton"), (23, "cutlass"), (257, "triton"), (1024, "cutlass"),
    ]  # fmt: skip
    table(cells({8: 0.9, 1024: 0.9}))
    assert parts(choose(problem(), HOPPER)) == [(0, "triton")]
    table(cells({512: 1.1}))
    assert parts(choose(problem(), HOPPER)) == [(0, "triton"), (128, "cutlass")]


@pytest.mark.parametrize(
    ("fields", "device", "expected"),
    [
        ({}, HOPPER, [(0, "triton"), (1024, "cutlass")]),
        ({"experts": 8, "top_k": 2}, HOPPER, [(0, "triton"), (256, "cutlass")]),
        ({"format": "fp8_channel"}, HOPPER, [(0, "triton"), (1024, "cutlass")]),
        ({"format": "bf16"}, HOPPER, [(0, "triton")]),
        ({"format": "nvfp4"}, HOPPER, [(0, "triton")]),
        ({}, Device("Another", (10, 0), 148), [(0, "triton")]),
    ],
)
def test_without_a_measurement_sizes_decide(table, fields, device, expected):
    assert parts(choose(problem(**fields), device)) == expected


@pytest.mark.parametrize(
    ("fields", "near"),
    [
        ({"intermediate": 384}, True),
        ({"hidden": 4096, "intermediate": 1536}, True),
        ({"hidden": 4096, "intermediate": 1600}, False),
        ({"intermediate": 96}, False),
        ({"pairing": "none"}, False),
        ({"format": "fp8_tensor"}, False),
    ],
)
def test_a_near_shape_of_the_same_format_speaks_for_another(table, fields, near):
    table(cells({1: 1.2, 4096: 1.2}))
    choice = choose(problem(**fields), HOPPER)
    assert (choice.of(1) == "cutlass") == near
    assert ("the nearest shape" in choice.describe()) == near


def test_the_nearest_shape_decides(table):
    other = {"hidden": 4096, "intermediate": 1536}
    table([*cells({1: 0.8, 4096: 0.8}), *cells({1: 1.2, 4096: 1.2}, **other)])
    assert choose(problem(hidden=3000, intermediate=1536), HOPPER).backends == ("cutlass",)
    assert choose(problem(hidden=2048, intermediate=1000), HOPPER).backends == ("triton",)


def test_a_device_of_the_same_chip_uses_the_table(table):
    table(cells({1: 1.2, 4096: 1.2}), device="Its sister")
    assert choose(problem(), HOPPER).of(1) == "cutlass"
    table(cells({1: 1.2, 4096: 1.2}), device="Its sister", multiprocessors=114)
    assert choose(problem(), HOPPER).of(1) == "triton"


@pytest.mark.parametrize(("speedups", "backend"), [((0.8, 1.3), "cutlass"), ((0.7, 1.3), "triton")])
def test_fp4_has_one_backend_whose_copy_of_the_scales_is_the_only_one(table, speedups, backend):
    table(cells(dict(zip((1, 1024), speedups, strict=True)), format="nvfp4"))
    choice = choose(problem(format="nvfp4"), HOPPER)
    assert choice.backends == (backend,)
    assert "the mean of 2 token counts" in choice.describe()
    # Who cannot let go of the scales has them read where they are.
    assert choose(problem(format="nvfp4"), HOPPER, may_copy=False).backends == ("triton",)


def test_fp4_of_which_cutlass_would_hold_more_goes_to_triton(table):
    """Tensor parallelism divides 768 columns by four: 192, of which whole tiles are 256."""
    table(cells({1: 1.2, 1024: 1.2}, format="nvfp4"))
    assert choose(problem(format="nvfp4", intermediate=384), HOPPER).backends == ("cutlass",)
    choice = choose(problem(format="nvfp4", intermediate=192), HOPPER)
    assert choice.backends == ("triton",)
    assert "1.037 times" in choice.describe()


def test_the_largest_call_of_a_backend():
    choice = Choice((Part(0, "triton", ""), Part(5, "cutlass", ""), Part(65, "triton", "")))
    assert [choice.most("triton", tokens) for tokens in (3, 20, 64, 65, 900)] == [3, 4, 4, 65, 900]
    assert [choice.most("cutlass", tokens) for tokens in (3, 20, 64, 65, 900)] == [0, 20, 64, 64, 64]


# --- The shipped tables ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collect():
    path = ROOT / "scripts" / "collect_backend_choice.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_tables_are_what_the_program_makes_of_the_results(collect):
    shipped = sorted(collect.TABLES.glob("*.json"))
    assert shipped
    for path in shipped:
        table = json.loads(path.read_text())
        made = collect.tables_of([ROOT / "benchmark" / "results" / name for name in table["from"]])
        assert path.read_text() == collect.text_of(made[table["device"]])


@pytest.mark.parametrize("first", ["cutlass", "triton"])
def test_both_orders_of_a_benchmark_give_the_same_cells(collect, first, tmp_path):
    """The ratio is Triton's time over CUTLASS's, whichever of them stood beside the other."""
    times = {"cutlass": 100.0, "triton": 125.0}
    other = "triton" if first == "cutlass" else "cutlass"
    ratio = times[other] / times[first]
    row = {
        "commit": "0123456789", "format": "fp8_block", "model": "mixtral-8x7b", "tokens": 16,
        "backend": first, "us": times[first], "peer": f"flexact {other}", "peer us": times[other],
        "speedup": ratio, "interval": [ratio * 0.99, ratio * 1.01],
    }  # fmt: skip
    of_a_peer = {**row, "peer": "marlin", "speedup": 7.0}
    path = tmp_path / "results.json"
    columns = {"columns": list(row), "rows": [list(row.values()), list(of_a_peer.values())]}
    path.write_text(json.dumps({"device": "NVIDIA H200", **columns}))
    table = collect.tables_of([path])["NVIDIA H200"]
    (entry,) = table["entries"]
    assert entry["speedup"] == 1.25
    assert entry["interval"] == pytest.approx([1.2375, 1.2625], abs=2e-3)
    assert (entry["cutlass_us"], entry["triton_us"]) == (100.0, 125.0)
    assert (entry["format"], entry["intermediate"], entry["commit"]) == ("fp8_block", 14336, "0123456")


def test_the_choice_can_be_printed_without_a_gpu(table, monkeypatch, capsys):
    table(cells({1: 0.9, 4096: 1.2}), device="NVIDIA H200")
    arguments = ["--experts", "128", "--top-k", "8", "--hidden", "2048", "--intermediate", "768"]
    monkeypatch.setattr("sys.argv", ["backend_choice", *arguments, "--format", "fp8_block"])
    backend_choice.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  measured")[0].rstrip() for line in lines] == [
        "from      0 tokens: triton",
        "from     65 tokens: cutlass",
    ]


# --- Refusals -------------------------------------------------------------------------------------


def chosen(monkeypatch, refusals, wanted="auto", **fields):
    monkeypatch.delenv("FLEXACT_BACKEND", raising=False)
    monkeypatch.setattr(backend_choice, "device_of", lambda index: HOPPER)
    asked = []

    def refuse(name, problem, function):
        asked.append(name)
        return refusals.get(name)

    monkeypatch.setattr(_core, "refuse", refuse)
    function = SWISH.function.gated()
    return parts(flexact.moe.choose(wanted, problem(**fields), function, CUDA)), asked


def test_where_one_refuses_the_other_computes(table, monkeypatch):
    table(cells({1: 0.9, 4096: 1.2}))
    both, _ = chosen(monkeypatch, {})
    assert both == [(0, "triton"), (65, "cutlass")]
    assert chosen(monkeypatch, {"cutlass": ("odd sizes", "pad")})[0] == [(0, "triton")]
    assert chosen(monkeypatch, {"triton": ("too many experts", "")})[0] == [(0, "cutlass")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert chosen(monkeypatch, {})[0] == [(0, "cutlass")]


def test_who_is_not_chosen_is_not_asked(table, monkeypatch):
    """Asking CUTLASS loads two libraries."""
    assert chosen(monkeypatch, {}, format="bf16") == ([(0, "triton")], ["triton"])
    assert chosen(monkeypatch, {"triton": ("no", "")}, format="bf16")[0] == [(0, "cutlass")]


def test_where_both_refuse_both_reasons_are_given(table, monkeypatch):
    refusals = {"triton": ("too many experts", "fewer"), "cutlass": ("odd sizes", "pad them")}
    with pytest.raises(flexact.Unsupported) as refused:
        chosen(monkeypatch, refusals, format="bf16")
    for text in ("triton refuses: too many experts", "cutlass refuses: odd sizes", "fewer", "pad them"):
        assert text in str(refused.value)


def test_a_backend_that_is_named_is_taken_or_refused(table, monkeypatch):
    assert chosen(monkeypatch, {}, "cutlass") == ([(0, "cutlass")], ["cutlass"])
    with pytest.raises(flexact.Unsupported, match="cutlass refuses: odd sizes"):
        chosen(monkeypatch, {"cutlass": ("odd sizes", "pad")}, "cutlass")
    monkeypatch.setattr(_core, "refuse", lambda *ignored: None)
    with pytest.raises(flexact.Unsupported, match="CUDA tensors, and these are on cpu"):
        flexact.moe.choose("cutlass", problem(), SWISH.function.gated(), torch.device("cpu"))
    with pytest.raises(flexact.Unsupported, match="no backend computes on meta"):
        flexact.moe.choose("auto", problem(), SWISH.function.gated(), torch.device("meta"))


# --- Plans ----------------------------------------------------------------------------------------


class Recording:
    """A plan that says who ran."""

    def __init__(self, name, bytes_a_token, resident):
        self.name, self.each, self.resident_bytes = name, bytes_a_token, resident
        self.problem, self.function = problem(), SWISH.function
        self.reserved = None

    def run(self, hidden_states, topk_weights, topk_ids, *, activation_values=None, out=None):
        return self.name, hidden_states.shape[0], out

    def reserve(self, tokens, id_dtypes=()):
        self.reserved = (tokens, id_dtypes)

    def workspace_bytes(self, tokens):
        return self.each * tokens

    def launch_of(self, tokens):
        return f"{self.name} of {tokens}"

    def describe(self):
        return f"{self.name} line"


def test_a_plan_of_both_goes_by_the_number_of_tokens():
    choice = Choice((Part(0, "triton", "why"), Part(5, "cutlass", "because")))
    plan = AutoPlan(choice, {"triton": Recording("triton", 100, 0), "cutlass": Recording("cutlass", 10, 64)})
    for tokens, name in ((0, "triton"), (4, "triton"), (5, "cutlass"), (300, "cutlass")):
        x = torch.empty(tokens, 8)
        assert plan.run(x, None, None, out=x)[:2] == (name, tokens)
        assert plan.launch_of(tokens) == f"{name} of {tokens}"
    assert plan.workspace_bytes(30) == 400
    assert plan.workspace_bytes(300) == 3000
    assert plan.resident_bytes == 64
    plan.reserve(300, id_dtypes=(torch.int32,))
    assert [each.reserved for each in plan.plans.values()] == [(4, (torch.int32,)), (300, (torch.int32,))]
    text = plan.describe()
    assert text.startswith("auto: triton up to 4 (why), cutlass from 5 tokens on (because)")
    assert "triton line" in text and "cutlass line" in text
    few = AutoPlan(choice, {"triton": Recording("triton", 1, 0), "cutlass": Recording("cutlass", 1, 0)})
    few.reserve(3)
    assert few.plans["cutlass"].reserved is None


@pytest.fixture
def gpu_calls(monkeypatch, table):
    """The operator's CUDA side on CPU tensors: which backend is called."""
    calls = []
    monkeypatch.setattr(backend_choice, "device_of", lambda index: HOPPER)
    monkeypatch.setattr(_core, "refuse", lambda *ignored: None)
    monkeypatch.setattr(flexact.moe, "_choices", {})
    monkeypatch.setattr(flexact.moe, "_run_cutlass", lambda *ignored: calls.append("cutlass"))
    monkeypatch.setattr(flexact.moe, "_run_triton", lambda *ignored: calls.append("triton"))
    monkeypatch.delenv("FLEXACT_BACKEND", raising=False)

    def call(tokens, format="bf16", sizes=(64, 32), transposed=False, shift=0, **options):
        hidden, inner = sizes
        x = torch.empty(tokens, hidden, dtype=torch.bfloat16)
        packed, type = (2, torch.uint8) if "fp4" in format else (1, torch.bfloat16)
        shape = (4, 2 * inner, hidden // packed)
        w13 = torch.empty(math.prod(shape) + shift, dtype=type)[shift:].view(shape)
        w13 = FakeCuda.of(w13.transpose(1, 2) if transposed else w13)
        w2 = torch.empty(4, hidden, inner // packed, dtype=type)
        ids = torch.zeros(tokens, 2, dtype=torch.int32)
        text = SWISH.function.canonical
        flexact.moe._fused_moe_cuda(x, w13, w2, ids.float(), ids, text, format=format, **options)
        return calls[-1]

    return call


class FakeCuda(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    @staticmethod
    def of(tensor):
        return tensor.as_subclass(FakeCuda)

    @property
    def device(self):
        return CUDA


def test_the_operator_follows_the_choice_call_by_call(gpu_calls, table):
    near = {"experts": 4, "top_k": 2, "hidden": 64, "intermediate": 32, "format": "bf16"}
    table(cells({1: 0.9, 256: 1.2}, **near))
    assert [gpu_calls(tokens) for tokens in (1, 16, 17, 500)] == ["triton", "triton", "cutlass", "cutlass"]
    assert gpu_calls(1, backend="cutlass") == "cutlass"
    assert gpu_calls(500, backend="triton") == "triton"


def test_weights_that_the_copy_engine_cannot_read_go_to_triton(gpu_calls, table):
    near = {"experts": 4, "top_k": 2, "hidden": 64, "intermediate": 32, "format": "bf16"}
    table(cells({1: 1.2, 256: 1.2}, **near))
    assert gpu_calls(16) == "cutlass"
    assert gpu_calls(16, sizes=(64, 32), transposed=True) == "triton"
    assert gpu_calls(16, shift=1) == "triton"
    assert gpu_calls(16, shift=8) == "cutlass"
    assert gpu_calls(16, transposed=True, backend="cutlass") == "cutlass"


def test_the_operator_does_not_hold_scales_twice(gpu_calls, table):
    near = {"experts": 4, "top_k": 2, "hidden": 512, "intermediate": 256, "format": "mxfp4"}
    table(cells({1: 1.2, 256: 1.2}, **near))
    assert choose(problem(**near), HOPPER).backends == ("cutlass",)
    assert gpu_calls(16, format="mxfp4", sizes=(512, 256)) == "triton"
    assert gpu_calls(16, format="mxfp4", sizes=(512, 256), backend="cutlass") == "cutlass"


def test_the_operator_keeps_a_plan_of_the_cuda_kernels_for_a_layer(monkeypatch):
    """CUDA's side of the operator on CPU tensors, its plans replaced."""
    calls = []

    class Core:
        def workspace_bytes(self, tokens):
            return 10 * tokens

        def run_on(self, x, weights, ids, out, values, rows, columns, scratch, size, stream):
            calls.append((x[2], weights[1], ids[1], rows, columns, size, stream))

    monkeypatch.setattr(flexact.moe, "_choices", {})
    monkeypatch.setattr(flexact.moe, "choose", lambda *ignored, **more: backend_choice.only("cutlass", "why"))
    made = []
    monkeypatch.setattr(flexact.moe, "_make", lambda *arguments: made.append(arguments) or Core())
    w13, w2 = torch.zeros(4, 64, 32).bfloat16(), torch.zeros(4, 32, 32).bfloat16()
    ids = torch.zeros(5, 2, dtype=torch.int64)

    def call(tokens, values):
        x = torch.zeros(tokens, 32, dtype=torch.bfloat16)
        chosen, text = ids[:tokens], SWISH.function.canonical
        arguments = (x, w13, w2, chosen.float(), chosen, text)
        return flexact.moe._fused_moe_cuda(*arguments, activation_values=values)

    assert call(5, torch.tensor([[1.5]])).shape == (5, 32)
    assert call(3, torch.tensor([[1.1]] * 4)).dtype == torch.bfloat16
    assert calls == [
        ((5, 32), "float32", "int64", 1, 1, 51, 0), ((3, 32), "float32", "int64", 4, 1, 31, 0),
    ]  # fmt: skip
    assert [name for name, *_ in made] == ["cutlass"]
    with pytest.raises(flexact.InvalidArgument, match="the parameters beta"):
        call(5, None)
    flexact.moe.invalidate()


def test_both_plans_are_made_only_where_both_are_chosen(table, monkeypatch):
    made = []
    monkeypatch.setattr(backend_choice, "device_of", lambda index: HOPPER)
    monkeypatch.setattr(_core, "refuse", lambda *ignored: None)
    monkeypatch.delenv("FLEXACT_BACKEND", raising=False)
    monkeypatch.setattr(flexact.moe, "_make", lambda name, *rest: made.append(name) or name)
    monkeypatch.setattr(flexact.moe, "DevicePlan", lambda core, *rest: Recording(core, 1, 0))

    class Module:
        @staticmethod
        def TritonPlan(*ignored):
            made.append("triton")
            return Recording("triton", 1, 0)

    monkeypatch.setattr(flexact.moe, "_triton", lambda: Module)
    near = {"experts": 4, "top_k": 2, "hidden": 64, "intermediate": 32, "format": "bf16"}
    w13 = FakeCuda.of(torch.empty(4, 64, 64, dtype=torch.bfloat16))
    w2 = torch.empty(4, 64, 32, dtype=torch.bfloat16)
    for speedups, expected in (
        ({1: 0.9, 256: 1.2}, ["triton", "cutlass"]),
        ({1: 0.9, 1024: 0.9}, ["triton"]),
        ({1: 1.2, 1024: 1.2}, ["cutlass"]),
    ):
        table(cells(speedups, **near))
        made.clear()
        plan = flexact.moe.plan(w13, w2, SWISH, top_k=2)
        assert made == expected
        assert isinstance(plan, AutoPlan) == (len(expected) > 1)


@pytest.mark.skipif("FLEXACT_BACKEND" in os.environ, reason="a backend is named")
def test_auto_on_cpu_tensors_is_the_cpu():
    problem = _core.MoeProblem(experts=2, top_k=1, hidden=8, intermediate=8)
    assert parts(flexact.moe.choose("auto", problem, SWISH.function.gated(), torch.device("cpu"))) == [
        (0, "cpu")
    ]
