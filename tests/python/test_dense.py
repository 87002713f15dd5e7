"""act_and_mul: the activation of dense and shared MLPs."""

import re
import types

import flexact
import pytest
import torch
import torch.nn.functional as F
from flexact import ActivationRegistry, _core, act_and_mul, dense, formats
from flexact.dense import act_and_quantise
from moe_reference import split

SWISH = ActivationRegistry.get_activation("swish", {"beta": 1.5})
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12}


def swish(g):
    return g * torch.sigmoid(1.5 * g)


def assert_near(actual, expected):
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=TOLERANCE[actual.dtype], atol=TOLERANCE[actual.dtype]
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved"])
@pytest.mark.parametrize("shape", [(1, 2), (5, 64), (2, 3, 70), (130,)], ids=str)
def test_gate_and_up_are_read_by_the_pairing(shape, pairing, dtype):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    actual = act_and_mul(x, SWISH, pairing=pairing)
    g, u = split(x.double(), pairing)
    assert actual.shape == (*shape[:-1], shape[-1] // 2)
    assert actual.dtype == dtype
    assert_near(actual, swish(g) * u)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_unary_form(dtype):
    x = torch.randn(7, 33).to(dtype)
    assert_near(
        act_and_mul(x, ActivationRegistry.get_activation("relu2"), pairing="none"), F.relu(x.double()) ** 2
    )


@pytest.mark.parametrize("name", ActivationRegistry.list())
def test_kernel_and_torch_path_agree_for_every_function(name):
    function = ActivationRegistry.get_function(name)
    values = {
        each.name: next(
            v for v in (each.default, each.initial, 1.25, 0.5) if v is not None and each.allows(v)
        )
        for each in function.parameters
    }
    act = ActivationRegistry.get_activation(name, values)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 3
    pairing = "concat" if function.is_gated else "none"
    actual = act_and_mul(x, act, pairing=pairing)
    expected = act(*(split(x.double(), pairing) if function.is_gated else (x.double(),)))
    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=2e-5)


def test_gradients_flow():
    x = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    for pairing in ("concat", "up_first", "interleaved"):
        assert torch.autograd.gradcheck(lambda v, pairing=pairing: act_and_mul(v, SWISH, pairing=pairing), x)
    single = torch.randn(4, 10, requires_grad=True)
    act_and_mul(single, SWISH).sum().backward()
    assert single.grad.abs().sum() > 0
    with torch.no_grad():
        assert not act_and_mul(single, SWISH).requires_grad


def test_strided_rows_and_empty_tensors():
    wide = torch.randn(6, 40)
    g, u = split(wide[:, :20], "concat")
    assert_near(act_and_mul(wide[:, :20], SWISH), swish(g) * u)
    turned = torch.randn(20, 6).t()
    assert_near(act_and_mul(turned, SWISH), act_and_mul(turned.contiguous(), SWISH))
    assert act_and_mul(torch.empty(0, 8), SWISH).shape == (0, 4)
    assert act_and_mul(torch.empty(3, 0), SWISH).shape == (3, 0)


def test_out_is_written_and_nothing_beside_it():
    x = torch.randn(5, 16)
    memory = torch.full((7, 8), float("nan"))
    assert act_and_mul(x, SWISH, out=memory[1:6]).data_ptr() == memory[1:6].data_ptr()
    assert_near(memory[1:6], act_and_mul(x, SWISH))
    assert memory[[0, 6]].isnan().all()
    strided = torch.zeros(5, 16)[:, ::2]
    act_and_mul(x, SWISH, out=strided)
    assert_near(strided, memory[1:6])


def test_out_may_lie_on_the_input():
    x = torch.randn(5, 16)
    expected = act_and_mul(x.clone(), SWISH)
    assert_near(act_and_mul(x, SWISH, out=x[:, :8]), expected)
    flat = torch.randn(4, 8)
    expected = act_and_mul(flat.clone(), SWISH, pairing="none")
    assert_near(act_and_mul(flat, SWISH, pairing="none", out=flat), expected)


