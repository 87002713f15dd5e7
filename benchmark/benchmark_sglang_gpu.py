"""Serving on one GPU with the plugin and without: SGLang's own serving benchmark on Qwen3-30B-A3B's sizes.

    python benchmark/benchmark_sglang_gpu.py RESULTS.json [--rounds 1] [--deadline 540]

The weights are random (`--load-format dummy`), the dimensions those of the published model, so kernels,
caches and schedules are the real ones. Three servers in turn, each with CUDA graphs, radix cache, chunked
prefill and overlapping schedule as SGLang has them by default:

    stock    SGLang's kernels, which compute SiLU; no plugin
    always   SiLU on flexact's kernels
    swish    swish, β = 1.5, on flexact's kernels

For each: seconds until it answers, device memory, tokens of its cache, and for every number of concurrent
requests tokens a second and time per token. Servers take turns so that a drifting clock meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
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
    "always": ({"FLEXACT_MOE": "always"}, None),
    "swish": ({"FLEXACT_MOE": "auto"}, SWISH),
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
        """Ends it and all that it started."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, kind)
            except ProcessLookupError:
                return
            time.sleep(3)


def load(folder: Path, concurrency: int, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """SGLang's serving benchmark at so many concurrent requests."""
    requests = max(8, arguments.requests_each * concurrency)
    out.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang", "--host", "127.0.0.1",
        "--port", str(PORT), "--model", str(folder), "--tokenizer", str(folder),
        "--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1",
        "--random-input-len", str(arguments.input), "--random-output-len", str(arguments.output),
        "--num-prompts", str(requests), "--max-concurrency", str(concurrency), "--seed", "1",
        "--output-file", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.is_file():
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(out.read_text().splitlines()[-1])
    return {key: found.get(key) for key in KEPT}


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=1, help="times that every server is started")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--requests-each", type=int, default=3, help="requests for each concurrent one")
    parser.add_argument("--input", type=int, default=1024)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--attention-backend", default="triton")
    parser.add_argument("--deadline", type=float, default=540, help="seconds after which nothing is started")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="more arguments of the server")
    arguments = parser.parse_args()
    begin = time.monotonic()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        make_model(folder, arguments.layers)
        for index in range(arguments.rounds):
            for variant in arguments.variants if index % 2 == 0 else reversed(arguments.variants):
                if time.monotonic() - begin > arguments.deadline - 60:
                    break
                run: dict[str, Any] = {"variant": variant, "round": index}
                runs.append(run)
                server = Server(variant, folder, arguments, folder / f"{variant}.log")
                try:
                    run["start_seconds"] = server.wait(300)
                    run["memory_mib"] = memory()
                    info = answer("/get_server_info") or {}
                    state = (info.get("internal_states") or [{}])[0]
                    run["memory_usage"] = state.get("memory_usage")
                    run["loads"] = {}
                    for concurrency in arguments.concurrency:
                        if time.monotonic() - begin > arguments.deadline:
                            break
                        found = load(folder, concurrency, arguments, folder / "load.jsonl")
                        run["loads"][concurrency] = found
                        print(variant, concurrency, found, flush=True)
                        arguments.results.write_text(json.dumps(runs, indent=1))
                    rows = ((answer("/get_server_info") or {}).get("internal_states") or [{}])[0]
                    experts = rows.get("flexact", {}).get("experts", [])
                    run["computed_by"] = sorted({row["computed_by"] for row in experts})
                    run["fewest_executions"] = min((row["calls"] for row in experts), default=None)
                except RuntimeError as error:
                    run["error"] = str(error)
                    print(variant, error, flush=True)
                finally:
                    server.end()
                arguments.results.write_text(json.dumps(runs, indent=1))
    print(json.dumps([{k: v for k, v in run.items() if k != "loads"} for run in runs], indent=1))


if __name__ == "__main__":
    main()
