"""`python -m families.engines [--json FILE] [--sources FOLDER] [--no-parallel]`: whole engines, in processes.

Two ranks with gloo (tensor and expert parallelism), and other releases of SGLang: FOLDER holds a folder
for each, with the package in it. Each engine is a process of its own. Ends with exit code 1 where an engine
did not compute all layers, or something else than transformers by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from sglang_jobs import run
from tiny_models import build
from transformers_reference import largest_difference, load, swish

SWISH = {"activation_params": {"name": "swish", "beta": 1.3}}
# SGLang compiles its router and its vocabulary embedding, for longer than such a model runs.
ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}
# What float32 arithmetic in another order may move a log-probability by.
TOLERANCE = 2e-4
PARALLEL = {
    "llama": [{"tp_size": 2}],
    "mixtral": [{"tp_size": 2}, {"tp_size": 2, "ep_size": 2}],
    "qwen3_moe": [{"tp_size": 2, "ep_size": 2}],
    "glm4_moe": [{"tp_size": 2}, {"tp_size": 2, "ep_size": 2}],
}


def parallel(scratch: Path) -> dict[str, Any]:
    """Two ranks against transformers with the activation by hand; stock beside them."""
    rows = {}
    for family, layouts in PARALLEL.items():
        folder = build(family, scratch / family)
        by_hand = load(folder, lambda name: swish(1.3))
        for layout in layouts:
            name = f"{family}, " + ", ".join(
                f"{key.removesuffix('_size')} = {value}" for key, value in layout.items()
            )
            rows[name] = _engine(folder, by_hand, ENVIRONMENT, layout)
            stock = run(folder, stock=True, environment=ENVIRONMENT | _threads(), **layout)
            rows[name]["stock"] = {"runs": True} if stock.answers else {"reason": _reason(stock.stderr)}
            print(name, json.dumps(rows[name]), flush=True)
    return rows


def releases(sources: Path, scratch: Path) -> dict[str, Any]:
    """Every release in `sources`: Llama and Mixtral, plain and with another activation."""
    rows = {}
    for release in sorted(path.name for path in sources.iterdir() if (path / "sglang").is_dir()):
        environment = {
            "PYTHONPATH": os.pathsep.join([str(sources / release), os.environ.get("PYTHONPATH", "")])
        }
        for family in ("llama", "mixtral"):
            folder = build(family, scratch / family)
            by_hand = load(folder, lambda name: swish(1.3))
            name = f"{release} {family}"
            rows[name] = _engine(folder, by_hand, ENVIRONMENT | environment, {})
            plain = run(folder, environment=ENVIRONMENT | environment)
            if plain.answers:
                rows[name]["plain"] = largest_difference(plain.answers["generate"], load(folder))
            else:
                rows[name]["plain"] = _reason(plain.stderr)
            print(name, json.dumps(rows[name]), flush=True)
    return rows


def _threads() -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    return {"SGLANG_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}


def _engine(
    folder: Path, by_hand: Any, environment: dict[str, str], layout: dict[str, int]
) -> dict[str, Any]:
    outcome = run(folder, override=SWISH, steps=("generate", "report"), environment=environment, **layout)
    if not outcome.answers:
        return {"runs": False, "reason": "; ".join(outcome.messages) or _reason(outcome.stderr)}
    layers = [row for state in outcome.answers["report"] for row in state["experts"] + state["mlps"]]
    return {
        "runs": True,
        "max_difference": largest_difference(outcome.answers["generate"], by_hand),
        "layers": len(layers),
        "by_flexact": sum(row["computed_by"] == "flexact" for row in layers),
        "least_calls": min(row["calls"] for row in layers),
    }


def _reason(stderr: str) -> str:
    """The last exception of an engine that ended."""
    lines = re.findall(r"(?:^|\s)(\w+(?:Error|Exception): .*)$", stderr, re.M)
    return lines[-1][:200] if lines else "ended without a message"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sources", type=Path)
    parser.add_argument("--no-parallel", action="store_true", help="the releases alone")
    arguments = parser.parse_args()
    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if not arguments.no_parallel:
            engines["parallel"] = parallel(Path(scratch))
        if arguments.sources:
            engines["releases"] = releases(arguments.sources, Path(scratch))
    if arguments.json:
        content = json.loads(arguments.json.read_text())
        content["engines"] = {**content["engines"], **engines}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(not all(_is_right(row) for part in engines.values() for row in part.values()))


def _is_right(row: dict[str, Any]) -> bool:
    plain = row.get("plain", 0.0)
    differences = [row.get("max_difference", 1.0), plain if isinstance(plain, float) else 1.0]
    return row["runs"] and row["by_flexact"] == row["layers"] and max(differences) <= TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
