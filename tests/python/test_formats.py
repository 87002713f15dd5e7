"""The quantised formats against ml_dtypes, torch's own types, transformers and the C++ core."""

import dataclasses
import itertools

import flexact
import ml_dtypes
import numpy as np
import pytest
import torch
from flexact import ActivationRegistry, _core, formats, testing
from flexact.errors import InvalidArgument, Unsupported
from moe_reference import reference_moe

FORMATS = formats.FP8_FORMATS + formats.FP4_FORMATS
PAIRINGS = ("concat", "up_first", "interleaved", "none")


def every_bf16():
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()


def bytes_of(tensor):
    return (tensor if tensor.dim() else tensor.reshape(1)).contiguous().view(torch.uint8)


def core_encode(kind, values):
    codes = torch.full(values.shape, 0xEE, dtype=torch.uint8)
    _core.encode(kind, values.data_ptr(), values.numel(), codes.data_ptr())
    return codes


def core_decode(kind, codes):
    values = torch.full(codes.shape, 1e30)
    _core.decode(kind, codes.data_ptr(), codes.numel(), values.data_ptr())
    return values


def ties_and_neighbours(values):
    """fp32 numbers halfway between neighbours of `values`, and those just beside them."""
    ordered = values.unique()
    middle = ((ordered[1:].double() + ordered[:-1].double()) / 2).float()
    above, below = middle.nextafter(torch.tensor(1e9)), middle.nextafter(torch.tensor(-1e9))
    return torch.cat((middle, above, below))


# --- Single values --------------------------------------------------------------------------------


