"""The backend cutlass through torch on a Hopper GPU: every way in against fp64, streams and graphs."""

import flexact
import flexact.moe
import pytest
import torch
from flexact import ActivationRegistry, _core, backend_choice, formats, fused_moe, testing
from moe_reference import reference_moe

SWISH = ActivationRegistry.get_activation("swish", {"beta": 1.5})


def refusal(format="bf16"):
    problem = _core.MoeProblem(experts=2, top_k=1, hidden=64, intermediate=64, format=format)
    return _core.refuse("cutlass", problem, SWISH.function.gated())


pytestmark = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))


class Layer:
    def __init__(self, tokens, seed=0, experts=6, top_k=2, hidden=136, intermediate=72, pairing="concat"):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape, size=1.0):
            return (torch.randn(*shape, generator=generator) * size).bfloat16().cuda()

        rows = intermediate if pairing == "none" else 2 * intermediate
        self.pairing = pairing
        self.top_k = top_k
        self.x = normal(tokens, hidden)
        self.w13 = normal(experts, rows, hidden, size=1.5 / hidden**0.5)
        self.w2 = normal(experts, hidden, intermediate, size=1 / intermediate**0.5)
        self.weights = (torch.rand(tokens, top_k, generator=generator) + 0.1).cuda()
        self.ids = torch.randint(-1, experts, (tokens, top_k), generator=generator).cuda()

    @property
    def inputs(self):
        return self.x, self.weights, self.ids

    def call(self, **options):
        arguments = (self.x, self.w13, self.w2, self.weights, self.ids, SWISH)
        return fused_moe(*arguments, pairing=self.pairing, backend="cutlass", **options)

    def expected(self, beta=1.5, **options):
        def function(expert, g, u=1):
            return g * torch.sigmoid(beta * g) * u

        tensors = (each.cpu() for each in (self.x, self.w13, self.w2, self.weights, self.ids))
        return reference_moe(*tensors, function, pairing=self.pairing, **options)


