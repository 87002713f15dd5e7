"""A model's way through SGLang: its configuration, its construction, its verification, its first step."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from flexact.sglang import _config, _counts, _policy, _report
from flexact.sglang._config import ModelPlan
from flexact.sglang._stop import report_loaded, stop

logger = logging.getLogger("flexact")

# What classes insist on while they are constructed, beside their family's own name. What runs is decided
# afterwards, so the order only decides which modules are built first and replaced then.
_INSISTED = ("silu", "gelu_pytorch_tanh", "gelu", "relu2")


class Loading:
    """One model while SGLang loads it into this process."""

    def __init__(self, plan: ModelPlan, *, is_draft: bool) -> None:
        self.plan = plan
        self.is_draft = is_draft
        # SGLang's --moe-runner-backend, where it is read as "auto" for this model.
        self.runner_set_aside: str | None = None
        self.experts: list[Any] = []  # ExpertLayer, in order of construction
        self.mlps: list[Any] = []  # Mlp

    @property
    def computed_here(self) -> list[Any]:
        """The layers whose activation flexact computes."""
        return [layer for layer in (*self.experts, *self.mlps) if layer.is_ours]

    def start_counting(self) -> None:
        """The proofs have run: from now on executions are counted, SGLang's own on the host alone."""
        for layer in (*self.experts, *self.mlps):
            if layer.count is not None:
                layer.count.start(layer.device if layer.is_ours else None)

    def read_counts(self) -> None:
        """Fetches from the device how often each layer has run."""
        _counts.read(layer.count for layer in (*self.experts, *self.mlps) if layer.count is not None)


_loading: Loading | None = None


def loading() -> Loading | None:
    """The model that is being loaded, if any."""
    return _loading


