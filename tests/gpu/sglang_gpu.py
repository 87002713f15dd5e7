"""SGLang engines on one GPU under the plugin: what they compute beside fp64, and what they count.

    python tests/gpu/sglang_gpu.py RESULTS.json [--only NAME …] [--parallel 4] [--deadline 480]

Runs in this order and writes RESULTS.json as it goes. A failure of the first model ends the run, one of
another model's engines leaves out what is left of that model:

1. `flexact.fused_moe` on this GPU against fp64: seconds, before anything is started.
2. For each model an engine with SGLang's own kernels ("stock"), one with the model's own function on flexact
   (FLEXACT_MOE=always), and one with swish, β = 1.5; some of them without CUDA graphs.
3. Log-probabilities of all prompt and generated tokens against transformers in float64 on the same (for
   quantised models, the dequantised) weights, with the activation written by hand.

`test_sglang_gpu.py` judges the file. Engines start `--parallel` at a time: a start is mostly imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
AUSTEN = HERE.parents[1] / "models" / "austen-moe-8m"
BETA = 1.5
SWISH = {"hidden_act": "swish", "activation_params": {"beta": BETA}}
# GPT-OSS's formula is its class's: only a named function replaces it.
NAMED_SWISH = {"activation_params": {"name": "swish", "beta": BETA}}

# name → (model, what is added to the server's arguments)
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {},
    "deepseek_v2": {},
    "glm4_moe": {},
    "gpt_oss": {},
    "austen": {"dtype": "bfloat16"},
    "qwen3_moe_fp8": {},
    "mixtral_online_fp8": {"quantization": "fp8"},
    "gpt_oss_mxfp4": {},
}
# Tokens of the prompts: several lengths, one of them longer than the prefill graphs and the chunks.
LENGTHS = (3, 17, 40, 64, 100, 127, 128, 300, 700)
SAMPLING = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


def jobs(only: list[str]) -> list[dict[str, Any]]:
    """Every engine that is started, cheapest insight first."""
    result = []
    for name, options in MODELS.items():
        if only and name not in only:
            continue
        override = NAMED_SWISH if name.startswith("gpt_oss") else SWISH
        variants = [("stock", None, "none"), ("always", None, "always"), ("swish", override, "auto")]
        if name in ("mixtral", "gpt_oss_mxfp4"):
            variants.append(("swish, no graphs", override, "auto"))
        for variant, changed, mode in variants:
            more = {"disable_cuda_graph": True} if "no graphs" in variant else {}
            result.append(
                {
                    "model": name, "variant": variant, "override": changed, "mode": mode,
                    "options": {**options, **more},
                }
            )  # fmt: skip
    return result


# --- One engine, in a process of its own ----------------------------------------------------------


def engine(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Starts an engine, generates, and returns tokens, log-probabilities, counts, memory and times."""
    import torch

    begin = time.perf_counter()
    import sglang

    settings = {
        "model_path": str(folder), "attention_backend": "triton", "sampling_backend": "pytorch",
        "dtype": "bfloat16", "max_total_tokens": 16384, "max_running_requests": 16,
        "mem_fraction_static": 0.5, "cuda_graph_max_bs_decode": 16, "cuda_graph_max_bs_prefill": 128,
        "chunked_prefill_size": 256, "random_seed": 1, "log_level": "warning", **job["options"],
    }  # fmt: skip
    if job["override"]:
        settings["json_model_override_args"] = json.dumps(job["override"])
    imported = time.perf_counter()
    running = sglang.Engine(**settings)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(7)
    config = json.loads((folder / "config.json").read_text())
    longest = config["max_position_embeddings"] - SAMPLING["max_new_tokens"]
    prompts = [
        torch.randint(3, config["vocab_size"], (min(length, longest),), generator=generator).tolist()
        for length in LENGTHS
    ]
    outputs = running.generate(
        input_ids=prompts, sampling_params=SAMPLING, return_logprob=True, logprob_start_len=0
    )
    result: dict[str, Any] = {
        "import_seconds": imported - begin,
        "start_seconds": started - imported,
        "outputs": [
            {
                "prompt": prompt,
                "ids": [entry[1] for entry in output["meta_info"]["output_token_logprobs"]],
                "logprobs": [entry[0] for entry in output["meta_info"]["input_token_logprobs"]][1:]
                + [entry[0] for entry in output["meta_info"]["output_token_logprobs"]],
            }
            for prompt, output in zip(prompts, outputs, strict=True)
        ],
    }
    if job["variant"] != "stock":
        import flexact.sglang

        before = flexact.sglang.report(running)[0]
        # The prefix is in the radix cache by now; one prefill and 23 steps that are replays.
        running.generate(input_ids=[prompts[3]], sampling_params=SAMPLING)
        after = flexact.sglang.report(running)[0]
        result["report"] = after
        result["executions"] = [
            row["calls"] - old["calls"]
            for kind in ("experts", "mlps")
            for row, old in zip(after[kind], before[kind], strict=True)
            if row["computed_by"] == "flexact"
        ]
    running.shutdown()
    return result


