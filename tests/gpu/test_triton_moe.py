"""The Triton kernels on a GPU: the interpreter's cases, real tiles, determinism, graphs, the operator."""

import collections
import concurrent.futures
import itertools

import flexact
import flexact.moe
import pytest
import torch
import triton_cases
from flexact import ActivationRegistry, fused_moe
from flexact.triton import moe as launcher
from triton import knobs

SWISH = triton_cases.activation("swish")
OAI = triton_cases.activation("swiglu_oai")
RELU2 = triton_cases.activation("relu2")


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    """Whatever was measured faster: these are the Triton kernels' tests."""
    monkeypatch.setenv("FLEXACT_BACKEND", "triton")


def real_cases():
    """Sizes at which the launches that are shipped or modelled run as they do in serving."""
    sizes = [
        (1, 8, 2, 1024, 512), (2, 16, 4, 768, 448), (13, 16, 4, 512, 384), (100, 16, 4, 512, 392),
        (700, 8, 4, 1024, 256), (3000, 4, 2, 512, 640), (300, 100, 8, 520, 136), (9, 3, 2, 33, 21),
        (500, 3, 2, 33, 21),
    ]  # fmt: skip
    subjects = itertools.cycle(
        [
            (SWISH, {"pairing": "concat"}),
            (OAI, {"pairing": "interleaved", "bias": True}),
            (RELU2, {"pairing": "none", "weight_input": True}),
            (SWISH, {"pairing": "up_first", "per_expert": True, "scale": 2.5}),
            (OAI, {"pairing": "concat", "combine": False, "ids": torch.int64}),
            (SWISH, {"transposed": True, "dtype": torch.float16}),
        ]
    )
    cases = []
    for seed, ((tokens, experts, top_k, hidden, inner), _) in enumerate(itertools.product(sizes, range(2))):
        act, options = next(subjects)
        text = " ".join(f"{key}={str(value).removeprefix('torch.')}" for key, value in options.items())
        name = f"real {act.function.name} M={tokens} E={experts} k={top_k} H={hidden} I={inner} {text}"
        more = {"tokens": tokens, "experts": experts, "top_k": top_k, "hidden": hidden, "intermediate": inner}
        cases.append(triton_cases.Case(name, None, act, device="cuda", seed=seed, **more, **options))
    return cases


def all_cases():
    if not torch.cuda.is_available():
        return []
    return triton_cases.kernel_cases("cuda") + triton_cases.function_cases("cuda") + real_cases()


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_as_near_to_fp64_as_torch_and_the_same_bits_again(case, record_property):
    block, arguments = case.block(), case.arguments()
    result = case.run(block, arguments)
    report = case.errors(result)
    for key in ("rms", "recipe_rms", "max"):
        record_property(key, report[key])
    assert report["finite"], report
    assert report["rms"] <= 1.1 * report["recipe_rms"] + 1e-6, report
    # The same bits whatever memory held before, and with every run.
    again = case.run(block, arguments)
    assert torch.equal(result.view(torch.int16), again.view(torch.int16))


def graph_of(run):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


@pytest.mark.parametrize("tokens", [1, 13, 300, 1500])
def test_replay_of_a_graph_equals_an_eager_call_with_new_inputs(tokens):
    options = {"experts": 8, "hidden": 256, "intermediate": 192, "device": "cuda"}
    case = triton_cases.Case("graph", None, SWISH, tokens=tokens, seed=1, **options)
    other = triton_cases.Case("graph", None, SWISH, tokens=tokens, seed=2, **options)
    block, arguments = case.block(), case.arguments()
    out = torch.empty(case.x.shape, dtype=case.dtype, device="cuda")
    x, weights, topk_weights, ids, values = arguments
    graph, result = graph_of(lambda: block.run(x, weights, topk_weights, ids, values, out))
    for name, tensor in (("x", x), ("topk_weights", topk_weights), ("ids", ids)):
        tensor.copy_(getattr(other, name))
    values.fill_(0.3)
    out.fill_(float("nan"))
    graph.replay()
    replayed = result.clone()
    eager = block.run(x, weights, topk_weights, ids, values, torch.empty_like(out))
    assert torch.equal(replayed, eager)
    assert torch.isfinite(replayed).all()


