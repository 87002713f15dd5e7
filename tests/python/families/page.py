"""`python -m families.page`: docs/models.md from the observations in tests/data/sglang_models.json."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from families.tuning import LIMITS, UNFINISHED

ROOT = Path(__file__).resolve().parents[3]
OBSERVATIONS = ROOT / "tests/data/sglang_models.json"
PAGE = ROOT / "docs/models.md"
FAMILY_TABLE = ROOT / "docs/families.md"
# Engines that ran on a GPU: "FAMILY swish" has the other activation on the Triton kernels.
ON_A_GPU = ROOT / "benchmark/results/sglang_gpu_h200.json"

# In the order of the page: what each verdict means.
VERDICTS = {
    "proven": "runs with the plugin as without it, to the last bit; with the other activation it equals the"
    " reference",
    "corrected": "runs, and flexact replaced a function of SGLang's that is not the configured one; the"
    " result with the plugin is the reference's",
    "only with the plugin": "SGLang alone cannot run it on a CPU; with the plugin it equals the reference",
    "left as it is": "no one function is what the family computes: runs as SGLang has it, unchanged, and"
    " another activation is refused",
    "refused": "runs unchanged; another activation is refused, with the reason",
    "unverified": "runs unchanged, and with the other activation, which there was nothing to compare with",
    "wrong": "differs from the reference: a defect",
    "broken": "SGLang alone runs it and the plugin does not, or changes it: a defect",
    "not on this engine": "SGLang alone does not load or run it here, for the reason that it gave: it needs"
    " the GPU backend, as named, or more than the tiny configuration has",
    "no checkpoint": "transformers could not build the tiny model",
    "not run": "not tried, for the reason given",
}


HEAD = """# SGLang's model classes, with and without the plugin

Every model class of SGLang {sglang} was tried on its CPU engine with a tiny random model, in float32
(transformers {transformers}, torch {torch}). Each was run without the plugin, with it, and with it and
`{{"activation_params": {{"name": "swish", "beta": 1.3}}}}`: three prompts, prefill and four greedy tokens.
`python -m families.page` in `tests/python` writes this page from `tests/data/sglang_models.json`, and that
file is written by

```console
$ make test-families        # an hour and more on two cores; tests/python/families
```

The reference is x·sigmoid(1.3 x) written by hand into transformers' class; where transformers has no such
class, or SGLang does not read the checkpoint that it saves, into SGLang's class without the plugin.
Differences are the largest of any log-probability, over all tokens and the whole vocabulary (of any entry,
for embedding and classification models); in bfloat16, where a class insists on it, they are larger, and at
most a tenth of what the other activation changes. "Layers" are those that the plugin found and proved; with
the other activation flexact computed every one of them.

{commits}

| verdict | classes | meaning |
|---|---|---|
{counts}

*Interpreted*: SGLang's Triton kernels ran in Triton's interpreter (`TRITON_INTERPRET=1`), since this engine
has no other form of them. The result is verified; to serve such a model needs the GPU backend. *Proven at
load*: the model loads, and the plugin proved every layer, plain and with the other activation.

Linear attention, Mamba's mixer and Qwen3.5's attention call operators of `sgl_kernel`'s CPU build, which has
no wheel; here they are written in torch, as is the factor that MiniMax M3 puts on the chosen experts' weights
([`engine_ops.py`](../tests/python/families/engine_ops.py)). No MLP and no expert passes through one. Ling 3's
router and head and the whole of Mistral Large 3, which SGLang keeps in bfloat16, run in float32 too.

## By name

With the keys of the published config.json, at tiny sizes.

{names}

## Several ranks, other releases

