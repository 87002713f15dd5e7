"""flexact::fused_moe on the CPU against plain torch in float64."""

import itertools
import os
import subprocess
import sys

import flexact
import flexact.moe
import pytest
import torch
import torch.nn.functional as F
from flexact import ActivationRegistry, fused_moe
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_reference import reference_moe
from torch.library import opcheck

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 4e-3), torch.bfloat16: (2e-2, 2e-2)}
FORMAT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def reference_moe_forward(x, gate_weights, up_weights, down_weights, activation="swish", beta=1.5):
    """Unary experts, top-2 with renormalised softmax: the block as a model's author would write it.

    x [M, H], gate_weights [H, E], up_weights [E, H, I], down_weights [E, I, H] → [M, H].
    """
    functions = {
        "swish": lambda v: v * torch.sigmoid(beta * v),
        "silu": F.silu,
        "gelu": F.gelu,
        "relu": F.relu,
    }
    probabilities = torch.softmax(x @ gate_weights, dim=-1)
    weights, experts = probabilities.topk(2, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    output = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for weight, expert in zip(weights[token], experts[token], strict=True):
            inner = functions[activation](x[token] @ up_weights[expert])
            output[token] += weight * (inner @ down_weights[expert])
    return output


def assert_near(actual, expected, dtype):
    """Within the dtype's rounding of the largest value: a sum's error scales with its terms."""
    assert actual.dtype == dtype
    assert torch.isfinite(actual).all()
    relative, absolute = TOLERANCE[dtype]
    scale = expected.abs().max().clamp(min=1e-30)
    torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=relative, atol=absolute)


class Case:
    """Random weights and inputs of one block; `call` runs the operator, `expected` the reference."""

    def __init__(
        self, tokens=9, experts=5, top_k=2, hidden=40, intermediate=24, pairing="concat", dtype=torch.float32,
        bias=False, ids=torch.int64, seed=0, **options,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape, scale=1.0):
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        rows = intermediate if pairing == "none" else 2 * intermediate
        self.dtype = dtype
        self.x = normal(tokens, hidden)
        self.w13 = normal(experts, rows, hidden, scale=1.5 / hidden**0.5)
        self.w2 = normal(experts, hidden, intermediate, scale=1 / intermediate**0.5)
        self.topk_weights = torch.rand(tokens, top_k, generator=generator) + 0.1
        self.topk_ids = torch.stack(
            [torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]
            or [torch.zeros(top_k)]
        )[:tokens].to(ids)
        self.options = {"pairing": pairing, **options}
        if bias:
            self.options["w13_bias"] = normal(experts, rows, scale=0.5)
            self.options["w2_bias"] = normal(experts, hidden, scale=0.5)

    def call(self, activation, **more):
        options = {"format": FORMAT[self.dtype], **self.options, **more}
        return fused_moe(self.x, self.w13, self.w2, self.topk_weights, self.topk_ids, activation, **options)

    def expected(self, function):
        return reference_moe(
            self.x, self.w13, self.w2, self.topk_weights, self.topk_ids, function, **self.options
        )


def gated_swish(beta):
    return lambda expert, g, u: g * torch.sigmoid(beta * g) * u


SWISH = ActivationRegistry.get_activation("swish", {"beta": 1.5})


