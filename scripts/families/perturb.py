"""Changes one key of a configuration after another and records what the rebuilt model computes."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from typing import Any

from . import models, probe
from .formulas import Matcher

# transformers' names of activations (its ACT2FN), all of which are tried under a family's key.
NAMES = [
    *("gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh"),
    *("gelu_python_tanh", "gelu_accurate", "hardswish", "laplace", "leaky_relu", "linear"),
    *("mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus"),
    *("swish", "tanh", "prelu", "xielu"),
]
# What they mean in ACT2FN, where that is not the same word.
MEANINGS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "gelu_tanh"),
    "gelu_python": "gelu",
    "swish": "silu",
}

# Keys that cannot matter to a feed-forward layer; leaving them alone saves time.
_SKIP = re.compile(
    r"token_id|vocab|rope|rotary|dropout|pdrop|_drop$|initializer|init_|_std$|eps$|epsilon|max_position|n_positions|"
    r"n_ctx|tie_|use_cache|output_(attentions|hidden)|return_dict|dtype|architectures|model_type|chunk_size_feed|"
    r"is_encoder|problem_type|id2label|label2id|transformers_version|name_or_path|sliding_window|attn_impl|"
    r"aux_loss|router_jitter|z_loss|loss|bos_|eos_|pad_|_base$|theta|head_dim|num_attention_heads|n_head|"
    r"num_key_value|kv_|q_lora|qk_|v_head|index_|attention_bias|qkv_bias|conv_|mamba_|ssm|time_step|_scaling|"
    r"begin_suppress|suppress_tokens|pruned_heads|hidden_size$|d_model|n_embd|vision|audio|image|video|quantization|"
    r"summary_|num_labels|task_specific|_config$|logits_|layerdrop|scale_embedding|torchscript|per_layer_input|"
    r"stagger|num_chunks|min_period|dim_multiplier|proj_factor|^dff$|^asm$|hybrid_layer_ids|altup|laurel|num_kv_shared|use_bidirectional|num_nextn|mtp_|indexer|compress|linear_(key|value|num)|hc_"
)

LAYER_KEYS = re.compile(
    r"^(num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_(hidden_)?layers)$"
)
REDUCED = 8  # layers of a model that is perturbed

Roles = dict[str, list[tuple[str, list[int]]]]


@dataclasses.dataclass
class Observation:
    """What a configuration's model computes, or why there is none."""

    keys: dict[str, Any]
    stacks: dict[str, Roles] = dataclasses.field(default_factory=dict)  # by stack, by role
    error: str = ""
    problems: list[str] = dataclasses.field(default_factory=list)
    experts: set[int] = dataclasses.field(default_factory=set)  # how many experts the banks have

    def same_as(self, other: Observation) -> bool:
        """Whether both ran and computed the same everywhere."""
        return not self.error and not other.error and self.stacks == other.stacks


@dataclasses.dataclass(frozen=True)
class Family:
    """A text model type, the type that a file must have to build it, and where its keys then stand."""

    name: str
    carrier: str
    path: tuple[str, ...]

    def place(self, keys: dict[str, Any]) -> dict[str, Any]:
        """A file's keys, but for model_type, that give the text model `keys`."""
        for i, part in enumerate(reversed(self.path)):
            keys = {part: {"model_type": self.name, **keys} if i == 0 else keys}
        return keys


class Observer:
    """Builds and runs; remembers formulas that were found and their values."""

    def __init__(self) -> None:
        self.matcher = Matcher()
        self.results: dict[tuple, probe.Result] = {}
        self.builds = 0

    def observe(self, family: Family, keys: dict[str, Any]) -> Observation:
        """Runs the model that `keys` describe."""
        seen = Observation(keys)
        self.builds += 1
        try:
            model, config = models.build(family.carrier, family.place(keys))
            units = probe.find_units(model)
        except Exception as error:  # a refusal is an answer
            text = " ".join(str(error).split())
            seen.error = f"{type(error).__name__}: {text[:200]}"
            return seen
        if any(probe.is_empty(unit) for unit in units if unit.kind in ("experts", "dbrx")):
            seen.error = "a bank of experts is empty"
            return seen
        numbers = models.parameter_numbers(config)
        config_text = config.to_json_string(use_diff=False)
        not_text = models.NOT_TEXT_STACKS.get(family.carrier)
        for unit in units:
            if not_text is not None and unit.stack.startswith(not_text):
                continue
            key = (probe.signature(unit, config_text), frozenset(numbers))
            if key not in self.results:
                self.results[key] = probe.run_unit(unit, self.matcher, numbers)
            result = self.results[key]
            what = describe(result)
            if result.formula is None:
                seen.problems.append(
                    f"{unit.path}: {result.problem or f'nearest formula is off by {result.error:.3g}'}"
                )
            if unit.role == "routed":
                seen.experts.add(unit.experts)
            roles = seen.stacks.setdefault(unit.stack, {})
            found = roles.setdefault(unit.role, [])
            for text, layers in found:
                if text == what:
                    if layers[-1] != unit.layer:
                        layers.append(unit.layer)
                    break
            else:
                found.append((what, [unit.layer]))
        return seen