def test_e4m3_is_the_type_of_ml_dtypes_torch_and_the_core():
    codes = torch.arange(256, dtype=torch.uint8)
    reference = torch.from_numpy(codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    torch.testing.assert_close(core_decode("e4m3", codes), reference, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(
        codes.view(torch.float8_e4m3fn).float().view(torch.int32)[~reference.isnan()],
        reference.view(torch.int32)[~reference.isnan()],
    )

    finite = reference[~reference.isnan()]
    values = torch.cat((every_bf16(), ties_and_neighbours(finite)))
    saturated = values.clamp(-448, 448)
    saturated = saturated.nan_to_num(0.0)
    expected = torch.from_numpy(saturated.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert torch.equal(bytes_of(formats.encode_e4m3(values))[~values.isnan()], expected[~values.isnan()])
    assert torch.equal(core_encode("e4m3", values)[~values.isnan()], expected[~values.isnan()])
    assert formats.encode_e4m3(values)[values.isnan()].float().isnan().all()
    assert (core_encode("e4m3", values)[values.isnan()] & 127 == 127).all()


def test_e2m1_is_the_type_of_ml_dtypes_and_the_core():
    codes = torch.arange(16, dtype=torch.uint8)
    reference = torch.from_numpy(codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32))
    assert torch.equal(core_decode("e2m1", codes).view(torch.int32), reference.view(torch.int32))
    assert torch.equal(formats.decode_e2m1(codes).view(torch.int32), reference.view(torch.int32))

    values = torch.cat((every_bf16(), ties_and_neighbours(reference)))
    values = values[~values.isnan()]
    expected = torch.from_numpy(values.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)) & 15
    assert torch.equal(formats.encode_e2m1(values), expected)
    assert torch.equal(core_encode("e2m1", values), expected)
    nan = torch.tensor([float("nan"), -float("nan")])
    assert formats.encode_e2m1(nan).tolist() == core_encode("e2m1", nan).tolist() == [7, 7]


def test_e8m0_is_the_type_of_ml_dtypes_torch_and_the_core():
    codes = torch.arange(256, dtype=torch.uint8)
    reference = torch.from_numpy(codes.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert reference[255].isnan() and reference[0] == 2.0**-127
    for values in (formats.decode_e8m0(codes), core_decode("e8m0", codes)):
        torch.testing.assert_close(values, reference, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        codes.view(torch.float8_e8m0fnu).float(), reference, rtol=0, atol=0, equal_nan=True
    )


def test_group_scales_are_the_floor_of_the_logarithm():
    values = every_bf16().abs()
    values = values[torch.isfinite(values) & (values > 0)]
    expected = (np.floor(np.log2(values.numpy().astype(np.float64))) - 2 + 127).clip(0, 254)
    assert formats.e8m0_scale(values).tolist() == expected.tolist()
    odd = torch.tensor([0.0, float("inf"), float("nan")])
    assert formats.e8m0_scale(odd).tolist() == core_encode("e8m0_scale", odd).tolist() == [0, 255, 255]
    assert torch.equal(core_encode("e8m0_scale", values), formats.e8m0_scale(values))


def test_nibbles_are_packed_even_first():
    codes = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)
    assert formats.pack_e2m1(codes).tolist() == [[0x21, 0x43]]
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(formats.pack_e2m1(formats.unpack_e2m1(everything)), everything)


# --- Matrices -------------------------------------------------------------------------------------


def hard_matrix(rows, k, seed=0):
    """Normal values with columns of very different size, zeros, a zero group and a huge value."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, k, generator=generator) * torch.logspace(-6, 3, k)
    w[0, :128] = 0
    w[1, 5] = 1e30
    w[2, ::3] = -0.0
    return w


def core_quantise(w, format, global_scale):
    rows, k = w.shape
    code_bytes, scale_rows, scale_columns, dtype = _core.quantised_layout(format, rows, k)
    size = {"float32": 4, "uint8": 1, "float8_e4m3": 1}[dtype]
    codes = torch.full((rows, code_bytes), 0xEE, dtype=torch.uint8)
    scales = torch.full((scale_rows * scale_columns * size,), 0xEE, dtype=torch.uint8)
    _core.quantise(format, w.data_ptr(), rows, k, codes.data_ptr(), scales.data_ptr(), global_scale)
    back = torch.full((rows, k), 1e300, dtype=torch.float64)
    _core.dequantise(format, codes.data_ptr(), scales.data_ptr(), global_scale, rows, k, back.data_ptr())
    return codes, scales, back


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows, k", [(1, 32), (131, 288), (128, 256)])
def test_torch_and_the_core_agree_bit_for_bit(format, rows, k):
    w = hard_matrix(max(rows, 3), k)[-rows:].contiguous()
    whole = formats.nvfp4_global_scale(w.abs().amax())
    codes, scale = formats.quantise(w, format, global_scale=whole)
    core_codes, core_scales, core_back = core_quantise(w, format, whole.item())
    assert torch.equal(bytes_of(codes), core_codes)
    assert torch.equal(bytes_of(scale).flatten(), core_scales)
    back = formats.dequantise(codes, scale, format, global_scale=whole)
    assert torch.equal(back, core_back)


@pytest.mark.parametrize("format", ["fp8_block", "fp8_tensor", "fp8_channel", "mxfp4_fp8"])
@pytest.mark.parametrize("k", [1, 127, 128, 300])
def test_activations_agree_bit_for_bit(format, k):
    x = hard_matrix(5, max(k, 128))[:, :k].bfloat16().float().contiguous()
    codes, scale = formats.quantise_activations(x, format)
    core_codes = torch.full(x.shape, 0xEE, dtype=torch.uint8)
    core_scale = torch.full_like(scale, -1.0)
    _core.quantise_activations(format, x.data_ptr(), 5, k, core_codes.data_ptr(), core_scale.data_ptr())
    assert torch.equal(core_codes, bytes_of(codes))
    assert torch.equal(core_scale, scale)
    back = formats.dequantise_activations(codes, scale)
    assert ((back - x).abs() <= x.abs() / 16 + scale.max() / 1024).all()


def test_a_given_scale_is_used_and_saturates():
    x = torch.tensor([[1.0, -2000.0]])
    codes, scale = formats.quantise_activations(x, "fp8_tensor", scale=torch.tensor([2.0]))
    assert codes.float().tolist() == [[0.5, -448.0]] and scale.item() == 2.0
    assert formats.quantise_activations(torch.empty(0, 4), "fp8_tensor")[0].shape == (0, 4)


def test_mxfp4_unpacks_as_transformers_does():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    # All bytes beside all scales at which bf16 neither overflows nor underflows. Theirs is [E, K, N].
    scales = torch.arange(1, 252, dtype=torch.uint8)[:, None].repeat(1, 16).contiguous()
    packed = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(len(scales), 1, 1)
    theirs = convert_moe_packed_tensors(packed[None].clone(), scales[None].clone())[0].T
    ours = formats.dequantise(packed.flatten(-2), scales, "mxfp4", dtype=torch.bfloat16)
    assert torch.equal(ours, theirs)


def test_mxfp4_rounds_as_ml_dtypes_does_beside_its_scale():
    w = hard_matrix(64, 256, seed=3)
    codes, scale = formats.quantise(w, "mxfp4")
    steps = scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    scaled = w.unflatten(-1, (-1, 32)).numpy().astype(np.float64) / steps[..., None]
    expected = scaled.astype(np.float32).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    actual = formats.decode_e2m1(formats.unpack_e2m1(codes)).unflatten(-1, (-1, 32)).numpy()
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_group_that_is_not_finite_comes_back_as_nan(format):
    for bad in (float("nan"), float("inf"), -float("inf")):
        w = torch.ones(2, 256)
        w[1, 7] = bad
        whole = torch.tensor(1.0)
        codes, scale = formats.quantise(w, format, global_scale=whole)
        _, _, core_back = core_quantise(w, format, 1.0)
        back = formats.dequantise(codes, scale, format, global_scale=whole)
        assert back[1, 7].isnan() and core_back[1, 7].isnan()
        assert torch.equal(back.isnan(), core_back.isnan())
        if format not in ("fp8_block", "fp8_tensor"):
            assert back[0].isfinite().all()


def test_float_results_round_the_exact_value_once():
    w = hard_matrix(128, 256, seed=5)
    codes, scale = formats.quantise(w, "fp8_block")
    exact = formats.dequantise(codes, scale, "fp8_block")
    assert torch.equal(formats.dequantise(codes, scale, "fp8_block", dtype=torch.float32), exact.float())


def test_nonsense_is_refused():
    w = torch.ones(4, 40)
    for call in (
        lambda: formats.quantise(w, "bf16"),
        lambda: formats.dequantise(w, w, "int8"),
        lambda: formats.quantise(w, "mxfp4"),
        lambda: formats.quantise(torch.ones(4, 32), "nvfp4"),
        lambda: formats.quantise_activations(w, "mxfp4"),
        lambda: formats.quantise_experts(w[None], w[None], format="bf16"),
        lambda: formats.quantise_experts(w[None], w[None], format="fp8_block", pairing="separate"),
        lambda: _core.encode("e5m2", 0, 0, 0),
        lambda: _core.decode("e5m2", 0, 0, 0),
        lambda: _core.quantised_layout("bf16", 1, 1),
    ):
        with pytest.raises(InvalidArgument):
            call()


# --- The weights of a block -----------------------------------------------------------------------


def experts(pairing, intermediate=160, hidden=288, count=3):
    generator = torch.Generator().manual_seed(11)
    rows = intermediate if pairing == "none" else 2 * intermediate
    w13 = torch.randn(count, rows, hidden, generator=generator) / hidden**0.5
    w2 = torch.randn(count, hidden, intermediate, generator=generator) / intermediate**0.5
    return w13, w2


def views(weights):
    from flexact import layer_plan

    return {name: layer_plan.tensor_view(tensor) for name, tensor in weights.items()}


@pytest.mark.parametrize("format, pairing", list(itertools.product(FORMATS, PAIRINGS)))
def test_experts_are_stored_as_the_core_expects_and_come_back(format, pairing):
    w13, w2 = experts(pairing)
    if pairing != "none":
        # Gate a hundred times larger than up: one scale for both would lose up.
        formats._halves(w13, pairing)[0].mul_(100)
    weights = formats.quantise_experts(w13, w2, format=format, pairing=pairing)
    problem = _core.MoeProblem(
        experts=3, top_k=2, hidden=288, intermediate=160, format=format, pairing=pairing
    )
    _core.validate_weights(problem, views(weights))
    back13, back2 = formats.dequantise_experts(weights, format=format, pairing=pairing)
    assert back13.shape == w13.shape and back2.shape == w2.shape
    tolerance = 0.03 if format.startswith("fp8") else 0.15
    shared = pairing == "interleaved" and format == "fp8_block"
    pairs = [(w2, back2)]
    if pairing == "none" or shared:
        pairs.append((w13, back13))
    else:
        pairs += list(zip(formats._halves(w13, pairing), formats._halves(back13, pairing), strict=True))
    for exact, rounded in pairs:
        error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < tolerance


def test_one_scale_for_gate_and_up_is_understood():
    w13, w2 = experts("concat")
    for format in ("fp8_tensor", "nvfp4"):
        weights = formats.quantise_experts(w13, w2, format=format)
        name = "w13_scale" if format == "fp8_tensor" else "w13_global_scale"
        both = weights[name]
        assert both.shape == (3, 2) and not torch.equal(both[:, 0], both[:, 1])
        weights[name] = both[:, 0].contiguous()
        back, _ = formats.dequantise_experts(weights, format=format)
        weights[name] = both[:, :1].repeat(1, 2)
        assert torch.equal(back, formats.dequantise_experts(weights, format=format)[0])


def test_the_core_refuses_scales_of_another_shape():
    w13, w2 = experts("concat")
    weights = formats.quantise_experts(w13, w2, format="fp8_block")
    problem = _core.MoeProblem(experts=3, top_k=2, hidden=288, intermediate=160, format="fp8_block")
    weights["w13_scale"] = weights["w13_scale"][:, :3].contiguous()
    with pytest.raises(InvalidArgument, match=r"w13_scale: shape \[3, 3, 3\]"):
        _core.validate_weights(problem, views(weights))


# --- Cases, reference and recipe ------------------------------------------------------------------


@pytest.mark.parametrize("format", ["bf16", "fp16", *FORMATS])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_recipe_differs_from_the_reference_by_the_formats_roundings(format, pairing):
    activation = ActivationRegistry.get_activation("gelu_tanh", {})
    case = testing.random_case(
        format, tokens=7, experts=4, top_k=2, hidden=288, intermediate=160, pairing=pairing, bias=True,
        absent=0.2, routed_scaling_factor=1.5,
    )  # fmt: skip
    exact = testing.reference(case, activation)
    assert 0.3 < exact.square().mean().sqrt() < 30
    rms, largest = testing.errors(testing.recipe(case, activation), exact)
    low, high = (0.01, 0.08) if "fp8" in format else (1e-4, 4e-3)
    assert low < rms < high and rms < largest < 12 * rms
    wrong = dataclasses.replace(case, topk_ids=(case.topk_ids + 1) % 4)
    assert testing.errors(testing.recipe(wrong, activation), exact)[0] > 0.3


def test_the_reference_is_the_block_one_token_at_a_time():
    activation = ActivationRegistry.get_activation("swish", {"beta": {"per_expert": [0.5, 1.0, 2.0]}})
    for fields in ({}, {"combine": False}, {"router_weight_on_input": True}):
        case = testing.random_case(
            tokens=5, experts=3, top_k=2, hidden=24, intermediate=16, absent=0.3,
            pairing="interleaved", **fields,
        )  # fmt: skip
        expected = reference_moe(
            case.hidden_states, case.weights["w13"], case.weights["w2"], case.topk_weights, case.topk_ids,
            lambda expert, g, u: activation.gated()(g, u, expert=expert), pairing="interleaved", **fields,
        )  # fmt: skip
        torch.testing.assert_close(testing.reference(case, activation), expected, rtol=1e-12, atol=1e-12)


def test_rows_that_no_expert_takes_have_no_part_in_a_scale():
    activation = ActivationRegistry.get_activation("silu", {})
    case = testing.random_case(
        "fp8_tensor", tokens=6, experts=3, top_k=2, hidden=64, intermediate=32, absent=0.5
    )
    case.topk_ids[0] = -1
    before = testing.recipe(case, activation)
    case.hidden_states[0] = float("nan")
    assert torch.equal(testing.recipe(case, activation), before)


def test_the_cpu_refuses_quantised_weights_with_a_reason():
    case = testing.random_case("mxfp4", tokens=2, experts=3, top_k=2, hidden=64, intermediate=32)
    activation = ActivationRegistry.get_activation("silu", {})
    with pytest.raises(Unsupported, match="no kernels for format mxfp4"):
        flexact.fused_moe(activation=activation, backend="cpu", **case.arguments())
    with pytest.raises(Unsupported, match="no kernels for format fp8_block"):
        weights = formats.quantise_experts(*experts("concat"), format="fp8_block")
        flexact.moe.plan(activation=activation, top_k=2, format="fp8_block", backend="cpu", **weights)


def test_a_case_moves_between_devices_with_all_its_tensors():
    case = testing.random_case(
        "fp8_tensor", tokens=2, experts=3, top_k=2, hidden=64, intermediate=32, static_scales=True
    )
    moved = case.to("meta")
    assert moved.hidden_states.is_meta and all(each.is_meta for each in moved.weights.values())
    assert "a13_scale" in moved.weights and moved.format == "fp8_tensor"
