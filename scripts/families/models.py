"""Model types, their configurations and how each is built on the meta device."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

# Tried in this order; the first that knows the type builds it.
_MAPPINGS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
_TEXT_MAPPINGS = _MAPPINGS[:-1]

# Sub-configurations that hold the text model, outermost first.
TEXT_KEYS = ("text_config", "thinker_config", "vlm_config", "decoder")


def _all_attention(keys: dict[str, Any]) -> dict[str, Any]:
    return {"layer_types": ["full_attention"] * keys.get("num_hidden_layers", 32)}


def _first_dense(keys: dict[str, Any]) -> dict[str, Any]:
    layers = keys.get("text_config", {}).get("num_hidden_layers", 32)
    return {"text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)}}


# Keys without which a type cannot be built from its own defaults, as an object or as a function of
# the other keys. None of them is about activations or about which layers hold experts.
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
REQUIRED: dict[str, dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]] = {
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16}},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "cohere_compass_text": {
        "layer_types": None,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    },
    "dbrx": {"attn_config": {"rope_theta": 500000.0, "kv_n_heads": 8, "clip_qkv": 8}},
    "deepseek_ocr2": _first_dense,
    "diffusion_gemma": {"text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704}},
    "dots1": {"n_routed_experts": 16, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "granite4_vision": {"deepstack_layer_map": [], "downsample_rate": "4/8"},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "lfm2_moe": _all_attention,
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "pegasus_x": {"stagger_local_blocks": False},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True},
}


# Stacks of a carrier that are not its text model.
NOT_TEXT_STACKS = {"vision-encoder-decoder": "encoder."}


# What must change with the number of layers.
def with_layers(model_type: str, layers: int) -> dict[str, Any]:
    """Keys that a model of this type with this many (a multiple of four) layers needs."""
    if model_type == "gpt_neo":
        return {"attention_types": [[["global", "local"], layers // 2]]}
    if model_type == "zamba2":
        return {"layers_block_type": ["mamba", "mamba", "hybrid", "mamba"] * (layers // 4)}
    if model_type in ("nllb-moe", "switch_transformers"):
        return {"num_experts": 4}  # each is a module of its own; fewer build faster
    return {}


def required(model_type: str, keys: dict[str, Any]) -> dict[str, Any]:
    """What must be added to `keys` so that the type can be built."""
    needed = REQUIRED.get(model_type, {})
    return needed(keys) if callable(needed) else needed


def build_classes(model_type: str) -> list[type[nn.Module]]:
    """The classes that may build a model of this type: with a language-model head, then bare."""
    found = []
    for mapping in _MAPPINGS:
        names = getattr(modeling_auto, mapping).get(model_type, ())
        for name in [names] if isinstance(names, str) else names:
            built = getattr(transformers, name, None)
            if built is not None and built not in found:
                found.append(built)
    return found


def text_model_types() -> list[str]:
    """Every type that transformers maps to a causal, seq2seq or multimodal language model."""
    found: set[str] = set()
    for mapping in _TEXT_MAPPINGS:
        found |= set(getattr(modeling_auto, mapping))
    return sorted(found)


def make_config(model_type: str, keys: dict[str, Any]):
    """The configuration that a file with these keys loads as."""
    return CONFIG_MAPPING[model_type].from_dict({"model_type": model_type, **keys})


def build(model_type: str, keys: dict[str, Any]) -> tuple[nn.Module, Any]:
    """(model on the meta device in evaluation mode, configuration)."""
    first_error = None
    for build_with in build_classes(model_type):
        config = make_config(model_type, merge(required(model_type, keys), keys))
        try:
            with torch.device("meta"):
                return build_with._from_config(config, experts_implementation="eager").eval(), config
        except Exception as error:  # some types are mapped to a class for their text config only
            first_error = first_error or error
    raise first_error or LookupError(f"no class builds {model_type}")


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, objects merged key by key."""
    out = dict(base)
    for key, value in over.items():
        out[key] = (
            merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
        )
    return out


def text_config(config) -> tuple[list[str], Any]:
    """(path of keys, configuration) of the text model inside a configuration; [] where it is flat."""
    for key in TEXT_KEYS:
        inner = getattr(config, key, None)
        if isinstance(inner, transformers.PretrainedConfig):
            path, deepest = text_config(inner)
            return [key, *path], deepest
    return [], config


def numbers_in(value: Any) -> set[float]:
    """Every number in a configuration."""
    if isinstance(value, bool):
        return set()
    if isinstance(value, int | float):
        return {float(value)}
    if isinstance(value, dict):
        return set().union(*(numbers_in(v) for v in value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*(numbers_in(v) for v in value)) if value else set()
    return set()


def parameter_numbers(config) -> set[float]:
    """The numbers of a configuration that a formula may hold: those under keys that name such a thing."""
    found: set[float] = set()

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                visit(v, k)
        elif re.search("limit|alpha|beta|clamp|softcap|cap$", str(key)):
            found.update(n for n in numbers_in(value) if abs(n) < 1e30)

    visit(config.to_dict(), "")
    return found
