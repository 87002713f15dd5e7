"""SGLang's experts on the Triton backend: every quantisation method's layout, the proof, the switches.

The kernels run in Triton's interpreter, in a process of its own (sglang_triton_cases.py).
"""

from __future__ import annotations

import json
import pickle
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
    "nvfp4, scales copied": "ModelOptNvFp4FusedMoEMethod",
    "mxfp4, top_k left open, scales copied": "Mxfp4MoEMethod",
    "bf16, two backends": "UnquantizedFusedMoEMethod",
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
        begin = "auto: triton up to 2 (few)" if "two backends" in row["case"] else "triton "
        assert row["kernel"].startswith(begin), row
        assert row["proof"] <= 1e-2, row
        assert row["calls"] == 1, row


def test_no_weight_is_copied(reports: dict[str, Any]) -> None:
    """What SGLang allocates beside the weights it holds for itself too: some single scales, biases."""
    for row in reports.values():
        assert row["aliased"], row
        assert row["bytes"] <= 1.02 * row["checkpoint"] + 512, row
        assert abs(row["said_bytes"] - row["checkpoint"]) <= 0.02 * row["checkpoint"] + 512, row


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


def test_every_plan_that_a_number_of_tokens_reaches_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexact.sglang import _values

    module = SimpleNamespace(
        layer_id=0, layer_name="layers.0", top_k=2, num_local_experts=2, _num_local_routed=2, moe_ep_rank=0
    )
    layer = _experts.ExpertLayer(module, None, is_ours=True, reason="", pairing="concat")
    monkeypatch.setattr(_formats, "held", lambda module: SimpleNamespace(format="bf16"))
    monkeypatch.setattr(_formats, "tensors", lambda module, held: {})
    monkeypatch.setattr(_values, "table", lambda *args, **options: None)
    plans = {"triton": object(), "cutlass": object()}
    proven: list[Any] = []
    monkeypatch.setattr(layer, "_make", lambda top_k: SimpleNamespace(plans=plans))
    monkeypatch.setattr(layer, "measure", lambda run: proven.append(run.keywords["plan"]))
    monkeypatch.setattr(layer, "_let_go", lambda held: None)
    layer.pack()
    assert proven == list(plans.values())


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


def fp8_scheme(strategy: str, size: list[int] | None) -> Any:
    """A stand-in for compressed-tensors' scheme of FP8 experts."""
    weights = SimpleNamespace(strategy=SimpleNamespace(value=strategy))
    fields = {"weight_quant": weights, "weight_block_size": size, "static_input_scales": strategy == "tensor"}
    return type("CompressedTensorsW8A8Fp8MoE", (), fields)()


def mxfp4_layer(hidden: int = 64, inner: int = 64, alternate: bool = False) -> Any:
    """MXFP4 experts of hidden size 64 and 64 columns, which SGLang's method has padded to these sizes."""
    layer = layer_of(
        "Mxfp4MoEMethod",
        own={"hidden_size": hidden, "intermediate_size_per_partition": inner},
        hidden_size=64,
        intermediate_size_per_partition=64,
        moe_runner_config=SimpleNamespace(gate_up_interleaved=alternate),
    )
    layer.with_bias = alternate
    return layer


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
        (
            layer_of(
                "ModelOptNvFp4FusedMoEMethod",
                own={"quant_config": SimpleNamespace(group_size=16, is_nvfp4_online=True)},
            ),
            "makes or reorders",
        ),
        (
            layer_of(
                "ModelOptFp8MoEMethod",
                own={"quant_config": SimpleNamespace(is_checkpoint_fp8_serialized=False)},
            ),
            "without FP8 weights",
        ),
        (layer_of("CompressedTensorsFusedMoEMethod", scheme=fp8_scheme("block", [64, 64])), "[64, 64]"),
        (mxfp4_layer(hidden=96), "pads for another kernel"),
        (mxfp4_layer(inner=96), "do not alternate"),
    ],
)
def test_a_layout_that_is_not_known_is_named(layer: Any, reason: str) -> None:
    assert reason in _formats.held(layer)