def test_values_by_layer():
    act = ActivationRegistry.get_activation("swish", {"beta": {"per_layer": [1.0, 1.5]}})
    x = torch.randn(3, 8)
    assert_near(act_and_mul(x, act, layer=1), act_and_mul(x, SWISH))
    with pytest.raises(flexact.InvalidArgument, match="differs by layer"):
        act_and_mul(x, act)


@pytest.mark.parametrize(
    ("x", "act", "options"),
    [
        (torch.ones(3, 7), SWISH, {}),
        (torch.tensor(1.0), SWISH, {}),
        (torch.ones(3, 8), SWISH, {"pairing": "separate"}),
        (torch.ones(3, 8), ActivationRegistry.get_activation("swiglu"), {"pairing": "none"}),
        (torch.ones(3, 8), SWISH, {"out": torch.ones(3, 8)}),
        (torch.ones(3, 8), SWISH, {"out": torch.ones(3, 4, dtype=torch.float64)}),
        (torch.ones(3, 8, requires_grad=True), SWISH, {"out": torch.ones(3, 4)}),
        (torch.ones(3, 8, dtype=torch.int64), SWISH, {}),
        (
            torch.ones(3, 8),
            ActivationRegistry.get_activation("swish", {"beta": {"per_expert": [1.0, 2.0]}}),
            {},
        ),
    ],
)
def test_contradictions_are_refused(x, act, options):
    with pytest.raises(flexact.InvalidArgument):
        act_and_mul(x, act, **options)