{engines}
"""


def text(observations: dict[str, Any]) -> str:
    """The page."""
    rows = observations["classes"]
    count = {verdict: sum(row["verdict"] == verdict for row in rows.values()) for verdict in VERDICTS}
    parts = [
        HEAD.format(
            **observations["versions"],
            commits=_commits(rows),
            counts="\n".join(
                f"| {v} | {count[v]} | {meaning} |" for v, meaning in VERDICTS.items() if count[v]
            ),
            names="\n".join(_table(observations["names"], "model")),
            engines="\n".join(_engines(observations["engines"])),
        )
    ]
    for verdict, meaning in VERDICTS.items():
        chosen = {name: row for name, row in rows.items() if row["verdict"] == verdict}
        if chosen:
            table = _table(chosen, "class") if _ran(next(iter(chosen.values()))) else _reasons(chosen)
            title = f"{verdict[0].upper()}{verdict[1:]} ({len(chosen)})"
            parts.append(
                "\n".join([f"## {title}", "", f"{meaning[0].upper()}{meaning[1:]}.", "", *table, ""])
            )
    parts.append(_families(observations["families"]))
    files = sorted(observations["files_not_importable"].items())
    lines = ["## Model files that cannot be imported here", "", "| file | reason |", "|---|---|"]
    parts.append("\n".join([*lines, *(f"| {name} | {_cell(why)} |" for name, why in files), ""]))
    return "\n".join(parts)


def _commits(rows: dict[str, Any]) -> str:
    found = Counter(row["commit"] for row in rows.values())
    listed = ", ".join(f"{commit} ({count})" for commit, count in found.most_common())
    return f"The commits of this repository at which classes were observed: {listed}."


def _families(found: dict[str, list[str]]) -> str:
    return "\n".join(
        [
            "## Rows of the family table that transformers cannot check",
            "",
            "[Families](families.md) that transformers has are checked against its classes. The rest was",
            "read from SGLang's files; what its classes compute when they are run:",
            "",
            "| evidence | model types |",
            "|---|---|",
            f"| run with a matching result | {', '.join(found['run'])} |",
            f"| proven at load | {', '.join(found['proven_at_load'])} |",
            f"| only read | {', '.join(found['only_read'])} |",
            "",
        ]
    )


def _ran(row: dict[str, Any]) -> bool:
    return bool(row.get("plain", {}).get("runs"))


def _table(rows: dict[str, Any], head: str) -> list[str]:
    lines = [
        f"| {head} | family | plugin changes | swish differs | from | layers | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        plain, swish = row.get("plain", {}), row.get("swish", {})
        layers = plain.get("layers", {})
        against, worst = _reference(swish)
        lines.append(
            f"| {name} | {layers.get('model_type') or ''} | {_number(plain.get('max_difference'))} |"
            f" {_number(worst)} | {against} | {_layers(layers)} | {_notes(row)} |"
        )
    return lines


def _reference(swish: dict[str, Any]) -> tuple[str, float | None]:
    """The reference that the verdict rests on, and the difference from it."""
    found = [
        (row["max_difference"], name)
        for key, name in (("transformers", "transformers"), ("sglang_by_hand", "SGLang by hand"))
        if "max_difference" in (row := swish.get(key, {}))
    ]
    return (min(found)[1], min(found)[0]) if found else ("", None)


def _layers(layers: dict[str, Any]) -> str:
    parts = [f"{layers[kind]} {kind}" for kind in ("experts", "mlps") if layers.get(kind)]
    return ", ".join(parts)


def _notes(row: dict[str, Any]) -> str:
    notes = []
    if row["verdict"] == "not on this engine":
        notes.append("needs the GPU backend" + (", proven at load" if _is_proven_at_load(row) else ""))
    elif row["verdict"] not in ("proven", "corrected"):
        notes.append(row["verdict"])
    if row.get("triton"):
        notes.append(f"to serve, needs the GPU backend; interpreted here: {_cell(row['engine']['reason'])}")
    if row["verdict"] == "corrected":
        theirs = row["stock"].get("transformers", {}).get("max_difference")
        notes.append(f"SGLang alone differs from transformers by {_number(theirs)}" if theirs else "")
    if row["verdict"] == "left as it is":
        notes.append(_cell(row["plain"]["layers"]["set_aside"]))
    for way in ("stock", "swish"):
        same = row.get(way, {}).get("reason") == row.get("stock", {}).get("reason") and way == "swish"
        if "reason" in row.get(way, {}) and row["verdict"] != "left as it is" and not same:
            notes.append(f"{'SGLang alone' if way == 'stock' else 'swish'}: {_cell(row[way]['reason'])}")
    if notes and row.get("model_type") in _ran_on_a_gpu():
        notes.append("ran on a GPU with the Triton kernels ([sglang.md](sglang.md#what-a-gpu-computed))")
    return "; ".join(filter(None, notes))


@functools.cache
def _ran_on_a_gpu() -> set[str]:
    """Families of which an engine ran on a GPU, plain and with the other activation."""
    engines = json.loads(ON_A_GPU.read_text())["engines"]
    return {name.removesuffix(" swish") for name in engines if name.endswith(" swish")}


def _is_proven_at_load(row: dict[str, Any]) -> bool:
    return all(row.get(way, {}).get("proven_at_load") for way in ("plain", "swish"))


def _reasons(rows: dict[str, Any]) -> list[str]:
    lines = ["| class | fails at | reason | because | with the plugin |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        failure = row.get("stock") or row.get("build") or {"stage": "", "reason": row.get("reason", "")}
        proven = _is_proven_at_load(row)
        note = "proven at load" if proven else ""
        if not proven and row.get("plain", {}).get("reason", "").startswith("flexact"):
            note = _cell(row["plain"]["reason"])
        where = f" ({failure['at']})" if failure.get("at") else ""
        because = LIMITS.get(name, UNFINISHED) if "stock" in row else ""
        line = f"| {name} | {failure['stage']} | {_cell(failure['reason'])}{where} | {because} | {note} |"
        lines.append(line)
    return lines


def _engines(engines: dict[str, Any]) -> list[str]:
    lines = [
        "Whole engines, with the other activation, against transformers by hand: largest difference of a"
        " log-probability.",
        "",
        "| engine | swish differs | computed by flexact | SGLang alone |",
        "|---|---|---|---|",
    ]
    for name, row in engines.get("parallel", {}).items():
        stock = "runs" if row["stock"].get("runs") else _cell(row["stock"]["reason"])
        lines.append(f"| {name} | {_outcome(row)} | {_share(row)} | {stock} |")
    lines += [
        "",
        "| release | swish differs | computed by flexact | plain, against transformers |",
        "|---|---|---|---|",
    ]
    for name, row in engines.get("releases", {}).items():
        plain = row["plain"]
        lines.append(
            f"| {name} | {_outcome(row)} | {_share(row)} |"
            f" {_number(plain) if isinstance(plain, float) else _cell(plain)} |"
        )
    return lines


def _outcome(row: dict[str, Any]) -> str:
    return _number(row["max_difference"]) if row["runs"] else _cell(row["reason"])


def _share(row: dict[str, Any]) -> str:
    return f"{row['by_flexact']} of {row['layers']}, each ≥ {row['least_calls']} times" if row["runs"] else ""


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def _cell(reason: str) -> str:
    """One line of a table: no folder of the machine that ran it, no bars, not without end."""
    words = [
        word
        for word in reason.split()
        if not (word.startswith("/") and word.rstrip(":").endswith("config.json"))
    ]
    line = " ".join(words).replace("|", "\\|").replace("<", "‹").replace(">", "›")
    return line if len(line) <= 220 else line[:219] + "…"


def families(observations: dict[str, Any]) -> dict[str, list[str]]:
    """Model types of the family table that transformers lacks: run, proven at load, or only read."""
    known = json.loads((ROOT / "tests/data/families_transformers.json").read_text(encoding="utf-8"))
    table = [
        line.split("|")[1] for line in FAMILY_TABLE.read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    types = {name.strip() for cell in table[2:] for name in cell.split(",")}
    only_sglang = types - set(known["families"]) - set(known["wrappers"])
    rows = (*observations["classes"].values(), *observations["names"].values())
    run = {
        row.get("model_type")
        for row in rows
        if row["verdict"] in ("proven", "corrected", "only with the plugin")
    }
    loaded = {row.get("model_type") for row in rows if _is_proven_at_load(row)}
    return {
        "run": sorted(only_sglang & run),
        "proven_at_load": sorted((only_sglang & loaded) - run),
        "only_read": sorted(only_sglang - run - loaded),
    }


def main() -> None:
    observations = json.loads(OBSERVATIONS.read_text(encoding="utf-8"))
    observations["families"] = families(observations)
    OBSERVATIONS.write_text(json.dumps(observations, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(text(observations), encoding="utf-8")


if __name__ == "__main__":
    main()
