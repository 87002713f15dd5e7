"""Routed experts: who computes each layer, how its weights are packed, and the proof that it is right.

A `FusedMoE` that SGLang's own kernel computes correctly stays as it is. Any other one is computed by
flexact, at the one point that every path to the experts goes through, `FusedMoE.run_moe_core`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from flexact.errors import Error
from flexact.sglang import _switches
from flexact.sglang._counts import Count
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
# Largest difference from the reference, relative to the largest value: the rounding of the dtype.
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
        self.count = Count()
        # Some classes leave it to their router; the widest there is then, and narrower calls are padded.
        self.top_k: int = module.top_k or _WIDEST
        self.backend = ""  # set where flexact computes the layer; "auto": of the GPU's, by what was measured
        self.has_called_host = False
        self.plan: Any = None
        self.values: Any = None
        self.error: float | None = None  # measured against the reference; None: not measurable here
        self._narrower: dict[int, Any] = {}  # plans for fewer experts a token, where a plan costs nothing
        self._bytes: int | None = None

    @property
    def calls(self) -> int:
        """How often the layer has run."""
        return self.count.total

    @property
    def reads_in_place(self) -> bool:
        """Whether the backend reads the loaded tensors; else it packs them."""
        return self.backend != "cpu"

    @property
    def _copied(self) -> tuple[str, ...]:
        """Weights that the plan has copies of, in an order of its own, and does not read any more."""
        return getattr(self.plan, "copied", ())

    @property
    def device(self) -> Any:
        """Where it is computed."""
        return self.module.w13_weight.device

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
            "resident_bytes": self._bytes,
            "relative_error": self.error,
            "calls": self.calls,
        }

    def run(self, dispatch_output: Any) -> Any:
        """Computes the experts' output for this rank's tokens."""
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

        if dispatch_output.hidden_states_scale is not None:
            stop(f"{self.name}: SGLang hands over quantised hidden states, a path that is not supported")
        return StandardCombineInput(
            hidden_states=self.compute(dispatch_output.hidden_states, dispatch_output.topk_output)
        )

    def compute(self, hidden_states: Any, topk: Any) -> Any:
        """The experts' output [M, H] of hidden_states [M, H], for SGLang's top-k output."""
        if self.plan is None:
            self.pack()
        if not hasattr(topk, "topk_ids"):
            stop(f"{self.name}: SGLang leaves the routing to a kernel of its own ({type(topk).__name__})")
        self.count.bump()
        return self._execute(hidden_states, topk.topk_weights, topk.topk_ids)

    def _execute(self, hidden_states: Any, weights: Any, ids: Any, plan: Any = None) -> Any:
        import torch

        if weights.dtype != torch.float32:  # a router in the model's own format
            weights = weights.float()
        width = ids.shape[1]
        plan = plan or self._plan_for(width)
        if plan.problem.top_k > width:
            missing, pad = plan.problem.top_k - width, torch.nn.functional.pad
            weights, ids = pad(weights, (0, missing)), pad(ids, (0, missing), value=-1)
        if self.reads_in_place:
            # One type of ids, so that all that can be needed is compiled before the first request.
            ids = ids.to(torch.int32)
        output = plan.run(hidden_states, weights, ids, out=_output(plan, hidden_states))
        return output[:, :width] if output.dim() == 3 else output

    def pack(self) -> None:
        """Makes the plan from the loaded weights, proves it, and lets go of SGLang's copy. Idempotent."""
        if self.plan is not None:
            return
        from flexact.sglang import _formats, _values

        held = _formats.held(self.module)
        if isinstance(held, str):
            stop(f"{self.name}: {held}")
        try:
            weights = _formats.tensors(self.module, held)
        except ValueError as error:
            stop(f"{self.name}: {error}")
        self.values = _values.table(
            self.entry, self.layer_id, experts=self.expert_range(), experts_here=self.module.num_local_experts
        )
        self._made_from = (held.format, weights)
        try:
            self.plan = self._make(self.top_k)
        except Error as error:
            stop(f"{self.name}: {error}")
        # Every backend that some number of tokens reaches.
        for plan in getattr(self.plan, "plans", {"": self.plan}).values():
            self.measure(functools.partial(self._execute, plan=plan))
        self._let_go(held)

    def _make(self, top_k: int) -> Any:
        """A plan for so many experts a token."""
        from flexact import moe

        format, weights = self._made_from
        config = self.module.moe_runner_config
        rest = {name: tensor for name, tensor in weights.items() if name not in ("w13", "w2")}
        return moe.plan(
            weights["w13"],
            weights["w2"],
            self.entry.activation.function,
            activation_values=self.values,
            top_k=top_k,
            format=format,
            pairing=self.pairing,
            io_dtype=_io_dtype(self.module),
            router_weight_on_input=bool(config.apply_router_weight_on_input),
            routed_scaling_factor=_scaling_factor(self.module),
            combine=not config.no_combine,
            backend=self.backend,
            **rest,
        )

    def _plan_for(self, top_k: int) -> Any:
        """The plan for a call with so many experts a token.

        Where the class leaves the number open, one that refers to the same weights costs nothing on a GPU.
        """
        copies = not self.reads_in_place or self._copied
        if copies or self.module.top_k or top_k == self.top_k:
            return self.plan
        if top_k not in self._narrower:
            self._narrower[top_k] = self._make(top_k)
        return self._narrower[top_k]

    def reserve(self, tokens: int) -> None:
        """Before SGLang takes what memory is left: compiles, and sizes the workspace."""
        import torch

        if self.reads_in_place and not self._copied and not self.module.top_k:
            return  # the first step knows how many there are
        if self.reads_in_place:
            self.plan.reserve(tokens, id_dtypes=(torch.int32,))
        else:
            self.plan.reserve(tokens)

    def _let_go(self, held: Any) -> None:
        from flexact.sglang import _formats

        layer, weights = self.module, self._made_from[1]
        self._bytes = self.plan.resident_bytes
        if self.reads_in_place:
            # The plan reads the loaded tensors themselves, but for those that it copied.
            _formats.give_way(layer, held)
            for name in self._copied:
                _placeholder(getattr(layer, held.names[name]))
                del weights[name]
            self._bytes += sum(tensor.nbytes for tensor in weights.values())
            return
        self._made_from = None
        if hasattr(layer, "release"):  # the same memory under other names
            layer.release()
        for name in ("w13_weight", "w2_weight"):
            _placeholder(getattr(layer, name))

    def expert_range(self) -> tuple[int, int]:
        """The global numbers of the routed experts on this rank."""
        count = self.module._num_local_routed
        return self.module.moe_ep_rank * count, (self.module.moe_ep_rank + 1) * count

    def measure(self, run: Callable[..., Any]) -> None:
        """Compares `run` with a reference on this layer's own weights; ends the process if they differ."""
        import torch

        from flexact.sglang import _formats, _proof, _values

        layer, config = self.module, self.module.moe_runner_config
        held, dtype = _formats.held(layer), _io_dtype(layer)
        subject = _proof.Subject(
            _formats.tensors(layer, held),
            held.format,
            self.pairing,
            dtype,
            bool(config.apply_router_weight_on_input),
        )

        def activate(h: Any, expert: int) -> Any:
            number = self.expert_range()[0] + expert
            return _values.reference(self.entry, self.layer_id, h, self.pairing, expert=number)

        with torch.no_grad():
            x, weights, ids = _proof.inputs(subject, width=self.top_k, seed=0x5EED + self.layer_id)
            expected = _proof.reference(subject, activate, x, weights, ids)
            actual = run(x, weights, ids).double()
            if config.no_combine and self.is_ours:
                actual = (actual * weights.double()[..., None]).sum(1)
            elif self.is_ours:
                expected = expected * _scaling_factor(layer)
        scale = expected.abs().max().item()
        error = ((actual - expected).abs().max().item() / scale) if scale > 0 else actual.abs().max().item()
        self.error = max(error, self.error or 0.0) if error == error else error
        if not self.error <= _TOLERANCE[str(dtype)]:
            stop(
                f"{self.name}: the loaded layer does not compute {self.entry.name}"
                f" ({self.entry.activation.function.formula}):"
                f" relative error {self.error:.2g} in {dtype}, by"
                f" {'flexact' if self.is_ours else 'SGLang'}'s kernel"
            )


