"""Routed experts: who computes each layer, how its weights are packed, and the proof that it is right.

A `FusedMoE` that SGLang's own kernel computes correctly stays as it is. Any other one is computed by
flexact, at the one point that every path to the experts goes through, `FusedMoE.run_moe_core`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from flexact.sglang import _switches
from flexact.sglang._host import host_activation
from flexact.sglang._stop import stop

# Arguments of FusedMoE.__init__ that choose SGLang's function and the order of gate and up rows.
_CHOICE = (
    "activation",
    "gemm1_alpha",
    "gemm1_beta",
    "gemm1_clamp_limit",
    "swiglu_limit",
    "is_gated",
    "gate_up_interleaved",
)
_WIDEST = 32
_FORMATS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
# Largest difference from the reference, relative to the largest value: the rounding of the format.
_TOLERANCE = {"torch.float32": 1e-4, "torch.float16": 1e-2, "torch.bfloat16": 4e-2}


class ExpertLayer:
    """What the plugin knows about one `FusedMoE`."""

    def __init__(self, module: Any, entry: Any, *, is_ours: bool, reason: str, pairing: str) -> None:
        self.module = module
        self.entry = entry
        self.is_ours = is_ours
        self.reason = reason
        self.pairing = pairing
        self.layer_id = module.layer_id
        self.role = "shared" if getattr(type(module), "is_shared_fused_moe", False) else "routed"
        self.name = module.layer_name or f"layers.{module.layer_id}.experts"
        self.calls = 0
        # Some classes leave it to their router; the widest there is then, and narrower calls are padded.
        self.top_k: int = module.top_k or _WIDEST
        self.plan: Any = None
        self.values: Any = None
        self.error: float | None = None  # measured against the reference; None: not measurable here

    def describe(self) -> dict[str, Any]:
        """The layer's row in the report."""
        return {
            "name": self.name,
            "layer": self.layer_id,
            "role": self.role,
            "function": self.entry.name,
            "formula": self.entry.activation.function.formula,
            "from": self.entry.source,
            "computed_by": "flexact" if self.is_ours else "sglang",
            "reason": self.reason,
            "kernel": self.plan.describe()
            if self.plan is not None
            else type(self.module.quant_method).__name__,
            "resident_bytes": self.plan.resident_bytes if self.plan is not None else None,
            "relative_error": self.error,
            "calls": self.calls,
        }

    def run(self, dispatch_output: Any) -> Any:
        """Computes the experts' output for this rank's tokens."""
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

        return StandardCombineInput(
            hidden_states=self.compute(dispatch_output.hidden_states, dispatch_output.topk_output)
        )

    def compute(self, hidden_states: Any, topk: Any) -> Any:
        """The experts' output [M, H] of hidden_states [M, H], for SGLang's top-k output."""
        if self.plan is None:
            self.pack()
        self.calls += 1
        return self._execute(hidden_states, topk.topk_weights, topk.topk_ids)

    def _execute(self, hidden_states: Any, weights: Any, ids: Any) -> Any:
        import torch

        if weights.dtype != torch.float32:  # a router in the model's own format
            weights = weights.float()
        missing = self.top_k - ids.shape[1]
        if missing:
            pad = torch.nn.functional.pad
            weights, ids = pad(weights, (0, missing)), pad(ids, (0, missing), value=-1)
        output = self.plan.run(hidden_states, weights, ids)
        return output[:, : ids.shape[1] - missing] if missing and output.dim() == 3 else output

    def pack(self) -> None:
        """Packs the weights into the plan's own copy, proves it, and lets go of SGLang's copy. Idempotent."""
        if self.plan is not None:
            return
        import torch

        from flexact import moe
        from flexact.sglang import _values

        layer, config = self.module, self.module.moe_runner_config
        self.values = _values.table(
            self.entry, self.layer_id, experts=self.expert_range(), experts_here=layer.num_local_experts
        )
        self.plan = moe.plan(
            layer.w13_weight.data,
            layer.w2_weight.data,
            self.entry.activation.function,
            activation_values=self.values,
            top_k=self.top_k,
            format=_FORMATS[str(layer.w13_weight.dtype)],
            pairing=self.pairing,
            w13_bias=_data(layer, "w13_weight_bias"),
            w2_bias=_data(layer, "w2_weight_bias"),
            router_weight_on_input=bool(config.apply_router_weight_on_input),
            combine=not config.no_combine,
            backend="cpu",
        )
        self.measure(self._execute)
        if hasattr(layer, "release"):  # the same memory under other names
            layer.release()
        for name in ("w13_weight", "w2_weight"):
            parameter = getattr(layer, name)
            # The shape stays readable, the memory does not: one element, repeated.
            parameter.data = torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape)

    def expert_range(self) -> tuple[int, int]:
        """The global numbers of the routed experts on this rank."""
        count = self.module._num_local_routed
        return self.module.moe_ep_rank * count, (self.module.moe_ep_rank + 1) * count

    def measure(self, run: Callable[..., Any]) -> None:
        """Compares `run` with a reference on this layer's own weights; ends the process if they differ.

        Two tokens and at most three experts: enough to see another function, another layout, other
        parameter values or an empty output, at the price of a few matrix-vector products.
        """
        import torch

        layer, config = self.module, self.module.moe_runner_config
        dtype = layer.w13_weight.dtype
        generator = torch.Generator().manual_seed(0x5EED + self.layer_id)
        experts, width = layer.num_local_experts, min(2, self.top_k, layer.num_local_experts)
        x = torch.randn(2, config.hidden_size, generator=generator, dtype=torch.float32).to(dtype)
        ids = torch.tensor([[0, experts - 1], [experts - 1, experts // 2 if experts > 2 else 0]])[:, :width]
        weights = torch.rand(ids.shape, generator=generator, dtype=torch.float32) + 0.5
        with torch.no_grad():
            expected = self._reference(x, weights, ids)
            actual = run(x, weights, ids).double()
            if config.no_combine and self.is_ours:
                actual = (actual * weights.double()[..., None]).sum(1)
        scale = expected.abs().max().item()
        self.error = (
            ((actual - expected).abs().max().item() / scale) if scale > 0 else actual.abs().max().item()
        )
        if not self.error <= _TOLERANCE[str(dtype)]:
            stop(
                f"{self.name}: the loaded layer does not compute {self.entry.name}"
                f" ({self.entry.activation.function.formula}):"
                f" relative error {self.error:.2g} in {dtype}, by"
                f" {'flexact' if self.is_ours else 'SGLang'}'s kernel"
            )

    def _reference(self, x: Any, weights: Any, ids: Any) -> Any:
        import torch

        from flexact.sglang import _values

        layer, config = self.module, self.module.moe_runner_config
        w13_bias, w2_bias = _data(layer, "w13_weight_bias"), _data(layer, "w2_weight_bias")
        out = torch.zeros(x.shape, dtype=torch.float64)
        for token, slot in (ids >= 0).nonzero().tolist():
            expert, weight = int(ids[token, slot]), weights[token, slot].double()
            given = x[token].float() * (weight.float() if config.apply_router_weight_on_input else 1.0)
            h = (layer.w13_weight[expert].float() @ given).double()
            if w13_bias is not None:
                h = h + w13_bias[expert].double()
            h = _values.reference(
                self.entry, self.layer_id, h, self.pairing, expert=self.expert_range()[0] + expert
            )
            y = (layer.w2_weight[expert].float() @ h.float()).double()
            if w2_bias is not None:
                y = y + w2_bias[expert].double()
            out[token] += y if config.apply_router_weight_on_input else y * weight
        return out


def _data(layer: Any, name: str) -> Any:
    parameter = getattr(layer, name, None)
    return None if parameter is None else parameter.data


def fused_moe_init(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Around `FusedMoE.__init__`: decides who computes the layer and attaches its `ExpertLayer`."""
    from flexact.sglang import _model

    current = _model.loading()
    if current is None or current.plan.set_aside:
        return original(self, *args, **kwargs)
    given = inspect.signature(original).bind(self, *args, **kwargs)
    given.apply_defaults()
    chosen = {name: given.arguments.get(name) for name in _CHOICE}
    layer_id = given.arguments["layer_id"]
    entry = _entry(current, layer_id, shared=getattr(type(self), "is_shared_fused_moe", False))
    # gpt_oss and its like: an alpha means that gate and up rows alternate, unless said otherwise.
    interleaved = (
        chosen["gemm1_alpha"] is not None and chosen["activation"] == "silu" and chosen["gate_up_interleaved"]
    )
    pairing = ("interleaved" if interleaved else "concat") if chosen["is_gated"] is not False else "none"
    if entry.gated != (pairing != "none"):
        stop(
            f"layer {layer_id}: the configuration resolves to a {'gated' if entry.gated else 'unary'}"
            " function"
            f" ({entry.name}), and SGLang's class builds {'unary' if entry.gated else 'gated'} experts"
        )
    original(self, *args, **kwargs)
    self.__dict__["flexact"] = layer = _decide(self, entry, chosen, pairing)
    if layer.is_ours:
        refuse_unsupported(self, layer)
        # Where SGLang finishes a layer's weights is where flexact packs them.
        self.quant_method.process_weights_after_loading = lambda module: layer.pack()
    current.experts.append(layer)
    return None


def _entry(current: Any, layer_id: int, *, shared: bool) -> Any:
    plan = current.plan
    entry = plan.entry(layer_id, "shared" if shared else "routed")
    if entry is None and current.is_draft:  # checked before: a draft's activations are all the same
        entry = next((entry for _, role, entry in plan.entries() if role != "dense"), None)
    if entry is None:
        stop(
            f"{plan.path}: SGLang's class builds {'shared' if shared else 'routed'} experts in layer"
            f" {layer_id}, where"
            " the configuration resolves to none"
        )
    return entry


def _decide(module: Any, entry: Any, chosen: dict[str, Any], pairing: str) -> ExpertLayer:
    """Who computes this layer under FLEXACT_MOE."""
    from flexact.sglang import _values

    mode = _switches.value("FLEXACT_MOE")
    host, why_not = host_activation(module, chosen, pairing)
    if host is not None and not _values.same(host, entry, module.layer_id):
        why_not = f"SGLang's kernel would compute {host.function.formula}"
        host = None
    if mode == "always":
        return ExpertLayer(module, entry, is_ours=True, reason="FLEXACT_MOE=always", pairing=pairing)
    if host is not None:
        return ExpertLayer(
            module, entry, is_ours=False, reason="SGLang's kernel computes exactly this", pairing=pairing
        )
    if mode == "off":
        stop(
            f"layer {module.layer_id}: FLEXACT_MOE=off, and {why_not}; the configuration asks for"
            f" {entry.name}"
        )
    return ExpertLayer(module, entry, is_ours=True, reason=why_not, pairing=pairing)


def refuse_unsupported(module: Any, layer: ExpertLayer) -> None:
    """Ends the process where flexact has to compute this layer and cannot."""
    from flexact import _core

    where = f"{layer.name}: {layer.entry.name} ({layer.reason})"
    method = type(module.quant_method).__name__
    if method != "UnquantizedFusedMoEMethod":
        stop(f"{where}, and experts in the format of {method} are not supported; serve unquantised weights")
    device = module.w13_weight.device.type
    if device != "cpu":
        stop(f"{where}, and there is no backend for experts on {device} yet; serve on the CPU")
    dispatcher = type(module.dispatcher).__name__
    if dispatcher != "StandardDispatcher":
        stop(f"{where}, and tokens that arrive through {dispatcher} are not supported")
    if module.num_fused_shared_experts:
        _refuse_other_shared(module, layer, where)
    dtype = module.w13_weight.dtype
    if str(dtype) not in _FORMATS:
        stop(f"{where}, and expert weights in {dtype} are not supported")
    config = module.moe_runner_config
    problem = _core.MoeProblem(
        experts=module.num_local_experts,
        top_k=layer.top_k,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size_per_partition,
        format=_FORMATS[str(dtype)],
        io_dtype=str(dtype).removeprefix("torch."),
        pairing=layer.pairing,
        bias13=_data(module, "w13_weight_bias") is not None,
        bias2=_data(module, "w2_weight_bias") is not None,
        router_weight_on_input=bool(config.apply_router_weight_on_input),
        combine=not config.no_combine,
    )
    refusal = _core.refuse("cpu", problem, layer.entry.activation.function)
    if refusal:
        stop(f"{where}: {refusal[0]} ({refusal[1]})")


def _refuse_other_shared(module: Any, layer: ExpertLayer, where: str) -> None:
    from flexact.sglang import _model, _values

    shared = _model.loading().plan.entry(module.layer_id, "shared")
    same = shared is not None and _values.same(shared.activation, layer.entry, module.layer_id)
    if not same:
        stop(
            f"{where}: SGLang fuses {module.num_fused_shared_experts} shared experts into this layer,"
            " whose activation is"
            f" {shared.name if shared else 'not resolved'} with values of its own; pass"
            " --disable-shared-experts-fusion"
        )


def run_moe_core(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `FusedMoE.run_moe_core`."""
    layer = self.__dict__.get("flexact")
    if layer is None or not layer.is_ours:
        if layer is not None:
            layer.calls += 1
        return original(self, *args, **kwargs)
    return layer.run(args[0] if args else kwargs["dispatch_output"])


def check_construction(model: Any, current: Any) -> None:
    """Ends the process where expert layers were built in a way that the hooks cannot see."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    from flexact.sglang import _functional

    unseen = [
        name
        for name, module in model.named_modules()
        if isinstance(module, FusedMoE) and "flexact" not in module.__dict__
    ]
    if unseen:
        stop(f"{type(model).__name__}: {unseen[0]} was built without the plugin's hook")
    _functional.attach(model, current)


def layers_on_other_ranks(model: Any) -> set[int]:
    """Layers that pipeline parallelism leaves to other ranks."""
    from sglang.srt.layers.utils import PPMissingLayer

    return {
        int(name.rsplit(".", 1)[-1])
        for name, module in model.named_modules()
        if isinstance(module, PPMissingLayer) and name.rsplit(".", 1)[-1].isdigit()
    }


def verify(model: Any, current: Any, *, tokens: int | None = None) -> None:
    """After loading: every layer of ours is packed and proven, every other one proven where it can be.

    Args:
        model: The loaded model.
        current: The `Loading` that its layers were built under.
        tokens: The most tokens of one step, where known: the workspace is sized before SGLang takes
            what memory is left for its cache.
    """
    in_model = {id(module) for module in model.modules()}
    current.experts = [
        layer for layer in current.experts if id(getattr(layer.module, "owner", layer.module)) in in_model
    ]
    for layer in current.experts:
        if layer.is_ours:
            layer.pack()
            if tokens:
                layer.plan.reserve(tokens)
        elif _is_measurable(layer.module):
            layer.measure(lambda x, weights, ids, layer=layer: _run_host(layer.module, x, weights, ids))
            layer.calls = 0


def _is_measurable(module: Any) -> bool:
    """Whether the weights lie as the checkpoint has them, so that a reference can read them."""
    return (
        type(module.quant_method).__name__ == "UnquantizedFusedMoEMethod"
        and module.w13_weight.device.type == "cpu"
        and not getattr(module, "use_intel_amx_backend", False)
    )


def _run_host(module: Any, x: Any, weights: Any, ids: Any) -> Any:
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    topk = StandardTopKOutput(topk_weights=weights, topk_ids=ids, router_logits=None)
    return module.run_moe_core(StandardDispatchOutput(x, None, topk)).hidden_states


def packed_layers(model: Any) -> list[ExpertLayer]:
    """The model's expert layers whose weights only flexact holds."""
    layers = (module.__dict__.get("flexact") for module in model.modules())
    return [layer for layer in layers if isinstance(layer, ExpertLayer) and layer.plan is not None]


def lora_init(original: Callable[..., None], self: Any, base_layer: Any, *args: Any, **kwargs: Any) -> None:
    """Around `FusedMoEWithLoRA.__init__`, which computes the experts by a path of its own."""
    layer = base_layer.__dict__.get("flexact")
    if layer is not None and layer.is_ours:
        stop(
            f"{layer.name}: a LoRA adapter on experts that flexact computes ({layer.entry.name}) is not"
            " supported:"
            " SGLang adds it inside its own kernel. Leave the experts' projections out of"
            " --lora-target-modules."
        )
    return original(self, base_layer, *args, **kwargs)


def bind_weights(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Around `FusedMoE.bind_full_expert_weights`, which replaces the weights after loading."""
    layer = self.__dict__.get("flexact")
    if layer is not None and layer.is_ours:
        stop(f"{layer.name}: its weights are packed and cannot be replaced by replicated ones")
    return original(self, *args, **kwargs)
