"""Every activation of the registry as a callable on torch tensors."""

import copy
import functools
import math
import pickle

import flexact
import pytest
import torch
import torch.nn.functional as F
from flexact import ActivationRegistry, Function, Parameter
from flexact.torch_functions import ActivationModule
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import close, evaluate

NAMES = ActivationRegistry.list()
GRID = [*(i * 0.37 for i in range(-40, 41)), 0.0, 1e-30, -1e-30, 60.0, -60.0]


def some_value(parameter):
    """A value for a parameter: its default, else one inside its domain."""
    candidates = (parameter.default, parameter.initial, 1.25, 0.5, -0.5)
    return next(value for value in candidates if value is not None and parameter.allows(value))


@functools.cache
def activation(name):
    function = ActivationRegistry.get_function(name)
    return ActivationRegistry.get_activation(
        name, {each.name: some_value(each) for each in function.parameters}
    )


def inputs(function, *shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = 2 if function.is_gated else 1
    return [torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(count)]


# --- The two named cases --------------------------------------------------------------------------


def test_silu_is_torch_s():
    x = torch.randn(1024, 4096)
    actual = ActivationRegistry.get_activation("silu")(x)
    torch.testing.assert_close(actual, F.silu(x), rtol=1e-5, atol=1e-7)


def test_swish_with_beta_is_x_times_sigmoid_of_beta_x():
    x = torch.randn(1024, 4096)
    actual = ActivationRegistry.get_activation("swish", {"beta": 1.5})(x)
    torch.testing.assert_close(actual, x * torch.sigmoid(1.5 * x), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(actual, F.silu(x), rtol=1e-5, atol=1e-3)


# --- Every function -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_reference_equals_an_independent_evaluation(name):
    act = activation(name)
    function = act.function
    (values,) = act.values()
    parameters = dict(zip((each.name for each in function.parameters), values, strict=True))
    for point in GRID:
        given = {"g": point, "u": 0.75 - point / 3} if function.is_gated else {"x": point}
        expected = evaluate(function.formula, **given, **parameters)
        actual = function.reference(*given.values(), values=values)
        assert close(actual, expected, relative=1e-12, absolute=1e-300), (given, actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_callable_equals_the_reference_in_float64_and_float32(name):
    act = activation(name)
    (values,) = act.values()
    grid = torch.tensor(GRID, dtype=torch.float64)
    arguments = [grid, 0.75 - grid / 3] if act.function.is_gated else [grid]
    columns = zip(*(each.tolist() for each in arguments), strict=True)
    expected = torch.tensor(
        [act.function.reference(*row, values=values) for row in columns], dtype=torch.float64
    )
    torch.testing.assert_close(act(*arguments), expected, rtol=1e-9, atol=1e-14)

    large = inputs(act.function, 1024, 4096)
    in_double = act(*(each.double() for each in large))
    in_float = act(*large)
    assert in_float.dtype == torch.float32
    torch.testing.assert_close(in_float.double(), in_double, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32_and_rounded_once(name, dtype):
    act = activation(name)
    arguments = inputs(act.function, 64, 33, dtype=dtype)
    actual = act(*arguments)
    assert actual.dtype == dtype
    assert torch.equal(actual, act(*(each.float() for each in arguments)).to(dtype))


# torch's functions of these names are layers: they take weights, or split their input.
TORCH_LAYERS = {"bilinear", "glu", "linear"}


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(F, name) and name not in TORCH_LAYERS])
def test_functions_that_torch_has_under_the_same_name_agree(name):
    function = ActivationRegistry.get_function(name)
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    required = {each.name: some_value(each) for each in function.parameters if each.default is None}
    weights = [torch.tensor([value], dtype=x.dtype) for value in required.values()]
    actual = ActivationRegistry.get_activation(name, required)(x)
    torch.testing.assert_close(actual, getattr(F, name)(x, *weights), rtol=1e-12, atol=1e-12)


def test_names_that_transformers_has_agree():
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    compared = 0
    for name in activations.ACT2FN:
        try:
            act = ActivationRegistry.get_activation(name)
        except flexact.ConfigError:
            continue  # needs a parameter, or has another meaning in every model that uses it
        theirs = activations.ACT2FN[name]
        if type(theirs).__module__.startswith("flexact"):
            continue  # the adapter's placeholder for a name that transformers lacks
        learned = {}
        if isinstance(theirs, torch.nn.Module):
            learned = {key: value.item() for key, value in theirs.double().named_parameters()}
        # gelu_10 and the like round their constants to float32.
        torch.testing.assert_close(
            act(x, parameters=learned),
            theirs(x).detach(),
            rtol=1e-6,
            atol=1e-7,
            msg=name,
        )
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_inputs_and_parameters(name):
    act = activation(name)
    arguments = [each.requires_grad_() for each in inputs(act.function, 23, dtype=torch.float64)]
    names = [each.name for each in act.function.parameters]
    values = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in act.values()[0]]

    def compute(*tensors):
        count = len(arguments)
        return act(*tensors[:count], parameters=dict(zip(names, tensors[count:], strict=True)))

    assert torch.autograd.gradcheck(compute, (*arguments, *values))
    assert torch.autograd.gradgradcheck(compute, (*arguments, *values))


@pytest.mark.parametrize("name", NAMES)
def test_printed_gradient_equals_autograd_through_the_printed_forward(name):
    act = activation(name)
    arguments = [each.requires_grad_() for each in inputs(act.function, 257, dtype=torch.float64)]
    from flexact.torch_functions import compiled

    values = [torch.tensor(value, dtype=torch.float64) for value in act.values()[0]]
    through_torch = torch.autograd.grad(
        compiled(act.function)["forward"](*arguments, *values).sum(), arguments
    )
    through_core = torch.autograd.grad(act(*arguments).sum(), arguments)
    for expected, actual in zip(through_torch, through_core, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


# --- How the callable behaves ---------------------------------------------------------------------


def test_gated_inputs_broadcast_and_gradients_are_summed():
    act = ActivationRegistry.get_activation("swiglu")
    g = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, dtype=torch.float64, requires_grad=True)
    result = act(g, u)
    assert result.shape == (4, 3)
    result.sum().backward()
    assert g.grad.shape == (4, 1)
    torch.testing.assert_close(u.grad, F.silu(g.detach()).sum(0).expand(3))


def test_non_contiguous_and_empty_tensors():
    act = ActivationRegistry.get_activation("gelu")
    x = torch.randn(6, 8).t()[::2]
    torch.testing.assert_close(act(x), F.gelu(x))
    assert act(torch.empty(0, 5)).shape == (0, 5)


def test_mixed_dtypes_promote():
    act = ActivationRegistry.get_activation("swiglu")
    assert act(torch.randn(3, dtype=torch.bfloat16), torch.randn(3)).dtype == torch.float32


def test_meta_tensors_give_shape_and_dtype():
    x = torch.empty(5, 7, device="meta", dtype=torch.bfloat16)
    result = ActivationRegistry.get_activation("swish", {"beta": 2.0})(x)
    assert (result.shape, result.dtype, result.device.type) == ((5, 7), torch.bfloat16, "meta")


def test_vmap_and_grad_transforms():
    act = ActivationRegistry.get_activation("swish", {"beta": 1.5})
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(act)(x), act(x))
    slope = torch.func.grad(lambda v: act(v).sum())(x)
    sigmoid = torch.sigmoid(1.5 * x)
    torch.testing.assert_close(slope, sigmoid * (1 + 1.5 * x * (1 - sigmoid)))