def _placeholder(parameter: Any) -> None:
    """The shape stays readable, the memory does not: one element, repeated."""
    one = parameter.data.new_zeros(1, dtype=parameter.dtype)
    parameter.data = one.expand(parameter.shape)


def _io_dtype(module: Any) -> Any:
    """The dtype of the hidden states: quantised weights do not show it."""
    weight = module.w13_weight
    return weight.dtype if weight.dtype.itemsize > 1 else module.params_dtype


def _scaling_factor(module: Any) -> float:
    """What the combined output is multiplied by: SGLang's kernels do it on CUDA, else its classes."""
    from sglang.srt.utils import is_cuda

    in_router = getattr(module, "should_fuse_routed_scaling_factor_in_topk", False)
    factor = getattr(module.moe_runner_config, "routed_scaling_factor", None)
    return 1.0 if factor is None or in_router or not is_cuda() else float(factor)


def _output(plan: Any, hidden_states: Any) -> Any:
    """Where the result goes: memory that SGLang's collectives can use, where it asks for that."""
    import torch

    if not hidden_states.is_cuda:
        return None
    from sglang.srt.distributed import get_tp_group
    from sglang.srt.distributed.device_communicators.pynccl_allocator import use_symmetric_memory
    from sglang.srt.layers.dp_attention import is_allocation_symmetric

    problem, tokens = plan.problem, hidden_states.shape[0]
    shape = (tokens, problem.hidden) if problem.combine else (tokens, problem.top_k, problem.hidden)
    with use_symmetric_memory(get_tp_group(), disabled=not is_allocation_symmetric()):
        return torch.empty(shape, dtype=hidden_states.dtype, device=hidden_states.device)


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
    # gpt_oss and its like: an alpha means that gate and up rows alternate, unless said otherwise. "situ" has
    # an alpha of another meaning; under any other name it is the family's layout that counts.
    interleaved = (
        chosen["gemm1_alpha"] is not None
        and chosen["gate_up_interleaved"]
        and (chosen["activation"] == "silu" or entry.pairing == "interleaved")
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
        _finish_with(layer)
    current.experts.append(layer)
    return None


def _finish_with(layer: ExpertLayer) -> None:
    """Where SGLang finishes a layer's weights is where flexact takes them."""
    from flexact.sglang import _formats

    method, held = layer.module.quant_method, _formats.held(layer.module)
    process = method.process_weights_after_loading

    def finish(module: Any) -> None:
        if held.processed and layer.plan is None:
            process(module)
        layer.pack()

    method.process_weights_after_loading = finish


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
    from flexact.sglang import _model, _values

    mode = _switches.value("FLEXACT_MOE")
    host, why_not = host_activation(module, chosen, pairing)
    if runner := _model.loading().runner_set_aside:
        host, why_not = None, f"SGLang's runner {runner} cannot compute this model's experts"
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
    """Ends the process where flexact has to compute this layer and cannot; chooses its backend."""
    from flexact import _core, formats, moe
    from flexact.sglang import _formats, _model

    where = f"{layer.name}: {layer.entry.name} ({layer.reason})"
    held = _formats.held(module)
    if isinstance(held, str):
        stop(f"{where}, and {held}")
    device = module.w13_weight.device
    layer.backend = _backend(device.type, where, _model.loading().runner_set_aside)
    dispatcher = type(module.dispatcher).__name__
    if dispatcher != "StandardDispatcher":
        stop(f"{where}, and tokens that arrive through {dispatcher} are not supported")
    if module.num_fused_shared_experts:
        _refuse_other_shared(module, layer, where)
    config = module.moe_runner_config
    packed = 2 if held.format in formats.FP4_FORMATS else 1
    problem = _core.MoeProblem(
        experts=module.num_local_experts,
        top_k=layer.top_k,
        hidden=packed * module.w13_weight.shape[2],
        intermediate=packed * module.w2_weight.shape[2],
        format=held.format,
        io_dtype=str(_io_dtype(module)).removeprefix("torch."),
        pairing=layer.pairing,
        bias13="w13_bias" in held.names,
        bias2="w2_bias" in held.names,
        router_weight_on_input=bool(config.apply_router_weight_on_input),
        combine=not config.no_combine,
    )
    if layer.backend == "auto":
        function = layer.entry.activation.function
        try:
            moe.choose("auto", problem, function if layer.pairing == "none" else function.gated(), device)
        except Error as error:
            stop(f"{where}: {error}")
        return
    refusal = _core.refuse(layer.backend, problem, layer.entry.activation.function)
    if refusal:
        stop(f"{where}: {refusal[0]} ({refusal[1]})")


# What computes experts on a device.
_BACKENDS = {"cpu": ("cpu",), "cuda": ("triton", "cutlass")}


def _backend(device: str, where: str, runner: str | None = None) -> str:
    """The backend that FLEXACT_BACKEND names for experts on a device, or --moe-runner-backend cutlass.

    "auto": of several the one that was measured faster (`flexact.backend_choice`).
    """
    from flexact import _core

    wanted = _switches.value("FLEXACT_BACKEND")
    here = _BACKENDS.get(device)
    if here is None:
        stop(f"{where}, and there is no backend for experts on {device}; serve on an NVIDIA GPU or the CPU")
    if wanted == "auto" and runner == "cutlass" and device == "cuda":
        wanted = runner
    if wanted == "auto":
        return "auto" if len(here) > 1 else here[0]
    if wanted not in here and not (wanted == "triton" and _is_interpreted()):
        stop(
            f"{where}, and FLEXACT_BACKEND={wanted} does not compute experts on {device};"
            f" {' or '.join(here)} does"
        )
    if wanted not in _core.backends():
        stop(
            f"{where}, and FLEXACT_BACKEND={wanted} is not part of this build of flexact, which has"
            f" {', '.join(_core.backends())}"
        )
    return wanted


def _is_interpreted() -> bool:
    """Whether Triton's kernels run on the CPU, in its interpreter."""
    try:
        from flexact.triton.moe import interpreted
    except ImportError:
        return False
    return interpreted()


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
            layer.count.bump()
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
                layer.reserve(tokens)
        elif _is_measurable(layer.module):
            layer.measure(lambda x, weights, ids, layer=layer: _run_host(layer.module, x, weights, ids))


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
