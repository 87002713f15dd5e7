"""The MoE block on torch tensors: `fused_moe`, an operator, and `plan`, for hosts that load a model.

    y[m] = scale * Σ_k topk_weights[m, k] * down(act(gate(x[m]), up(x[m])))   over experts topk_ids[m, k]

On the CPU `fused_moe` packs the weights when it first sees them and keeps the packed copy for as long as
they live; a host that frees its own tensors, so that one copy stays, makes a `Plan` of each layer instead.

Names: E experts, H hidden size, I intermediate size, M tokens, k experts a token. An id outside
0 … E-1 is not on this rank: it contributes nothing and no weight is read for it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from flexact import _core, backend_choice
from flexact._core import Activation, Function, MoeProblem
from flexact.activation import require_scopes
from flexact.auto_plan import AutoPlan
from flexact.backend_choice import Choice
from flexact.device_plan import DevicePlan
from flexact.errors import Error, InvalidArgument, Unsupported
from flexact.formats import FP4_FORMATS
from flexact.layer_plan import CorePlan, output_shape, tensor_view
from flexact.plan_cache import PlanCache

if TYPE_CHECKING:
    from flexact.triton.plan import TritonPlan

__all__ = ["Plan", "activation_values", "backends", "fused_moe", "invalidate", "plan", "plan_cache"]

# The plans that fused_moe made, by weight tensors.
plan_cache = PlanCache(max_entries=512)

# Switches that a backend reads when it makes a plan.
_PLAN_SWITCHES = ("FLEXACT_NUMERICS", "FLEXACT_CPU_ISA", "FLEXACT_UNTRIED_KERNELS")

# Formats whose packed weights are the given ones in another order.
_PLAIN_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_BACKEND_CHOICES = ("auto", "cpu", "triton", "cutlass")
_OPTIONAL_WEIGHTS = (
    "w13_scale",
    "w2_scale",
    "w13_global_scale",
    "w2_global_scale",
    "a13_scale",
    "a2_scale",
    "w13_bias",
    "w2_bias",
)


def backends() -> list[str]:
    """The backends of this build in order of preference."""
    return _core.backends()


def invalidate() -> None:
    """Forgets every plan that `fused_moe` keeps; the next call packs the weights anew."""
    plan_cache.clear()


def fused_moe(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Activation | str,
    *,
    activation_values: torch.Tensor | None = None,
    format: str = "bf16",
    pairing: str = "concat",
    w13_scale: torch.Tensor | None = None,
    w2_scale: torch.Tensor | None = None,
    w13_global_scale: torch.Tensor | None = None,
    w2_global_scale: torch.Tensor | None = None,
    a13_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    combine: bool = True,
    backend: str = "auto",
) -> torch.Tensor:
    """Computes a mixture-of-experts block with exactly this activation, or refuses with a reason.

    Args:
        hidden_states: [M, H]; float32, bfloat16 or float16.
        w13: Gate and up projections [E, 2I, H] in the order that `pairing` names; [E, I, H] with
            pairing "none".
        w2: Down projections [E, H, I].
        topk_weights: Router weights [M, k], float32.
        topk_ids: Expert numbers [M, k], int32 or int64.
        activation: An `Activation`, or a function's canonical string. A unary f in a gated layer
            means f(g) * u.
        activation_values: Parameter values [E or 1, P], float32, in the order of the function's
            parameters. Needed with a string that has parameters and where an activation's values
            differ by layer; otherwise the activation's own values are used.
        format: Weight and activation format, e.g. "bf16", "fp32"; docs/formats.md has the list.
        pairing: "concat", "up_first", "interleaved", or "none" for experts without a gate.
        w13_scale: Scales of quantised formats, as the format defines them; the next five too.
        w2_scale: See `w13_scale`.
        w13_global_scale: See `w13_scale`.
        w2_global_scale: See `w13_scale`.
        a13_scale: See `w13_scale`.
        a2_scale: See `w13_scale`.
        w13_bias: [E, 2I] (or [E, I]) in the order of w13's rows.
        w2_bias: [E, H].
        router_weight_on_input: Multiplies the block's input by the router weight, not its output.
        routed_scaling_factor: Multiplies the combined result.
        combine: False gives each expert's output unweighted; rows of ids outside the range are zero,
            and a router weight on the input stays applied.
        backend: "auto", "cpu", "triton" or "cutlass"; "auto" follows FLEXACT_BACKEND.

    Returns:
        [M, H] in hidden_states' dtype, or [M, k, H] with combine=False.

    Raises:
        Unsupported: No backend computes this here; the message says why.
        InvalidArgument: Shapes, dtypes or values contradict each other.
    """
    if isinstance(activation, str):
        canonical = activation
    else:
        canonical = _canonical(activation)
        if activation_values is None:
            activation_values = _own_values(activation, w13.shape[0])
    return torch.ops.flexact.fused_moe(
        hidden_states,
        w13,
        w2,
        topk_weights,
        topk_ids,
        canonical,
        activation_values=activation_values,
        format=format,
        pairing=pairing,
        w13_scale=w13_scale,
        w2_scale=w2_scale,
        w13_global_scale=w13_global_scale,
        w2_global_scale=w2_global_scale,
        a13_scale=a13_scale,
        a2_scale=a2_scale,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        router_weight_on_input=router_weight_on_input,
        routed_scaling_factor=routed_scaling_factor,
        combine=combine,
        backend=backend,
    )


# --- Parameter values -----------------------------------------------------------------------------


def activation_values(
    activation: Activation,
    *,
    layer: int,
    experts: tuple[int, int] = (0, 1),
    tensors: Callable[[str], list[float]] | None = None,
) -> torch.Tensor:
    """The parameter table of one layer, [1 or experts, P] float32 on the CPU.

    Args:
        activation: The activation.
        layer: The absolute layer number.
        experts: The global numbers of this rank's experts, [begin, end).
        tensors: Reads a checkpoint tensor by name, for values that a model has learned.
    """
    rows = activation.values(layer, experts, tensors)
    columns = len(activation.function.parameters)
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), columns)


def _own_values(activation: Activation, experts: int) -> torch.Tensor | None:
    """The values of an activation whose table is the same wherever it is used."""
    rows = _own_rows(activation, experts)
    return torch.tensor(rows, dtype=torch.float32) if rows[0] else None


@torch.compiler.assume_constant_result
def _own_rows(activation: Activation, experts: int) -> list[list[float]]:
    require_scopes(
        activation,
        {"per_expert": experts},
        "pass activation_values=flexact.moe.activation_values(activation, layer=…, experts=…)",
    )
    return activation.values(0, (0, experts))


@torch.compiler.assume_constant_result
def _canonical(activation: Activation) -> str:
    return activation.function.canonical


# --- Plans ----------------------------------------------------------------------------------------


class Plan(CorePlan):
    """A layer made ready on the CPU: weights packed into a copy that the plan owns, function compiled.

    The tensors that it was made from may be freed or aliased afterwards.
    """

    def __init__(
        self, core: _core.Plan, problem: MoeProblem, function: Function, values: torch.Tensor
    ) -> None:
        super().__init__(core, problem, function, values, torch.device("cpu"))

    def _launch(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        self._core.run(
            tensor_view(hidden_states),
            tensor_view(topk_weights),
            tensor_view(topk_ids),
            out.data_ptr(),
            values.data_ptr(),
            *values.shape,
        )

    def reserve(self, tokens: int) -> None:
        """Sizes the calling thread's scratch memory for up to `tokens` tokens; it never shrinks."""
        self._core.reserve(tokens)

    def unpack(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights as they were given, bit for bit.

        Returns:
            New contiguous tensors w13 [E, 2I, H] ([E, I, H] with pairing "none") and w2 [E, H, I].

        Raises:
            Unsupported: The packed form does not hold every bit of them.
        """
        problem = self.problem
        rows = problem.intermediate * (1 if problem.pairing == "none" else 2)
        dtype = _PLAIN_FORMATS.get(problem.format)
        if dtype is None:
            raise Unsupported(f"{problem.format} weights are not given back", hint=", ".join(_PLAIN_FORMATS))
        w13 = torch.empty((problem.experts, rows, problem.hidden), dtype=dtype)
        w2 = torch.empty((problem.experts, problem.hidden, problem.intermediate), dtype=dtype)
        self._core.unpack(w13.data_ptr(), w2.data_ptr())
        return w13, w2


def plan(
    w13: torch.Tensor,
    w2: torch.Tensor,
    activation: Activation | Function | str,
    *,
    top_k: int,
    activation_values: torch.Tensor | None = None,
    format: str = "bf16",
    pairing: str = "concat",
    io_dtype: torch.dtype | None = None,
    router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    combine: bool = True,
    backend: str = "auto",
    **weights: torch.Tensor | None,
) -> Plan | DevicePlan | TritonPlan | AutoPlan:
    """Makes a layer ready: on the CPU packs its weights once, and compiles its function.

    Args:
        w13: As for `fused_moe`, and so are all arguments that are not described here.
        w2: [E, H, I].
        activation: An `Activation`, a `Function` or a canonical string.
        top_k: Experts a token, 1 to 32.
        activation_values: The layer's parameter table; see `fused_moe`.
        format: See `fused_moe`.
        pairing: See `fused_moe`.
        io_dtype: dtype of the hidden states and the result; left out: w13's, or bfloat16 beside
            quantised weights.
        router_weight_on_input: See `fused_moe`.
        routed_scaling_factor: See `fused_moe`.
        combine: See `fused_moe`.
        backend: See `fused_moe`.
        **weights: w13_bias, w2_bias and scales, as for `fused_moe`.

    Raises:
        Unsupported: No backend computes this here; the message says why.
        InvalidArgument: Shapes, dtypes or values contradict each other.
    """
    unknown = sorted(set(weights) - set(_OPTIONAL_WEIGHTS))
    if unknown:
        raise InvalidArgument(f"unknown argument {unknown[0]!r}", hint=", ".join(_OPTIONAL_WEIGHTS))
    if isinstance(activation, Activation):
        if activation_values is None:
            activation_values = _own_values(activation, w13.shape[0])
        function = activation.function
    else:
        function = _function(activation) if isinstance(activation, str) else activation
    given = {name: tensor for name, tensor in weights.items() if tensor is not None}
    problem, function = _problem(
        w13,
        w2,
        function,
        given,
        top_k=top_k,
        format=format,
        io_dtype=io_dtype or (w13.dtype if w13.dtype in _PLAIN_DTYPES else torch.bfloat16),
        pairing=pairing,
        router_weight_on_input=router_weight_on_input,
        routed_scaling_factor=routed_scaling_factor,
        combine=combine,
    )
    choice = choose(backend, problem, function, w13.device, weights=(w13, w2))
    tensors = {"w13": w13, "w2": w2, **given}
    values = _table(function, activation_values)

    def of(name: str) -> Any:
        if name == "triton":
            return _triton().TritonPlan(problem, function, tensors, values)
        core = _make(name, problem, function, tensors)
        if name == "cutlass":
            return DevicePlan(core, problem, function, values, w13.device, tensors)
        return Plan(core, problem, function, values)

    plans = {name: of(name) for name in choice.backends}
    made = AutoPlan(choice, plans) if len(plans) > 1 else plans[choice.backends[0]]
    _say(made.describe() if len(plans) > 1 else f"{made.describe()}, {choice.parts[0].reason}")
    return made


def _problem(
    w13: torch.Tensor, w2: torch.Tensor, function: Function, given: Mapping[str, torch.Tensor], **fields: Any
) -> tuple[MoeProblem, Function]:
    if w13.dim() != 3 or w2.dim() != 3:
        raise InvalidArgument(
            f"w13 is {list(w13.shape)} and w2 {list(w2.shape)}", hint="w13 [E, 2I, H] and w2 [E, H, I]"
        )
    fields["io_dtype"] = str(fields["io_dtype"]).removeprefix("torch.")
    packed = 2 if fields["format"] in FP4_FORMATS else 1  # values to an element of the weights
    problem = MoeProblem(
        experts=w13.shape[0],
        hidden=packed * w13.shape[2],
        intermediate=packed * w2.shape[2],
        bias13="w13_bias" in given,
        bias2="w2_bias" in given,
        **fields,
    )
    return problem, function if problem.pairing == "none" else function.gated()


def choose(
    backend: str,
    problem: MoeProblem,
    function: Function,
    device: torch.device,
    *,
    weights: Sequence[torch.Tensor] = (),
    may_copy: bool = True,
) -> Choice:
    """The backends that compute exactly this here, by token count.

    Args:
        backend: As for `fused_moe`.
        problem: What is computed.
        function: Its function, as the problem's pairing needs it.
        device: Where the weights are.
        weights: w13 and w2, where "auto" shall pass by a backend that cannot read them as they lie.
        may_copy: Whether "auto" may take a backend that copies some of the weights.

    Raises:
        Unsupported: No backend does; the message has every candidate's reason.
    """
    wanted = _wanted(backend)
    known = _core.backends()
    if wanted != "auto":
        if wanted not in known:
            raise Unsupported(
                f"backend {wanted!r} is not part of this build", hint=f"it has {', '.join(known)}"
            )
        if refusal := _refusal(wanted, problem, function, device):
            raise _unsupported({wanted: refusal})
        return backend_choice.only(wanted, "asked for by name")
    if device.type not in ("cpu", "cuda"):
        raise Unsupported(f"no backend computes on {device.type} tensors", hint="CPU or CUDA tensors")
    if device.type == "cpu":
        choice = backend_choice.only("cpu", "the only one on CPU tensors")
    else:
        gpu = backend_choice.device_of(device.index)
        choice = backend_choice.choose(problem, gpu, may_copy=may_copy)
    # Whoever is not chosen is asked only where a chosen one refuses: asking CUTLASS loads its libraries.
    refusals = {name: _refusal(name, problem, function, device, weights) for name in choice.backends}
    if not any(refusals.values()):
        return choice
    others = [name for name in backend_choice.BACKENDS if device.type == "cuda" and name not in refusals]
    refusals |= {name: _refusal(name, problem, function, device, weights) for name in others}
    reasons = {name: refusal for name, refusal in refusals.items() if refusal}
    free = [name for name in refusals if name not in reasons]
    if not free:
        raise _unsupported(reasons)
    name, (reason, _) = next(iter(reasons.items()))
    return backend_choice.only(free[0], f"{name} refuses: {reason}")


def _refusal(
    name: str,
    problem: MoeProblem,
    function: Function,
    device: torch.device,
    weights: Sequence[torch.Tensor] = (),
) -> tuple[str, str] | None:
    """Why a backend does not compute this here, with a hint; None: it does."""
    if refusal := _core.refuse(name, problem, function):
        return refusal
    if name == "cutlass" and device.type != "cuda":
        return f"it computes CUDA tensors, and these are on {device}", "move them to the GPU"
    if name == "cpu" != device.type:
        return f"it computes CPU tensors, and these are on {device}", "move them to the CPU"
    if name == "cutlass" and not all(map(_copy_engine_reads, weights)):
        return "the copy engine reads rows of neighbouring elements, 16 bytes at a time", "contiguous weights"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed", "pip install triton"
    return None


def _copy_engine_reads(tensor: torch.Tensor) -> bool:
    """Whether each expert's rows lie so. Asked for by name, the backend itself says what is wrong."""
    *strides, last = tensor.stride()
    steps = [stride * tensor.element_size() for stride in strides]
    return last == 1 and not any(step % 16 for step in (tensor.data_ptr(), *steps))


def _unsupported(reasons: Mapping[str, tuple[str, str]]) -> Unsupported:
    return Unsupported(
        "; ".join(f"backend {name} refuses: {reason}" for name, (reason, _) in reasons.items()),
        hint="; ".join(hint for _, hint in reasons.values() if hint),
    )


def _wanted(backend: str) -> str:
    wanted = os.environ.get("FLEXACT_BACKEND", "auto") if backend == "auto" else backend
    if wanted not in _BACKEND_CHOICES:
        raise InvalidArgument(f"unknown backend {wanted!r}", hint=", ".join(_BACKEND_CHOICES))
    return wanted


def _triton() -> Any:
    """The Triton backend's Python side, which needs the package triton."""
    try:
        from flexact.triton import plan as module
    except ImportError as error:
        raise Unsupported(
            f"the Triton backend cannot be loaded: {error}", hint="pip install triton"
        ) from None
    return module


def _make(
    name: str, problem: MoeProblem, function: Function, tensors: Mapping[str, torch.Tensor]
) -> _core.Plan:
    device = tensors["w13"].device
    for each, tensor in tensors.items():
        if tensor.device != device:
            raise InvalidArgument(
                f"{each} is on {tensor.device}, w13 on {device}", hint="all tensors on one device"
            )
    return _core.plan(name, problem, function, {key: tensor_view(tensor) for key, tensor in tensors.items()})


def _say(text: str) -> None:
    """A line on stderr where FLEXACT_VERBOSE asks for it."""
    if os.environ.get("FLEXACT_VERBOSE", "0") not in ("", "0"):
        print(f"flexact: {text}", file=sys.stderr)


_PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _as_values(values: torch.Tensor) -> torch.Tensor:
    if values.dim() != 2:
        raise InvalidArgument(f"activation_values is {list(values.shape)}", hint="[E or 1, P]")
    return values.to(device="cpu", dtype=torch.float32).contiguous()


def _table(function: Function, values: torch.Tensor | None) -> torch.Tensor:
    values = _given_values(function, values)
    return _as_values(values)


def _given_values(function: Function, values: torch.Tensor | None) -> torch.Tensor:
    if values is not None:
        return values
    if function.parameters:
        names = ", ".join(each.name for each in function.parameters)
        raise InvalidArgument(
            f"the function has the parameters {names}, and no values are given",
            hint="pass activation_values, or an Activation",
        )
    return torch.empty((1, 0))


@functools.lru_cache(maxsize=4096)
def _function(canonical: str) -> Function:
    try:
        return Function.from_canonical(canonical)
    except Error as error:
        raise InvalidArgument(
            f"activation is not a function's canonical string: {error}",
            hint='ActivationRegistry.get_activation("NAME", {…}) makes an Activation of a name',
        ) from None


# --- The operator ---------------------------------------------------------------------------------

_library = torch.library.Library("flexact", "DEF")
_library.define(
    "fused_moe(Tensor hidden_states, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, "
    "str activation, *, Tensor? activation_values=None, str format='bf16', str pairing='concat', "
    + "".join(f"Tensor? {name}=None, " for name in _OPTIONAL_WEIGHTS)
    + "bool router_weight_on_input=False, float routed_scaling_factor=1.0, bool combine=True, "
    "str backend='auto') -> Tensor"
)


@torch.library.impl(_library, "fused_moe", "CPU")
def _fused_moe_cpu(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str,
    *,
    activation_values: torch.Tensor | None = None,
    backend: str = "auto",
    **options: Any,
) -> torch.Tensor:
    _check_shapes(hidden_states, topk_weights, topk_ids)
    settings, tensors = _settings(hidden_states, w13, w2, topk_ids, options)
    wanted = os.environ.get("FLEXACT_BACKEND", "auto") if backend == "auto" else backend
    if wanted == "triton":
        # Triton's interpreter computes on CPU tensors; without it this is refused.
        key = _call_key(hidden_states, activation, wanted, settings, tensors)
        call = (hidden_states, topk_weights, topk_ids, activation, activation_values)
        return _run_triton(*call, key, settings, tensors)

    def make() -> Plan:
        problem, function = _problem_of(activation, settings, tensors)
        choice = choose(wanted, problem, function, w13.device)
        core = _make(choice.backends[0], problem, function, tensors)
        _say(core.describe())
        # Values belong to the call: plans of layers that differ only in values are one plan's worth of code.
        return Plan(core, problem, function, torch.empty((1, 0)))

    chosen = plan_cache.get(
        (activation, wanted, *settings.values(), *map(os.environ.get, _PLAN_SWITCHES)), tensors, make
    )
    return chosen.run(
        hidden_states,
        topk_weights,
        topk_ids,
        activation_values=_table(chosen.function, activation_values),
    )


@torch.library.impl(_library, "fused_moe", "CUDA")
def _fused_moe_cuda(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str,
    *,
    activation_values: torch.Tensor | None = None,
    backend: str = "auto",
    **options: Any,
) -> torch.Tensor:
    _check_shapes(hidden_states, topk_weights, topk_ids)
    settings, tensors = _settings(hidden_states, w13, w2, topk_ids, options)
    call = (hidden_states, topk_weights, topk_ids, activation, activation_values)
    key = _call_key(hidden_states, activation, backend, settings, tensors)
    choice = _choices.get(key)
    if choice is None:
        problem, function = _problem_of(activation, settings, tensors)
        # The caller keeps its tensors: what a backend copies would be there twice.
        choice = choose(backend, problem, function, w13.device, weights=(w13, w2), may_copy=False)
        _choices[key] = choice
        _say(choice.describe())
    if choice.of(hidden_states.shape[0]) == "cutlass":
        return _run_cutlass(*call, settings, tensors)
    return _run_triton(*call, key, settings, tensors)


# The backends of calls that differ in nothing but their number of tokens.
_choices: dict[Any, Choice] = {}


def _problem_of(
    activation: str, settings: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[MoeProblem, Function]:
    given = {name: each for name, each in tensors.items() if name not in ("w13", "w2")}
    return _problem(tensors["w13"], tensors["w2"], _function(activation), given, **settings)


def _run_cutlass(
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str,
    values: torch.Tensor | None,
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> torch.Tensor:
    device = tensors["w13"].device

    def make() -> DevicePlan:
        problem, function = _problem_of(activation, settings, tensors)
        core = _make("cutlass", problem, function, tensors)
        # The cache forgets a plan when its weights go, so it keeps none of them.
        return DevicePlan(core, problem, function, torch.empty((1, 0)), device)

    switches = map(os.environ.get, _PLAN_SWITCHES)
    chosen = plan_cache.get((activation, "cutlass", *settings.values(), *switches), tensors, make)
    table = _given_values(chosen.function, values)
    return chosen.run(hidden_states, topk_weights, topk_ids, activation_values=table)


def _settings(
    hidden_states: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, topk_ids: torch.Tensor, options: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The problem's fields that the arguments name, and the tensors of weights that are given."""
    named = {name: options.get(name) for name in _OPTIONAL_WEIGHTS}
    settings = {
        "top_k": topk_ids.shape[1],
        "format": options.get("format", "bf16"),
        "io_dtype": hidden_states.dtype,
        "pairing": options.get("pairing", "concat"),
        "router_weight_on_input": options.get("router_weight_on_input", False),
        "routed_scaling_factor": options.get("routed_scaling_factor", 1.0),
        "combine": options.get("combine", True),
    }
    return settings, {
        "w13": w13,
        "w2": w2,
        **{name: each for name, each in named.items() if each is not None},
    }


def _call_key(
    hidden_states: torch.Tensor,
    activation: str,
    backend: str,
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> tuple[Any, ...]:
    """What calls have in common that differ in nothing but contents and the number of tokens."""
    return (
        activation,
        backend,
        *settings.values(),
        *((name, each.shape, each.stride(), each.dtype) for name, each in tensors.items()),
        tensors["w13"].data_ptr() % 16,
        tensors["w2"].data_ptr() % 16,
        hidden_states.device,
        *map(os.environ.get, ("FLEXACT_BACKEND", "FLEXACT_NUMERICS")),
    )


# Problems whose weights' shapes were found right, and what computes them.
_blocks: dict[Any, Any] = {}


def _run_triton(
    hidden_states: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str,
    values: torch.Tensor | None,
    key: tuple[Any, ...],
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> torch.Tensor:
    triton = _triton()
    block = _blocks.get(key)
    if block is None:
        problem, function = _problem_of(activation, settings, tensors)
        choose("triton", problem, function, hidden_states.device)
        device = triton.check_device(tensors)
        triton.check_weights(problem, tensors)
        block = _blocks[key] = triton.block(problem, function, device)
    table = triton.on_device(_given_values(block.function, values), hidden_states.device)
    return triton.run(block, hidden_states, tensors, topk_weights, topk_ids, table)


@torch.library.register_fake("flexact::fused_moe", lib=_library)
def _fused_moe_meta(
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str,
    *,
    combine: bool = True,
    **ignored: Any,
) -> torch.Tensor:
    _check_shapes(hidden_states, topk_weights, topk_ids)
    return hidden_states.new_empty(output_shape(hidden_states, topk_ids, combine))


def _check_shapes(hidden_states: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> None:
    if hidden_states.dim() != 2:
        raise InvalidArgument(f"hidden_states is {list(hidden_states.shape)}", hint="[M, H]")
    for name, tensor in (("topk_weights", topk_weights), ("topk_ids", topk_ids)):
        if tensor.dim() != 2 or tensor.shape[0] != hidden_states.shape[0]:
            raise InvalidArgument(
                f"{name} is {list(tensor.shape)} for {hidden_states.shape[0]} tokens", hint="[M, k]"
            )
    if topk_weights.shape != topk_ids.shape:
        raise InvalidArgument(
            f"topk_weights is {list(topk_weights.shape)}, topk_ids {list(topk_ids.shape)}", hint="both [M, k]"
        )


class Undifferentiable(torch.autograd.Function):
    """Passes a result on and refuses its gradient: else a backward pass would take it for a constant."""

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, operator: str, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.operator = operator
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise Unsupported(
            f"the operator {ctx.operator} computes no gradients",
            hint="call it under torch.no_grad(); the activations themselves are differentiable",
        )


@torch.library.impl(_library, "fused_moe", "Autograd")
def _fused_moe_autograd(*args: Any, **kwargs: Any) -> torch.Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        result = torch.ops.flexact.fused_moe(*args, **kwargs)
    tracked = [
        each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor) and each.requires_grad
    ]
    if tracked and torch.is_grad_enabled():
        return Undifferentiable.apply(result, "fused_moe", *tracked)
    return result