def test_values_by_layer_and_expert_are_never_guessed():
    act = ActivationRegistry.get_activation("swish", {"beta": {"per_layer": [1.0, 2.0]}})
    x = torch.randn(8)
    torch.testing.assert_close(act(x, layer=1), x * torch.sigmoid(2 * x))
    with pytest.raises(flexact.InvalidArgument, match="differs by layer"):
        act(x)
    with pytest.raises(flexact.Error):
        act(x, layer=2)

    act = ActivationRegistry.get_activation("swish", {"beta": {"per_expert": [1.0, 3.0]}})
    torch.testing.assert_close(act(x, expert=1), x * torch.sigmoid(3 * x))
    with pytest.raises(flexact.InvalidArgument, match="2 experts"):
        act(x)


def test_checkpoint_values_are_asked_for():
    act = ActivationRegistry.get_activation("swish", {"beta": {"tensor": "layers.{layer}.beta"}})
    with pytest.raises(flexact.InvalidArgument, match="checkpoint"):
        act(torch.randn(3), layer=0)
    asked = []
    assert act.values(4, tensors=lambda name: asked.append(name) or [2.5]) == [[2.5]]
    assert asked == ["layers.4.beta"]
    x = torch.randn(3)
    torch.testing.assert_close(act(x, parameters={"beta": 2.5}), x * torch.sigmoid(2.5 * x))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("silu", ()),
        ("silu", (torch.ones(2), torch.ones(2))),
        ("swiglu", (torch.ones(2),)),
        ("silu", (torch.ones(2, dtype=torch.int64),)),
        ("silu", (torch.ones(2, dtype=torch.complex64),)),
        ("silu", (1.0,)),
    ],
)
def test_wrong_inputs_are_refused(name, arguments):
    with pytest.raises(flexact.InvalidArgument):
        ActivationRegistry.get_activation(name)(*arguments)


def test_unknown_parameter_in_a_call_is_refused():
    with pytest.raises(flexact.InvalidArgument, match="beta"):
        ActivationRegistry.get_activation("swish")(torch.ones(2), parameters={"alpha": 1.0})


def test_compiles_with_and_without_graph_breaks():
    act = ActivationRegistry.get_activation("swish", {"beta": 1.5})
    x = torch.randn(64)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(lambda v: act(v) + 1, backend="aot_eager")(x), act(x) + 1)
    whole = torch.compile(ActivationModule(act), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), act(x))


