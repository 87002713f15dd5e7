"""Every experts class of the installed transformers, through a tiny random checkpoint of its own.

    python tests/python/transformers_sweep.py                    # prints, fails on a surprise
    python tests/python/transformers_sweep.py --record           # also writes docs/transformers_support.*
    python tests/python/transformers_sweep.py mixtral gpt_oss    # these model types only

For each model type a small model is built from transformers' own configuration class, saved, and
loaded again: once with transformers' eager loop, once with flexact. Default function: the outputs are
the same. `activation_params` with swish, beta 1.3, for the routed experts: the outputs are those of the
eager loop around a function written out by hand, and not those of the default.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import importlib
import inspect
import json
import pkgutil
import re
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import flexact
import flexact.transformers as adapter
import torch
import transformers
from flexact.transformers._model import experts
from torch import nn
from transformers.models.auto import configuration_auto, modeling_auto

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "transformers_support.json"
BETA = 1.3
PARAMS = {"routed": {"name": "swish", "beta": BETA}}
TOLERANCE = 1e-5

# Sizes that every configuration gets where it has the key.
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "unpadded_vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.12,
    "tie_word_embeddings": False,
    "sliding_window": 64,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LARGEST = 20_000_000  # parameters
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
# Where a family compresses keys and values.
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 8,
}
# What single families need beside the common sizes.
_GEMMA4 = {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 48,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "per_layer_config": {},
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_ocr2_text": {"num_key_value_heads": 4, "num_experts_per_tok": 2, **_SPARSE},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma_text": _GEMMA4,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {  # its sizes inside ffn_config do not survive saving unless they are the default's
        "hidden_size": 2048,
        "num_hidden_layers": 1,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_top_k": 2, "hidden_size": 2048},
    },
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "dots3_note_text": {"per_layer_config": {}, "shared_experts_intermediate_size": 48, "head_dim": 32},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [48, 48],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
    },
    "gemma4_text": _GEMMA4,
    "glm4v_moe_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "glm5_next_text": {"num_key_value_heads": 4, "index_topk": 16, "qk_rope_head_dim": 0},
    "granitemoeshared": {"shared_intermediate_size": 48},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "hy_v4_vl_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
    },
    "lfm2_moe": {"layer_types": ["full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"ffn_hidden_size": 96, "expert_ffn_hidden_size": 48, "num_layers": 2, "moe_topk": 2},
    "mistral4": {"head_dim": 32},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 48},
    "unlimited_ocr_text": {"num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}


@functools.cache
def experts_classes() -> dict[str, str]:
    """Every class on the experts interface → its model folder; and every other class called Experts."""
    found: dict[str, str] = {}
    package = importlib.import_module("transformers.models")
    for folder in pkgutil.iter_modules(package.__path__):
        name = f"transformers.models.{folder.name}.modeling_{folder.name}"
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == name:
                on_interface = hasattr(cls, "_apply_gate") and hasattr(cls.forward, "__wrapped__")
                if on_interface or cls.__name__.endswith(("Experts", "ExpertGLU", "CDMoE")):
                    found[cls.__name__] = folder.name
    return found


def tiny_config(model_type: str) -> Any:
    """The family's configuration class with small sizes."""
    config = tiny(configuration_auto.CONFIG_MAPPING[model_type], _FAMILIES.get(model_type, {}))
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config)(config).parameters())
    assert size < _LARGEST, f"{size} parameters are too many"
    return config