# --- The block as its author writes it ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("activation", "params"), [("swish", {"beta": 1.5}), ("silu", {}), ("gelu", {}), ("relu", {})]
)
def test_unary_top_2_block_equals_its_plain_definition(activation, params, dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(17, 64, generator=generator).to(dtype)
    gate = torch.randn(64, 8, generator=generator)
    up = (torch.randn(8, 64, 96, generator=generator) / 8).to(dtype)
    down = (torch.randn(8, 96, 64, generator=generator) / 10).to(dtype)
    expected = reference_moe_forward(*(each.double() for each in (x, gate, up, down)), activation=activation)

    weights, ids = torch.softmax(x.double() @ gate.double(), dim=-1).topk(2, dim=-1)
    weights = (weights / weights.sum(-1, keepdim=True)).float()
    act = ActivationRegistry.get_activation(activation, params)
    # The operator reads the author's layout through strides: nothing is copied here.
    actual = fused_moe(
        x, up.transpose(1, 2), down.transpose(1, 2), weights, ids, act, pairing="none", format=FORMAT[dtype]
    )
    assert_near(actual, expected, dtype)


def test_another_function_or_another_beta_is_told_apart():
    case = Case(pairing="none")
    expected = case.expected(lambda expert, x: x * torch.sigmoid(1.5 * x))
    assert_near(case.call(SWISH), expected, torch.float32)
    for wrong in ("silu", "gelu"):
        with pytest.raises(AssertionError):
            assert_near(case.call(ActivationRegistry.get_activation(wrong)), expected, torch.float32)


# --- Layouts, dtypes and options ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved"])
def test_pairings_biases_and_dtypes(pairing, bias, dtype):
    case = Case(pairing=pairing, bias=bias, dtype=dtype)
    assert_near(case.call(SWISH), case.expected(gated_swish(1.5)), dtype)


@pytest.mark.parametrize("bias", [False, True])
def test_unary_with_bias(bias):
    case = Case(pairing="none", bias=bias)
    assert_near(
        case.call(ActivationRegistry.get_activation("relu2")),
        case.expected(lambda expert, x: F.relu(x) ** 2),
        torch.float32,
    )


def test_natively_gated_function_reads_both_halves():
    case = Case(pairing="interleaved", bias=True)
    act = ActivationRegistry.get_activation("swiglu_oai")

    def oai(expert, g, u):
        g, u = g.clamp(max=7.0), u.clamp(-7.0, 7.0)
        return g * torch.sigmoid(1.702 * g) * (u + 1)

    assert_near(case.call(act), case.expected(oai), torch.float32)


@pytest.mark.parametrize("name", ActivationRegistry.list())
def test_every_function_of_the_registry(name):
    function = ActivationRegistry.get_function(name)
    values = {
        each.name: next(
            v for v in (each.default, each.initial, 1.25, 0.5) if v is not None and each.allows(v)
        )
        for each in function.parameters
    }
    act = ActivationRegistry.get_activation(name, values)
    case = Case(pairing="concat" if function.is_gated else "none")
    assert_near(case.call(act), case.expected(lambda expert, *inputs: act(*inputs)), torch.float32)
    if not function.is_gated:
        case = Case(pairing="up_first")
        assert_near(case.call(act), case.expected(lambda expert, g, u: act(g) * u), torch.float32)


@pytest.mark.parametrize("options", itertools.product([False, True], [1.0, 2.5], [False, True]), ids=str)
def test_router_weight_scaling_and_combine(options):
    on_input, scale, combine = options
    case = Case(router_weight_on_input=on_input, routed_scaling_factor=scale, combine=combine)
    actual = case.call(SWISH)
    assert actual.shape == ((9, 40) if combine else (9, 2, 40))
    assert_near(actual, case.expected(gated_swish(1.5)), torch.float32)


@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
@pytest.mark.parametrize("combine", [False, True])
def test_ids_outside_the_range_contribute_nothing(ids, combine):
    case = Case(ids=ids, combine=combine)
    case.topk_ids[0, 0] = -1
    case.topk_ids[1, :] = -1
    case.topk_ids[2, 1] = 5
    case.topk_ids[3, 0] = torch.iinfo(ids).max
    case.topk_ids[4, 0] = torch.iinfo(ids).min
    actual = case.call(SWISH)
    assert_near(actual, case.expected(gated_swish(1.5)), torch.float32)
    assert torch.equal(actual[1], torch.zeros_like(actual[1]))


def test_ids_of_absent_experts_read_no_weights():
    case = Case(experts=5)
    case.w13[3] = float("nan")
    case.w2[3] = float("nan")
    case.topk_ids = torch.where(case.topk_ids == 3, -1, case.topk_ids)
    assert torch.isfinite(case.call(SWISH)).all()


@pytest.mark.parametrize("combine", [False, True])
def test_no_tokens(combine):
    case = Case(tokens=0, combine=combine)
    assert case.call(SWISH).shape == ((0, 40) if combine else (0, 2, 40))


@pytest.mark.parametrize("top_k", [1, 3, 32])
def test_any_number_of_experts_a_token(top_k):
    case = Case(experts=40, top_k=top_k, tokens=5)
    assert_near(case.call(SWISH), case.expected(gated_swish(1.5)), torch.float32)


@pytest.mark.parametrize(
    ("hidden", "intermediate", "tokens"), [(1, 1, 1), (7, 3, 5), (33, 17, 2), (130, 67, 70)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_that_fill_no_tile(hidden, intermediate, tokens, dtype):
    case = Case(tokens=tokens, hidden=hidden, intermediate=intermediate, dtype=dtype)
    assert_near(case.call(SWISH), case.expected(gated_swish(1.5)), dtype)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(0, 40), experts=st.integers(1, 9), hidden=st.integers(1, 70),
    intermediate=st.integers(1, 50),
    pairing=st.sampled_from(["concat", "up_first", "interleaved"]), bias=st.booleans(), combine=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 1000), data=st.data(),
)  # fmt: skip
def test_random_blocks(tokens, experts, hidden, intermediate, pairing, bias, combine, dtype, seed, data):
    top_k = data.draw(st.integers(1, experts))
    case = Case(
        tokens=tokens, experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate,
        pairing=pairing, bias=bias, combine=combine, dtype=dtype, seed=seed,
    )  # fmt: skip
    if tokens:
        assert_near(case.call(SWISH), case.expected(gated_swish(1.5)), dtype)


def test_strided_hidden_states_and_weights():
    case = Case()
    expected = case.expected(gated_swish(1.5))
    case.x = case.x.t().contiguous().t()
    case.w13 = torch.stack([case.w13, torch.full_like(case.w13, 9.0)], dim=2)[:, :, 0]
    case.topk_ids = case.topk_ids.t().contiguous().t()
    case.topk_weights = case.topk_weights.repeat_interleave(2, dim=1)[:, ::2]
    assert_near(case.call(SWISH), expected, torch.float32)


# --- Parameter values -----------------------------------------------------------------------------


def test_values_by_expert():
    betas = [0.5, 1.0, 1.5, 2.0, -1.0]
    act = ActivationRegistry.get_activation("swish", {"beta": {"per_expert": betas}})
    case = Case()
    expected = case.expected(lambda expert, g, u: g * torch.sigmoid(betas[expert] * g) * u)
    assert_near(case.call(act), expected, torch.float32)
    table = torch.tensor(betas)[:, None]
    assert_near(case.call(act.function.canonical, activation_values=table), expected, torch.float32)


def test_values_of_the_call_replace_the_activation_s():
    case = Case()
    actual = case.call(SWISH, activation_values=torch.tensor([[0.7]]))
    assert_near(actual, case.expected(gated_swish(0.7)), torch.float32)


def test_one_plan_serves_all_values():
    case = Case()
    flexact.moe.invalidate()
    for beta in (0.5, 1.0, 2.0):
        act = ActivationRegistry.get_activation("swish", {"beta": beta})
        assert_near(case.call(act), case.expected(gated_swish(beta)), torch.float32)
    assert len(flexact.moe.plan_cache) == 1


def test_values_by_layer_are_not_guessed():
    act = ActivationRegistry.get_activation("swish", {"beta": {"per_layer": [1.0, 2.0]}})
    case = Case()
    with pytest.raises(flexact.InvalidArgument, match="differs by layer"):
        case.call(act)
    values = flexact.moe.activation_values(act, layer=1)
    assert_near(case.call(act, activation_values=values), case.expected(gated_swish(2.0)), torch.float32)


def test_values_for_another_number_of_experts_are_refused():
    act = ActivationRegistry.get_activation("swish", {"beta": {"per_expert": [1.0, 2.0, 3.0]}})
    with pytest.raises(flexact.InvalidArgument, match="3 experts"):
        Case().call(act)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"format": "nvfp4"}, flexact.Unsupported, "nvfp4"),
        ({"format": "bf16"}, flexact.InvalidArgument, "w13"),
        ({"format": "int3"}, flexact.InvalidArgument, "int3"),
        ({"pairing": "separate"}, flexact.Unsupported, "w13"),
        ({"pairing": "diagonal"}, flexact.InvalidArgument, "diagonal"),
        ({"pairing": "none"}, flexact.InvalidArgument, "w13"),
        ({"backend": "cutlass"}, flexact.Unsupported, "cutlass"),
        ({"backend": "abacus"}, flexact.InvalidArgument, "abacus"),
        ({"activation_values": torch.ones(3, 1)}, flexact.InvalidArgument, "values"),
        ({"activation_values": torch.ones(1, 2)}, flexact.InvalidArgument, "values"),
        ({"activation_values": torch.ones(1)}, flexact.InvalidArgument, "values"),
        ({"w13_scale": torch.ones(5)}, flexact.InvalidArgument, "scale"),
        ({"w13_bias": torch.ones(5, 3)}, flexact.InvalidArgument, "bias"),
        ({"w2_bias": torch.ones(5, 40), "router_weight_on_input": True}, flexact.Unsupported, "bias"),
        ({"routed_scaling_factor": float("nan")}, flexact.InvalidArgument, "routed_scaling_factor"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_with_the_reason(change, error, text):
    with pytest.raises(error, match=text):
        Case().call(SWISH, **change)


def test_gated_function_without_a_gate_is_refused():
    with pytest.raises(flexact.Unsupported, match="gate"):
        Case(pairing="none").call(ActivationRegistry.get_activation("swiglu"))


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(9, 41)},
        {"x": torch.zeros(9, 2, 20)},
        {"w2": torch.zeros(5, 40, 23)},
        {"w2": torch.zeros(4, 40, 24)},
        {"w13": torch.zeros(5, 48)},
        {"topk_ids": torch.zeros(9, 3, dtype=torch.int64)},
        {"topk_ids": torch.zeros(8, 2, dtype=torch.int64)},
        {"topk_ids": torch.zeros(9, 2, dtype=torch.int16)},
        {"topk_ids": torch.zeros(9, 2)},
        {"topk_weights": torch.zeros(9, 2, dtype=torch.int64)},
        {"x": torch.zeros(9, 40, dtype=torch.float64)},
        {"topk_ids": torch.zeros(9, 0, dtype=torch.int64), "topk_weights": torch.zeros(9, 0)},
    ],
    ids=str,
)
def test_tensors_that_contradict_each_other_are_refused(change):
    case = Case()
    vars(case).update(change)
    with pytest.raises(flexact.InvalidArgument):
        case.call(SWISH)