def assert_near(actual, expected):
    assert actual.is_cuda
    assert actual.dtype == torch.bfloat16
    scale = expected.abs().max()
    torch.testing.assert_close(actual.cpu().double() / scale, expected / scale, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved", "none"])
@pytest.mark.parametrize("tokens", [1, 3, 9, 40, 300])
def test_operator_and_plan_equal_fp64(tokens, pairing):
    layer = Layer(tokens, pairing=pairing)
    assert_near(layer.call(), layer.expected())
    plan = flexact.moe.plan(
        layer.w13, layer.w2, SWISH, top_k=layer.top_k, pairing=pairing, backend="cutlass", combine=False
    )
    assert plan.describe().startswith("cutlass")
    assert plan.resident_bytes == 0
    assert_near(plan.run(*layer.inputs), layer.expected(combine=False))


@pytest.mark.parametrize("tokens", [1, 40, 700])
@pytest.mark.parametrize(
    ("pairing", "name"),
    [("concat", "swish"), ("up_first", "swish"), ("interleaved", "swiglu_oai"), ("none", "relu2")],
)
@pytest.mark.parametrize("format", [*formats.FP8_FORMATS, *formats.FP4_FORMATS])
def test_a_quantised_format_is_as_near_to_fp64_as_its_recipe(format, pairing, name, tokens, record_property):
    if (refused := refusal(format)) is not None:
        pytest.skip(str(refused))
    case = testing.random_case(
        format, tokens=tokens, experts=8, top_k=2, hidden=512, intermediate=384, pairing=pairing,
        device="cuda", absent=0.1,
    )  # fmt: skip
    activation = SWISH if name == "swish" else ActivationRegistry.get_activation(name)
    plan = flexact.moe.plan(
        **case.weights, activation=activation, top_k=2, format=format, pairing=pairing, backend="cutlass"
    )
    result = plan.run(case.hidden_states, case.topk_weights, case.topk_ids)
    exact = testing.reference(case, activation)
    rms, largest = testing.errors(result, exact)
    stated = testing.recipe(case, activation, partial=result.dtype, partial_weighted=False)
    recipe, _ = testing.errors(stated, exact)
    for key, value in {"rms": rms, "recipe_rms": recipe, "max": largest}.items():
        record_property(key, value)
    assert rms <= 1.1 * recipe


@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved", "none"])
@pytest.mark.parametrize("tokens", [1, 3, 40, 300])
def test_fp16_equals_fp64(tokens, pairing):
    problem = _core.MoeProblem(
        experts=2, top_k=1, hidden=64, intermediate=64, format="fp16", io_dtype="float16"
    )
    if (refused := _core.refuse("cutlass", problem, SWISH.function.gated())) is not None:
        pytest.skip(str(refused))
    layer = Layer(tokens, pairing=pairing)
    layer.x, layer.w13, layer.w2 = layer.x.half(), layer.w13.half(), layer.w2.half()
    result = layer.call(format="fp16")
    assert result.dtype == torch.float16
    expected = layer.expected()
    scale = expected.abs().max()
    torch.testing.assert_close(result.cpu().double() / scale, expected / scale, rtol=0.003, atol=0.003)
    assert torch.equal(result, layer.call(format="fp16"))


@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved", "none"])
@pytest.mark.parametrize("name", ["swish", "gelu", "mish"])
def test_in_the_exact_mode_fused_and_separate_kernels_have_the_same_bits(name, pairing, monkeypatch):
    """Weights that change nothing bring out what the first GEMM computes, with the function and without."""
    monkeypatch.setenv("FLEXACT_NUMERICS", "exact")
    activation = SWISH if name == "swish" else ActivationRegistry.get_activation(name)
    layer = Layer(300, hidden=256, intermediate=256 if pairing == "none" else 128, pairing=pairing)
    layer.ids = layer.ids.clamp_min(0)
    experts, rows, hidden = layer.w13.shape

    def activated(function, columns, pairing):
        w2 = torch.zeros(experts, hidden, columns, dtype=torch.bfloat16, device="cuda")
        w2[:, :columns] = torch.eye(columns, dtype=torch.bfloat16, device="cuda")
        weights = (layer.w13, w2, layer.weights, layer.ids)
        options = {"pairing": pairing, "combine": False, "backend": "cutlass"}
        return fused_moe(layer.x, *weights, function, **options)[..., :columns]

    sums = activated(ActivationRegistry.get_activation("linear"), rows, "none").reshape(-1, rows)
    separate = flexact.act_and_mul(sums, activation, pairing=pairing, backend="cutlass")
    fused = activated(activation, layer.w2.shape[2], pairing).reshape(separate.shape)
    assert torch.equal(fused, separate)
    assert separate.float().std() > 0.1


def test_environment_names_the_backend(monkeypatch):
    layer = Layer(9)
    expected = layer.call()
    monkeypatch.setenv("FLEXACT_BACKEND", "cutlass")
    again = fused_moe(layer.x, layer.w13, layer.w2, layer.weights, layer.ids, SWISH)
    assert torch.equal(again, expected)


@pytest.fixture
def from_nine_tokens_on(monkeypatch):
    """A table by which CUTLASS is faster from nine tokens on, in the layer's format and sizes."""
    chip = backend_choice.device_of(None)
    shape = {"experts": 6, "top_k": 2, "hidden": 136, "intermediate": 72, "format": "bf16", "gated": True}
    cells = [
        {**shape, "tokens": tokens, "speedup": speedup, "interval": [speedup] * 2}
        for tokens, speedup in ((4, 0.9), (16, 1.2), (4096, 1.2))
    ]
    table = {"device": chip.name, "capability": list(chip.capability), "multiprocessors": 0, "entries": cells}
    monkeypatch.setattr(backend_choice, "tables", lambda: [table])
    monkeypatch.delenv("FLEXACT_BACKEND", raising=False)
    monkeypatch.setattr(flexact.moe, "_choices", {})
    backend_choice._table.cache_clear()
    yield
    backend_choice._table.cache_clear()


@pytest.mark.parametrize(
    ("tokens", "backend"), [(1, "triton"), (8, "triton"), (9, "cutlass"), (300, "cutlass")]
)
def test_auto_is_the_backend_that_was_measured_faster(tokens, backend, from_nine_tokens_on):
    """To the bit, as an operator, as a plan, and as a graph of the plan that follows new inputs."""
    layer, other = Layer(tokens, seed=1), Layer(tokens, seed=2)
    other.w13, other.w2 = layer.w13, layer.w2

    def expected(inputs):
        return fused_moe(inputs.x, layer.w13, layer.w2, inputs.weights, inputs.ids, SWISH, backend=backend)

    assert torch.equal(
        fused_moe(layer.x, layer.w13, layer.w2, layer.weights, layer.ids, SWISH), expected(layer)
    )
    plan = flexact.moe.plan(layer.w13, layer.w2, SWISH, top_k=layer.top_k)
    assert plan.describe().startswith("auto: triton up to 8 ")
    assert plan.resident_bytes == 0
    plan.reserve(300)
    assert torch.equal(plan.run(*layer.inputs), expected(layer))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = plan.run(*layer.inputs)
    want = expected(other)
    for mine, new in zip(layer.inputs, other.inputs, strict=True):
        mine.copy_(new)
    graph.replay()
    assert torch.equal(result, want)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
def test_scales_of_fp4_may_be_let_go(format):
    if (refused := refusal(format)) is not None:
        pytest.skip(str(refused))
    case = testing.random_case(
        format, tokens=40, experts=8, top_k=2, hidden=512, intermediate=384, device="cuda"
    )
    plan = flexact.moe.plan(**case.weights, activation=SWISH, top_k=2, format=format, backend="cutlass")
    scales = [case.weights[name] for name in plan.copied]
    assert len(scales) == 2
    # 384 outputs are three tiles of 128 pairs, 512 and 384 deep are whole steps of 128: nothing is padded.
    assert plan.resident_bytes == sum(each.nbytes for each in scales)
    inputs = (case.hidden_states, case.topk_weights, case.topk_ids)
    expected = plan.run(*inputs)
    for each in scales:
        each.view(torch.uint8).fill_(255)
    assert torch.equal(plan.run(*inputs), expected)
    assert not any(each is kept for each in scales for kept in plan._kept)


def test_values_of_a_call_replace_the_plan_s_own():
    layer = Layer(20)
    plan = flexact.moe.plan(layer.w13, layer.w2, SWISH, top_k=layer.top_k, backend="cutlass")
    for values in (torch.tensor([[0.4]]), torch.tensor([[0.4]], device="cuda")):
        assert_near(plan.run(*layer.inputs, activation_values=values), layer.expected(beta=0.4))


@pytest.mark.parametrize("tokens", [1, 9, 300])
def test_replay_of_a_graph_follows_new_inputs(tokens):
    layer, other = Layer(tokens, seed=1), Layer(tokens, seed=2)
    plan = flexact.moe.plan(layer.w13, layer.w2, SWISH, top_k=layer.top_k, backend="cutlass")
    plan.run(*layer.inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = plan.run(*layer.inputs)
    for mine, new in zip(layer.inputs, other.inputs, strict=True):
        mine.copy_(new)
    graph.replay()
    assert_near(result, layer.expected())


def test_it_runs_on_the_current_stream():
    layer = Layer(300)
    expected = layer.call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        layer.x.mul_(0)
        layer.x.add_(1)
        late = layer.call()
    stream.synchronize()
    assert not torch.equal(late, expected)
    assert_near(late, layer.expected())


def test_what_it_cannot_read_is_refused_by_name():
    layer = Layer(4)
    plan = flexact.moe.plan(layer.w13, layer.w2, SWISH, top_k=layer.top_k, backend="cutlass")
    with pytest.raises(flexact.InvalidArgument, match="topk_ids is on cpu"):
        plan.run(layer.x, layer.weights, layer.ids.cpu())
    with pytest.raises(flexact.Unsupported, match="float16"):
        fused_moe(layer.x.half(), layer.w13, layer.w2, layer.weights, layer.ids, SWISH, backend="cutlass")
    with pytest.raises(flexact.Unsupported, match="CUDA tensors"):
        flexact.moe.plan(layer.w13.cpu(), layer.w2.cpu(), SWISH, top_k=2, backend="cutlass")