@pytest.mark.parametrize(
    ("layer", "format", "names"),
    [
        (layer_of("UnquantizedFusedMoEMethod"), "bf16", {}),
        (layer_of("W8A8FP8MoEMethod"), "fp8_channel", {"w2_scale": "w2_weight_scale"}),
        (layer_of("ModelOptFp8MoEMethod"), "fp8_tensor", {"a2_scale": "w2_input_scale"}),
        (
            layer_of("CompressedTensorsFusedMoEMethod", scheme=fp8_scheme("block", [128, 128])),
            "fp8_block",
            {"w13_scale": "w13_weight_scale"},
        ),
        (
            layer_of("CompressedTensorsFusedMoEMethod", scheme=fp8_scheme("tensor", None)),
            "fp8_tensor",
            {"a13_scale": "w13_input_scale"},
        ),
        (mxfp4_layer(inner=96, alternate=True), "mxfp4", {"w13_bias": "w13_weight_bias"}),
    ],
)
def test_a_known_layout_has_a_format_and_its_tensors(layer: Any, format: str, names: dict[str, str]) -> None:
    held = _formats.held(layer)
    assert held.format == format
    assert names.items() <= held.names.items()
    assert {"w13", "w2"} <= set(held.names)


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
        ("auto", "cuda", "auto"),
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
    # --moe-runner-backend cutlass is a wish that FLEXACT_BACKEND overrules, as long as it has one.
    flag = "cutlass" if (wanted, device) == ("auto", "cuda") else chosen
    assert _experts._backend(device, "layers.0", "cutlass") == flag
    assert _experts._backend(device, "layers.0", "triton_kernel") == chosen
    monkeypatch.setattr("flexact._core.backends", lambda: ["cpu"])
    if chosen == wanted not in ("cpu", "auto"):
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
    assert _runner.set_aside(plan, None) == aside
    assert utils.get_moe_runner_backend().is_auto() == (aside is not None)
    assert _runner.set_aside(plan, None) is None or aside is None


@pytest.mark.parametrize(
    ("override", "mode", "value", "becomes"),
    [
        (SWISH, "auto", "cutlass", "auto"),
        (SWISH, "auto", "triton_kernel", "auto"),
        ({}, "auto", "cutlass", "cutlass"),
        ({}, "always", "cutlass", "auto"),
        (SWISH, "off", "cutlass", "cutlass"),
        (SWISH, "auto", "auto", "auto"),
    ],
)
def test_sglang_checks_its_arguments_without_a_runner_that_will_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: Any, mode: str, value: str, becomes: str
) -> None:
    """SGLang refuses FP8 with "cutlass" on two expert-parallel ranks, for example."""
    from sglang.srt.server_args import ServerArgs

    plan = plan_of("mixtral", override, tmp_path)
    host.prepare(str(plan.folder))
    monkeypatch.setenv("FLEXACT_MOE", mode)
    args = ServerArgs(
        model_path=str(plan.folder), device="cpu", moe_runner_backend=value, ep_size=2, tp_size=2,
        json_model_override_args=json.dumps(override),
    )  # fmt: skip
    seen = []
    for _ in range(2):  # what was read once stays
        _runner.check_arguments(lambda self: seen.append(self.moe_runner_backend), args)
    assert seen == [becomes, becomes]
    args = pickle.loads(pickle.dumps(args))
    flags = utils_flags(monkeypatch, value if becomes == value else "auto")
    aside = value if becomes != value else None
    assert _runner.set_aside(plan, args) == aside
    if aside:  # SGLang's own choice for "auto" is not what was asked for
        flags.runner_backend = type(flags.runner_backend)("triton")
        assert _runner.set_aside(plan, args) == value


def utils_flags(monkeypatch: pytest.MonkeyPatch, value: str) -> Any:
    from sglang.srt.layers.moe import utils

    flags = utils.get_flags().moe
    monkeypatch.setattr(flags, "runner_backend", utils.MoeRunnerBackend(value))
    return flags


def test_where_both_gpu_backends_refuse_a_layer_both_reasons_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexact import _core, backend_choice
    from flexact.sglang import _model

    monkeypatch.delenv("FLEXACT_BACKEND", raising=False)
    loading = _model.Loading(plan_of("mixtral", SWISH, tmp_path), is_draft=False)
    monkeypatch.setattr(_model, "_loading", loading)
    monkeypatch.setattr(backend_choice, "device_of", lambda index: backend_choice.Device("A", (9, 0), 132))
    cuda = SimpleNamespace(type="cuda", index=0)
    fields = {"apply_router_weight_on_input": False, "no_combine": False}
    module = layer_of("UnquantizedFusedMoEMethod", moe_runner_config=SimpleNamespace(**fields))
    module.w13_weight = SimpleNamespace(shape=(2, 64, 32), dtype=torch.bfloat16, device=cuda)
    module.w2_weight = SimpleNamespace(shape=(2, 32, 32), dtype=torch.bfloat16)
    module.dispatcher = type("StandardDispatcher", (), {})()
    module.num_local_experts, module.num_fused_shared_experts = 2, 0
    entry = SimpleNamespace(name="swish", activation=flexact.ActivationRegistry.get_activation("swish"))
    layer = SimpleNamespace(name="layers.0", entry=entry, reason="why", pairing="concat", top_k=2)

    reasons = {"triton": ("no room", ""), "cutlass": ("odd sizes", "pad them")}
    monkeypatch.setattr(_core, "refuse", lambda name, *rest: reasons.get(name))
    with pytest.raises(Stop, match=r"layers.0.*triton refuses: no room; backend cutlass refuses: odd sizes"):
        _experts.refuse_unsupported(module, layer)
    del reasons["triton"]
    _experts.refuse_unsupported(module, layer)
    assert layer.backend == "auto"
    loading.runner_set_aside = "cutlass"
    with pytest.raises(Stop, match=r"layers.0.*odd sizes.*pad them"):
        _experts.refuse_unsupported(module, layer)


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