def test_text_that_is_no_function_is_refused_with_a_hint():
    with pytest.raises(flexact.InvalidArgument, match="get_activation"):
        Case().call("swish")


def test_function_with_parameters_but_no_values_is_refused():
    with pytest.raises(flexact.InvalidArgument, match="beta"):
        Case().call(SWISH.function.canonical)


def test_backend_of_the_environment_is_followed(monkeypatch):
    monkeypatch.setenv("FLEXACT_BACKEND", "cutlass")
    with pytest.raises(flexact.Unsupported, match="cutlass"):
        Case().call(SWISH)
    monkeypatch.setenv("FLEXACT_BACKEND", "cpu")
    Case().call(SWISH)


# --- Plans on memory and a stream of the caller's -------------------------------------------------


def device_plan(case, **options):
    """The CPU's plan behind the class that GPU backends have: what it passes on is the same."""
    from flexact.device_plan import DevicePlan

    packed = flexact.moe.plan(
        case.w13, case.w2, SWISH, top_k=2, format="fp32", io_dtype=torch.float32, backend="cpu", **options
    )
    values = torch.tensor([[1.5]])
    return packed, DevicePlan(packed._core, packed.problem, packed.function, values, torch.device("cpu"))


@pytest.mark.parametrize("combine", [True, False])
def test_device_plan_computes_what_the_plan_does(combine):
    case = Case(tokens=9)
    packed, plan = device_plan(case, combine=combine)
    inputs = (case.x.t().contiguous().t(), case.topk_weights, case.topk_ids)
    table = torch.tensor([[0.7]])
    expected = packed.run(*inputs, activation_values=table)
    assert torch.equal(plan.run(*inputs, activation_values=table), expected)
    out = torch.full_like(expected, float("nan"))
    assert plan.run(*inputs, out=out) is out
    assert torch.equal(out, packed.run(*inputs, activation_values=torch.tensor([[1.5]])))
    empty = plan.run(*(each[:0] for each in inputs))
    assert empty.shape[0] == 0
    plan.reserve(100)
    assert plan.workspace_bytes(100) == packed.workspace_bytes(100)