def child(job_file: str, result_file: str) -> None:
    """`engine` with a job and a result in files."""
    job = json.loads(Path(job_file).read_text())
    Path(result_file).write_text(json.dumps(engine(job, Path(job["folder"]))))


# --- The whole run --------------------------------------------------------------------------------


class Run:
    """The run's results, written after every step."""

    def __init__(self, path: Path, deadline: float) -> None:
        self.path, self.begin, self.deadline = path, time.monotonic(), deadline
        self.results: dict[str, Any] = {"engines": {}, "errors": {}}

    def note(self, text: str) -> None:
        """A line with the seconds since the start, and the file as it stands."""
        print(f"[{time.monotonic() - self.begin:5.0f}s] {text}", flush=True)
        self.path.write_text(json.dumps(self.results))

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - (time.monotonic() - self.begin)


def kernels() -> dict[str, float]:
    """The largest RMS error beside the recipe's, by format: seconds, and no engine."""
    import flexact
    from flexact import testing

    swish = flexact.ActivationRegistry.get_activation("swish", {"beta": BETA})
    result = {}
    for format in ("bf16", "fp8_block", "fp8_tensor", "mxfp4"):
        case = testing.random_case(
            format, tokens=33, experts=8, top_k=2, hidden=512, intermediate=256, device="cuda"
        )
        exact = testing.reference(case, swish)
        ours = testing.errors(flexact.fused_moe(activation=swish, **case.arguments()), exact)[0]
        recipe = testing.errors(testing.recipe(case, swish, partial=case.hidden_states.dtype), exact)[0]
        result[format] = ours / recipe
    return result


def build(name: str, root: Path) -> tuple[Path, Path]:
    """(what the engine loads, what the reference loads)."""
    import sglang_models

    if name == "austen":
        return AUSTEN, AUSTEN
    family = name.removesuffix("_online_fp8").removesuffix("_fp8").removesuffix("_mxfp4")
    plain = root / family
    if not (plain / "config.json").is_file():
        sglang_models.build(family, plain)
    if name.endswith("_online_fp8") or name == family:
        return plain, plain
    make = sglang_models.fp8_blocks if name.endswith("_fp8") else sglang_models.mxfp4
    make(plain, root / name, root / f"{name}_dequantised")
    return root / name, root / f"{name}_dequantised"


def start(job: dict[str, Any], root: Path) -> dict[str, Any]:
    """Starts one engine's process."""
    stem = root / f"{job['model']} {job['variant']}".replace(" ", "_").replace(",", "")
    job_file, result_file = stem.with_suffix(".job"), stem.with_suffix(".result")
    job_file.write_text(json.dumps(job))
    environment = dict(os.environ, FLEXACT_MOE="auto" if job["mode"] == "none" else job["mode"])
    if job["mode"] == "none":
        environment["SGLANG_PLUGINS"] = "none"
    log = stem.with_suffix(".log").open("w")
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", job_file, result_file],
        stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip
    return {"job": job, "process": process, "result": result_file, "log": stem.with_suffix(".log")}


