"""A model's way to its activations: prepared once, checked against its configuration, watched at work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from flexact.errors import ConfigError, InternalError, Unsupported
from flexact.transformers import _mlps, _probe, _resolve
from flexact.transformers._experts import ExpertLayer, values_for

logger = logging.getLogger("flexact")

NAME = "flexact"
_EXPECTED = "_flexact_expected"
_GUARD = "_flexact_guard"


class Prepared:
    """What flexact knows about one model.

    Attributes:
        resolution: The activations of the model's configuration.
        experts: Names of the modules whose experts flexact computes.
        mlps: What was converted or proven, by module name.
        open: MLPs whose configured activation nobody computes yet, each with the reason.
    """

    def __init__(self, resolution: Any) -> None:
        self.resolution = resolution
        self.experts: list[str] = []
        self.mlps: dict[str, Any] = {}
        self.open: list[str] = []
        self.executed = False

    def __deepcopy__(self, memo: Any) -> Prepared:
        import copy

        other = Prepared(self.resolution)
        other.experts, other.open = list(self.experts), list(self.open)
        other.mlps = copy.deepcopy(self.mlps, memo)
        memo[id(self)] = other
        return other

    def __reduce__(self) -> Any:
        # A resolution holds readers of files; a model that was pickled is prepared again.
        return _nothing, ()


def _nothing() -> None:
    return None


def state(model: nn.Module) -> Prepared | None:
    """What is known about a prepared model."""
    return model.__dict__.get("_flexact_model")


def asks(model: nn.Module) -> bool:
    """Whether `experts_implementation="flexact"` was chosen for the model or a part of it."""
    return any(_chosen(config) for config in _configs(getattr(model, "config", None)))


def _chosen(config: Any) -> bool:
    return getattr(config, "_experts_implementation", None) == NAME


def _configs(config: Any) -> Iterator[Any]:
    if config is None:
        return
    yield config
    for name in getattr(type(config), "sub_configs", {}):
        yield from _configs(getattr(config, name, None))


def experts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of each experts module on transformers' interface."""
    return [(name, module) for name, module in model.named_modules() if _probe.is_experts(module)]


def prepare(model: nn.Module) -> nn.Module:
    """Gives every experts module of the model its activation, and proves it.

    Called by `from_pretrained`, `from_config`, `set_experts_implementation` and, for a model that was
    constructed directly, before its first step; calling it again after a change of `model.config`
    reads the configuration anew.

    Args:
        model: A transformers model with `experts_implementation="flexact"`.

    Returns:
        The model.

    Raises:
        flexact.ConfigError: The configuration does not resolve, or a class computes something else
            than it means.
        flexact.Unsupported: Experts that flexact would have to compute do not go through the
            interface, or hold weights that no backend reads.
    """
    resolution = _resolve.resolve(model)
    prepared = Prepared(resolution)
    old = state(model)
    attached = []
    for name, module in experts(model):
        layer = _layer_of(model, name)
        part = _resolve.for_part(model, module.config, resolution)
        if _chosen(module.config):
            attached.append((name, module, _expert_layer(name, layer, module, part)))
        elif part.changed(layer, "routed"):
            prepared.open.append(
                f"{name}: experts_implementation is {module.config._experts_implementation!r}"
            )
    _refuse_unseen_experts(model, prepared, [(layer.name, layer.layer) for _, _, layer in attached])
    for name, module, layer in attached:
        if isinstance(previous := module.__dict__.get("_flexact"), ExpertLayer):
            previous.release(module)
        module.__dict__["_flexact"] = layer
        prepared.experts.append(name)
    prepared.mlps = old.mlps if old is not None else {}
    prepared.open += _mlps.unconverted(resolution, prepared.mlps)
    _watch(model, prepared)
    logger.info("flexact computes the experts of %d modules of %s", len(attached), type(model).__name__)
    return model


def forget(model: nn.Module) -> None:
    """Lets go of a model that now uses another implementation; its weights are its own again."""
    for _, module in experts(model):
        layer = module.__dict__.pop("_flexact", None)
        if isinstance(layer, ExpertLayer):
            layer.release(module)
    prepared = state(model)
    if prepared is not None:
        prepared.experts, prepared.open = [], []


def _expert_layer(name: str, layer: int, module: nn.Module, part: Any) -> ExpertLayer:
    entry, base = part.entry(layer, "routed"), part.base_entry(layer, "routed")
    if entry is None:
        raise ConfigError(f"the configuration resolves to no experts in layer {layer}", name)
    gated = bool(getattr(module, "has_gate", True))
    if entry.gated != gated:
        raise ConfigError(
            f"{entry.name} is {'gated' if entry.gated else 'unary'}, and {type(module).__name__} has"
            f" {'a' if gated else 'no'} gate projection",
            name,
        )
    values = values_for(entry, layer, module.num_experts, part.tensors)
    if len(values) > 1 and getattr(module, "_is_expert_parallel", False):
        raise Unsupported("values by expert under expert parallelism", name, "one value for all experts")
    made = ExpertLayer(name, layer, module, entry, values)
    if base is None:
        # Nothing to compare with: the place of the activation is what can be proven.
        _probe.check_layout(module, name)
    else:
        made.check_own(module, base, values_for(base, layer, module.num_experts, part.tensors))
    _refuse_weights(name, module)
    made.prove(module)
    return made


def _refuse_weights(name: str, module: nn.Module) -> None:
    """Refuses weights that no backend reads, after the class's own function was compared."""
    for parameter in dict.values(module.__dict__["_parameters"]):
        if parameter is not None and parameter.element_size() < 2 and parameter.dim() == 3:
            raise Unsupported(
                f"{type(module).__name__} holds expert weights in {parameter.dtype}, which no backend reads",
                name,
                "load the unquantised checkpoint (for FP8: dequantize=True)",
            )