@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved", "none"])
@pytest.mark.parametrize("format", ["fp8_block", "fp8_channel"])
def test_a_quantised_result_is_the_activation_quantised_from_fp32(pairing, format):
    x = torch.randn(2, 3, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    codes, scale = act_and_quantise(x, SWISH, format=format, pairing=pairing)
    wide = x.double()
    exact = swish(wide)
    if pairing != "none":
        gate, up = split(wide, pairing)
        exact = swish(gate) * up
    assert codes.dtype == torch.float8_e4m3fn and codes.shape == exact.shape
    assert scale.shape == ((2, 3, -(-exact.shape[-1] // 128)) if format == "fp8_block" else (2, 3))
    error = (formats.dequantise_activations(codes, scale) - exact).abs()
    assert (error <= exact.abs() / 15.9 + scale.max().double() / 1000).all()


def test_a_backend_that_is_named_computes_it_or_refuses():
    x = torch.randn(3, 8)
    assert torch.equal(act_and_mul(x, SWISH, backend="cpu"), act_and_mul(x, SWISH))
    for call, message in (
        (lambda: act_and_mul(x, SWISH, backend="cutlass"), "cutlass computes cuda tensors"),
        (lambda: act_and_mul(x, SWISH, backend="triton"), "triton computes cuda tensors"),
        (lambda: act_and_mul(x.double(), SWISH, backend="cpu"), "no kernel for torch.float64"),
        (lambda: act_and_mul(x.requires_grad_(), SWISH, backend="cpu"), "no gradients"),
        (lambda: act_and_quantise(x.detach(), SWISH, backend="cpu"), "no kernel that quantises"),
        (lambda: act_and_quantise(x.detach(), SWISH, backend="cutlass"), "cutlass computes cuda tensors"),
    ):
        with pytest.raises(flexact.Unsupported, match=message):
            call()
    with pytest.raises(flexact.InvalidArgument, match="unknown backend 'cuda'"):
        act_and_mul(x.detach(), SWISH, backend="cuda")


def test_what_refuses_plans_nothing():
    function = SWISH.function.gated()
    options = {"pairing": "concat", "dtype": "bfloat16"}
    if (refused := _core.refuse_dense("cutlass", function, **options)) is not None:
        with pytest.raises(flexact.Unsupported, match=re.escape(refused[0])):
            _core.plan_dense("cutlass", function, **options)
    assert "no plans" in _core.refuse_dense("cpu", function, **options)[0]


def test_quantising_refuses_other_formats_and_gradients():
    x = torch.ones(2, 4)
    for call in (
        lambda: act_and_quantise(x, SWISH, format="mxfp4"),
        lambda: act_and_quantise(x.requires_grad_(), SWISH),
        lambda: act_and_quantise(torch.ones(2, 3), SWISH),
    ):
        with pytest.raises(flexact.InvalidArgument):
            call()


def test_the_operator_is_traced_and_its_meta_kernel_gives_the_shape():
    x = torch.randn(3, 5, 24)
    canonical, values = SWISH.function.canonical, torch.tensor([[1.5]])

    def block(v):
        return act_and_mul(v * 2, SWISH) + torch.ops.flexact.act_and_mul(v, canonical, values)

    torch.library.opcheck(torch.ops.flexact.act_and_mul.default, (x, canonical, values))
    torch.compiler.reset()
    expected = block(x)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), expected)
    meta = torch.ops.flexact.act_and_mul(x.to("meta").half(), canonical, None, pairing="none")
    assert (meta.shape, meta.dtype) == (x.shape, torch.float16)
    with pytest.raises(flexact.InvalidArgument, match="beta"):
        torch.ops.flexact.act_and_mul(x, canonical)
    with pytest.raises(flexact.Unsupported, match="no gradients"):
        torch.ops.flexact.act_and_mul(x.requires_grad_(), canonical, values).sum().backward()


class Recorded:
    """Stands for the CUDA kernels: what a call tells them."""

    def __init__(self):
        self.made, self.calls = [], []

    def plan(self, backend, function, **options):
        self.made.append((backend, function.formula, options))
        return self

    def describe(self):
        return "recorded"

    def run(self, **call):
        self.calls.append(call)


@pytest.fixture
def cuda_kernels(monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(_core, "plan_dense", recorded.plan)
    monkeypatch.setattr(dense, "_check_backend", lambda backend, x: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=7))
    dense._plan.cache_clear()
    yield recorded
    dense._plan.cache_clear()


def test_the_cuda_kernels_are_told_where_everything_lies(cuda_kernels):
    x = torch.randn(2, 3, 80).bfloat16()[..., :72]
    out = act_and_mul(x, SWISH, backend="cutlass")
    assert out.shape == (2, 3, 36)
    ((backend, formula, options),) = cuda_kernels.made
    assert (backend, formula) == ("cutlass", "g*sigmoid(beta*g)*u")
    assert options == {"pairing": "concat", "dtype": "bfloat16", "result": ""}
    (call,) = cuda_kernels.calls
    assert (call["rows"], call["intermediate"], call["out_stride"]) == (6, 36, 36)
    assert (call["x_stride"], call["stream"], call["value_columns"]) == (80, 7, 1)
    assert call["scales"] == call["scale_row_stride"] == call["scale_group_stride"] == 0
    # The function is linked once; without parameters there is no table.
    act_and_mul(x, SWISH, backend="cutlass")
    assert len(cuda_kernels.made) == 1
    act_and_mul(x, ActivationRegistry.get_activation("silu"), backend="cutlass")
    assert cuda_kernels.calls[-1]["value_columns"] == 0


@pytest.mark.parametrize(
    ("format", "shape", "strides"), [("fp8_block", (4, 3), (3, 1)), ("fp8_channel", (4,), (1, 0))]
)
def test_the_cuda_kernels_are_told_where_scales_go(cuda_kernels, format, shape, strides):
    x = torch.randn(2, 2, 600).bfloat16()
    codes, scales = act_and_quantise(x, SWISH, format=format, pairing="interleaved", backend="cutlass")
    assert codes.shape == (2, 2, 300)
    assert codes.dtype == torch.float8_e4m3fn
    assert scales.shape == (2, 2, *shape[1:])
    (call,) = cuda_kernels.calls
    assert cuda_kernels.made[0][2] == {"pairing": "interleaved", "dtype": "bfloat16", "result": format}
    assert (call["scale_row_stride"], call["scale_group_stride"]) == strides
    assert call["scales"] == scales.data_ptr()
    assert call["out"] == codes.data_ptr()
