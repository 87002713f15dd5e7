"""Serving with SGLang: the plugin that puts the configured activation into every layer.

SGLang loads `register` by entry point in each of its processes. Nothing heavier than the standard
library is imported here: a plugin that fails to import is skipped by SGLang, which would then serve
without it. docs/sglang.md describes the hooks, the switches and what is refused.
"""

from __future__ import annotations

from typing import Any

from flexact.sglang._stop import Stop, stop

__all__ = ["Stop", "register", "report", "server_args"]


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`; any failure ends the process.

    Raises:
        Stop: The plugin cannot guarantee its work in this process; exit code 2.
    """
    try:
        from flexact.sglang import _hooks

        _hooks.install()
    except Stop:
        raise
    except Exception as error:
        stop(f"the SGLang plugin cannot start: {type(error).__name__}: {error}")


def server_args(
    model_path: str, *, config_override: dict[str, Any] | str | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Keyword arguments for `sglang.Engine` that serve `model_path` with its own activation.

    Args:
        model_path: A model folder, or a hub name that is in the local cache.
        config_override: Merged over config.json, e.g. `{"hidden_act": "swish",
            "activation_params": {"beta": 1.2}}`.
        **kwargs: SGLang's own server arguments; they win over the defaults chosen here. Without a GPU
            the defaults are those of SGLang's CPU engine.

    Returns:
        A dict for `sglang.Engine(**…)`.

    Raises:
        flexact.ConfigError: The configuration does not resolve.
        RuntimeError: SGLang would not load the plugin in this environment.
    """
    from flexact.sglang._server_args import server_args as build

    return build(model_path, config_override=config_override, **kwargs)


def report(engine: Any) -> list[dict[str, Any]]:
    """What each scheduler of a running `sglang.Engine` runs: layers, functions, executions.

    Args:
        engine: A started `sglang.Engine`.

    Returns:
        One dict per data-parallel replica (its first rank): `experts` and `mlps` are lists with one
        entry per layer: its name, function, values' origin, who computes it and how often it ran.
    """
    return [state.get("flexact", {}) for state in engine.get_server_info()["internal_states"]]