def _layer_of(model: nn.Module, name: str) -> int:
    """The number of the layer that a module lies in: its place in the outermost list of modules."""
    module = model
    for part in name.split("."):
        if isinstance(module, nn.ModuleList) and part.isdigit():
            return int(part)
        module = getattr(module, part)
    raise ConfigError("the module lies in no list of layers, so its layer is not known", name)


def _refuse_unseen_experts(model: nn.Module, prepared: Prepared, seen: list[tuple[str, int]]) -> None:
    """A requested implementation that would never run is an error, not a silence."""
    layers = {layer for _, layer in seen}
    known = prepared.resolution.bound.layers_known
    for layer, role, _ in prepared.resolution.entries():
        if role == "routed" and (layer not in layers if known else not layers):
            where = f"layer {layer} of {type(model).__name__}"
            raise Unsupported(
                "the configuration has routed experts here, and no module of transformers' experts interface"
                ' computes them: experts_implementation="flexact" would be accepted and never run',
                where,
                "flexact.transformers.explain(model) lists what the model has",
            )
    if not seen:
        raise Unsupported(
            f'{type(model).__name__} has no experts, so experts_implementation="flexact" would never run',
            "",
            "flexact.transformers.convert(model) gives dense MLPs their activation",
        )


# --- Watching the model at work -------------------------------------------------------------------


def _watch(model: nn.Module, prepared: Prepared) -> None:
    """Before each step nothing may be open; after the first one every layer must have run."""
    if state(model) is None:
        model.register_forward_hook(_after)
    model.__dict__["_flexact_model"] = prepared
    for module in model.modules():
        if module is model or isinstance(module, PreTrainedModel):
            # A part of the model that is called by itself is held back as well.
            if _GUARD not in module.__dict__:
                module.register_forward_pre_hook(_before)
            module.__dict__[_GUARD] = prepared
            module.__dict__[_EXPECTED] = False


def expect(model: nn.Module) -> None:
    """Prepares a model that is still being constructed before its first step, if nobody does earlier."""
    if _EXPECTED not in model.__dict__:
        model.__dict__[_EXPECTED] = True
        model.register_forward_pre_hook(_prepare_first)


def _prepare_first(model: nn.Module, inputs: Any) -> None:
    # False once the model, or one that it is a part of, is prepared.
    if model.__dict__.get(_EXPECTED) and _chosen(model.config):
        prepare(model)


def _before(model: nn.Module, inputs: Any) -> None:
    prepared = model.__dict__.get(_GUARD)
    if prepared is None and _chosen(model.config):  # the model comes out of a pickle
        prepared = state(prepare(model))
    if prepared is not None and prepared.open:
        raise ConfigError(
            f"{len(prepared.open)} modules would compute another activation than is configured:"
            f" {'; '.join(prepared.open[:3])}{'; …' if len(prepared.open) > 3 else ''}",
            "/activation_params",
            "call flexact.transformers.convert(model)",
        )


def _after(model: nn.Module, inputs: Any, output: Any) -> None:
    prepared = state(model)
    if prepared is None or prepared.executed:
        return
    ran: dict[int, bool] = {}
    for name in prepared.experts:
        module = model.get_submodule(name)
        layer = module.__dict__.get("_flexact")
        if _chosen(module.config) and layer is not None:
            ran[layer.layer] = ran.get(layer.layer, False) or layer.calls > 0
    silent = sorted(layer for layer, done in ran.items() if not done)
    if silent:
        raise InternalError(
            f"the experts of layers {', '.join(map(str, silent[:8]))} did not run in the first step, although"
            f' experts_implementation is "{NAME}": something replaced their forward',
            type(model).__name__,
        )
    prepared.executed = True


# --- The whole model ------------------------------------------------------------------------------


def convert(model: nn.Module, *, use_experts: bool, use_mlps: bool) -> list[dict[str, Any]]:
    """See flexact.transformers.convert."""
    present = experts(model)
    if use_experts and present and not asks(model):
        model.set_experts_implementation(NAME)  # prepares
    elif asks(model):
        prepare(model)
    else:
        known = state(model)
        _watch(model, Prepared(_resolve.resolve(model)))
        state(model).mlps = known.mlps if known is not None else {}
    prepared = state(model)
    if use_mlps:
        routed = {module.__dict__["_flexact"].layer for _, module in present if "_flexact" in module.__dict__}
        _mlps.convert(model, prepared.resolution, prepared.mlps, routed=routed)
        prepared.open = []
    return explain(model)


def explain(model: nn.Module) -> list[dict[str, Any]]:
    """See flexact.transformers.explain."""
    prepared = state(model)
    rows = []
    for name, module in experts(model):
        layer = module.__dict__.get("_flexact")
        if isinstance(layer, ExpertLayer) and _chosen(module.config):
            rows.append(layer.describe())
        else:
            rows.append(
                {
                    "name": name,
                    "layer": _layer_of(model, name),
                    "role": "routed",
                    "computed_by": "transformers",
                    "path": str(module.config._experts_implementation),
                    "calls": None,
                }
            )
    for name, mlp in (prepared.mlps if prepared is not None else {}).items():
        rows.append(mlp.describe(model.get_submodule(name)))
    return sorted(rows, key=lambda row: (row["layer"], row["role"], row["name"]))


def revert(model: nn.Module) -> nn.Module:
    """See flexact.transformers.revert."""
    if asks(model):
        model.set_experts_implementation("eager")
    prepared = state(model)
    if prepared is not None:
        _mlps.revert(model, prepared.mlps)
    forget(model)
    return model
