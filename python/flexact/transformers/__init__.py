"""transformers with the configured activation: experts by implementation, dense MLPs by conversion.

    import flexact.transformers
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="flexact")
    flexact.transformers.convert(model)  # where activation_params change shared or dense MLPs too

Importing it registers the implementation; docs/transformers.md says what else it changes.
"""

from __future__ import annotations

from typing import Any

from flexact.transformers import _model, _register
from flexact.transformers._model import prepare

__all__ = ["convert", "explain", "prepare", "revert"]

_register.install()


def convert(model: Any, *, experts: bool = True, mlps: bool = True) -> list[dict[str, Any]]:
    """Gives every part of a model the activation that its configuration names.

    Args:
        model: A transformers model.
        experts: Choose "flexact" for the experts, where the model has any on transformers' interface.
        mlps: Put flexact's activation into every dense and shared MLP.

    Returns:
        What each layer runs, as `explain(model)`.

    Raises:
        flexact.ConfigError: The configuration does not resolve, or a class computes something else
            than it means.
        flexact.Unsupported: A layer whose activation is configured cannot be converted.
    """
    return _model.convert(model, use_experts=experts, use_mlps=mlps)


def explain(model: Any) -> list[dict[str, Any]]:
    """What each expert layer and each converted MLP of a model runs.

    Returns:
        One dict per module: `name`, `layer`, `role`, `function`, `formula`, `from` (the keys that
        decided), `computed_by`, `path`, `calls` and, for experts, `kernel`, `resident_bytes` and
        `restored` (how often packed weights were given back).
    """
    return _model.explain(model)


def revert(model: Any) -> Any:
    """Undoes `convert` and `experts_implementation="flexact"`; the model is transformers' own again."""
    return _model.revert(model)
