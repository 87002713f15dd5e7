"""How a tiny model of each of SGLang's classes is made.

Where transformers has the class, its own configuration class gives the keys, `tiny` the sizes, and
transformers draws and saves the weights. For the rest, the keys are those of the family's published
config.json, and the weights are drawn inside SGLang.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from families import reference, tiny
from families.by_name import BY_NAME, EQUAL_HEADS, PUBLISHED
from families.published import ONLY_SGLANG, REMOVED
from families.tuning import CANNOT, CHANGES, DRAFT, FUNCTIONS, NOT_READ, OPTIONS, PLAIN

__all__ = ["NOT_READ", "Recipe", "all_recipes", "by_name"]


@dataclass
class Recipe:
    """One class's tiny model.

    Attributes:
        name: The class, which is also the architecture in config.json.
        module: SGLang's model file.
        keys: Changes to what transformers' configuration class gives; all keys where it has none.
        drawn: Whether SGLang draws the weights, for want of a class in transformers that saves them.
    """

    name: str
    module: str
    keys: dict[str, Any] = field(default_factory=dict)
    drawn: bool = False
    cannot: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    published: bool = False  # config.json holds `keys` and nothing else

    def build_drawn(self, folder: Path, progress: Any) -> dict[str, Any]:
        """As `build`; the weights of a checkpoint that SGLang cannot read are drawn in SGLang instead."""
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        return {**self._spec(), "drawn": True}

    def build(self, folder: Path, progress: Any) -> dict[str, Any]:
        """Writes the checkpoint (config.json alone where SGLang draws the weights)."""
        progress("build")
        if self.drawn:
            _write_config(folder, self.name, self.keys)
        elif self.published:
            _save_published(folder, self.name, self.keys)
        else:
            _save(folder, self.name, self.keys)
        return self._spec()

    def _spec(self) -> dict[str, Any]:
        return {
            "drawn": self.drawn,
            "options": {**OPTIONS.get(self.name, {}), **self.options},
            "plain": getattr(reference, PLAIN.get(self.name, ""), None),
            "functions": FUNCTIONS.get(self.name, {}),
        }


def all_recipes(classes: dict[str, str]) -> dict[str, Recipe]:
    """A recipe for each (class, model file)."""
    import transformers

    found = {}
    for name, module in classes.items():
        if any(part in name for part in DRAFT):
            reason = "a draft model: SGLang loads it beside the model that it proposes tokens to, never alone"
            found[name] = Recipe(name, module, cannot=reason)
        elif name in CANNOT:
            found[name] = Recipe(name, module, cannot=CANNOT[name])
        elif name in ONLY_SGLANG:
            found[name] = Recipe(name, module, ONLY_SGLANG[name], drawn=True)
        elif name in PUBLISHED:
            found[name] = dataclasses.replace(by_name()[PUBLISHED[name]], module=module)
        elif hasattr(transformers, name):
            found[name] = Recipe(name, module, CHANGES.get(name, {}))
        else:
            found[name] = Recipe(name, module, cannot="no tiny configuration was made for it")
    return found


def by_name() -> dict[str, Recipe]:
    """A recipe for each model that is asked for by name."""
    found = {}
    for name, (architecture, keys) in BY_NAME.items():
        keys = tiny.shrink(keys) | {"architectures": [architecture]}
        if name in EQUAL_HEADS:
            keys["num_key_value_heads"] = tiny.HEADS
        drawn = architecture in ONLY_SGLANG
        found[name] = Recipe(architecture, "", keys, drawn=drawn, published=not drawn)
    return found


def _save_published(folder: Path, name: str, keys: dict[str, Any]) -> None:
    import torch
    import transformers

    build = getattr(transformers, name)
    torch.manual_seed(0)
    model = build._from_config(build.config_class.from_dict(dict(keys)), dtype=torch.float32).eval()
    _scale(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**keys, "torch_dtype": "float32"}, indent=1))


def _save(folder: Path, name: str, changes: dict[str, Any]) -> None:
    import torch
    import transformers

    build = getattr(transformers, name)
    defaults = build.config_class().to_dict()
    keys = tiny.merge(tiny.shrink(defaults), changes)
    config = build.config_class.from_dict(keys)
    config.architectures = [name]
    torch.manual_seed(0)
    model = build._from_config(config, dtype=torch.float32).eval()
    _scale(model)
    model.save_pretrained(folder)


def _scale(model: Any) -> None:
    """Weights large enough for the activation to bend, whatever the class's initialisation."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and 0 < parameter.std() < 0.1:
                parameter.mul_(0.12 / parameter.std())
            elif parameter.dim() == 1 and name.endswith("bias"):
                parameter.normal_(0, 0.05)


def _write_config(folder: Path, name: str, keys: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    if not keys.get("auto_map"):  # the class's own defaults, at tiny sizes, under the published keys
        defaults = CONFIG_MAPPING[keys["model_type"]]().to_dict()
        keys = tiny.merge(tiny.shrink(defaults), keys)
    keys = {key: value for key, value in keys.items() if value != REMOVED}
    config = {"architectures": [name], "torch_dtype": "float32", **keys}
    if keys.get("auto_map"):
        config["auto_map"] = {"AutoConfig": "configuration_tiny.TinyConfig"}
        (folder / "configuration_tiny.py").write_text(_REMOTE.format(model_type=keys["model_type"]))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


_REMOTE = '''from types import SimpleNamespace

from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    """Stands in for the configuration class that the published checkpoint brings along."""

    model_type = {model_type!r}

    def __init__(self, block_configs=None, **keys):
        super().__init__(**keys)
        if block_configs:
            parts = [{{name: SimpleNamespace(**part) for name, part in b.items()}} for b in block_configs]
            self.block_configs = [SimpleNamespace(**part) for part in parts]
'''
