"""Runs the Triton kernels in every quantised format against fp64 and the stated recipe.

`python triton_format_cases.py DEVICE [FORMAT …]` prints one JSON object a line and case; without formats
it checks all of them, and the small floats and quantisers too. With DEVICE "cpu" it needs
TRITON_INTERPRET=1 in the environment.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import triton
import triton.language as tl
from flexact import ActivationRegistry, formats, testing
from flexact._core import LaunchTable, MoeProblem
from flexact.triton import dense_fp8, operands_fp4, small_floats
from flexact.triton import moe as launcher
from flexact.triton.plan import check_weights
from line_counting import stop

torch.set_num_threads(1)


def tile(m, n, k, **more):
    return {"block_m": m, "block_n": n, "block_k": k, "group_m": 2, "warps": 4, "stages": 2, **more}


# Tiles that quantise activations themselves and tiles that do not, with and without whole groups of 128.
LAUNCHES = {
    "direct": {"direct": True, "gate_up": tile(16, 32, 128), "down": tile(16, 64, 128)},
    "narrow": {
        "direct": True,
        "gate_up": tile(16, 32, 128, warps=2),
        "down": tile(16, 64, 128, warps=2),
    },
    "few": {"gate_up": tile(16, 32, 128, warps=2), "down": tile(16, 64, 128)},
    "permuted": {"permute": True, "gate_up": tile(16, 32, 128), "down": tile(16, 64, 128)},
    # Without tensor cores.
    "vector": {
        "direct": True,
        "vector": True,
        "fuse_combine": True,
        "gate_up": tile(16, 4, 256),
        "down": tile(16, 8, 128),
    },
    "fused": {
        "direct": True,
        "fuse_combine": True,
        "gate_up": tile(16, 32, 128),
        "down": tile(16, 4, 256),
    },
    "sorted": {"gate_up": tile(64, 64, 128), "down": tile(64, 128, 128)},
    "whole": {"gate_up": tile(64, 128, 128, persistent=1), "down": tile(64, 128, 128)},
    # Each tile of the first GEMM in four of the second, of which some have no rows.
    "parts": {"gate_up": tile(64, 32, 128), "down": tile(16, 64, 128)},
    "looping parts": {"gate_up": tile(64, 128, 128), "down": tile(16, 128, 128, persistent=1)},
}


def block_of(case, activation, launch):
    weights = case.weights
    function = activation.function if case.pairing == "none" else activation.function.gated()
    packed = 2 if case.format in formats.FP4_FORMATS else 1
    experts, _, hidden = weights["w13"].shape
    problem = MoeProblem(
        experts=experts, top_k=case.topk_ids.shape[1], hidden=packed * hidden,
        intermediate=packed * weights["w2"].shape[2], format=case.format, pairing=case.pairing,
        io_dtype=str(case.hidden_states.dtype).removeprefix("torch."),
        bias13="w13_bias" in weights, bias2="w2_bias" in weights,
        router_weight_on_input=case.router_weight_on_input, combine=case.combine,
        routed_scaling_factor=case.routed_scaling_factor,
    )  # fmt: skip
    check_weights(problem, weights)
    table = None
    if launch is not None:
        entry = {
            "format": case.format, "experts": experts, "top_k": problem.top_k, "hidden": problem.hidden,
            "intermediate": problem.intermediate, "gated": case.pairing != "none",
            # An entry serves no count of tokens that is far from its own.
            "tokens": case.hidden_states.shape[0],
            **LAUNCHES[launch],
        }  # fmt: skip
        table = LaunchTable.from_json(json.dumps({"device": "test", "entries": [entry]}))
    return launcher.Block(problem, function, case.hidden_states.device, table)


def run(case, activation, launch):
    block = block_of(case, activation, launch)
    x = case.hidden_states
    values = torch.tensor(activation.values(0, (0, 1)), dtype=torch.float32, device=x.device)
    shape = x.shape if case.combine else (*case.topk_ids.shape, x.shape[1])
    out = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
    return block.run(x, dict(case.weights), case.topk_weights, case.topk_ids, values, out)


def report(name, case, activation, result):
    exact = testing.reference(case, activation)
    rms, largest = testing.errors(result, exact)
    recipe = testing.recipe(case, activation, partial=case.hidden_states.dtype)
    recipe_rms, _ = testing.errors(recipe, exact)
    return {
        "case": name,
        "format": case.format,
        "finite": bool(torch.isfinite(result).all()),
        "rms": rms,
        "max": largest,
        "recipe_rms": recipe_rms,
        "to_recipe": testing.errors(result, recipe.double())[0],
    }


def cases(device="cpu", everything=False):
    """(name, case, activation, launch): every format with every route and pairing, odd sizes."""
    swish = ActivationRegistry.get_activation("swish", {"beta": 1.5})
    oai = ActivationRegistry.get_activation("swiglu_oai")
    relu2 = ActivationRegistry.get_activation("relu2")
    rows = [
        ("direct", swish, "concat", {"tokens": 5}),
        ("sorted", oai, "interleaved", {"tokens": 9, "bias": True, "routed_scaling_factor": 2.5}),
        ("whole", swish, "up_first", {"tokens": 11, "router_weight_on_input": True, "combine": False}),
        ("whole", relu2, "none", {"tokens": 6}),
    ]
    for number, format in enumerate((*formats.FP8_FORMATS, *formats.FP4_FORMATS)):
        # Neither a multiple of 128: short groups and tiles at every end.
        size = (
            {"hidden": 160, "intermediate": 160}
            if format in formats.FP4_FORMATS
            else {"hidden": 144, "intermediate": 136}
        )
        for index, (launch, activation, pairing, options) in enumerate(rows):
            if not everything and index % 2 != number % 2:
                continue  # the interpreter is slow: half of the formats each
            case = testing.random_case(
                format, experts=2, top_k=2, pairing=pairing, absent=0.2, seed=index, device=device,
                static_scales=format == "fp8_tensor" and launch == "sorted", **size, **options,
            )  # fmt: skip
            yield f"{format} {launch} {pairing}", case, activation, launch
    # Tiles of two warps, which multiply in another order, alone and beside one of four; rows copied in order.
    for format, launch in (("mxfp4", "narrow"), ("nvfp4", "few"), ("nvfp4", "permuted")):
        case = testing.random_case(
            format, tokens=5, experts=2, top_k=2, hidden=160, intermediate=96, seed=8, device=device
        )
        yield f"{format} {launch}", case, swish, launch
    # Without tensor cores, both GEMMs or the second; rows that end within a step, and an absent expert.
    oddly = {"bias": True, "routed_scaling_factor": 1.5}
    for format, launch, pairing, options in (
        ("fp8_block", "vector", "concat", {"hidden": 272, "intermediate": 136, **oddly}),
        ("fp8_block", "vector", "interleaved", {"hidden": 144, "intermediate": 256}),
        ("fp8_block", "fused", "up_first", {"hidden": 128, "intermediate": 160}),
        ("fp8_tensor", "vector", "concat", {"hidden": 272, "intermediate": 136, **oddly}),
        ("fp8_channel", "vector", "interleaved", {"hidden": 144, "intermediate": 256}),
        ("fp8_channel", "fused", "up_first", {"hidden": 128, "intermediate": 160}),
        ("mxfp4", "vector", "interleaved", {"hidden": 160, "intermediate": 96, **oddly}),
        ("mxfp4", "fused", "concat", {"hidden": 128, "intermediate": 256}),
        ("nvfp4", "vector", "up_first", {"hidden": 144, "intermediate": 112, "router_weight_on_input": True}),
        ("nvfp4", "vector", "none", {"hidden": 256, "intermediate": 160}),
    ):
        case = testing.random_case(
            format, tokens=2, experts=3, top_k=2, pairing=pairing, absent=0.2, seed=10, device=device,
            **options,
        )  # fmt: skip
        yield f"{format} {launch} {pairing}", case, relu2 if pairing == "none" else swish, launch
    # Tiles of fewer rows in the second GEMM: an expert's rows in one of a tile's parts, in some, or in none.
    for format, launch in (("fp8_tensor", "parts"), ("fp8_block", "looping parts")):
        case = testing.random_case(
            format, tokens=33, experts=3, top_k=2, hidden=144, intermediate=136, absent=0.2, seed=11,
            device=device, bias=True,
        )  # fmt: skip
        yield f"{format} {launch}", case, swish, launch
    # Scales whose rows are aligned; the sizes above have others.
    for format in ("mxfp4", "nvfp4", "mxfp4_fp8"):
        case = testing.random_case(
            format, tokens=3, experts=2, top_k=1, hidden=512, intermediate=512, seed=7, device=device
        )
        yield f"{format} aligned", case, swish, "sorted"
    # Rows that end within the 32 columns of a lane order.
    for launch in ("direct", "sorted"):
        case = testing.random_case(
            "nvfp4", tokens=5, experts=2, top_k=2, hidden=144, intermediate=112, seed=9, device=device
        )
        yield f"nvfp4 {launch} short", case, swish, launch


def quantisers(device="cpu"):
    """Whether the quantisation kernels give the bits of flexact.formats."""
    x = (torch.randn(5, 300, device=device) * torch.logspace(-5, 3, 300, device=device)).bfloat16()
    x[1] = 0
    x[2, 7] = float("inf")
    for format in ("fp8_block", "fp8_channel", "fp8_tensor"):
        given = {} if format != "fp8_tensor" else {"a13_scale": torch.tensor([3.0], device=device)}
        codes, scale = formats.quantise_activations(x, format, scale=given.get("a13_scale"))
        side = launcher.FORMATS[format].inputs(
            x, torch.zeros(5, 2, dtype=torch.int32, device=device), 3, given, _tile(), False
        )
        same = torch.equal(side.tensor.view(torch.uint8) & 127 == 127, codes.view(torch.uint8) & 127 == 127)
        finite = codes.view(torch.uint8) & 127 != 127
        same &= torch.equal(side.tensor.view(torch.uint8)[finite], codes.view(torch.uint8)[finite])
        same &= torch.equal(side.extra[0].reshape(-1), scale.reshape(-1))
        yield {"quantiser": format, "same": bool(same)}


def dense(device="cpu"):
    """act_and_mul with a quantised result against the activation in float64, quantised as stated."""
    for pairing, name, width in (
        ("concat", "silu", 300),
        ("interleaved", "gelu", 96),
        ("none", "relu2", 129),
    ):
        activation = ActivationRegistry.get_activation(name)
        function = activation.function if pairing == "none" else activation.function.gated()
        x = torch.randn(5, width if pairing == "none" else 2 * width, device=device).bfloat16()
        values = torch.empty((1, 0), device=device)
        halves = [half.T for half in formats._halves(x.T, pairing)] if pairing != "none" else [x]
        want = (activation if pairing == "none" else activation.gated())(*(half.double() for half in halves))
        for format in ("fp8_block", "fp8_channel"):
            codes, scale = dense_fp8.run(function, values, pairing, x, format)
            wanted, wanted_scale = formats.quantise_activations(want.float(), format)
            # Where fp32 and float64 disagree in the last bit a value may fall to the next code.
            differ = (codes.view(torch.uint8) != wanted.view(torch.uint8)).float().mean().item()
            near = torch.allclose(scale, wanted_scale, rtol=1e-5, atol=0)
            yield {"dense": f"{pairing} {format}", "same": near and differ < 0.01}


def _tile():
    entry = {
        "format": "fp8_block", "experts": 1, "top_k": 1, "hidden": 1, "intermediate": 1, "tokens": 1,
        **LAUNCHES["whole"],
    }  # fmt: skip
    table = LaunchTable.from_json(json.dumps({"device": "test", "entries": [entry]}))
    problem = MoeProblem(experts=1, top_k=1, hidden=1, intermediate=1, format="fp8_block")
    return table.choose(problem, 1, 4, 232448).gate_up


@triton.jit
def _decode(words, codes, out, scales, KIND: tl.constexpr, GROUP: tl.constexpr):
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    w = tl.load(words + row[:, None] * 16 + tl.arange(0, 16)[None, :])
    COUNT: tl.constexpr = 128 // GROUP
    c = tl.load(codes + row[:, None] * COUNT + tl.arange(0, COUNT)[None, :])
    if KIND == "mx":
        y = operands_fp4.mx_values(w, c, 16, 128)
    elif KIND == "nv":
        y = operands_fp4.nv_values(w, c, 16, 128)
    elif KIND == "mx by word":
        y = operands_fp4.mx_values(w, c, 16, 128, True)
    else:
        y, scale = operands_fp4.mx_codes(w, c, 16, 128)
        tl.store(scales + row, scale)
    tl.store(out + row[:, None] * 128 + tl.arange(0, 128)[None, :], y)


@triton.jit
def _encode(x, out, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, small_floats.to_e4m3(tl.load(x + i, mask=i < count, other=0.0)), mask=i < count)


def same_values(a, b):
    return torch.equal(a.nan_to_num(-12345.0), b.nan_to_num(-12345.0))


def conversions(device="cpu"):
    """Decoders over all values beside all scales, the encoder over all bf16 values and all ties."""

    def in_lanes(want, bits):
        # The column at each place, as small_floats.lane_order's table has it.
        if bits == "by word":
            index = [
                8 * t + 4 * e + 2 * s + h for t in range(4) for s in (0, 1) for h in (0, 1) for e in (0, 1)
            ]
        elif bits == 16:
            index = [
                8 * t + 4 * e + 2 * s + h for s in (0, 1) for h in (0, 1) for t in range(4) for e in (0, 1)
            ]
        else:
            index = [8 * t + 4 * e + i for e in (0, 1) for t in range(4) for i in range(4)]
        places = torch.arange(0, 128, 32)[:, None] + torch.tensor(index)
        return want[:, places.flatten().to(want.device)]

    packed = torch.arange(16, device=device, dtype=torch.uint8)
    packed = (packed | (packed.flip(0) << 4)).repeat(256, 4)  # [256, 64]: all nibbles in every group
    words = packed.view(torch.int32)
    scales = torch.empty(256, device=device)
    every = torch.arange(256, device=device, dtype=torch.uint8)[:, None]
    kinds = {"mx": 16, "mx by word": "by word", "nv": 16, "mx8": 8}
    for kind, order in kinds.items():
        dtype = torch.float8_e4m3fn if kind == "mx8" else torch.bfloat16
        group = 16 if kind == "nv" else 32
        codes = every.repeat(1, 128 // group)
        if kind == "mx8":
            # Groups up to 11 powers of two below the row's largest.
            codes = (codes.int() - torch.tensor([0, 3, 11, 7], device=device)).clamp_min(0).to(torch.uint8)
            codes[-1] = 255
        out = torch.empty(256, 128, dtype=dtype, device=device)
        _decode[(16,)](words, codes, out, scales, KIND=kind, GROUP=group)
        if kind == "nv":
            whole = torch.tensor(2.0**-8, device=device)
            want = formats.dequantise(packed, codes.view(torch.float8_e4m3fn), "nvfp4", global_scale=whole)
            want = in_lanes(want, order)
            known = (every.flatten() & 127) != 127 if device == "cpu" else slice(None)
            # The interpreter reads E4M3's NaN as a number.
            same = same_values(out.double()[known], want[known])
        else:
            want = in_lanes(formats.dequantise(packed, codes, "mxfp4"), order)
            got = out.double() * (scales.double()[:, None] if kind == "mx8" else 1.0)
            if kind != "mx8":
                # Scales above 2 are outside of what the factor holds, and visibly so.
                want[129] *= torch.inf
                want[130:] = torch.nan
            same = same_values(got, want)
        yield {"conversion": f"decode {kind}", "same": same}
    finite = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (finite[1:] + finite[:-1]) / 2
    ties = torch.cat((ties, ties.nextafter(torch.tensor(1e9)), ties.nextafter(torch.tensor(0.0))))
    bf16 = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    x = torch.cat((bf16, ties, -ties)).to(device)
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=device)
    _encode[(triton.cdiv(x.numel(), 4096),)](x, out, x.numel(), BLOCK=4096)
    want = formats.encode_e4m3(x)
    yield {"conversion": "encode e4m3", "same": same_values(out.float(), want.float())}


def main():
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter multiplies rows that nobody keeps
    device, chosen = sys.argv[1], sys.argv[2:]
    for line in () if chosen else (*conversions(device), *quantisers(device), *dense(device)):
        print(json.dumps(line), flush=True)
    for name, case, activation, launch in cases(device, device != "cpu"):
        if chosen and case.format not in chosen:
            continue
        if name.endswith(("aligned", "short")):
            stop()  # other sizes of what ran
        line = report(name, case, activation, run(case, activation, launch))
        # Rounded once after the sum over experts.
        line["summed"] = LAUNCHES[launch].get("fuse_combine", False)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