def test_device_plan_refuses_other_devices_shapes_and_unpacking():
    case = Case(tokens=9)
    _, plan = device_plan(case)
    inputs = (case.x, case.topk_weights, case.topk_ids)
    with pytest.raises(flexact.InvalidArgument, match="hidden_states is on meta"):
        plan.run(case.x.to("meta"), *inputs[1:])
    with pytest.raises(flexact.InvalidArgument, match="out is"):
        plan.run(*inputs, out=torch.empty(8, 40))
    with pytest.raises(flexact.InvalidArgument, match="activation_values is on meta"):
        plan.run(*inputs, activation_values=torch.empty((1, 1), device="meta"))
    with pytest.raises(flexact.InvalidArgument, match="E or 1"):
        plan.run(*inputs, activation_values=torch.ones(1))
    with pytest.raises(flexact.Unsupported, match="packs nothing"):
        plan.unpack()


# --- As a torch operator --------------------------------------------------------------------------


def operator_arguments(case, **more):
    arguments = (case.x, case.w13, case.w2, case.topk_weights, case.topk_ids, SWISH.function.canonical)
    options = {
        **case.options,
        "format": FORMAT[case.dtype],
        "activation_values": torch.tensor([[1.5]]),
        **more,
    }
    return arguments, options


@pytest.mark.parametrize("combine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_passes_torch_s_own_checks(dtype, combine):
    opcheck(torch.ops.flexact.fused_moe.default, *operator_arguments(Case(dtype=dtype), combine=combine))


def test_operator_has_all_keys():
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("flexact::fused_moe", key), key


def test_meta_tensors_give_shapes():
    arguments, options = operator_arguments(Case(), combine=False)
    on_meta = [each.to("meta") if isinstance(each, torch.Tensor) else each for each in arguments]
    result = torch.ops.flexact.fused_moe(*on_meta, **{**options, "activation_values": None})
    assert (result.shape, result.device.type) == ((9, 2, 40), "meta")


def test_gpu_kernels_refuse_tensors_of_the_cpu():
    pytest.importorskip("triton")
    case = Case(dtype=torch.bfloat16)
    with pytest.raises(flexact.Unsupported, match="do not run on cpu tensors"):
        case.call(SWISH, backend="triton")


@pytest.mark.parametrize("as_text", [False, True])
def test_compiles_into_one_graph(as_text):
    case = Case()
    torch.compiler.reset()
    activation = SWISH.function.canonical if as_text else SWISH
    more = {"activation_values": torch.tensor([[1.5]])} if as_text else {}

    def block(x):
        case.x = x
        return case.call(activation, **more) + 1

    x = case.x
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))


