"""What a process runs, layer by layer: for the log, for `report()`, and for the server's own state."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from flexact.sglang import _switches
from flexact.sglang._config import ModelPlan

logger = logging.getLogger("flexact")


def as_configured(plan: ModelPlan) -> tuple[str | None, dict[str, Any]]:
    """`hidden_act` and `activation_params` as the configuration spells them, {} where it has none."""
    raw = plan.raw
    text = raw.get("text_config") if isinstance(raw.get("text_config"), dict) else {}
    name = next(
        (
            holder[key]
            for key in ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
            for holder in (raw, text)
            if isinstance(holder.get(key), str)
        ),
        None,
    )
    return name, raw.get("activation_params") or text.get("activation_params") or {}


def summary(loaded: Any) -> dict[str, Any]:
    """Plain data about a loaded model; JSON can hold it."""
    resolved = loaded.plan.activations
    loaded.read_counts()
    return {
        "model_type": resolved.model_type if resolved else None,
        "experts": [layer.describe() for layer in loaded.experts],
        "mlps": [layer.describe() for layer in loaded.mlps],
        "warnings": list(resolved.warnings) if resolved else [],
        "set_aside": loaded.plan.set_aside,
        "moe_runner_set_aside": loaded.runner_set_aside,
    }


def get_internal_state(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `Scheduler.get_internal_state`: adds the summary under "flexact"."""
    result = original(self, *args, **kwargs)
    loaded = getattr(self.tp_worker.model_runner, "_flexact", None)
    if loaded is not None:
        result.internal_state["flexact"] = summary(loaded)
    return result


def announce(loaded: Any) -> None:
    """Logs what was decided, as far as FLEXACT_VERBOSE asks for it; warnings always."""
    if loaded.plan.set_aside:
        print(
            f"flexact: {loaded.plan.path}: the model runs as SGLang has it, unverified:"
            f" {loaded.plan.set_aside}",
            file=sys.stderr,
            flush=True,
        )
        return
    for warning in loaded.plan.activations.warnings:
        logger.warning("%s: %s", loaded.plan.path, warning)
    if _switches.verbosity() >= 1:
        layers = (*loaded.experts, *loaded.mlps)
        print(
            f"flexact: {len(loaded.computed_here)} of {len(layers)} layers computed by flexact, the rest"
            " by SGLang",
            flush=True,
        )
    if _switches.verbosity() >= 2:
        for layer in (*loaded.experts, *loaded.mlps):
            row = layer.describe()
            print(
                f"flexact: {row['name']}: {row['function']} by {row['computed_by']} ({row['reason']})",
                flush=True,
            )
