"""SGLang 0.5.21 in the test's own process: models are loaded under the plugin, no server is started.

What a scheduler does before it loads a model happens once; then each `load` builds and loads one model
exactly as `ModelRunner.load_model` does, through the plugin's hooks.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"


_args: Any = None


def prepare_imports() -> None:
    """Loads SGLang's plugins, flexact among them; once in a process."""
    from sglang.srt.plugins import load_plugins

    load_plugins()


def prepare(model: str) -> Any:
    """Loads the plugin and publishes a one-rank CPU configuration, once; returns the server arguments."""
    global _args
    if _args is not None:
        return _args
    prepare_imports()
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.layers.moe.utils import initialize_moe_config
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=model,
        device="cpu",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        dtype="float32",
        log_level="error",
    )
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parallel_state.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, distributed_init_method=f"tcp://127.0.0.1:{port}", backend="gloo"
    )
    parallel_state.initialize_model_parallel()
    initialize_dp_attention(args)
    initialize_moe_config()
    _args = args
    return args


def load(
    folder: Path,
    override: dict[str, Any] | None = None,
    *,
    options: dict[str, Any] | None = None,
    dummy_weights: bool = False,
    **config: Any,
) -> Any:
    """Loads a model under the plugin; returns an object with `.model` and `._flexact`.

    Args:
        folder: The checkpoint.
        override: What --json-model-override-args would hold.
        options: Server arguments, as the plugin's checks read them.
        dummy_weights: Draw random weights instead of reading a checkpoint.
        **config: More arguments of `ModelConfig`.
    """
    args = prepare(str(folder))
    from flexact.sglang import _model
    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.loader import get_model_loader

    config = {"dtype": "float32", **config}
    model_config = ModelConfig(str(folder), model_override_args=json.dumps(override or {}), **config)
    runner = SimpleNamespace(
        model_config=model_config,
        server_args=SimpleNamespace(model_path=args.model_path, **(options or {})),
        is_draft_worker=bool(config.get("is_draft_model")),
    )

    def original(self: Any) -> None:
        loader = get_model_loader(
            load_config=LoadConfig(load_format="dummy" if dummy_weights else "auto"),
            model_config=model_config,
        )
        self.model = loader.load_model(model_config=model_config, device_config=DeviceConfig("cpu", 0))

    _model.load_model(original, runner)
    return runner