def test_gradients_are_refused_and_not_dropped():
    case = Case()
    case.x.requires_grad_()
    with pytest.raises(flexact.Unsupported, match="gradient"):
        case.call(SWISH).sum().backward()
    with torch.no_grad():
        assert not case.call(SWISH).requires_grad
    with torch.inference_mode():
        case.call(SWISH)


# --- Plans ----------------------------------------------------------------------------------------


def make_plan(case, activation=SWISH, **more):
    options = {key: value for key, value in case.options.items() if key != "combine"}
    return flexact.moe.plan(
        case.w13,
        case.w2,
        activation,
        top_k=case.topk_ids.shape[1],
        format=FORMAT[case.dtype],
        **options,
        **more,
    )


@pytest.mark.parametrize("bias", [False, True])
def test_plan_owns_its_weights(bias):
    case = Case(dtype=torch.bfloat16, bias=bias)
    expected = case.expected(gated_swish(1.5))
    plan = make_plan(case)
    for tensor in (case.w13, case.w2, *(case.options[key] for key in case.options if key.endswith("bias"))):
        tensor.fill_(float("nan"))
    assert_near(plan.run(case.x, case.topk_weights, case.topk_ids), expected, torch.bfloat16)


def test_plan_holds_at_most_a_fiftieth_more_than_the_weights():
    case = Case(experts=4, hidden=512, intermediate=256, dtype=torch.bfloat16)
    plan = make_plan(case)
    original = case.w13.nbytes + case.w2.nbytes
    assert original <= plan.resident_bytes <= 1.02 * original


