"""The main job: a real model with its own activation, served by an unmodified SGLang on the CPU.

    make demo            # or: .venv/bin/python examples/demo/run.py [--windows N]

Shows what config.json resolves to, serves the model with the plugin and without it, measures both on
text that the model was not trained on, and compares each with transformers and an activation written
by hand. Ends with exit code 1 if a number is not what it has to be. Writes demo/report.html.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
import terminal
import torch
from reference import Model
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "austen-moe-8m"
PROMPTS = ["It was a dark evening, and", "Mrs. Bennet was", "The captain looked at the sea and"]
# Two formulas that swish(1.7) is not: SiLU, which a host that ignores β computes, and one of the
# user's own, in which a clamped line takes the sigmoid's place.
OWN = {"hidden_act": "expr", "activation_params": {"expr": "x*clamp(0.5 + beta*x/4, 0, 1)", "beta": 1.7}}
REFUSED = {"activation_params": {"betta": 1.7}}
WINDOW = 512
OWN_WINDOWS = 32  # the user's own formula is measured on a part of the text
ENGINE = Path(__file__).with_name("engine.py")
SAME = 1e-3  # largest difference of one log-probability between two hosts that compute the same


def command(*arguments: str) -> tuple[int, str]:
    """Runs the `flexact` command of this environment; returns its exit code and what it printed."""
    program = Path(sys.executable).with_name("flexact")
    if not program.exists():
        return 127, f"{program} is not there: the command was not built"
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).rstrip()


def show(*arguments: str) -> str:
    """Prints a `flexact` command and its output."""
    code, output = command(*arguments)
    quoted = " ".join(f"'{a}'" if set(a) & set(' {"*') else a.replace(f"{ROOT}/", "") for a in arguments)
    text = f"$ flexact {quoted}\n{output}" + (f"\n(exit code {code})" if code else "")
    print("  " + text.replace("\n", "\n  "), flush=True)
    return text


def held_out(count: int) -> list[list[int]]:
    """Windows of the held-out text: `<s>` and 512 tokens each."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = tokenizer.encode((MODEL / "heldout.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
    begin = tokenizer.token_to_id("<s>")
    whole = len(ids) // WINDOW
    return [[begin, *ids[i * WINDOW : (i + 1) * WINDOW]] for i in range(min(count, whole))]


def perplexity(log_probabilities: list[list[float]]) -> float:
    flat = [value for window in log_probabilities for value in window]
    return math.exp(-sum(flat) / len(flat))


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for v, w in zip(a, b, strict=True) for x, y in zip(v, w, strict=True))


class SGLang:
    """The host of this demonstration: one engine a call, each in a process of its own."""

    name = "SGLang"

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(
        self, label: str, windows: list, prompts: list, *, plugin: bool = True, override: dict | None = None
    ) -> dict:
        """Starts an engine, asks it, stops it. Its log is in demo/."""
        log = self.out / f"sglang-{label.replace(' ', '-')}.log"
        with tempfile.TemporaryDirectory() as folder:
            request, result = Path(folder) / "request.json", Path(folder) / "result.json"
            request.write_text(json.dumps({
                "model": str(MODEL), "plugin": plugin, "override": override, "prompts": prompts,
                "max_new_tokens": 60, "windows": windows, "result": str(result),
            }))  # fmt: skip
            environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
            environment.pop("SGLANG_PLUGINS", None)
            process = subprocess.Popen(
                [sys.executable, ENGINE, request], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, env=environment, start_new_session=True,
            )  # fmt: skip
            bar = terminal.Progress(f"{label}: starting, then held-out text", len(windows))
            with log.open("w") as written:
                for line in process.stdout:
                    if line.startswith("@ "):
                        bar.set(int(line.split()[1]))
                    else:
                        written.write(line)
            if process.wait() != 0 or not result.exists():
                tail = "".join(log.read_text().splitlines(keepends=True)[-15:])
                raise SystemExit(
                    f"\nthe engine ended with exit code {process.returncode}; {log} ends:\n{tail}"
                )
            return json.loads(result.read_text())

    def refusal(self, override: dict) -> str | None:
        """Why an engine with this override does not start, or None if it does."""
        with tempfile.TemporaryDirectory() as folder:
            request = Path(folder) / "request.json"
            request.write_text(json.dumps({"model": str(MODEL), "plugin": True, "override": override,
                                           "prompts": [], "windows": [],
                                           "result": f"{folder}/result.json"}))  # fmt: skip
            done = subprocess.run([sys.executable, ENGINE, request], capture_output=True, text=True)
        return done.stderr.strip().splitlines()[-1] if done.returncode == 2 else None


