"""SGLang's own `FusedMoE` under the plugin, its experts on the Triton backend in Triton's interpreter.

Run as a script with TRITON_INTERPRET=1 and FLEXACT_BACKEND=triton: one JSON line a case. Each layer is built
by SGLang's class with one of its quantisation methods, filled with a random block in checkpoint layout,
finished as its loader does, and run through `run_moe_core`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flexact
import flexact.moe
import line_counting
import sglang_in_process as host
import torch
from flexact import testing

BETA = 1.5
SWISH = {"hidden_act": "swish", "activation_params": {"beta": BETA}}
NAMED = {"activation_params": {"name": "swish", "beta": BETA}}
SHAPE = {"tokens": 3, "experts": 4, "top_k": 2, "hidden": 256, "intermediate": 128}
CONFIGS = {
    "mixtral": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 1,
        "hidden_act": "silu", "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 256,
        "intermediate_size": 128,
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_hidden_layers": 1,
        "hidden_act": "silu", "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 256,
        "intermediate_size": 128, "swiglu_limit": 7.0,
    },
}  # fmt: skip
# Where SGLang keeps what `flexact.formats` calls by other names.
ATTRIBUTES = {
    "w13": "w13_weight", "w2": "w2_weight", "w13_scale": "w13_weight_scale", "w2_scale": "w2_weight_scale",
    "w13_global_scale": "w13_weight_scale_2", "w2_global_scale": "w2_weight_scale_2",
    "w13_bias": "w13_weight_bias", "w2_bias": "w2_weight_bias",
    "a13_scale": "w13_input_scale", "a2_scale": "w2_input_scale",
}  # fmt: skip


def fp8(**options: Any) -> Any:
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    return Fp8Config(is_checkpoint_fp8_serialized=True, **options)


def modelopt_fp8() -> Any:
    from sglang.srt.layers.quantization.modelopt_quant import ModelOptFp8Config

    return ModelOptFp8Config(is_checkpoint_fp8_serialized=True)


def w8a8_fp8() -> Any:
    from sglang.srt.layers.quantization.w8a8_fp8 import W8A8Fp8Config

    return W8A8Fp8Config(is_checkpoint_fp8_serialized=True)


def compressed(strategy: str) -> Any:
    from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    common = {"num_bits": 8, "type": "float", "symmetric": True}
    block = {"block_structure": [128, 128]} if strategy == "block" else {}
    given = {"channel": "token", "block": "group", "tensor": "tensor"}[strategy]
    size = {"group_size": 128} if strategy == "block" else {}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": strategy, "dynamic": False, **block},
        "input_activations": {**common, "strategy": given, "dynamic": True, **size},
    }
    return CompressedTensorsConfig.from_config(
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": group},
        }
    )


def mxfp4() -> Any:
    from sglang.srt.layers.quantization.mxfp4 import Mxfp4Config

    return Mxfp4Config(is_checkpoint_mxfp4_serialized=True)


def nvfp4() -> Any:
    """As on a Hopper GPU: the method asks for the device, and builds a runner that is not used."""
    from sglang.srt.layers.quantization import modelopt_quant

    modelopt_quant.is_cuda = lambda: True
    modelopt_quant.get_device_capability = lambda *args: (9, 0)
    modelopt_quant.MoeRunner = lambda *args, **kwargs: SimpleNamespace(runner_backend=args[0])
    return modelopt_quant.ModelOptFp4Config(
        is_checkpoint_nvfp4_serialized=True, group_size=16, exclude_modules=[]
    )


def plan_of(family: str, override: dict[str, Any], folder: Path) -> Any:
    from flexact.sglang import _config

    path = folder / family / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(CONFIGS[family]))
    return _config.ModelPlan(path, json.dumps(override))


def layer_of(case: testing.MoeCase, plan: Any, quantisation: Any, **options: Any) -> Any:
    """A `FusedMoE` of SGLang's with the case's weights, finished as SGLang's loader does."""
    from flexact.sglang import _model, _runner
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    previous, _model._loading = _model._loading, _model.Loading(plan, is_draft=False)
    try:
        _model._loading.runner_set_aside = _runner.set_aside(plan, None)
        layer = FusedMoE(
            num_experts=SHAPE["experts"],
            hidden_size=SHAPE["hidden"],
            intermediate_size=SHAPE["intermediate"],
            layer_id=0,
            params_dtype=torch.bfloat16,
            quant_config=quantisation,
            prefix="model.layers.0.mlp.experts",
            **{"top_k": SHAPE["top_k"], **options},
        )
        for name, tensor in case.weights.items():
            fill(layer, name, tensor)
        layer.quant_method.process_weights_after_loading(layer)
    finally:
        _model._loading = previous
    return layer


def fill(layer: Any, name: str, tensor: torch.Tensor) -> None:
    attribute = ATTRIBUTES[name]
    if name.endswith("_scale") and getattr(layer, f"{attribute}_inv", None) is not None:
        attribute += "_inv"
    parameter = getattr(layer, attribute)
    rows = parameter.data
    if name[0] == "a":  # one a layer here, one an expert there
        rows.fill_(tensor.item())
        return
    assert rows.dtype in (tensor.dtype, torch.bfloat16), (name, rows.dtype, tensor.dtype)
    rows.copy_(tensor.reshape(rows.shape))


def run(layer: Any, case: testing.MoeCase) -> torch.Tensor:
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    topk = StandardTopKOutput(case.topk_weights, case.topk_ids, None)
    with torch.no_grad():
        return layer.run_moe_core(StandardDispatchOutput(case.hidden_states, None, topk)).hidden_states