def tiny(cls: Any, changes: dict[str, Any]) -> Any:
    default = cls()
    sizes = {**_SIZES, **(_LATENT if has(default, "kv_lora_rank") else {})}
    settings = {key: value for key, value in sizes.items() if has(default, key)}
    settings |= {
        key: 4 for key in _EXPERT_COUNTS if has(default, key) and isinstance(getattr(default, key), int)
    }
    if has(default, "mlp_layer_types") and {"dense", "sparse"} == set(default.mlp_layer_types):
        settings |= _SPARSE
    for name in getattr(cls, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            settings[name] = tiny(type(part), {}).to_dict()
    return cls(**(settings | changes))


def has(config: Any, key: str) -> bool:
    try:
        return getattr(config, key) is not None
    except Exception:  # some configurations refuse to answer for all layers at once
        return key in type(config).__dataclass_fields__


def model_class(config: Any) -> Any:
    """The class that computes logits, else the bare model."""
    for mapping in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    modeling = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for found in vars(modeling).values():
        name = getattr(found, "__name__", "")
        own = inspect.isclass(found) and getattr(found, "config_class", None) is type(config)
        if own and name.endswith("Model") and "PreTrained" not in name:
            return found
    raise LookupError(f"no model class for {type(config).__name__}")


def output(model: Any) -> torch.Tensor:
    """What the model computes for a fixed text."""
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        result = model(input_ids=ids, use_cache=False)
    return getattr(result, "logits", None) if hasattr(result, "logits") else result.last_hidden_state


class Handwritten(nn.Module):
    """x * sigmoid(1.3 * x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(BETA * x)


def handwrite(model: Any) -> int:
    """Writes the function into every experts module by hand; returns how many there were."""
    swish, count = Handwritten(), 0

    def gate(concatenated: bool) -> Any:
        def apply(h: torch.Tensor) -> torch.Tensor:
            g, u = h.chunk(2, -1) if concatenated else (h[..., ::2], h[..., 1::2])
            return swish(g) * u

        return apply

    for _, module in experts(model):
        if getattr(module, "act_fn", None) is not None:
            module.act_fn = swish
        if getattr(module, "has_gate", True):
            module._apply_gate = gate(getattr(module, "is_concatenated", True))
        count += 1
    return count


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).item()


def check(model_type: str, folder: Path, row: dict[str, Any] | None = None) -> dict[str, Any]:
    """One row of the table: the model type, through a checkpoint."""
    row = {} if row is None else row
    torch.manual_seed(0)
    config = tiny_config(model_type)
    cls = model_class(config)
    built = cls(config).float().eval()
    present = {type(module).__name__ for module in built.modules()} & set(experts_classes())
    classes = sorted({type(module).__name__ for _, module in experts(built)} or present)
    row |= {"model_type": model_type, "model": cls.__name__, "classes": classes}
    fill(built)
    built.save_pretrained(folder)
    del built

    def load(implementation: str) -> Any:
        return cls.from_pretrained(
            folder, dtype=torch.float32, experts_implementation=implementation, attn_implementation="eager"
        ).eval()

    def configure(model: Any) -> Any:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"activation_params": PARAMS}))
        return load("flexact")

    return compare(row, load("flexact"), load("eager"), output, configure)


def check_class(name: str, folder: str, row: dict[str, Any]) -> dict[str, Any]:
    """One row: a class that no text model of its folder leads to, alone in a list of layers."""
    modeling = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    row |= {"model_type": "", "model": "the class alone", "classes": [name]}
    for config_class in configuration_auto.CONFIG_MAPPING.values():
        if config_class.__module__ == modeling.__name__.replace("modeling", "configuration"):
            with contextlib.suppress(Exception):
                config = tiny(config_class, {"num_hidden_layers": 1})
                module = getattr(modeling, name)(config)
                break
    else:
        raise LookupError(f"no configuration makes {name}")
    alone = nn.Module()
    alone.config, alone.layers = config, nn.ModuleList([module])
    for parameter in alone.parameters():  # without a model nothing initialises them
        nn.init.normal_(parameter, std=0.2)
    x, ids = torch.randn(9, 64), torch.randint(0, 4, (9, 2))
    weights = torch.rand(9, 2)

    def run(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.layers[0](x, ids, weights)

    def chosen(implementation: str) -> Any:
        model = copy.deepcopy(alone)
        model.config._experts_implementation = implementation
        model.layers[0].config = model.config
        return adapter.prepare(model) if implementation == "flexact" else model

    def configure(model: Any) -> Any:
        alone.config.activation_params = PARAMS
        return chosen("flexact")

    return compare(row, chosen("flexact"), chosen("eager"), run, configure)


def fill(model: nn.Module) -> None:
    """Random numbers where a class leaves zeros, ones or nothing: they would hide errors."""
    for parameter in model.parameters():
        if parameter.dim() >= 2 and not parameter.std() > 1e-3:
            nn.init.normal_(parameter, std=0.1)


def compare(row: dict[str, Any], model: Any, eager: Any, run: Any, configure: Any) -> dict[str, Any]:
    """The default function, then the configured one beside the one written by hand."""
    plain = run(eager)
    row["default"] = difference(run(model), plain)
    assert handwrite(eager) == len(experts(eager)) > 0
    expected = run(eager)
    model = configure(model)
    row["custom"] = difference(run(model), expected)
    row["without"] = difference(plain, expected)
    rows = [each for each in adapter.explain(model) if each["computed_by"] == "flexact"]
    # Experts of another modality than text have nothing to do here; those beside them do.
    layers = {each["layer"] for each in rows}
    assert layers == {each["layer"] for each in rows if each["calls"] == 1}, rows
    good = row["default"] <= TOLERANCE and row["custom"] <= TOLERANCE and row["without"] > 1e-3
    return row | {"status": "supported" if good else "WRONG"}


def interesting(model_type: str, folders: set[str]) -> bool:
    """Whether the type is a text model of a folder that has experts; a whole is its text model's row."""
    cls = configuration_auto.CONFIG_MAPPING[model_type]
    other = ("vision", "audio", "encoder", "code_predictor")
    if cls.__module__.split(".")[-2] not in folders or any(part in model_type for part in other):
        return False
    return not any("text" in name or "thinker" in name for name in getattr(cls, "sub_configs", {}))


def guarded(row: dict[str, Any], function: Any, *arguments: Any) -> dict[str, Any]:
    """The row, or why there is none."""
    try:
        return function(*arguments, row)
    except flexact.Error as error:
        return row | {"status": "refused", "reason": str(error)}
    except Exception as error:
        if "--trace" in sys.argv:
            traceback.print_exc()
        return row | {"status": "not built", "reason": f"{type(error).__name__}: {error}"[:200]}


def sweep(types: list[str]) -> list[dict[str, Any]]:
    """The rows of these model types; of every type and class of the release where none is named."""
    classes = experts_classes()
    every = sorted(t for t in configuration_auto.CONFIG_MAPPING if interesting(t, set(classes.values())))
    rows = []
    for model_type in types or every:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(guarded({"model_type": model_type, "classes": []}, check, model_type, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
        gc.collect()
    reached = {name for row in rows if row["status"] != "not built" for name in row["classes"]}
    for name, folder in sorted(classes.items()) if not types else ():
        if name not in reached:
            rows.append(guarded({"model_type": "", "classes": [name]}, check_class, name, folder))
            print(json.dumps(rows[-1]), flush=True)
    built = {name for row in rows if row["status"] != "not built" for name in row["classes"]}
    return [row for row in rows if not (row["status"] == "not built" and set(row["classes"]) <= built)]


def table(results: dict[str, Any]) -> str:
    """The page: one line a class."""
    versions = sorted(results, key=lambda version: [int(part) for part in version.split(".")])
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for version in versions:
        for row in results[version]:
            for name in row["classes"]:
                key = (name, row["model_type"] or "–")
                lines.setdefault(key, {})[version] = cell(row)
    counts = [
        f"{version}: {sum(row['status'] == 'supported' for row in results[version])} model types supported,"
        f" {sum(row['status'] == 'refused' for row in results[version])} refused"
        for version in versions
    ]
    head = "| class | model type | " + " | ".join(versions) + " |\n|---|---|" + "---|" * len(versions)
    body = [
        f"| {name} | {model_type} | " + " | ".join(found.get(v, "not there") for v in versions) + " |"
        for (name, model_type), found in sorted(lines.items())
    ]
    return _PAGE.format(counts="\n".join(f"- {c}" for c in counts), table="\n".join([head, *body]))


def cell(row: dict[str, Any]) -> str:
    if row["status"] == "supported":
        return f"{row['default']:.0e} / {row['custom']:.0e}"
    reason = (
        "not on the experts interface"
        if "interface computes" in row.get("reason", "")
        else row.get("reason", "")
    )
    return f"{row['status']}: {reason[:160].splitlines()[0] if reason else 'the outputs differ'}"


_PAGE = """# transformers: every experts class

Generated by `make test-transformers RECORD=--record`; do not edit. Each model type was built at a small
size from transformers' own configuration class, saved, and loaded again. A cell holds the largest
difference in float32, relative to the largest output, of flexact from transformers' eager loop: with the
class's own function, and with `swish` of beta 1.3 beside the same function written by hand. The limit is
1e-5; without flexact the second difference is above 1e-3 everywhere.

{counts}

Data: [transformers_support.json](transformers_support.json).

{table}
"""


def releases() -> set[str]:
    """The releases that `make test-transformers` goes through: SGLang's pin and the newest one."""
    files = (ROOT / "requirements" / f"transformers-{name}.txt" for name in ("cpu", "newest"))
    return {re.search(r"^transformers==(.+)$", file.read_text(), re.M)[1] for file in files}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*")
    parser.add_argument(
        "--record", action="store_true", help="write docs/transformers_support.json and its page"
    )
    parser.add_argument("--trace", action="store_true", help="show where a model could not be built")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    # A family whose sizes stayed large must fail by itself, not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    rows = sweep(arguments.types)
    wrong = [row for row in rows if row["status"] in ("WRONG", "not built")]
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if arguments.record and not arguments.types:
        recorded = {version: found for version, found in recorded.items() if version in releases()}
        recorded[transformers.__version__] = [
            {key: float(f"{value:.1e}") if isinstance(value, float) else value for key, value in row.items()}
            for row in rows
        ]
        RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
        RECORD.with_name("transformers-support.md").write_text(table(recorded))
    before = {tuple(row["classes"]): row["status"] for row in recorded.get(transformers.__version__, [])}
    changed = [
        row
        for row in rows
        if before.get(tuple(row["classes"]), row["status"]) != row["status"] and not arguments.record
    ]
    for row in wrong + changed:
        print(f"SURPRISE {json.dumps(row)}")
    print(f"transformers {transformers.__version__}: {len(rows)} rows, {len(wrong + changed)} surprises")
    return 1 if wrong or changed else 0


if __name__ == "__main__":
    sys.exit(main())