def test_module_learns_the_parameters_it_is_told_to():
    target = ActivationRegistry.get_activation("swish", {"beta": 2.0})
    module = ActivationModule(ActivationRegistry.get_activation("swish"), learn=["beta"])
    assert [name for name, _ in module.named_parameters()] == ["beta"]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    x = torch.randn(512, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(module(x), target(x)).backward()
        optimizer.step()
    assert module.beta.item() == pytest.approx(2.0, abs=0.05)
    with pytest.raises(flexact.InvalidArgument):
        ActivationModule(target, learn=["alpha"])
    assert list(ActivationModule(target).state_dict()) == []


# --- Values and functions as data -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_activations_compare_hash_copy_and_pickle_by_content(name):
    act = activation(name)
    for again in (
        pickle.loads(pickle.dumps(act)),
        copy.deepcopy(act),
        flexact.Activation.from_json(act.to_json()),
    ):
        assert again == act
        assert hash(again) == hash(act)
        assert again.function.fingerprint == act.function.fingerprint
    assert act != act.function
    assert Function.from_canonical(act.function.canonical) == act.function


def test_numbers_of_any_kind_are_values():
    by_float = ActivationRegistry.get_activation("swish", {"beta": 2.0})
    for value in (2, torch.tensor(2.0), torch.tensor(2.0, dtype=torch.bfloat16).item()):
        assert ActivationRegistry.get_activation("swish", {"beta": value}) == by_float


def test_unary_function_is_lifted_into_a_gated_layer():
    act = ActivationRegistry.get_activation("swish", {"beta": 1.5})
    g, u = torch.randn(9), torch.randn(9)
    torch.testing.assert_close(act.gated()(g, u), act(g) * u)
    assert act.gated().gated() == act.gated()


def test_registered_function_is_found_by_name_and_survives_its_process():
    function = flexact.register_function("test_bump", "x*exp(-(width*x)^2)", params={"width": 0.5})
    assert "test_bump" in ActivationRegistry.list()
    x = torch.randn(50, dtype=torch.float64)
    act = ActivationRegistry.get_activation("test_bump")
    torch.testing.assert_close(act(x), x * torch.exp(-((0.5 * x) ** 2)))
    assert ActivationRegistry.get_activation("test_bump", {"width": 2.0}).params == {"width": 2.0}
    # What another process, which has not registered it, receives.
    state = (function.name, function.canonical)
    foreign = Function.__new__(Function)
    foreign.__setstate__(("unknown_elsewhere", state[1]))
    assert foreign == function


def test_register_function_takes_parameters_in_each_documented_form():
    listed = flexact.register_function("test_listed", "a*x+b", params=["b", Parameter("a", 2.0, min=0.0)])
    assert [each.name for each in listed.parameters] == ["b", "a"]
    with pytest.raises(flexact.ConfigError):
        ActivationRegistry.get_activation("test_listed")  # b has no default
    with pytest.raises(flexact.ConfigError):
        ActivationRegistry.get_activation("test_listed", {"b": 1.0, "a": -1.0})
    found = flexact.register_function("test_found", "c*x+d*relu(x)")
    assert [each.name for each in found.parameters] == ["c", "d"]
    with pytest.raises(flexact.InvalidArgument):
        flexact.register_function("test_text", "x", params="beta")


@pytest.mark.parametrize("name", ["silu", "test_twice", "expr"])
def test_taken_and_reserved_names_are_refused(name):
    if name == "test_twice":
        flexact.register_function(name, "x+1")
    with pytest.raises(flexact.InvalidArgument):
        flexact.register_function(name, "x*2")


def test_expression_by_the_name_that_configurations_use():
    act = ActivationRegistry.get_activation("expr", {"expr": "g*sigmoid(beta*g)*u", "beta": 1.1})
    g, u = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(act(g, u), g * torch.sigmoid(1.1 * g) * u)


# --- Random expressions ---------------------------------------------------------------------------

_numbers = st.floats(-4, 4, allow_nan=False).map(lambda value: repr(round(value, 3)))
_leaves = st.one_of(_numbers, st.sampled_from(["x", "x", "a"]))


def _grow(inner):
    unary = st.sampled_from(["sigmoid", "tanh", "relu", "abs", "silu", "gelu", "softplus", "erf"])
    return st.one_of(
        st.tuples(unary, inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"where({t[0]}<{t[1]},{t[2]},x)"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]},min({t[1]},x))"),
        inner.map(lambda t: f"({t})^2"),
    )


@settings(deadline=None, max_examples=60)
@given(st.recursive(_leaves, _grow, max_leaves=8), st.floats(-3, 3), st.floats(-2, 2))
def test_random_expressions_agree_with_an_independent_evaluation(text, x, a):
    try:
        function = Function.expression(f"{text}+0*x")
    except flexact.ExpressionError:
        return  # e.g. an unused name after folding, or a limit
    known = {"a": a} if function.parameters else {}
    expected = evaluate(text, x=x, a=a)
    if abs(expected) > 1e12:
        return
    values = list(known.values())
    assert close(function.reference(x, values=values), expected, relative=1e-9, absolute=1e-9)
    act = flexact.Activation(function, known)
    if math.isfinite(float(expected)):
        actual = act(torch.tensor([x], dtype=torch.float64)).item()
        assert close(actual, expected, relative=1e-9, absolute=1e-9)
