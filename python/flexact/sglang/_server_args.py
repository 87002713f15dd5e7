"""Arguments for `sglang.Engine`, and what this environment has to offer the plugin."""

from __future__ import annotations

import json
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from flexact.sglang import _config

GROUP = "sglang.srt.plugins"
NAME = "flexact"

# SGLang's CPU engine without AMX: what was run on 0.5.17 to 0.5.23. Left alone, its KV cache takes
# most of the machine's memory.
CPU_DEFAULTS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "max_total_tokens": 8192,
    "max_running_requests": 8,
    "mem_fraction_static": 0.5,
}


def plugin_absence() -> str | None:
    """Why SGLang would not load the plugin in this environment, or None."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == NAME]
    if not found:
        return "flexact is not installed beside SGLang: pip install it in this environment"
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed and NAME not in {name.strip() for name in allowed.split(",")}:
        return f"SGLANG_PLUGINS={allowed!r} leaves it out: add {NAME}"
    return None


def has_gpu() -> bool:
    """Whether SGLang would find a GPU of any kind."""
    import torch

    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def server_args(
    model_path: str, *, config_override: dict[str, Any] | str | None = None, **kwargs: Any
) -> dict[str, Any]:
    """See `flexact.sglang.server_args`."""
    if absence := plugin_absence():
        raise RuntimeError(f"SGLang would serve without the plugin: {absence}")
    arguments: dict[str, Any] = {"model_path": os.fspath(model_path)}
    if kwargs.get("device", "cpu") == "cpu" and not has_gpu():
        arguments |= CPU_DEFAULTS
        # Read by SGLang when it is imported, here and in the processes that it starts.
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        if (tp := kwargs.get("tp_size", 1)) > 1:
            _bind_ranks(tp)
    override = config_override if isinstance(config_override, str) else json.dumps(config_override or {})
    if config_override:
        if "json_model_override_args" in kwargs:
            raise ValueError(
                "config_override and json_model_override_args say the same thing: give one of them"
            )
        arguments["json_model_override_args"] = override
    arguments |= kwargs
    folder = Path(arguments["model_path"])
    if folder.is_dir() and (folder / "config.json").is_file():
        _config.resolve(folder / "config.json", arguments.get("json_model_override_args", ""))
    return arguments


def _bind_ranks(count: int) -> None:
    """One share of this process's cores per rank: SGLang takes NUMA nodes by default, and needs as many."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // count)
    ranges = [cores[i * share : (i + 1) * share] or cores[-1:] for i in range(count)]
    os.environ.setdefault(
        "SGLANG_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, each)) for each in ranges)
    )
    # torch.compile of the vocabulary embedding takes longer than everything else of a CPU start.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
