"""SGLang's experts on the Triton backend: every quantisation method's layout, the proof, the switches.

The kernels run in Triton's interpreter, in a process of its own (sglang_triton_cases.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")
pytest.importorskip("triton")

import flexact
import sglang_in_process as host
import torch
from flexact import testing
from flexact.sglang import Stop, _counts, _experts, _formats, _proof, _runner
from moe_reference import split
from script_lines import lines_of
from sglang_triton_cases import NAMED, SWISH, plan_of

METHODS = {
    "bf16": "UnquantizedFusedMoEMethod",
    "bf16, top_k left open": "UnquantizedFusedMoEMethod",
    "fp8 blocks": "Fp8MoEMethod",
    "fp8 tensor": "Fp8MoEMethod",
    "fp8 tensor, given scales": "Fp8MoEMethod",
    "ModelOpt FP8": "ModelOptFp8MoEMethod",
    "fp8 channels": "W8A8FP8MoEMethod",
    "compressed channels": "CompressedTensorsFusedMoEMethod",
    "compressed tensor": "CompressedTensorsFusedMoEMethod",
    "compressed blocks": "CompressedTensorsFusedMoEMethod",
    "mxfp4": "Mxfp4MoEMethod",
    "nvfp4": "ModelOptNvFp4FusedMoEMethod",
    "gpt_oss mxfp4": "Mxfp4MoEMethod",
    "gpt_oss bf16": "UnquantizedFusedMoEMethod",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {"TRITON_INTERPRET": "1", "FLEXACT_BACKEND": "triton", "FLEXACT_MOE": "auto"}
    folder = tmp_path_factory.mktemp("triton")
    lines = lines_of("sglang_triton_cases.py", folder, count=True, **environment)
    return {line["case"]: line for line in lines}


def test_every_method_is_as_near_to_fp64_as_its_formats_recipe(reports: dict[str, Any]) -> None:
    assert {name: row["method"] for name, row in reports.items()} == METHODS
    for row in reports.values():
        assert row["rms"] <= 1.1 * row["recipe_rms"], row
        assert row["kernel"].startswith("triton "), row
        assert row["proof"] <= 1e-2, row
        assert row["calls"] == 1, row


def test_no_weight_is_copied(reports: dict[str, Any]) -> None:
    """What SGLang allocates beside the weights it holds for itself too: some single scales, biases."""
    for row in reports.values():
        assert row["aliased"], row
        assert row["bytes"] <= 1.02 * row["checkpoint"] + 512, row


# --- The proof ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["concat", "up_first", "interleaved", "none"])
@pytest.mark.parametrize("format", ["bf16", "fp8_block", "fp8_channel", "fp8_tensor", "mxfp4", "nvfp4"])
def test_the_proofs_reference_is_the_recipe(format: str, pairing: str) -> None:
    """Against another evaluation of the format; a short last block of rows, and every rounding."""
    name = "relu2" if pairing == "none" else "swish"
    activation = flexact.ActivationRegistry.get_activation(name, {} if name == "relu2" else {"beta": 1.5})
    shape = {"tokens": 2, "experts": 4, "top_k": 2, "hidden": 192, "intermediate": 160}
    case = testing.random_case(format, **shape, pairing=pairing, seed=1)
    lifted = activation if pairing == "none" else activation.gated()
    subject = _proof.Subject(dict(case.weights), format, pairing, torch.bfloat16, False)
    x, scale, ids = _proof.inputs(subject, width=2, seed=3)
    case = testing.MoeCase(x, scale, ids.int(), case.weights, format=format, pairing=pairing)
    expected = testing.recipe(case, activation, partial=torch.float64).double()

    def activate(h: torch.Tensor, expert: int) -> torch.Tensor:
        return lifted(h) if pairing == "none" else lifted(*split(h, pairing))

    actual = _proof.reference(subject, activate, x, scale, ids)
    assert (actual - expected).abs().max() <= 1e-2 * expected.abs().max()


# --- What is refused ------------------------------------------------------------------------------


def layer_of(method: str, **fields: Any) -> Any:
    """A stand-in for a `FusedMoE` with a quantisation method of this name."""
    own = {"quant_config": SimpleNamespace(is_checkpoint_fp8_serialized=True, activation_scheme="dynamic")}
    own |= {"is_fp4_expert": False, "use_mxfp8": False, "block_quant": True, "weight_block_size": [128, 128]}
    own |= fields.pop("own", {})
    return SimpleNamespace(
        w13_weight=torch.zeros(2, 64, 32, dtype=fields.pop("dtype", torch.bfloat16)),
        quant_method=type(method, (), own)(),
        with_bias=False,
        **fields,
    )


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layer_of("MoeWNA16Method"), "MoeWNA16Method"),
        (layer_of("UnquantizedFusedMoEMethod", dtype=torch.float64), "float64"),
        (layer_of("UnquantizedFusedMoEMethod", own={"use_triton_kernels": True}), "moe-runner-backend"),
        (layer_of("Fp8MoEMethod", own={"is_fp4_expert": True}), "FP4"),
        (layer_of("Fp8MoEMethod", own={"weight_block_size": [1, 128]}), "[1, 128]"),
        (
            layer_of("CompressedTensorsFusedMoEMethod", scheme=type("CompressedTensorsWNA16MoE", (), {})()),
            "CompressedTensorsWNA16MoE",
        ),
        (
            layer_of("ModelOptNvFp4FusedMoEMethod", own={"quant_config": SimpleNamespace(group_size=32)}),
            "groups of 32",
        ),
    ],
)
def test_a_layout_that_is_not_known_is_named(layer: Any, reason: str) -> None:
    assert reason in _formats.held(layer)


def test_scales_beyond_the_kernels_range_are_found_while_loading() -> None:
    scale = torch.full((2, 64, 1), 127, dtype=torch.uint8)
    layer = SimpleNamespace(w13=scale, w2=scale, w13_scale=scale, w2_scale=scale.clone())
    held = _formats.Held("mxfp4", {name: name for name in ("w13", "w2", "w13_scale", "w2_scale")})
    assert set(_formats.tensors(layer, held)) == set(held.names)
    layer.w2_scale[1, 3] = 130
    with pytest.raises(ValueError, match=r"w2_scale holds 2\^3"):
        _formats.tensors(layer, held)


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        ("cutlass", "cpu", "does not compute experts on cpu; cpu does"),
        ("cpu", "cuda", "does not compute experts on cuda; triton or cutlass does"),
        ("triton", "cpu", "does not compute experts on cpu; cpu does"),
        ("auto", "xpu", "no backend for experts on xpu"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str, message: str
) -> None:
    monkeypatch.setenv("FLEXACT_BACKEND", wanted)
    monkeypatch.setattr(_experts, "_is_interpreted", lambda: False)
    with pytest.raises(Stop, match=message):
        _experts._backend(device, "layers.0")


@pytest.mark.parametrize(
    ("wanted", "device", "chosen"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "triton"),
        ("triton", "cuda", "triton"),
        ("cutlass", "cuda", "cutlass"),
        ("cpu", "cpu", "cpu"),
    ],
)
def test_the_backend_goes_by_the_device(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str, chosen: str
) -> None:
    monkeypatch.setenv("FLEXACT_BACKEND", wanted)
    monkeypatch.setattr("flexact._core.backends", lambda: ["cpu", "triton", "cutlass"])
    assert _experts._backend(device, "layers.0") == chosen
    monkeypatch.setattr("flexact._core.backends", lambda: ["cpu"])
    if chosen == wanted != "cpu":
        with pytest.raises(Stop, match="not part of this build"):
            _experts._backend(device, "layers.0")


# --- SGLang's flag, scaling factor, counting -------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "override", "mode", "aside"),
    [
        ("mixtral", SWISH, "auto", "triton_kernel"),
        ("mixtral", {}, "auto", None),
        ("mixtral", {}, "always", "triton_kernel"),
        ("mixtral", SWISH, "off", None),
        ("gpt_oss", {}, "auto", None),
        ("gpt_oss", NAMED, "auto", "triton_kernel"),
    ],
)
def test_the_hosts_runner_is_set_aside_where_it_could_not_compute_the_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, override: Any, mode: str, aside: str | None
) -> None:
    plan = plan_of(family, override, tmp_path)
    host.prepare(str(plan.folder))
    from sglang.srt.layers.moe import utils

    monkeypatch.setenv("FLEXACT_MOE", mode)
    flags = utils.get_flags().moe
    monkeypatch.setattr(flags, "runner_backend", utils.MoeRunnerBackend.TRITON_KERNELS)
    assert _runner.set_aside(plan) == aside
    assert utils.get_moe_runner_backend().is_auto() == (aside is not None)
    assert _runner.set_aside(plan) is None or aside is None


def test_the_scaling_factor_is_multiplied_where_sglangs_kernels_do_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sglang.srt.utils

    def layer(factor: float | None, in_router: bool = False) -> Any:
        config = SimpleNamespace(routed_scaling_factor=factor)
        return SimpleNamespace(moe_runner_config=config, should_fuse_routed_scaling_factor_in_topk=in_router)

    assert _experts._scaling_factor(layer(2.5)) == 1.0  # on a CPU the model's class does
    monkeypatch.setattr(sglang.srt.utils, "is_cuda", lambda: True)
    assert _experts._scaling_factor(layer(2.5)) == 2.5
    assert _experts._scaling_factor(layer(None)) == 1.0
    assert _experts._scaling_factor(layer(2.5, in_router=True)) == 1.0


def test_counts_on_a_device_are_read_when_asked() -> None:
    on_host, on_device = _counts.Count(), _counts.Count()
    for count in (on_host, on_device):
        count.bump()
        count.start(torch.device("cpu"))
    on_device._device = torch.zeros(1, dtype=torch.int64)
    for count in (on_host, on_device, on_device):
        count.bump()
    assert (on_host.total, on_device.total) == (1, 0)
    _counts.read([on_host, on_device])
    assert json.dumps([on_host.total, on_device.total]) == "[1, 2]"