def report(name: str, layer: Any, case: testing.MoeCase, activation: Any) -> dict[str, Any]:
    """The error beside that of the kernels' recipe, and what the layer says of itself."""
    exact = testing.reference(case, activation)
    rms, largest = testing.errors(run(layer, case), exact)
    recipe = testing.recipe(case, activation, partial=torch.bfloat16)
    ours = layer.flexact
    weights = ours._made_from[1]
    return {
        "case": name,
        "method": type(layer.quant_method).__name__,
        "kernel": ours.describe()["kernel"],
        "proof": ours.error,
        "rms": rms,
        "max": largest,
        "recipe_rms": testing.errors(recipe, exact)[0],
        "aliased": all(
            weights[key].data_ptr() == getattr(layer, ATTRIBUTES[key]).data_ptr() for key in ("w13", "w2")
        ),
        "bytes": memory(layer) + ours.plan.resident_bytes,
        "said_bytes": ours.describe()["resident_bytes"],
        "checkpoint": sum(tensor.nbytes for tensor in case.weights.values()),
        "calls": ours.calls,
    }


def memory(layer: Any) -> int:
    """Bytes of all parameters, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in layer.parameters()}
    return sum(storages.values())


def copying(original: Callable[..., Any]) -> Callable[..., Any]:
    """`moe.plan` that keeps copies of the scales, as the backend cutlass does of FP4 weights."""
    from flexact.triton.plan import TritonPlan

    def plan(*args: Any, **options: Any) -> Any:
        copies = {name: options[name].clone() for name in ("w13_scale", "w2_scale")}
        made = original(*args, **(options | copies))
        size = sum(each.nbytes for each in copies.values())
        members = {"copied": tuple(copies), "resident_bytes": size}
        made.__class__ = type("Copying", (TritonPlan,), members)
        return made

    return plan


def by_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """`moe.plan` whose layers have two plans, the second for calls of three tokens and more."""
    from flexact.auto_plan import AutoPlan
    from flexact.backend_choice import Choice, Part

    def plan(*args: Any, **options: Any) -> Any:
        plans = {name: original(*args, **options) for name in ("triton", "cutlass")}
        return AutoPlan(Choice((Part(0, "triton", "few"), Part(3, "cutlass", "many"))), plans)

    return plan


# Cases in which the plan is not the Triton backend's alone.
PLANS = {"scales copied": copying, "two backends": by_tokens}


def cases(folder: Path) -> Iterator[tuple[str, Callable[[], Any], Any, dict[str, Any]]]:
    """(name, quantisation, case, options of FusedMoE)."""
    blocks = {"activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    plain = testing.random_case
    static = plain("fp8_tensor", static_scales=True, **SHAPE)
    gpt_oss = {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0, "with_bias": True}
    interleaved = plain("mxfp4", **SHAPE, pairing="interleaved", bias=True)
    # SGLang holds these biases in bf16.
    rounded = {
        name: tensor.bfloat16().float() if name.endswith("bias") else tensor
        for name, tensor in interleaved.weights.items()
    }
    interleaved.weights.clear()
    interleaved.weights.update(rounded)
    yield "bf16", lambda: None, plain("bf16", **SHAPE, absent=0.2), {}
    yield "fp8 blocks", lambda: fp8(**blocks), plain("fp8_block", **SHAPE, absent=0.2), {}
    yield "fp8 tensor", lambda: fp8(activation_scheme="dynamic"), plain("fp8_tensor", **SHAPE), {}
    yield "fp8 tensor, given scales", lambda: fp8(activation_scheme="static"), static, {}
    yield "fp8 channels", w8a8_fp8, plain("fp8_channel", **SHAPE, absent=0.2), {}
    yield "mxfp4", mxfp4, plain("mxfp4", **SHAPE, absent=0.2), {}
    yield "nvfp4", nvfp4, plain("nvfp4", **SHAPE, absent=0.2), {}
    yield "gpt_oss mxfp4", mxfp4, interleaved, gpt_oss
    yield "nvfp4, scales copied", nvfp4, plain("nvfp4", **SHAPE), {}
    yield "mxfp4, top_k left open, scales copied", mxfp4, plain("mxfp4", **SHAPE), {"top_k": None}
    yield "bf16, two backends", lambda: None, plain("bf16", **SHAPE), {}
    line_counting.stop()
    # The router decides how many experts a token has; a router of its own for each way of counting them.
    yield "bf16, top_k left open", lambda: None, plain("bf16", **SHAPE), {"top_k": None}
    yield "ModelOpt FP8", modelopt_fp8, static, {}
    yield "compressed channels", lambda: compressed("channel"), plain("fp8_channel", **SHAPE), {}
    yield "compressed tensor", lambda: compressed("tensor"), plain("fp8_tensor", **SHAPE), {}
    yield "compressed blocks", lambda: compressed("block"), plain("fp8_block", **SHAPE), {}
    yield "gpt_oss bf16", lambda: None, plain("bf16", **SHAPE, pairing="interleaved", bias=True), gpt_oss


def main(wanted: str = "") -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        plan_of("mixtral", SWISH, folder)
        host.prepare(str(folder / "mixtral"))
        swish = flexact.ActivationRegistry.get_activation("swish", {"beta": BETA})
        for name, quantisation, case, options in cases(folder):
            if wanted not in name:
                continue
            family = "gpt_oss" if name.startswith("gpt_oss") else "mixtral"
            plan = plan_of(family, NAMED if family == "gpt_oss" else SWISH, folder)
            wrap = PLANS.get(name.rsplit(", ", 1)[-1], lambda original: original)
            before, flexact.moe.plan = flexact.moe.plan, wrap(flexact.moe.plan)
            try:
                layer = layer_of(case, plan, quantisation(), **options)
            finally:
                flexact.moe.plan = before
            print(json.dumps(report(name, layer, case, swish)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
