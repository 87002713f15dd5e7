"""What importing flexact.transformers changes in transformers.

1. "flexact" becomes a name of the registries of experts implementations, FP8's included.
2. Functions of the catalogue that transformers has no class for become names that a model can be
   constructed with. Such a module computes nothing: it raises until flexact has taken its place.
3. `from_pretrained` and `set_experts_implementation` prepare the model where "flexact" was chosen, so
   that what does not resolve or would not run is an error there; a model that was constructed without
   a loader is prepared before its first step.

Nothing else is touched, and models with another implementation are left alone.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations import moe as host

import flexact
from flexact.errors import Unsupported
from flexact.transformers import _model
from flexact.transformers._experts import experts_forward
from flexact.transformers._unbound import UnboundActivation

# Before it, the names of implementations were a fixed list, or flags of the interface were missing.
_OLDEST = (5, 12)


def install() -> None:
    """Makes the changes; once.

    Raises:
        flexact.Unsupported: transformers is too old.
    """
    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST:
        raise Unsupported(f"transformers {transformers.__version__} is too old", "", "5.12 or newer")
    if _model.NAME in host.ALL_EXPERTS_FUNCTIONS:
        return
    host.ALL_EXPERTS_FUNCTIONS.register(_model.NAME, experts_forward)
    from transformers.integrations import finegrained_fp8

    registry = getattr(finegrained_fp8, "ALL_FP8_EXPERTS_FUNCTIONS", None)
    if registry is not None:
        registry.register(_model.NAME, experts_forward)
    for name in ("expr", *_catalogue()):
        if name not in ACT2FN:
            ACT2FN[name] = (UnboundActivation, {"name": name})
    _wrap_from_pretrained()
    _wrap_set()
    _wrap_constructor()


def _catalogue() -> list[str]:
    return [each if isinstance(each, str) else each.name for each in flexact.ActivationRegistry.list()]


def _wrap_from_pretrained() -> None:
    original = PreTrainedModel.__dict__["from_pretrained"].__func__
    depth = threading.local()

    @functools.wraps(original)
    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        # A model that loads its parts the same way is prepared as a whole, once.
        depth.value = getattr(depth, "value", 0) + 1
        try:
            result = original(cls, *args, **kwargs)
        finally:
            depth.value -= 1
        model = result[0] if isinstance(result, tuple) else result
        if depth.value == 0 and isinstance(model, PreTrainedModel) and _model.asks(model):
            _model.prepare(model)
        return result

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def _wrap_set() -> None:
    original = PreTrainedModel.set_experts_implementation

    @functools.wraps(original)
    def set_experts_implementation(self: Any, experts_implementation: Any) -> None:
        before = {id(c): c._experts_implementation for c in _model._configs(self.config)}
        original(self, experts_implementation)
        try:
            if _model.asks(self):
                _model.prepare(self)
            elif not _wants(experts_implementation):
                _model.forget(self)
            else:
                raise Unsupported(
                    f'{type(self).__name__} does not take experts_implementation="{_model.NAME}"',
                    "",
                    "its experts do not go through transformers' interface",
                )
        except Exception:
            # A refused request leaves the model as it was.
            for config in _model._configs(self.config):
                config._experts_implementation_internal = before[id(config)]
            raise

    PreTrainedModel.set_experts_implementation = set_experts_implementation


def _wants(requested: Any) -> bool:
    return _model.NAME in (requested.values() if isinstance(requested, dict) else (requested,))


def _wrap_constructor() -> None:
    """Every model's constructor asks which implementation applies; so do those built without a loader."""
    original = PreTrainedModel.get_correct_experts_implementation

    @functools.wraps(original)
    def get_correct_experts_implementation(self: Any, requested_experts: Any) -> Any:
        result = original(self, requested_experts)
        if result == _model.NAME:
            _model.expect(self)
        return result

    PreTrainedModel.get_correct_experts_implementation = get_correct_experts_implementation