def describe(result: probe.Result) -> str:
    """One line for what a unit computes: formula, pairing and flags."""
    formula = result.formula.text() if result.formula else "unknown"
    flags = [result.pairing or "?"]
    flags += ["transposed"] if result.transposed else []
    flags += ["bias"] if result.bias else []
    flags += ["norm"] if result.norm else []
    flags += ["float32"] if 1e-9 < result.error < 1 else []
    return f"{formula} {' '.join(flags)}"


def layers_text(layers: list[int]) -> str:
    """0-2,5 for [0, 1, 2, 5]."""
    parts = []
    for _, group in itertools.groupby(enumerate(layers), lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def compact(stacks: dict[str, Roles]) -> dict[str, dict[str, dict[str, str]]]:
    """Observation.stacks with layer numbers as text."""
    return {
        stack: {role: {what: layers_text(layers) for what, layers in found} for role, found in roles.items()}
        for stack, roles in stacks.items()
    }


def declared_types(config) -> dict[str, str]:
    """The declared type of every field of a configuration class."""
    out = {}
    for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else []:
        out[field.name] = (
            field.type if isinstance(field.type, str) else str(field.type).replace("<class ", "").strip("'>")
        )
    return out


def alternatives(key: str, value: Any, layers: int) -> list[Any]:
    """Values to try in place of `value`."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        if re.search("(size|dim|_ff|inner)$", key):  # 0 may take a shared expert away; 1 only misleads
            return ([0] if value else [512]) if "shared" in key else []
        placing = re.search(
            "expert|moe|dense|sparse|layer|period|offset|freq|step|interval|block|stack|share", key
        )
        tries = [0, 1, 2, 3, 5, value + 1, max(value - 1, 0)] if placing else [2, value + 1]
        return [v for v in dict.fromkeys(tries) if v != value]
    if isinstance(value, float):
        return [v for v in (value * 1.5, value / 2, 0.0) if v != value]
    if key == "feed_forward_proj":
        names = ("relu", "silu", "gelu", "gelu_new", "tanh")
        return [v for v in (*names, *(f"gated-{n}" for n in names)) if v != value]
    if isinstance(value, str):
        if value in NAMES or re.search("act|afn", key):
            return [v for v in ("relu", "tanh") if v != value]
        return []
    if value is None:
        if re.search("act|afn", key):
            return ["relu"]
        if re.search("limit|alpha|beta|clamp", key):
            return [3.0, [3.0] * layers]
        if re.search("bias", key):
            return [True]
        if re.search("expert|moe|dense|sparse", key):
            return [2, True, [1, 3], ["dense"] * (layers // 2) + ["sparse"] * (layers - layers // 2)]
        return []
    if isinstance(value, list | tuple):
        return _list_alternatives(list(value), layers)
    return []


def _list_alternatives(value: list[Any], layers: int) -> list[Any]:
    out: list[Any] = []
    if value and len(value) == layers and all(isinstance(v, str) for v in value):
        kinds = sorted(set(value))
        partner = {
            "dense": "sparse",
            "sparse": "dense",
            "moe": "mlp",
            "hash_moe": "moe",
            "mamba": "attention",
        }
        for kind in list(kinds):
            if partner.get(kind):
                kinds.append(partner[kind])
        kinds = list(dict.fromkeys(kinds))
        out += [[k] * layers for k in kinds]
        out.append([kinds[i % len(kinds)] for i in range(layers)])
        out.append(value[::-1])
    elif all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        out += [[], [1, 3], [0], [layers - 1]]
        if len(value) == layers:
            out.append([0, 1] * (layers // 2))
    elif all(isinstance(v, bool) for v in value):
        out.append([not v for v in value])
    return [v for v in out if v != value]


def effect(base: Observation, seen: Observation) -> list[str]:
    """What differs between two runs: layers, roles, and formula, pairing or bias of a role."""
    found = set()
    for stack in base.stacks.keys() | seen.stacks.keys():
        a, b = base.stacks.get(stack, {}), seen.stacks.get(stack, {})
        if _last(a) != _last(b):
            found.add("layers")
        for role in a.keys() | b.keys():
            one = {layer: what for what, layers in a.get(role, []) for layer in layers}
            two = {layer: what for what, layers in b.get(role, []) for layer in layers}
            common = one.keys() & two.keys()
            if one.keys() != two.keys() and _last(a) == _last(b):
                found.add("roles")
            for layer in common:
                (f1, _, flags1), (f2, _, flags2) = one[layer].rpartition(") "), two[layer].rpartition(") ")
                if f1 != f2:
                    found.add(f"formula of {role}")
                if flags1 != flags2:
                    found.add(f"layout of {role}")
    return sorted(found)


def _last(roles: Roles) -> int:
    return max((layer for found in roles.values() for _, layers in found for layer in layers), default=-1)


def combinations(effective: dict[str, list[Any]], count: int, seed: str) -> list[dict[str, Any]]:
    """Random combinations of values of keys that have an effect."""
    rng = random.Random(seed)
    keys = sorted(effective)
    out = []
    for _ in range(count if len(keys) > 1 else 0):
        chosen = rng.sample(keys, min(len(keys), rng.choice((2, 2, 3))))
        out.append({k: rng.choice(effective[k]) for k in chosen})
    return out