def model_config_init(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Around `ModelConfig.__init__`: resolves, or ends the process; adds the two attributes."""
    bound = inspect.signature(original).bind(self, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    where = {
        "revision": given.get("revision"),
        "config_file": given.get("override_config_file"),
        "parser": given.get("model_config_parser", "auto"),
    }
    _config.locate(given["model_path"], fetched=False, **where)
    original(self, *args, **kwargs)
    # SGLang has downloaded by now, and may have rewritten the path to where it put the files.
    path = _config.locate(self.model_path, **where)
    plan = _config.plan_for(path, given.get("model_override_args") or "{}")
    self._flexact_source = (str(path), plan.overrides)
    self.hidden_act, self.activation_params = _report.as_configured(plan)


def plan_of(model_config: Any) -> ModelPlan:
    """The plan that `model_config_init` made for this configuration."""
    source = getattr(model_config, "_flexact_source", None)
    if source is None:
        stop(f"{type(model_config).__name__} was built before the plugin was loaded; load it first")
    from pathlib import Path

    return _config.plan_for(Path(source[0]), source[1])


def load_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `ModelRunner.load_model`: every layer is verified before the method returns."""
    global _loading
    from flexact.sglang import _experts, _mlps, _runner

    plan = plan_of(self.model_config)
    _policy.check_options(self.server_args, custom_experts=plan.custom_experts, custom=plan.custom)
    previous, _loading = _loading, Loading(plan, is_draft=bool(getattr(self, "is_draft_worker", False)))
    try:
        _loading.runner_set_aside = _runner.set_aside(plan, self.server_args)
        result = original(self, *args, **kwargs)
        if not plan.set_aside:
            tokens = _tokens_of_a_step(self.server_args)
            _experts.verify(self.model, _loading, tokens=tokens)
            _mlps.install(self.model, _loading, dtype=self.model_config.dtype)
            if tokens:
                _mlps.reserve(_loading, tokens, self.model_config.dtype)
            _loading.start_counting()
    finally:
        loaded, _loading = _loading, previous
    self._flexact = loaded
    if not loaded.is_draft:
        _report.announce(loaded)
        report_loaded(_report.summary(loaded))
    return result


def _tokens_of_a_step(args: Any) -> int | None:
    """The most tokens that a layer of experts gets at once, as far as SGLang's arguments say."""
    limits = (
        getattr(args, name, None)
        for name in ("chunked_prefill_size", "max_prefill_tokens", "max_total_tokens")
    )
    tokens = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
    # The tokens of all data-parallel ranks meet before the experts.
    gathered = getattr(args, "dp_size", 1) if getattr(args, "enable_dp_attention", False) else 1
    return None if tokens is None else tokens * gathered


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured, during which nothing can be read back."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def initialize_model(original: Callable[..., Any], model_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `_initialize_model`: presents what the class insists on, restores the configured value."""
    from flexact.sglang import _experts

    current = _loading
    if current is None:
        stop("a model is being built outside ModelRunner.load_model: its layers could not be verified")
    if current.plan.set_aside:
        return original(model_config, *args, **kwargs)
    failure: Exception | None = None
    for value in _presented_values(model_config.hf_config, current.plan):
        del current.experts[:]
        with _presenting(model_config.hf_config, current.plan, value):
            try:
                model = original(model_config, *args, **kwargs)
                break
            except (ValueError, KeyError, NotImplementedError, AssertionError) as error:
                failure = failure or error
    else:
        raise failure
    _experts.check_construction(model, current)
    return model


def _presented_values(config: Any, plan: ModelPlan) -> Iterator[str | None]:
    """What the activation keys hold during construction, in order of trial; None: as configured."""
    yield None
    if not plan.custom:
        return
    tried = {None}
    for holder, name in _activation_keys(config, plan):
        family = getattr(type(holder), name, None)
        for value in (plan.in_file(name), family, *_INSISTED):
            if isinstance(value, str) and value not in tried:
                tried.add(value)
                yield value


def _activation_keys(config: Any, plan: ModelPlan) -> list[tuple[Any, str]]:
    """(object, attribute) of each activation name that a class may read."""
    pointers = {
        tuple(part for part in pointer.split("/") if part)
        for _, _, entry in plan.entries()
        for pointer in re.findall(r"(?:/[A-Za-z_][A-Za-z0-9_]*)+", entry.source)
    }
    found = {}
    for pointer in pointers | {("hidden_act",), ("hidden_activation",), ("text_config", "hidden_act")}:
        holder = config
        for part in pointer[:-1]:
            holder = getattr(holder, part, None)
        if isinstance(getattr(holder, pointer[-1], None), str):
            found[id(holder), pointer[-1]] = (holder, pointer[-1])
    return list(found.values())


@contextlib.contextmanager
def _presenting(config: Any, plan: ModelPlan, value: str | None):
    keys = _activation_keys(config, plan) if value is not None else []
    before = [getattr(holder, name) for holder, name in keys]
    for holder, name in keys:
        setattr(holder, name, value)
    try:
        yield
    finally:
        for (holder, name), old in zip(keys, before, strict=True):
            setattr(holder, name, old)


def forward(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `ModelRunner.forward`: after the first step with tokens, each of our layers has run."""
    result = original(self, *args, **kwargs)
    loaded = getattr(self, "_flexact", None)
    if loaded is not None and not loaded.is_draft and not getattr(loaded, "executed", False):
        batch = args[0] if args else kwargs.get("forward_batch")
        _check_executed(loaded, batch)
    return result


def _may_rest(layer: Any, loaded: Loading) -> bool:
    """Whether a first step may pass the layer by: an encoder without input, an expert without tokens."""
    if layer.role == "routed" and hasattr(layer, "expert"):
        return any(other.layer == layer.layer and other.calls for other in loaded.mlps)
    if re.search(r"(^|\.)encoder\.", layer.name):
        return any(other.calls for other in loaded.mlps if re.search(r"(^|\.)decoder\.", other.name))
    return False


def _check_executed(loaded: Loading, batch: Any) -> None:
    tokens = getattr(batch, "input_ids", None)
    if tokens is not None and len(tokens) == 0:
        return
    if _is_capturing():
        return
    loaded.read_counts()
    silent = [
        layer.name for layer in loaded.computed_here if layer.calls == 0 and not _may_rest(layer, loaded)
    ]
    if silent:
        stop(
            f"{len(silent)} of {len(loaded.computed_here)} layers with their own activation did not run in"
            " the first"
            f" step ({', '.join(silent[:4])}{', …' if len(silent) > 4 else ''}): SGLang computes them by a"
            " path that"
            " is not hooked"
        )
    loaded.executed = True
