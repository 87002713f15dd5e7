"""What SGLang's quantisation methods hold of a layer's experts, as arguments of `flexact.moe.plan`.

A row names a method's class and where it keeps weights and scales. They are read as the loader leaves
them, in the checkpoint's layout: where flexact computes a layer, SGLang's repacking for a kernel of its
own is left out, and the plan refers to the loaded tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PLAIN = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
# The largest E8M0 code whose weights fit the kernels' decoder (docs/formats.md).
_LARGEST_E8M0 = 128


@dataclass(frozen=True)
class Held:
    """One layer's format.

    Attributes:
        format: flexact's name of it.
        names: By `moe.plan`'s names, the attributes of the `FusedMoE` that hold the tensors.
        processed: Whether SGLang's own processing has to run first, because it makes the format.
        spare: Attributes that SGLang allocates for its kernels; each gives way to the tensor it was made
            from.
    """

    format: str
    names: dict[str, str]
    processed: bool = False
    spare: dict[str, str] | None = None


def held(module: Any) -> Held | str:
    """The format of a `FusedMoE`'s experts, or why it cannot be computed by flexact."""
    method = module.quant_method
    read = _METHODS.get(type(method).__name__)
    if read is None:
        return f"experts in the format of {type(method).__name__} are not supported"
    if getattr(method, "load_up_proj_weight_first", False) or getattr(method, "use_triton_kernels", False):
        return (
            "--moe-runner-backend has SGLang load the weights in another kernel's layout: leave the option"
            " out"
        )
    found = read(module, method)
    if isinstance(found, str) or not getattr(module, "with_bias", _has(module, "w13_weight_bias")):
        return found
    biases = {"w13_bias": "w13_weight_bias", "w2_bias": "w2_weight_bias"}
    return Held(found.format, {**found.names, **biases}, found.processed, found.spare)


def tensors(module: Any, held: Held) -> dict[str, Any]:
    """The loaded tensors by `moe.plan`'s names: the module's own memory, except for single numbers.

    Raises:
        ValueError: A scale is out of the kernels' range.
    """
    found = {name: getattr(module, attribute).data for name, attribute in held.names.items()}
    for name in ("a13_scale", "a2_scale"):
        if name in found:  # one for the call, as SGLang's kernels take it
            found[name] = found[name].max().float().reshape(1)
    if held.format == "mxfp4":
        for name in ("w13_scale", "w2_scale"):
            if (code := int(found[name].max())) > _LARGEST_E8M0:
                raise ValueError(f"{name} holds 2^{code - 127}, and scales of mxfp4 reach to 2 here")
    return found


def give_way(module: Any, held: Held) -> None:
    """Lets go of what SGLang allocated beside the weights for a kernel that does not run."""
    for attribute, source in (held.spare or {}).items():
        if _has(module, attribute):
            setattr(module, attribute, getattr(module, source))


def _has(module: Any, name: str) -> bool:
    return getattr(module, name, None) is not None


def _with_scales(scale: str, *, static: bool = False) -> dict[str, str]:
    names = {"w13": "w13_weight", "w2": "w2_weight", "w13_scale": f"w13_{scale}", "w2_scale": f"w2_{scale}"}
    return names | ({"a13_scale": "w13_input_scale", "a2_scale": "w2_input_scale"} if static else {})


def _blocks(size: Any) -> str | None:
    return None if list(size or ()) == [128, 128] else f"weights in blocks of {size} are not supported"


def _unquantised(module: Any, method: Any) -> Held | str:
    dtype = str(module.w13_weight.dtype)
    if dtype not in _PLAIN:
        return f"expert weights in {dtype} are not supported"
    return Held(_PLAIN[dtype], {"w13": "w13_weight", "w2": "w2_weight"})


def _fp8(module: Any, method: Any) -> Held | str:
    if method.is_fp4_expert or method.use_mxfp8:
        return "FP4 or MXFP8 experts of an FP8 checkpoint are not supported"
    if method.block_quant:
        return _blocks(method.weight_block_size) or Held("fp8_block", _with_scales("weight_scale_inv"))
    if not method.quant_config.is_checkpoint_fp8_serialized:
        return Held("fp8_tensor", _with_scales("weight_scale"), processed=True)
    static = method.quant_config.activation_scheme == "static"
    return Held("fp8_tensor", _with_scales("weight_scale", static=static))


def _modelopt_fp8(module: Any, method: Any) -> Held | str:
    if not method.quant_config.is_checkpoint_fp8_serialized:
        return "ModelOpt FP8 without FP8 weights in the checkpoint is not supported"
    return Held("fp8_tensor", _with_scales("weight_scale", static=True))


def _w8a8_fp8(module: Any, method: Any) -> Held | str:
    return Held("fp8_channel", _with_scales("weight_scale"))


def _compressed_tensors(module: Any, method: Any) -> Held | str:
    scheme = module.scheme
    if type(scheme).__name__ != "CompressedTensorsW8A8Fp8MoE":
        return f"experts in the format of {type(scheme).__name__} are not supported"
    strategy = str(getattr(scheme.weight_quant.strategy, "value", scheme.weight_quant.strategy))
    if strategy == "block" and (refusal := _blocks(scheme.weight_block_size)):
        return refusal
    format = {"block": "fp8_block", "channel": "fp8_channel", "tensor": "fp8_tensor"}[strategy]
    return Held(format, _with_scales("weight_scale", static=scheme.static_input_scales))


def _mxfp4(module: Any, method: Any) -> Held | str:
    padded = method.intermediate_size_per_partition != module.intermediate_size_per_partition
    if method.hidden_size != module.hidden_size:
        return "MXFP4 experts that SGLang pads for another kernel are not supported"
    if padded and not (module.with_bias and module.moe_runner_config.gate_up_interleaved):
        # Its loader copies gate and up rows to the top of the padded tensor, so that up begins nowhere.
        return "MXFP4 experts whose gate and up rows do not alternate are not supported with padding"
    return Held("mxfp4", _with_scales("weight_scale"))


def _nvfp4(module: Any, method: Any) -> Held | str:
    config = method.quant_config
    if getattr(config, "is_nvfp4_online", False) or getattr(module, "inference_moe_w13_interleaved", False):
        return "NVFP4 experts that SGLang makes or reorders while loading are not supported"
    if config.group_size != 16:
        return f"NVFP4 experts in groups of {config.group_size} are not supported"
    names = _with_scales("weight_scale")
    names |= {"w13_global_scale": "w13_weight_scale_2", "w2_global_scale": "w2_weight_scale_2"}
    spare = {f"{name}_blockscale_swizzled": f"{name}_weight_scale" for name in ("w13", "w2")}
    return Held("nvfp4", names, spare=spare)


_METHODS: dict[str, Callable[[Any, Any], Held | str]] = {
    "UnquantizedFusedMoEMethod": _unquantised,
    "Fp8MoEMethod": _fp8,
    "ModelOptFp8MoEMethod": _modelopt_fp8,
    "W8A8FP8MoEMethod": _w8a8_fp8,
    "CompressedTensorsFusedMoEMethod": _compressed_tensors,
    "Mxfp4MoEMethod": _mxfp4,
    "ModelOptNvFp4FusedMoEMethod": _nvfp4,
}