class Transformers:
    """The same job without SGLang: transformers runs the model, flexact its experts."""

    name = "transformers"

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(
        self, label: str, windows: list, prompts: list, *, plugin: bool = True, override: dict | None = None
    ) -> dict:
        import transformers

        started = time.monotonic()
        bar = terminal.Progress(f"{label}: held-out text", len(windows))
        result = {"version": transformers.__version__, "start_seconds": 0.0}

        def ask() -> None:
            result["log_probabilities"] = self.model.log_probabilities(windows, bar.set)
            result["texts"] = self.model.texts(prompts, 60) if prompts else []

        if plugin:
            with self.model.with_flexact(MODEL, override):
                ask()
        else:
            fresh = Model(MODEL)  # transformers as it is: it reads "swish" as SiLU
            result["log_probabilities"] = fresh.log_probabilities(windows, bar.set)
            result["texts"] = fresh.texts(prompts, 60) if prompts else []
        result["seconds"] = time.monotonic() - started
        return result

    def refusal(self, override: dict) -> str | None:
        """Why the model with this override is not run, or None if it is."""
        import flexact

        try:
            flexact.resolve_config(MODEL, overrides=override)
        except flexact.ConfigError as error:
            return str(error)
        return None


def by_hand(model: Model, label: str, function, windows: list) -> tuple[list[list[float]], torch.Tensor]:
    """transformers with a hand-written activation: log-probabilities, and a histogram of its input."""
    activation = model.use(function)
    bar = terminal.Progress(label, len(windows))
    return model.log_probabilities(windows, bar.set), activation.histogram


def per_layer(resolved, states: list[dict]) -> list[dict]:
    """One row a layer: what the configuration says and, from the running engine, what executed."""
    running = {row["layer"]: row for row in (states[0].get("experts", []) if states else [])}
    rows = []
    for layer in resolved.layers:
        routed = layer.routed
        row = {"layer": layer.index, "name": routed.name, "formula": routed.activation.function.formula,
               "params": routed.activation.params, "source": routed.source}  # fmt: skip
        if layer.index in running:
            row["by"] = running[layer.index]["computed_by"]
            row["kernel"] = running[layer.index]["kernel"]
            row["calls"] = running[layer.index]["calls"]
        rows.append(row)
    return rows


def print_layers(rows: list[dict]) -> None:
    head = ["layer", "function", "formula", "parameters", "from"]
    more = ["computed by", "executions"] if "by" in rows[0] else []
    terminal.table([[*head, *more]] + [
        [str(r["layer"]), r["name"], r["formula"], ", ".join(f"{k} = {v}" for k, v in r["params"].items()),
         r["source"], *([r["by"], str(r["calls"])] if more else [])]
        for r in rows
    ])  # fmt: skip


