#!/usr/bin/env python3
"""Derives what every text model family of transformers computes, by running its models.

    python scripts/derive_families.py --facts tests/data/families_transformers.json \\
        --sweep tests/data/families_sweep.json [--only mixtral,gpt_oss]

For each model type with a text model this builds the model on the meta device (no weights, no
network), finds its MLPs and experts, runs each on a grid of (gate, up) values in float64, and finds
the formula, the pairing of gate and up, biases and the layers of each role. Then it changes the
configuration one key at a time and records what changes, so that the facts say which key selects
the activation, which keys decide where the experts stand, and what every default is. The sweep file
holds the changed configurations with what was computed; the resolver is tested against it.

Needs transformers and torch (CPU). A run takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from families import models, perturb
from families.formulas import COLUMNS, GRID_SIZE
from families.perturb import NAMES, REDUCED, Family, Observation, Observer

# Keys that place experts, or count them, in any family: read through keyword arguments by classes that
# do not declare them.
PLACING: dict[str, list[Any]] = {
    "first_k_dense_replace": [2],
    "moe_layer_freq": [2, [0, 1] * (REDUCED // 2)],
    "moe_layer_interval": [2],
    "moe_layer_frequency": [2],
    "moe_layers_enum": ["2,3,5"],
    "decoder_sparse_step": [2],
    "mlp_only_layers": [[1, 3]],
    "dense_mlp_idx": [2],
    "num_dense_layers": [3],
    "hybrid_override_pattern": ["M-E*M-E*"],
    "layers_block_type": [["mamba", "attention", "mlp", "moe"] * (REDUCED // 4)],
    "layer_types": [["full_attention"] * REDUCED],
    "interleave_moe_layer_step": [2],
    "moe_layers": [[1, 4]],
    "mlp_layer_types": [["dense", "sparse"] * (REDUCED // 2)],
    "expert_layer_period": [3],
    "n_shared_experts": [0, 2],
    "num_shared_experts": [0, 2],
    "num_shared_expert": [0],
    "moe_num_shared_experts": [0],
    "num_experts": [4],
    "num_local_experts": [4],
    "n_routed_experts": [4],
    "moe_num_experts": [4],
    "n_layer": [5],
    "n_layers": [5],
    "num_layers": [5],
    "num_hidden_layers": [5],
}

# Wrappers whose default cannot be built whatever the text model's keys are: another part fails.
UNBUILDABLE = ("qwen3_omni_moe",)

# Activation-like keys of any family. Those that a type does not declare are set on it all the same:
# what it does not read must not change what it computes.
FOREIGN = {
    "hidden_act": "tanh",
    "hidden_activation": "tanh",
    "activation_function": "tanh",
    "activation": "tanh",
    "mlp_hidden_act": "tanh",
    "ffn_act_fn": {"name": "tanh"},
    "swiglu_limit": 3.0,
    "swiglu_alpha": 1.3,
    "swiglu_limits": [3.0] * REDUCED,
    "hidden_act_alpha": 1.3,
    "expert_swiglu_limit_list": [3.0] * REDUCED,
    "mlp_gate_softcap": 3.0,
    "activation_situ_beta": 3.0,
    "mlp_bias": True,
}


def families() -> tuple[list[Family], dict[str, dict[str, Any]]]:
    """(text model types, wrapper types with the path to their text model's configuration)."""
    found: dict[str, Family] = {}
    wrappers: dict[str, dict[str, Any]] = {}
    for name in models.text_model_types():
        try:
            config = models.make_config(name, models.required(name, {}))
        except Exception as error:  # recorded
            wrappers[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            continue
        path, inner = models.text_config(config)
        if not path:
            found[name] = Family(name, name, ())
            continue
        wrappers[name] = {"path": path, "inner": type(inner).model_type}
        both = [k for k in ("encoder", "decoder") if hasattr(config, k)]
        if len(both) == 2:
            wrappers[name]["stacks"] = both
        if type(inner).model_type not in found and models.build_classes(type(inner).model_type):
            found[type(inner).model_type] = Family(type(inner).model_type, type(inner).model_type, ())
    for name, facts in wrappers.items():
        inner = facts.get("inner")
        if inner and (inner not in found or found[inner].carrier in UNBUILDABLE):
            found[inner] = Family(inner, name, tuple(facts["path"]))
    return [found[k] for k in sorted(found)], wrappers


class Deriver:
    """Facts and sweep entries of all families."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.facts: dict[str, Any] = {}
        self.sweep: list[dict[str, Any]] = []

    def keep(self, family: Family, seen: Observation) -> None:
        """Adds a run to the sweep."""
        if seen.error:
            return
        config = {"model_type": family.carrier, **family.place(seen.keys)}
        config = {
            **config,
            **models.merge(models.required(family.carrier, config), {k: v for k, v in config.items()}),
        }
        self.sweep.append({"config": config, "stacks": perturb.compact(seen.stacks)})

    def derive(self, family: Family) -> None:
        """Everything about one family."""
        facts: dict[str, Any] = {"carrier": family.carrier} if family.path else {}
        self.facts[family.name] = facts
        default = self.observer.observe(family, {})
        if default.error:
            facts["error"] = default.error
            return
        if not default.stacks:
            facts["none"] = "no MLP or experts"
            return
        facts["default"] = perturb.compact(default.stacks)
        if default.experts:
            facts["experts"] = {"default": sorted(default.experts), "keys": []}
        if default.problems:
            facts["problems"] = sorted(set(default.problems))[:4]
        self.keep(family, default)
        config = self.text_config(family, {})
        declared = perturb.declared_types(config)
        values = config.to_dict()
        facts["names"] = {v: k for k, v in sorted(getattr(config, "attribute_map", {}).items())}
        layer_keys = [k for k in values if perturb.LAYER_KEYS.match(k) and isinstance(values[k], int)]
        facts["layer_keys"] = {k: values[k] for k in layer_keys}
        base_keys = {**{k: REDUCED for k in layer_keys}, **models.with_layers(family.name, REDUCED)}
        base = self.observer.observe(family, base_keys)
        if base.error or not base.stacks:
            facts["reduced_error"] = base.error or "no units"
            base_keys, base = {}, default
        else:
            self.keep(family, base)
        self.keys(family, facts, base_keys, base, config, declared)
        self.foreign(family, facts, base_keys, base, values)

    def text_config(self, family: Family, keys: dict[str, Any]):
        """The text configuration that a build uses."""
        placed = family.place(keys)
        config = models.make_config(
            family.carrier, models.merge(models.required(family.carrier, placed), placed)
        )
        for part in family.path:
            config = getattr(config, part)
        return config

    def keys(self, family, facts, base_keys, base, config, declared) -> None:
        """Changes one key at a time, then several."""
        values = config.to_dict()
        reduced = {**values, **self.text_config(family, base_keys).to_dict()}
        effective: dict[str, list[Any]] = {}
        facts["keys"] = {}
        layers = (
            max((x for r in base.stacks.values() for f in r.values() for _, n in f for x in n), default=0) + 1
        )
        if not base_keys:
            layers = reduced.get("num_hidden_layers", layers)
        for label, path, value in _leaves(reduced):
            if perturb._SKIP.search(path[-1]) or path[-1] in base_keys:
                continue
            outcome, kept = {}, []
            counted = False
            for other in perturb.alternatives(path[-1], value, layers):
                keys = models.merge(base_keys, _nest(path, other))
                seen = self.observer.observe(family, keys)
                if seen.error:
                    outcome[json.dumps(other)[:60]] = "error: " + seen.error[:90]
                    continue
                counted |= isinstance(other, int) and seen.experts == {other} != base.experts
                changed = perturb.effect(base, seen)
                if changed:
                    outcome[json.dumps(other)[:60]] = changed
                    kept.append(other)
                    self.keep(family, seen)
            if counted:
                facts["experts"]["keys"].append(label)
            if not kept:
                continue
            null = self.observer.observe(family, models.merge(base_keys, _nest(path, None)))
            facts["keys"][label] = {
                "declared": declared.get(path[0], "?"),
                "default": _short(values.get(path[0])) if len(path) == 1 else _short(value),
                "null": "error: " + null.error[:90]
                if null.error
                else perturb.effect(base, null) or "as default",
                "effects": outcome,
            }
            if not null.error:
                self.keep(family, null)
            if len(path) == 1:
                effective[label] = kept
            for alias, real in getattr(config, "attribute_map", {}).items():
                if (real,) == path:
                    self.keep(family, self.observer.observe(family, {**base_keys, alias: kept[0]}))
            if value in NAMES or any(
                "formula" in e for c in outcome.values() if isinstance(c, list) for e in c
            ):
                self.names(family, facts, base_keys, path, kept)
        for keys in perturb.combinations(effective, 12, family.name):
            self.keep(family, self.observer.observe(family, {**base_keys, **keys}))
        for key in base_keys:  # layer counts one by one
            self.keep(family, self.observer.observe(family, {**base_keys, key: REDUCED - 3}))

    def wrapper(self, name: str, facts: dict[str, Any], inner: dict[str, Any]) -> None:
        """A type whose text model has a configuration of its own: defaults, and which level is read."""
        if "path" not in facts:
            return
        family = Family(name, name, ())
        default = self.observer.observe(family, {})
        if default.error:
            facts["error"] = default.error
            return
        facts["default"] = perturb.compact(default.stacks)
        self.keep(family, default)
        acts = [
            k
            for k, v in inner.get("keys", {}).items()
            if any("formula" in str(e) for e in v["effects"].values())
            and isinstance(v["default"], str)
            and "/" not in k
        ]
        for key in acts[:2]:
            value = "gated-silu" if key == "feed_forward_proj" else "tanh"
            for label, keys in (
                ("inner " + key, _nest((*facts["path"], key), value)),
                ("outer " + key, {key: value}),
            ):
                seen = self.observer.observe(family, keys)
                facts[label] = seen.error[:90] or perturb.effect(default, seen) or "no effect"
                if label.startswith("inner"):
                    self.keep(family, seen)
        count = next((k for k in inner.get("layer_keys", ())), "num_hidden_layers")
        for label, keys in (("inner count", _nest((*facts["path"], count), 3)), ("outer count", {count: 3})):
            seen = self.observer.observe(family, keys)
            facts[label] = seen.error[:90] or perturb.effect(default, seen) or "no effect"
            if label.startswith("inner"):
                self.keep(family, seen)

    def names(self, family, facts, base_keys, path, kept) -> None:
        """Every activation name under a key that takes names; names that mean something of their own."""
        if not any(isinstance(v, str) for v in kept):
            return
        odd = facts.setdefault("meanings", {}).setdefault("/".join(path), {})
        for name in NAMES:
            seen = self.observer.observe(family, models.merge(base_keys, _nest(path, name)))
            if seen.error:
                odd[name] = "error: " + seen.error[:80]
                continue
            self.keep(family, seen)
            for found in (f for stack in seen.stacks.values() for f in stack.items()):
                for what, _ in found[1]:
                    meaning = perturb.MEANINGS.get(name, name)
                    if f"({meaning})" not in what and f"({meaning};" not in what:
                        odd.setdefault(name, {})[found[0]] = what

    def foreign(self, family, facts, base_keys, base, values) -> None:
        """Keys of other families, which this one should not read."""
        extra = {k: v for k, v in FOREIGN.items() if k not in values}
        seen = self.observer.observe(family, {**base_keys, **extra})
        found = facts["reads_undeclared"] = {}
        tries = [(k, v) for k, v in extra.items()] if not base.same_as(seen) else []
        tries += [(k, v) for k, tried in PLACING.items() if k not in values for v in tried]
        for key, value in tries:
            seen = self.observer.observe(family, {**base_keys, key: value})
            if not base.same_as(seen):
                found[f"{key}={json.dumps(value)[:40]}"] = seen.error[:90] or perturb.effect(base, seen)
                self.keep(family, seen)


def _leaves(values: dict[str, Any]) -> list[tuple[str, tuple[str, ...], Any]]:
    """(label, path, value) of every key, also inside objects that configure the feed-forward layers."""
    out = []
    for key, value in values.items():
        out.append((key, (key,), value))
        if isinstance(value, dict) and "ffn" in key:
            out += [(f"{key}/{label}", (key, *path), v) for label, path, v in _leaves(value)]
    return out


def _nest(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nest(path[1:], value)}


def _short(value: Any) -> Any:
    text = json.dumps(value, default=str)
    return value if len(text) < 200 else text[:200] + "…"


def main() -> None:
    """Runs the derivation and writes both files; with --only, the other families' entries stay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--sweep", type=Path, required=True)
    parser.add_argument("--only", default="", help="comma-separated model types; the rest is kept")
    arguments = parser.parse_args()
    only = set(arguments.only.split(",")) - {""}
    found, wrappers = families()
    chosen = [f for f in found if not only or f.name in only]
    again = {f.carrier for f in chosen} | {n for n in wrappers if not only or n in only}
    deriver = Deriver()
    begin = time.time()
    for number, family in enumerate(chosen, 1):
        start = time.time()
        deriver.derive(family)
        print(
            f"[{number}/{len(chosen)}] {family.name}: {time.time() - start:.1f} s, "
            f"{deriver.observer.builds} builds, {len(deriver.sweep)} kept",
            file=sys.stderr,
            flush=True,
        )
    for name in sorted(again & wrappers.keys()):
        deriver.wrapper(name, wrappers[name], deriver.facts.get(wrappers[name].get("inner", ""), {}))
    print(f"{time.time() - begin:.0f} s, {deriver.observer.builds} builds", file=sys.stderr)
    write_facts(arguments.facts, deriver, wrappers, bool(only), again)
    write_sweep(arguments.sweep, deriver, bool(only), again)


def write_facts(
    path: Path, deriver: Deriver, wrappers: dict[str, Any], partial: bool, again: set[str]
) -> None:
    """Writes what was found about each family and wrapper."""
    document = {
        "transformers": models.transformers.__version__,
        "torch": models.torch.__version__.split("+")[0],
        "wrappers": {k: v for k, v in wrappers.items() if k in again},
        "families": deriver.facts,
    }
    if partial and path.exists():
        before = json.loads(path.read_text())
        for part in ("wrappers", "families"):
            document[part] = dict(sorted({**before[part], **document[part]}.items()))
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def write_sweep(path: Path, deriver: Deriver, partial: bool, again: set[str]) -> None:
    """Writes the sweep, one configuration a line, formulas with their values once."""
    points = range(0, GRID_SIZE, 37)
    formulas: dict[str, list[float]] = {}
    for result in deriver.observer.results.values():
        if result.formula is not None:
            values = deriver.observer.matcher.values(result.formula, "a", "b")
            formulas[result.formula.text()] = [float(values[i]) for i in points]
    entries = list(deriver.sweep)
    if partial and path.exists():
        before = json.loads(path.read_text())
        formulas = {**before["formulas"], **formulas}
        entries = [e for e in before["entries"] if e["config"]["model_type"] not in again] + entries
    entries.sort(key=lambda e: e["config"]["model_type"])
    used = {
        what.rpartition(") ")[0] + ")"
        for entry in entries
        for roles in entry["stacks"].values()
        for found in roles.values()
        for what in found
    }
    lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries]
    head = {
        "g": [float(COLUMNS["a"][i]) for i in points],
        "u": [float(COLUMNS["b"][i]) for i in points],
        "formulas": {k: v for k, v in sorted(formulas.items()) if k in used},
    }
    text = json.dumps(head, separators=(",", ":"))[:-1]
    text += ',"entries":[\n' + ",\n".join(dict.fromkeys(lines)) + "\n]}\n"
    path.write_text(text)


if __name__ == "__main__":
    main()
