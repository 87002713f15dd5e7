"""SGLang with and without the plugin: seconds to start and to generate, on the same model.

    python benchmark/benchmark_sglang.py models/austen-moe-8m --repeat 3

Each engine runs in a process of its own, the two kinds in turn, so that a machine that slows down
slows both. Unmodified SGLang serves the model as plain SiLU, which is all it can; the plugin serves it
with the model's own activation. Prints a JSON object with the medians and every run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

PROMPTS = ("It is a truth", "She was", "The weather", "He could not")


def measure(model: str, tokens: int) -> dict[str, float]:
    """Starts an engine in this process; seconds to start, and seconds for a batch of generations."""
    import sglang
    from flexact.sglang._server_args import CPU_DEFAULTS, plugin_absence

    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    settings: dict[str, Any] = {**CPU_DEFAULTS, "model_path": model, "random_seed": 1}
    if plugin_absence():
        settings["json_model_override_args"] = '{"hidden_act": "silu"}'
    begin = time.perf_counter()
    engine = sglang.Engine(**settings)
    started = time.perf_counter()
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    engine.generate(list(PROMPTS), {**sampling, "max_new_tokens": 4})
    times = []
    for _ in range(3):
        before = time.perf_counter()
        engine.generate(list(PROMPTS), sampling)
        times.append(time.perf_counter() - before)
    engine.shutdown()
    return {"start_seconds": started - begin, "generate_seconds": min(times)}


def run(model: str, tokens: int, *, plugin: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if not plugin:
        environment["SGLANG_PLUGINS"] = "none"
    command = [sys.executable, __file__, model, "--tokens", str(tokens), "--one"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"start_seconds"')]
    if done.returncode != 0 or not lines:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[-1])


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a checkpoint's folder")
    parser.add_argument("--repeat", type=int, default=3, help="engines of each kind")
    parser.add_argument("--tokens", type=int, default=100, help="tokens for each of the four prompts")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.model, arguments.tokens)))
        return
    runs: dict[str, list[dict[str, float]]] = {"sglang": [], "flexact": []}
    for index in range(arguments.repeat):
        for kind in runs if index % 2 == 0 else reversed(runs):
            runs[kind].append(run(arguments.model, arguments.tokens, plugin=kind == "flexact"))
            print(f"{kind}: {runs[kind][-1]}", file=sys.stderr, flush=True)
    medians = {
        kind: {key: statistics.median(each[key] for each in list_) for key in list_[0]}
        for kind, list_ in runs.items()
    }
    summary = {
        "medians": medians,
        "start_seconds_more": medians["flexact"]["start_seconds"] - medians["sglang"]["start_seconds"],
        "generate_ratio": medians["flexact"]["generate_seconds"] / medians["sglang"]["generate_seconds"],
        "runs": runs,
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