def check(facts: dict) -> list[str]:
    """What the demonstration claims, and whether it held: one line a claim."""
    p = facts["perplexity"]
    claims = [
        (facts["difference"]["right"] <= SAME,
         f"{facts['host']} with flexact = transformers by hand: largest difference of a "
         f"log-probability {facts['difference']['right']:.1e}"),
        (facts["difference"]["own"] <= SAME,
         f"the user's own formula = the same written by hand: {facts['difference']['own']:.1e}"),
        (p["host_silu"] >= 1.05 * p["host_right"],
         f"without flexact the held-out perplexity is {p['host_silu'] / p['host_right']:.2f} times as high"),
        (facts["refusal"] is not None and "betta" in facts["refusal"],
         "a configuration that is not certain is refused before the model is loaded"),
    ]  # fmt: skip
    return [f"{'ok    ' if held else 'FAILED'} {text}" for held, text in claims]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--windows", type=int, default=64, help="windows of 512 held-out tokens (all of heldout.txt: 159)"
    )
    parser.add_argument("--host", choices=("auto", "sglang", "transformers"), default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "demo")
    arguments = parser.parse_args()
    started = time.monotonic()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    import flexact

    facts: dict = {}
    windows = held_out(arguments.windows)
    some = windows[:OWN_WINDOWS]
    reference = Model(MODEL)
    has_sglang = importlib.util.find_spec("sglang") is not None
    use_sglang = arguments.host == "sglang" or (arguments.host == "auto" and has_sglang)
    if not use_sglang:
        reason = "was not asked for" if has_sglang else "is not installed here"
        print(f"SGLang {reason}: the same job runs through transformers, its experts computed by flexact.")
    host = SGLang(out) if use_sglang else Transformers(reference)

    terminal.heading(1, "What config.json says")
    facts["explain"] = show("explain", str(MODEL))
    resolved = flexact.resolve_config(MODEL)

    terminal.heading(2, f"Served by {host.name} with flexact")
    served = host.run("with flexact", windows, PROMPTS)
    rows = per_layer(resolved, served.get("report", []))
    print_layers(rows)
    for prompt, text in zip(PROMPTS, served["texts"], strict=True):
        terminal.quote(prompt, text)

    terminal.heading(3, f"Served by {host.name} as it is, without flexact")
    stock = host.run("without flexact", windows, PROMPTS, plugin=False)
    print("  It starts without a warning, ignores β and computes plain SiLU:")
    for prompt, text in zip(PROMPTS, stock["texts"], strict=True):
        terminal.quote(prompt, text)

    terminal.heading(4, "The witness: transformers with the activation written by hand")
    beta = json.loads((MODEL / "config.json").read_text())["activation_params"]["beta"]
    right, histogram = by_hand(reference, f"x*sigmoid({beta}*x)",
                               lambda x: x * torch.sigmoid(beta * x), windows)  # fmt: skip
    silu, _ = by_hand(reference, "x*sigmoid(x)", lambda x: x * torch.sigmoid(x), windows)

    terminal.heading(5, "A formula of your own")
    facts["own"] = show("explain", str(MODEL), "--set", json.dumps(OWN))
    own = host.run("own formula", some, PROMPTS[:1], override=OWN)
    own_by_hand, _ = by_hand(reference, "the same by hand",
                             lambda x: x * torch.clamp(0.5 + beta * x / 4, 0, 1), some)  # fmt: skip

    terminal.heading(6, "What is not certain is refused")
    facts["refused"] = show("explain", str(MODEL), "--set", json.dumps(REFUSED))
    facts["refusal"] = host.refusal(REFUSED)
    print(f"  {host.name} with flexact: {facts['refusal'] or 'started'}", flush=True)

    facts |= {
        "host": host.name, "host_version": served["version"], "windows": len(windows),
        "tokens": len(windows) * WINDOW, "own_tokens": len(some) * WINDOW, "beta": beta,
        "rows": rows, "prompts": PROMPTS, "texts": served["texts"], "stock_texts": stock["texts"],
        "own_texts": own["texts"], "histogram": histogram.tolist(),
        "start_seconds": {"with": served["start_seconds"], "without": stock["start_seconds"]},
    }  # fmt: skip
    facts["perplexity"] = {
        "host_right": perplexity(served["log_probabilities"]), "hand_right": perplexity(right),
        "host_silu": perplexity(stock["log_probabilities"]), "hand_silu": perplexity(silu),
        "host_own": perplexity(own["log_probabilities"]), "hand_own": perplexity(own_by_hand),
        "part_right": perplexity(right[: len(some)]),
    }  # fmt: skip
    facts["difference"] = {
        "right": largest_difference(served["log_probabilities"], right),
        "silu": largest_difference(stock["log_probabilities"], silu),
        "own": largest_difference(own["log_probabilities"], own_by_hand),
    }

    terminal.heading(7, "Held-out perplexity")
    terminal.table(report.perplexities(facts))
    facts["checks"] = check(facts)
    facts["seconds"] = time.monotonic() - started
    print()
    for line in facts["checks"]:
        print("  " + line)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    page = out / "report.html"
    page.write_text(report.page(facts), encoding="utf-8")
    shown = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    print(f"\n  {shown} shows all of it. {facts['seconds']:.0f} s.")
    return int(any(line.startswith("FAILED") for line in facts["checks"]))


if __name__ == "__main__":
    sys.exit(main())
