"""Serving on one GPU with the plugin and without: SGLang's own serving benchmark on Qwen3-30B-A3B's sizes.

    python benchmark/benchmark_sglang_gpu.py RESULTS.json [--rounds 3] [--deadline 400]

The weights are random (`--load-format dummy`), the dimensions those of the published model, so kernels,
caches and schedules are the real ones. Servers with CUDA graphs, radix cache, chunked prefill and overlapping
schedule as SGLang has them by default:

    stock    SGLang's kernels, which compute SiLU; no plugin
    swish    swish, β = 1.5, on flexact's kernels
    always   SiLU on flexact's kernels; only where --variants names it

In the first round every server is only started: caches fill. From the second on each is started with filled
caches, which is the start that counts, and then loaded. Measured are seconds until it answers, memory, tokens
of its cache, and for every number of concurrent requests tokens a second and time per token. Servers change
places from round to round, so that a drifting clock meets all of them. The file is written after every step,
with a summary of what is comparable so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# The published configuration.
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 40960, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "vocab_size": 151936,
    "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    "torch_dtype": "bfloat16", "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip
SWISH = {"hidden_act": "swish", "activation_params": {"beta": 1.5}}
VARIANTS = {
    "stock": ({"SGLANG_PLUGINS": "none"}, None),
    "swish": ({"FLEXACT_MOE": "auto"}, SWISH),
    "always": ({"FLEXACT_MOE": "always"}, None),
}
PORT = 30017
KEPT = (
    "request_throughput", "input_throughput", "output_throughput", "mean_ttft_ms", "median_ttft_ms",
    "median_tpot_ms", "p99_tpot_ms", "median_itl_ms", "completed", "duration",
)  # fmt: skip


def make_model(folder: Path, layers: int) -> None:
    """Configuration and a tokenizer with one word for each id."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    config = QWEN3_30B_A3B | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"t{index}": index for index in range(config["vocab_size"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="t2"))
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="t0", eos_token="t1", unk_token="t2"
    ).save_pretrained(folder)


