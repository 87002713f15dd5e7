"""Which SGLang functions are hooked, and proof that they are.

SGLang logs a hook that it cannot apply and goes on without it. Here each target must exist, and the
end of SGLang's own application step is checked; a missing hook ends the process.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flexact.sglang._stop import stop


@dataclass(frozen=True)
class Hook:
    """An AROUND hook: `module.function(original, *args, **kwargs)` runs in place of `target`."""

    target: str
    module: str
    function: str
    required: bool = True  # False: the target is absent in some supported releases, which then do not need it

    def load(self) -> Callable[..., Any]:
        """The hook's function."""
        return getattr(importlib.import_module(f"flexact.sglang.{self.module}"), self.function)


_SRT = "sglang.srt"
_UPDATER = f"{_SRT}.model_executor.model_runner_components.weight_updater.WeightUpdater"
_EXPORTER = f"{_SRT}.model_executor.model_runner_components.weight_exporter.WeightExporter"

HOOKS = (
    # Arguments are resolved when they are made or, in later releases, by a call of their own.
    Hook(f"{_SRT}.server_args.ServerArgs.__post_init__", "_runner", "check_arguments"),
    Hook(f"{_SRT}.server_args.ServerArgs.resolve_once", "_runner", "check_arguments", required=False),
    Hook(f"{_SRT}.configs.model_config.ModelConfig.__init__", "_model", "model_config_init"),
    Hook(f"{_SRT}.entrypoints.engine.Engine._launch_subprocesses", "_launch", "launch_subprocesses"),
    Hook(f"{_SRT}.entrypoints.engine._set_envs_and_config", "_launch", "set_envs_and_config"),
    Hook(f"{_SRT}.entrypoints.engine._wait_for_scheduler_ready", "_launch", "wait_for_scheduler_ready"),
    Hook(f"{_SRT}.model_loader.loader._initialize_model", "_model", "initialize_model"),
    Hook(f"{_SRT}.model_executor.model_runner.ModelRunner.load_model", "_model", "load_model"),
    Hook(f"{_SRT}.model_executor.model_runner.ModelRunner.forward", "_model", "forward"),
    Hook(f"{_SRT}.layers.moe.fused_moe_triton.layer.FusedMoE.__init__", "_experts", "fused_moe_init"),
    Hook(f"{_SRT}.layers.moe.fused_moe_triton.layer.FusedMoE.run_moe_core", "_experts", "run_moe_core"),
    Hook(
        f"{_SRT}.layers.moe.fused_moe_triton.layer.FusedMoE.bind_full_expert_weights",
        "_experts",
        "bind_weights",
    ),
    Hook(f"{_SRT}.lora.layers.FusedMoEWithLoRA.__init__", "_experts", "lora_init"),
    Hook(f"{_SRT}.managers.scheduler.Scheduler.get_internal_state", "_report", "get_internal_state"),
    Hook(f"{_UPDATER}.update_weights_from_disk", "_weights", "refuse_update"),
    Hook(f"{_UPDATER}.update_weights_from_tensor", "_weights", "refuse_update"),
    Hook(f"{_UPDATER}.update_weights_from_ipc", "_weights", "refuse_update"),
    # Renamed between releases: one of the two is there.
    Hook(f"{_UPDATER}.update_weights_from_distributed", "_weights", "refuse_update", required=False),
    Hook(f"{_UPDATER}.load_weights_from_distributed", "_weights", "refuse_update", required=False),
    Hook(f"{_EXPORTER}.get_weights_by_name", "_weights", "refuse_read"),
    Hook(f"{_EXPORTER}.save_remote_model", "_weights", "refuse_save"),
    Hook(f"{_EXPORTER}.save_sharded_model", "_weights", "refuse_save"),
    Hook(f"{_EXPORTER}.init_weights_send_group_for_remote_instance", "_weights", "refuse_update"),
    Hook(f"{_EXPORTER}.send_weights_to_remote_instance", "_weights", "refuse_update"),
)


def install() -> None:
    """Registers the hooks with SGLang and has their application checked."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from flexact.sglang import _switches

    _switches.check()
    importlib.import_module("flexact._core")  # what cannot be loaded is found out here, not in a layer
    wanted = []
    for hook in HOOKS:
        try:
            pkgutil.resolve_name(hook.target)
        except (ImportError, AttributeError) as error:
            if hook.required:
                stop(
                    f"this SGLang release ({_sglang_version()}) has no {hook.target} ({error}); supported:"
                    " 0.5.17 to 0.5.23"
                )
            continue
        wanted.append(hook)
    if not any(hook.target.endswith("_from_distributed") for hook in wanted):
        stop(
            f"this SGLang release ({_sglang_version()}) updates weights through a function that the plugin"
            " does not know"
        )
    for hook in wanted:
        HookRegistry.register(hook.target, hook.load(), HookType.AROUND)

    apply = HookRegistry.apply_hooks.__func__

    def apply_and_check(cls: type) -> None:
        apply(cls)
        for hook in wanted:
            if not is_applied(hook):
                stop(f"SGLang could not hook {hook.target} (its log says why)")

    HookRegistry.apply_hooks = classmethod(apply_and_check)


def is_installed() -> bool:
    """Whether every required hook is in place in this process."""
    return all(is_applied(hook) for hook in HOOKS if hook.required)


def is_applied(hook: Hook) -> bool:
    """Whether calls to the target reach the hook."""
    wanted = hook.load()
    return any(
        cell.cell_contents is wanted
        for function in _wrapped(pkgutil.resolve_name(hook.target))
        for cell in function.__closure__ or ()
        if _is_filled(cell)
    )


def _wrapped(function: Any) -> Iterator[Any]:
    """`function` and what it wraps, outermost first."""
    function = getattr(function, "__func__", function)
    while function is not None:
        if hasattr(function, "__closure__"):
            yield function
        function = getattr(function, "__wrapped__", None)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _sglang_version() -> str:
    try:
        return importlib.import_module("sglang.version").__version__
    except Exception:
        return "version unknown"