def errors(job: dict[str, Any], result: dict[str, Any], folder: Path) -> dict[str, float]:
    """How far the engine's log-probabilities lie from float64's, and how much of SGLang's is in them.

    `share_of_sglangs_function` is the least-squares share of the way from the expected log-probabilities to
    those of SGLang's function: 0 for an engine that runs the expected one, 1 for one that runs SGLang's,
    give or take what rounding has to do with that direction.
    """
    import sglang_models
    import torch

    # SGLang alone computes the family's function: silu, whatever the shipped model's file says.
    host = 1.0 if job["model"] == "austen" else None
    if job["override"]:
        beta = BETA
    elif job["model"] == "austen" and job["variant"] != "stock":
        beta = json.loads((AUSTEN / "config.json").read_text())["activation_params"]["beta"]
    else:
        beta = host
    sequences = [output["prompt"] + output["ids"] for output in result["outputs"]]
    expected = torch.cat(sglang_models.reference(folder, beta, sequences))
    actual = torch.cat([torch.tensor(o["logprobs"], dtype=torch.float64) for o in result["outputs"]])
    off = (actual - expected).abs()
    found = {
        "tokens": len(off),
        "mean": off.mean().item(),
        "median": off.median().item(),
        "rms": off.square().mean().sqrt().item(),
        "max": off.max().item(),
    }
    if beta != host:
        other = torch.cat(sglang_models.reference(folder, host, sequences))
        way = other - expected
        found["mean_with_sglangs_function"] = (actual - other).abs().mean().item()
        found["share_of_sglangs_function"] = ((actual - expected) @ way / (way @ way)).item()
    return found


def main() -> int:
    """The whole run; 0 where every engine started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--deadline", type=float, default=480)
    arguments = parser.parse_args()
    root = Path(os.environ.get("TMPDIR", "/tmp")) / "flexact-sglang-gpu"
    root.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.results, arguments.deadline)
    run.results["kernels"] = kernels()
    run.note(f"kernels, error beside the recipe's: {run.results['kernels']}")
    waiting = jobs(arguments.only)
    folders = {}
    for name in dict.fromkeys(job["model"] for job in waiting):
        folders[name] = build(name, root)
    run.note("models are written")
    first = waiting[0]["model"] if waiting else ""
    running: list[dict[str, Any]] = []
    done = 0
    while waiting or running:
        while waiting and len(running) < arguments.parallel and run.left > 60:
            if running and not done:
                break  # the first one alone: it fills SGLang's caches, and shows what is wrong everywhere
            job = waiting.pop(0)
            running.append(start({**job, "folder": str(folders[job["model"]][0])}, root))
        if not running:
            break
        time.sleep(0.2)
        for each in [each for each in running if each["process"].poll() is not None or run.left < 0]:
            running.remove(each)
            done += 1
            job = each["job"]
            name = f"{job['model']} {job['variant']}"
            if each["process"].poll() is None:
                os.killpg(each["process"].pid, 9)
            if not each["result"].is_file():
                run.results["errors"][name] = each["log"].read_text()[-4000:]
                run.note(f"{name}: no result\n{run.results['errors'][name]}")
                lost = (
                    waiting if job["model"] == first else [j for j in waiting if j["model"] == job["model"]]
                )
                for other in list(lost):
                    waiting.remove(other)
                    run.results["errors"][f"{other['model']} {other['variant']}"] = f"left out: {name} failed"
                continue
            result = json.loads(each["result"].read_text())
            result["error"] = errors(job, result, folders[job["model"]][1])
            result.pop("outputs")
            run.results["engines"][name] = result
            run.note(f"{name}: start {result['start_seconds']:.0f} s, {result['error']}")
    for job in waiting:
        run.results["errors"][f"{job['model']} {job['variant']}"] = "not started"
    run.note(f"{len(run.results['engines'])} engines ran, {len(run.results['errors'])} did not")
    return 1 if run.results["errors"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:4])
    else:
        sys.exit(main())