def test_a_call_does_not_wait_for_the_device():
    case = triton_cases.Case("wait", None, SWISH, tokens=300, experts=8, hidden=256, device="cuda")
    block, arguments = case.block(), case.arguments()
    case.run(block, arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run(block, arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_compiled_after_the_warm_up():
    generator = torch.Generator(device="cuda").manual_seed(0)
    w13 = torch.randn(8, 512, 256, device="cuda", generator=generator).bfloat16() / 16
    w2 = torch.randn(8, 256, 256, device="cuda", generator=generator).bfloat16() / 16
    plan = flexact.moe.plan(w13, w2, SWISH, top_k=2)
    assert plan.warm_up(3000) > 5
    compiled = []
    knobs.runtime.jit_cache_hook = lambda *args, **kwargs: compiled.append(kwargs.get("repr")) and None
    try:
        for tokens in (1, 2, 3, 7, 16, 17, 63, 100, 129, 512, 513, 777, 1000, 2049, 2999):
            x = torch.randn(tokens, 256, device="cuda", generator=generator).bfloat16()
            ids = torch.randint(0, 8, (tokens, 2), device="cuda", generator=generator)
            plan.run(x, torch.rand(tokens, 2, device="cuda", generator=generator), ids)
    finally:
        knobs.runtime.jit_cache_hook = None
    assert compiled == []


def test_threads_that_need_a_new_function_compile_each_kernel_once(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXACT_CACHE_DIR", str(tmp_path))
    generator = torch.Generator(device="cuda").manual_seed(0)
    w13 = torch.randn(8, 384, 192, device="cuda", generator=generator).bfloat16() / 16
    w2 = torch.randn(8, 192, 192, device="cuda", generator=generator).bfloat16() / 16
    x = torch.randn(300, 192, device="cuda", generator=generator).bfloat16()
    ids = torch.randint(0, 8, (300, 2), device="cuda", generator=generator)
    scores = torch.rand(300, 2, device="cuda", generator=generator)
    function = flexact.Function.expression("x*sigmoid(1.375*x)+0.0625*tanh(x)")
    compiled = collections.Counter()

    def count(*, src, cache_hit, **_):
        compiled[src.name] += not cache_hit

    def run(_):
        plan = flexact.moe.plan(w13, w2, function, top_k=2)
        result = plan.run(x, scores, ids)
        torch.cuda.synchronize()
        return result

    monkeypatch.setattr(knobs.compilation, "listener", count)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(run, range(4))
    assert compiled["gate_up"] == 1
    assert max(compiled.values()) == 1, compiled
    assert all(torch.equal(first, other) for other in others)


def operator_inputs(tokens=37):
    case = triton_cases.Case(
        "operator", None, SWISH, tokens=tokens, experts=8, hidden=256, intermediate=192, device="cuda"
    )
    x, weights, topk_weights, ids, _ = case.arguments()
    return case, (x, weights["w13"], weights["w2"], topk_weights, ids)


def test_operator_runs_the_triton_kernels_on_cuda_tensors(monkeypatch):
    case, arguments = operator_inputs()
    silu = ActivationRegistry.get_activation("swish", {"beta": case.values[0, 0].item()})
    block, inputs = case.block(), case.arguments()
    want = case.run(block, inputs)
    assert torch.equal(fused_moe(*arguments, silu), want)
    monkeypatch.delenv("FLEXACT_BACKEND")
    assert torch.equal(fused_moe(*arguments, silu, backend="triton"), want)
    with pytest.raises(flexact.Unsupported, match="cpu"):
        fused_moe(*arguments, silu, backend="cpu")
    with pytest.raises(flexact.InvalidArgument, match="topk_ids is on cpu"):
        fused_moe(*arguments[:4], arguments[4].cpu(), silu)
    plan = flexact.moe.plan(*arguments[1:3], silu, top_k=2, backend="triton")
    assert torch.equal(plan.run(arguments[0], *arguments[3:]), want)
    assert plan.resident_bytes == 0
    assert "triton" in plan.describe()


def test_scratch_memory_is_what_the_plan_says():
    _, (x, w13, w2, topk_weights, ids) = operator_inputs(1000)
    plan = flexact.moe.plan(w13, w2, SWISH, top_k=2)
    out = torch.empty_like(x)
    plan.run(x, topk_weights, ids, out=out)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    plan.run(x, topk_weights, ids, out=out)
    assert torch.cuda.max_memory_allocated() - before <= plan.workspace_bytes(1000) + (1 << 20)


def test_operator_compiles_into_one_graph():
    _, arguments = operator_inputs()

    text, values = SWISH.function.canonical, torch.tensor([[1.5]], device="cuda")

    @torch.compile(fullgraph=True)
    def layer(*tensors):
        return fused_moe(*tensors[:-1], text, activation_values=tensors[-1]) * 2

    want = fused_moe(*arguments, text, activation_values=values) * 2
    assert torch.equal(layer(*arguments, values), want)


@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dense_activation_equals_fp64_rounded_once(pairing, dtype):
    for rows, width in ((1, 14336), (3, 40), (5, 1000), (700, 2880), (4096, 1536)):
        error = triton_cases.dense_error(rows, width, pairing, dtype, "cuda")
        assert error <= (1e-7 if dtype != torch.float16 else 6e-8), (rows, width)


@pytest.mark.parametrize("tokens", [1, 2048])
def test_block_with_its_router_equals_the_block_written_out(tokens):
    """At the sizes of an 8-expert model; weights are read transposed, as they lie."""
    report = triton_cases.forward_report("cuda", tokens, 4096, 8, 11008)
    assert report["finite"]
    assert report["rms"] <= 1.2 * report["recipe_rms"], report


def test_launches_of_this_device_are_the_shipped_ones():
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = (properties.major, properties.minor)
    table = launcher.launch_table(properties.name, capability, properties.multi_processor_count)
    if len(table) == 0:
        pytest.skip("no table for this chip")
    assert table.device
