"""Experts that a class computes by calling SGLang's function `fused_moe` on its own weights.

AFMoE, DBRX, DeepSeek v1 and XVERSE-MoE have no `FusedMoE`. Their call is caught by its name in the model's
file, and the layer is known by the weight tensors that it hands over. What follows is the same as for a
`FusedMoE`: SGLang's kernel where it computes the right function, flexact's elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from flexact.sglang._stop import stop

_CALL = "fused_moe"


class Experts:
    """The weights of one such layer with the attributes of a `FusedMoE` that the plugin reads.

    Attributes:
        owner: The model's own module.
        w13_weight: [E, 2I, H], gate rows first.
        w2_weight: [E, H, I].
        parts: Single experts, which share the memory of the two and whose own `forward` nobody calls.
    """

    num_fused_shared_experts = moe_ep_rank = 0
    moe_ep_size = 1

    def __init__(self, name: str, owner: Any, w13: Any, w2: Any, layer: int) -> None:
        self.owner, self.w13_weight, self.w2_weight = owner, w13, w2
        self.layer_name, self.layer_id = name, layer
        self.top_k = getattr(owner, "top_k", None)
        self.num_local_experts = self._num_local_routed = w13.shape[0]
        self.quant_method, self.dispatcher = UnquantizedFusedMoEMethod(), StandardDispatcher()
        self.moe_runner_config = SimpleNamespace(
            hidden_size=w13.shape[2],
            intermediate_size_per_partition=w2.shape[2],
            apply_router_weight_on_input=False,
            no_combine=False,
        )
        self._memory = {tensor.untyped_storage().data_ptr() for tensor in (w13, w2)}
        self.parts = [
            module
            for module in owner.modules()
            if module is not owner and (held := list(module.parameters())) and all(map(self._shares, held))
        ]

    def _shares(self, parameter: Any) -> bool:
        return parameter.data.untyped_storage().data_ptr() in self._memory

    def release(self) -> None:
        """Lets go of SGLang's weights in the single experts."""
        for part in self.parts:
            for parameter in part.parameters():
                parameter.data = parameter.data.new_zeros(1).expand(parameter.shape)


class UnquantizedFusedMoEMethod:
    """By its name: the weights of these classes are never quantised."""


class StandardDispatcher:
    """By its name: every token is computed on every rank."""


def find(model: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, module, w13, w2) of each module whose class calls `fused_moe` on weights that it holds."""
    for name, module in model.named_modules():
        file = sys.modules.get(type(module).__module__)
        if not callable(getattr(file, _CALL, None)):
            continue
        stacks = [
            tensor
            for holder in (vars(module), module._parameters)
            for tensor in holder.values()
            if getattr(tensor, "ndim", 0) == 3
        ]
        pairs = [
            (w13, w2)
            for w13 in stacks
            for w2 in stacks
            if w13.shape[0] == w2.shape[0] and w13.shape[2] == w2.shape[1] and w13.shape[1] == 2 * w2.shape[2]
        ]
        if len(pairs) == 1:
            yield name, module, *pairs[0]


def attach(model: Any, current: Any) -> None:
    """After construction: adds each such layer to the model's experts, and catches its calls."""
    found = list(find(model))
    files = {type(module).__module__ for module in model.modules()}
    for file in files - {type(module).__module__ for _, module, _, _ in found}:
        if file.startswith("sglang.srt.models.") and callable(getattr(sys.modules.get(file), _CALL, None)):
            stop(
                f"{type(model).__name__}: {file} computes its experts by a call of the function {_CALL}, and"
                " no module of it holds the weights that it would be called with: a path that is not hooked"
            )
    for name, module, w13, w2 in found:
        layer = _decide(Experts(name, module, w13, w2, _number(name, model, current.plan)), current.plan)
        current.experts.append(layer)
        module.__dict__["flexact"] = layer
        _layers[id(w13)] = layer
        if "fused_moe_method" in vars(module):  # kept since construction, when the name was not yet caught
            module.fused_moe_method = _caught(module.fused_moe_method)
        file = sys.modules[type(module).__module__]
        setattr(file, _CALL, _caught(getattr(file, _CALL)))


_layers: dict[int, Any] = {}  # by the identity of the weights that a call hands over


def _number(name: str, model: Any, plan: Any) -> int:
    from flexact import probe

    count = len(plan.layers) if plan.activations.layers_known else None
    for path, _ in probe.layer_lists(model, count):
        if name.startswith(f"{path}."):
            return int(name.removeprefix(f"{path}.").split(".")[0])
    stop(f"{name}: these experts lie in none of the layers that the configuration counts")


def _decide(experts: Experts, plan: Any) -> Any:
    """Who computes the layer under FLEXACT_MOE; as `_experts` does for a `FusedMoE`."""
    from flexact.sglang import _config, _experts, _switches

    entry = plan.entry(experts.layer_id, "routed")
    if entry is None or not entry.gated:
        what = "none" if entry is None else f"unary ones ({entry.name})"
        stop(
            f"{experts.layer_name}: SGLang's class builds gated experts, the configuration resolves to {what}"
        )
    mode = _switches.value("FLEXACT_MOE")
    why_not = _why_not_host(experts)
    if not _config.is_swiglu(entry):
        why_not = "SGLang's kernel would compute silu(g)*u"
    if mode == "off" and why_not:
        stop(f"{experts.layer_name}: FLEXACT_MOE=off, and {why_not}; the configuration asks for {entry.name}")
    is_ours = bool(why_not) or mode == "always"
    reason = why_not or ("FLEXACT_MOE=always" if is_ours else "SGLang's kernel computes exactly this")
    layer = _experts.ExpertLayer(experts, entry, is_ours=is_ours, reason=reason, pairing="concat")
    if is_ours:
        _experts.refuse_unsupported(experts, layer)
    return layer


def _why_not_host(experts: Experts) -> str:
    """Why SGLang cannot compute plain SwiGLU here itself; empty where it can."""
    if experts.w13_weight.device.type != "cpu":
        return ""
    from sglang.srt.utils import cpu_has_amx_support

    experts.use_intel_amx_backend = cpu_has_amx_support()
    return "" if experts.use_intel_amx_backend else "SGLang's function has no kernel for this CPU"


def _caught(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, unless the weights are those of a layer that flexact computes."""
    if hasattr(original, "flexact_original"):
        return original

    def fused_moe(hidden_states: Any, w1: Any, w2: Any, topk_output: Any, *args: Any, **kwargs: Any) -> Any:
        layer = _layers.get(id(w1))
        if layer is None:
            return original(hidden_states, w1, w2, topk_output, *args, **kwargs)
        if layer.is_ours:
            return layer.compute(hidden_states, topk_output)
        if not layer.has_called_host:
            _require_plain(layer, *args, **kwargs)
        layer.has_called_host = True
        layer.count.bump()
        return original(hidden_states, w1, w2, topk_output, *args, **kwargs)

    fused_moe.flexact_original = original
    return fused_moe


def _require_plain(
    layer: Any, config: Any = None, *args: Any, moe_runner_config: Any = None, **kwargs: Any
) -> None:
    """Ends the process where the call asks SGLang's kernel for another function than SwiGLU."""
    config = config or moe_runner_config
    choices = ("gemm1_alpha", "gemm1_clamp_limit", "swiglu_limit")
    if config is not None and (
        config.activation != "silu" or any(getattr(config, name, None) is not None for name in choices)
    ):
        stop(f"{layer.name}: its class calls {_CALL} with {config.activation!r} and limits of its own")