def answer(path: str) -> Any:
    """What the server says, or None."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=20) as reply:
            text = reply.read().decode()
        return json.loads(text) if text.strip().startswith("{") else True
    except (OSError, urllib.error.URLError):
        return None


def memory() -> int:
    """MiB in use on the GPU."""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(done.stdout.split()[0]) if done.returncode == 0 else -1


class Server:
    """One server and its log; ended as a process group, children included."""

    def __init__(self, variant: str, folder: Path, arguments: argparse.Namespace, log: Path) -> None:
        environment, override = VARIANTS[variant]
        command = [
            sys.executable, "-m", "sglang.launch_server", "--model-path", str(folder), "--port", str(PORT),
            "--load-format", "dummy", "--attention-backend", arguments.attention_backend,
            "--sampling-backend", "pytorch", "--context-length", "8192", "--mem-fraction-static", "0.9",
            "--max-running-requests", "128", "--cuda-graph-max-bs-decode", "128", "--random-seed", "1",
            *arguments.server,
        ]  # fmt: skip
        if override:
            command += ["--json-model-override-args", json.dumps(override)]
        self.log = log
        self.begin = time.perf_counter()
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log.open("w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def wait(self, seconds: float) -> float:
        """Seconds from the launch to the first answer.

        Raises:
            RuntimeError: It ended, or took longer; with the end of its log.
        """
        while time.perf_counter() - self.begin < seconds:
            if answer("/health") is not None:
                return time.perf_counter() - self.begin
            if self.process.poll() is not None:
                break
            time.sleep(0.5)
        raise RuntimeError(self.log.read_text()[-3000:])

    def end(self) -> None:
        """Ends it and all that it started, and waits until the GPU's memory is free again."""
        for kind, seconds in ((signal.SIGTERM, 6), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        until = time.monotonic() + 20
        while memory() > 4096 and time.monotonic() < until:
            time.sleep(0.5)


CLIENT = """
import json, os, sys
from sglang.benchmark import serving
for line in sys.stdin:
    sys.argv = ["serving", *json.loads(line)]
    try:
        serving.cli_main()
    except BaseException as error:
        print(f"the client failed: {error!r}", file=sys.stderr, flush=True)
    os.write(3, b"done\\n")
"""


class Client:
    """SGLang's serving benchmark in one process for all loads: its imports take longer than a load."""

    def __init__(self, log: Path) -> None:
        self.log = log
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" -c "$1" 3>&{writer}', sys.executable, CLIENT],
            stdin=subprocess.PIPE, stdout=log.open("w"), stderr=subprocess.STDOUT, pass_fds=(writer,),
            text=True, start_new_session=True,
        )  # fmt: skip
        os.close(writer)
        self.answers = reader

    def load(
        self, folder: Path, concurrency: int, arguments: argparse.Namespace, seconds: float
    ) -> dict[str, Any]:
        """So many concurrent requests.

        Raises:
            RuntimeError: No result within the seconds; with the end of the log.
        """
        out = folder / "load.jsonl"
        out.unlink(missing_ok=True)
        words = [
            "--backend", "sglang", "--host", "127.0.0.1", "--port", str(PORT), "--model", str(folder),
            "--tokenizer", str(folder), "--dataset-name", "random-ids", "--tokenize-prompt",
            "--random-range-ratio", "1", "--random-input-len", str(arguments.input),
            "--random-output-len", str(arguments.output), "--disable-tqdm",
            "--num-prompts", str(max(6, arguments.requests_each * concurrency)),
            "--max-concurrency", str(concurrency), "--seed", "1", "--output-file", str(out),
        ]  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.answers], [], [], seconds)
        if not ready or not os.read(self.answers, 5) or not out.is_file():
            raise RuntimeError(f"no result of {concurrency} requests: {self.log.read_text()[-2000:]}")
        found = json.loads(out.read_text().splitlines()[-1])
        return {key: found.get(key) for key in KEPT}

    def end(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def state_of() -> dict[str, Any]:
    """The scheduler's state, as the server tells it."""
    info = answer("/server_info") or answer("/get_server_info") or {}
    return {**info, **(info.get("internal_states") or [{}])[0]}


def numbers(run: dict[str, Any]) -> dict[str, float]:
    """What of a run is compared."""
    memory_usage = run.get("memory_usage") or {}
    found = {"start_seconds": run.get("start_seconds"), "cache_tokens": run.get("cache_tokens")}
    for part in ("weight", "graph"):
        size = memory_usage.get(part)
        # Of graphs a size for each phase.
        found[f"{part}_memory"] = sum(size.values()) if isinstance(size, dict) else size
    for concurrency, load in run.get("loads", {}).items():
        found[f"throughput_at_{concurrency}"] = load.get("output_throughput")
    return {name: value for name, value in found.items() if value}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each variant over stock, medians over the rounds with filled caches; of the starts the difference."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, value in numbers(run).items() if run["round"] else ():
            found.setdefault(run["variant"], {}).setdefault(name, []).append(value)
    stock = {name: statistics.median(values) for name, values in found.pop("stock", {}).items()}
    beside: dict[str, Any] = {}
    for variant, columns in found.items():
        for name, values in columns.items():
            if name in stock:
                value, other = statistics.median(values), stock[name]
                ratio = value - other if name == "start_seconds" else value / other
                beside.setdefault(variant, {})[name] = round(ratio, 4)
    return beside


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["stock", "swish"])
    parser.add_argument("--rounds", type=int, default=3, help="times that every server is started")
    parser.add_argument("--filled", action="store_true", help="caches are filled: every round counts")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--requests-each", type=int, default=3, help="requests for each concurrent one")
    parser.add_argument("--input", type=int, default=1024)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--attention-backend", default="triton")
    parser.add_argument("--deadline", type=float, default=400, help="seconds after which nothing is started")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="more arguments of the server")
    arguments = parser.parse_args()
    begin = time.monotonic()
    runs: list[dict[str, Any]] = []

    def left() -> float:
        return arguments.deadline - (time.monotonic() - begin)

    def note(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", flush=True)
        arguments.results.write_text(json.dumps({"summary": summary(runs), "runs": runs}, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        make_model(folder, arguments.layers)
        client = Client(folder / "client.log")
        longest = 90.0
        for index in range(int(arguments.filled), arguments.rounds + int(arguments.filled)):
            for variant in arguments.variants if index % 2 == 0 else reversed(arguments.variants):
                # A start that there is no time for measures nothing.
                if left() < (30 if index == 0 else longest):
                    note(f"{variant}, round {index}: left out, {left():.0f} s are left")
                    continue
                run: dict[str, Any] = {"variant": variant, "round": index}
                runs.append(run)
                started = time.monotonic()
                server = Server(variant, folder, arguments, folder / f"{variant}.log")
                try:
                    run["start_seconds"] = round(server.wait(max(60.0, left())), 2)
                    run["memory_mib"] = memory()
                    state = state_of()
                    run["memory_usage"] = state.get("memory_usage")
                    run["cache_tokens"] = state.get("max_total_num_tokens")
                    note(f"{variant}, round {index}: answers after {run['start_seconds']} s")
                    for concurrency in arguments.concurrency if index else []:
                        if left() < 0:
                            break
                        loads = run.setdefault("loads", {})
                        loads[str(concurrency)] = client.load(folder, concurrency, arguments, left() + 60)
                        note(f"{variant}, {concurrency} requests: {loads[str(concurrency)]}")
                    experts = state_of().get("flexact", {}).get("experts", [])
                    run["computed_by"] = sorted({row["computed_by"] for row in experts})
                    run["fewest_executions"] = min((row["calls"] for row in experts), default=None)
                    run["launches"] = experts[0].get("kernel") if experts else None
                except RuntimeError as error:
                    run["error"] = str(error)
                    note(f"{variant}: {error}")
                finally:
                    server.end()
                if index:
                    longest = max(longest if index > 1 else 0.0, time.monotonic() - started)
                note(f"{variant}, round {index}: ended")
        client.end()
    note(json.dumps(summary(runs)))
    if any("error" in run for run in runs) or not summary(runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
