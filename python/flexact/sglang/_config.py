"""From SGLang's arguments to one activation per layer and role.

What is resolved is the file's bytes and the overrides, not the config object that SGLang and
transformers make of them: those fill in, rename and drop keys.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from flexact.sglang._stop import stop

CONFIG = "config.json"


def resolve(path: Path, overrides: str) -> tuple[Any | None, str]:
    """The activations of a model, or None and the reason why the plugin leaves the model as it is.

    It leaves a model alone where the resolver says that no one function is what its family computes (the
    references of Grok disagree, Gemma 3n looks at whole rows) and nobody asked for another.

    Raises:
        flexact.Error: The configuration is wrong, or asks for an activation that such a family cannot have.
    """
    import flexact

    try:
        return flexact.resolve_config(path, overrides=overrides), ""
    except flexact.Unsupported as error:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if _has_params(content) or json.loads(overrides or "{}"):
            raise
        return None, str(error)


def _has_params(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("activation_params")) or any(map(_has_params, value.values()))
    return False


class ModelPlan:
    """The resolved activations of one model, and where they came from.

    Attributes:
        path: The config file.
        overrides: JSON text merged over it.
        activations: What was resolved; None where the model is left as it is.
        set_aside: Why it is left as it is.
        layers: The resolved layers.
    """

    def __init__(self, path: Path, overrides: str) -> None:
        import flexact

        self.path = path
        self.overrides = overrides
        try:
            self.activations, self.set_aside = resolve(path, overrides)
        except flexact.Error as error:
            stop(f"{path}: {error}")
        self.layers = list(self.activations.layers) if self.activations else []

    @functools.cached_property
    def raw(self) -> dict[str, Any]:
        """config.json with the overrides merged over it, one level deep as SGLang does."""
        merged = json.loads(self.path.read_text(encoding="utf-8-sig"))
        for key, value in json.loads(self.overrides or "{}").items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict) and key.endswith("config"):
                merged[key] = {**merged[key], **value}
            else:
                merged[key] = value
        return merged

    def in_file(self, key: str) -> Any:
        """What config.json itself holds under a key of the text model, overrides aside."""
        content = json.loads(self.path.read_text(encoding="utf-8-sig"))
        return content.get(key, (content.get("text_config") or {}).get(key))

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return self.path.parent

    def entry(self, layer: int, role: str) -> Any | None:
        """The resolved activation of `layer` (absolute number) in `role`, or None."""
        from flexact import config

        return config.entry(self.activations, layer, role)

    def family_entry(self, layer: int, role: str) -> Any | None:
        """What the family computes by config.json alone, `activation_params` left out; None if unknown."""
        from flexact import config

        return None if self._family is None else config.entry(self._family, layer, role)

    @functools.cached_property
    def _family(self) -> Any | None:
        import flexact

        content = json.loads(self.path.read_text(encoding="utf-8-sig"))
        for part in (content, *(value for value in content.values() if isinstance(value, dict))):
            part.pop("activation_params", None)
        try:
            return flexact.resolve_config(content)
        except flexact.Error:
            return None

    def entries(self) -> list[tuple[int, str, Any]]:
        """All (layer, role, activation) of the model."""
        from flexact import config

        return config.entries(self.activations) if self.activations else []

    @functools.cached_property
    def custom(self) -> bool:
        """Whether any layer computes something else than plain SwiGLU, SGLang's default everywhere."""
        return any(not is_swiglu(entry) for _, _, entry in self.entries())

    @functools.cached_property
    def custom_experts(self) -> bool:
        """Whether any routed expert does, or is asked to run on flexact."""
        from flexact.sglang import _switches

        always = _switches.value("FLEXACT_MOE") == "always"
        return any(role == "routed" and (always or not is_swiglu(entry)) for _, role, entry in self.entries())


@functools.cache
def _swiglu() -> str:
    import flexact

    return flexact.Function.named("silu").gated().canonical


def is_swiglu(entry: Any) -> bool:
    """Whether `entry` is silu(g) * u without parameters."""
    return entry.activation.function.canonical == _swiglu()


@functools.lru_cache(maxsize=8)
def _plan(path: Path, overrides: str, stamp: tuple[int, int]) -> ModelPlan:
    return ModelPlan(path, overrides)


def plan_for(path: Path, overrides: str) -> ModelPlan:
    """The plan of a config file; read again where the file has changed."""
    stat = path.stat()
    return _plan(path, overrides, (stat.st_mtime_ns, stat.st_size))


def for_server(args: Any) -> ModelPlan | None:
    """The plan for SGLang's server arguments; None where SGLang has yet to fetch the file."""
    path = locate(
        args.model_path,
        revision=getattr(args, "revision", None),
        config_file=getattr(args, "decrypted_config_file", None),
        parser=getattr(args, "model_config_parser", None) or "auto",
        fetched=False,
    )
    return plan_for(path, getattr(args, "json_model_override_args", None) or "{}") if path else None


def locate(
    model: str,
    *,
    revision: str | None = None,
    config_file: str | None = None,
    parser: str = "auto",
    fetched: bool = True,
) -> Path | None:
    """The config file whose bytes describe the model, or an end with the reason why there is none.

    Args:
        model: SGLang's model path: a folder, or a hub name.
        revision: The hub revision.
        config_file: A file that stands in for config.json (SGLang's decrypted configuration).
        parser: SGLang's `model_config_parser`.
        fetched: Whether SGLang has had its chance to download; without it, None is returned for a
            name that is not in the local cache.
    """
    path = Path(model)
    if path.is_file() or str(model).endswith(".gguf"):
        stop(
            f"{model}: GGUF and other single-file checkpoints carry no config.json, so their activation"
            " cannot be"
            " resolved; serve the original checkpoint's folder"
        )
    if parser not in ("auto", "hf"):
        stop(
            f"--model-config-parser {parser}: only config.json is resolved, not {parser}-format"
            " configurations"
        )
    if config_file and config_file.strip():
        candidate = path / config_file.strip()
        return candidate if candidate.is_file() else _absent(candidate)
    if path.is_dir():
        return _in_folder(path)
    if os.environ.get("SGLANG_USE_MODELSCOPE", "").lower() in ("1", "true", "yes"):
        stop(f"{model}: a ModelScope name is not resolved; download it and serve the folder")
    if "://" in str(model):
        return (
            None
            if not fetched
            else stop(f"{model}: a remote checkpoint has no local config.json; copy it and serve the folder")
        )
    found = _in_cache(str(model), revision)
    if found is None and fetched:
        stop(f"{model}: not a folder, and the hub's local cache holds no {CONFIG} for it; download it first")
    return found


def _in_folder(folder: Path) -> Path:
    """config.json of a checkpoint folder, unless SGLang would read another format's."""
    from sglang.srt.utils.hf_transformers.mistral_utils import is_mistral_model

    if is_mistral_model(str(folder)) or (
        not (folder / CONFIG).is_file() and (folder / "params.json").is_file()
    ):
        stop(
            f"{folder}: SGLang reads this checkpoint's mistral-format params.json; only config.json is"
            " resolved"
        )
    if not (folder / CONFIG).is_file():
        if any(folder.glob("*.gguf")):
            stop(f"{folder}: GGUF checkpoints carry no config.json, so their activation cannot be resolved")
        _absent(folder / CONFIG)
    return folder / CONFIG


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, CONFIG, revision=revision)
    except ValueError:  # not a hub name either
        return None
    return Path(found) if isinstance(found, str) else None


def _absent(path: Path) -> None:
    stop(f"{path}: no such file, so the model's activation cannot be resolved")