@pytest.mark.parametrize("format", ["bf16", "fp16", "fp32"])
def test_plan_gives_its_weights_back_bit_for_bit(format):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[format]
    w13, w2 = torch.randn(3, 2 * 37, 75).to(dtype), torch.randn(3, 75, 37).to(dtype)
    made = flexact.moe.plan(w13, w2, SWISH, top_k=1, format=format, pairing="interleaved")
    for original, back in zip((w13, w2), made.unpack(), strict=True):
        assert back.is_contiguous() and torch.equal(original, back)


def test_plan_writes_where_it_is_told_and_only_there():
    case = Case()
    plan = make_plan(case)
    memory = torch.full((11, 40), float("nan"))
    out = memory[1:10]
    assert plan.run(case.x, case.topk_weights, case.topk_ids, out=out) is out
    assert_near(out, case.expected(gated_swish(1.5)), torch.float32)
    assert memory[[0, 10]].isnan().all()
    with pytest.raises(flexact.InvalidArgument, match="out"):
        plan.run(case.x, case.topk_weights, case.topk_ids, out=torch.empty(9, 80)[:, ::2])
    with pytest.raises(flexact.InvalidArgument, match="out"):
        plan.run(case.x, case.topk_weights, case.topk_ids, out=torch.empty(9, 40, dtype=torch.float64))


def test_plan_describes_itself_and_its_memory():
    plan = make_plan(Case())
    assert "cpu" in plan.describe()
    assert plan.workspace_bytes(100) >= plan.workspace_bytes(1) > 0
    plan.reserve(100)
    assert plan.function == SWISH.gated().function
    assert plan.problem.experts == 5
    assert flexact.moe.backends()[0] == "cpu"


@pytest.mark.parametrize("kind", ["activation", "function", "text"])
def test_plan_takes_an_activation_a_function_or_its_text(kind):
    case = Case()
    what = {"activation": SWISH, "function": SWISH.function, "text": SWISH.function.canonical}[kind]
    values = None if kind == "activation" else torch.tensor([[1.5]])
    plan = make_plan(case, what, activation_values=values)
    assert_near(
        plan.run(case.x, case.topk_weights, case.topk_ids), case.expected(gated_swish(1.5)), torch.float32
    )
    again = plan.run(case.x, case.topk_weights, case.topk_ids, activation_values=torch.tensor([[0.3]]))
    assert_near(again, case.expected(gated_swish(0.3)), torch.float32)


def test_plan_refuses_what_it_does_not_know():
    case = Case()
    with pytest.raises(flexact.InvalidArgument, match="w3"):
        make_plan(case, w3=case.w2)
    plan = make_plan(case)
    with pytest.raises(flexact.InvalidArgument):
        plan.run(case.x.to("meta"), case.topk_weights, case.topk_ids)
    with pytest.raises(flexact.InvalidArgument):
        plan.run(case.x[0], case.topk_weights, case.topk_ids)
    with pytest.raises(flexact.InvalidArgument):
        plan.run(case.x.double(), case.topk_weights, case.topk_ids)


def test_io_dtype_may_differ_from_the_weights():
    case = Case(dtype=torch.bfloat16)
    plan = make_plan(case, io_dtype=torch.float32)
    actual = plan.run(case.x.float(), case.topk_weights, case.topk_ids)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), case.expected(gated_swish(1.5)), rtol=2e-2, atol=2e-2)


def test_plans_run_in_several_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    cases = [Case(seed=seed, tokens=30) for seed in range(4)]
    plans = [make_plan(case) for case in cases]

    def work(index):
        case, plan = cases[index % 4], plans[index % 4]
        return plan.run(case.x, case.topk_weights, case.topk_ids)

    alone = [work(index) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for index, result in enumerate(pool.map(work, range(64))):
            assert torch.equal(result, alone[index % 4])


def test_verbose_names_the_choice():
    code = (
        "import torch, flexact, flexact.moe as m\n"
        "a = flexact.ActivationRegistry.get_activation('silu')\n"
        "m.plan(torch.zeros(2, 8, 4), torch.zeros(2, 4, 4), a, top_k=1, format='fp32')\n"
    )
    environment = {**os.environ, "FLEXACT_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stderr
