"""SGLang engines on a GPU under the plugin: what they compute beside fp64, and what they count.

    python tests/gpu/sglang_gpu.py RESULTS.json [SET] [--only NAME …] [--parallel 4] [--deadline 480]

Sets: `engines` (the backend triton, every model), `cutlass` (that backend in bf16, FP8 and FP4, and `auto`),
`tp` (two GPUs: tensor and expert parallelism with both backends). A set runs in this order and writes
RESULTS.json as it goes. A failure of the first model ends the run, one of another model's engines leaves out
what else is compared with the same engine of that model:

1. `flexact.fused_moe` on this GPU against fp64: seconds, before anything is started.
2. For each model an engine with SGLang's own kernels ("stock"), one with the model's own function on flexact
   (FLEXACT_MOE=always), and one with swish, β = 1.5; some of them without CUDA graphs.
3. Log-probabilities of all prompt and generated tokens against transformers in float64 on the same (for
   quantised models, the dequantised) weights, with the activation written by hand.

`test_sglang_gpu.py` judges the file, every set by the same rules. Engines start `--parallel` at a time: a
start is mostly imports. "Stock" of the NVFP4 model is bf16 on the dequantised weights: SGLang's own kernel
for NVFP4 beside bf16 is not in every installation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
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
    "qwen2_moe": {},
    "deepseek_v2": {},
    "glm4_moe": {},
    "gpt_oss": {},
    "austen": {"dtype": "bfloat16"},
    "qwen3_moe_fp8": {},
    "mixtral_online_fp8": {"quantization": "fp8"},
    "gpt_oss_mxfp4": {},
    "qwen3_moe_nvfp4": {},
}
# Tokens of the prompts: several lengths, one of them longer than the prefill graphs and the chunks.
LENGTHS = (3, 17, 40, 64, 100, 127, 128, 300, 700)
SAMPLING = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


@dataclass(frozen=True)
class Job:
    """An engine: what it serves, and what its results are compared with.

    Attributes:
        model: A name in MODELS.
        variant: What is special about it; with the model its name.
        function: "own", the model's; or "swish", in its place.
        backend: FLEXACT_BACKEND; "" without the plugin.
        options: Added to the server's arguments.
        stock: The variant whose distance from fp64 is the measure, None for that one itself.
    """

    model: str
    variant: str
    function: str = "own"
    backend: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    stock: str | None = "stock"

    @property
    def name(self) -> str:
        """As in the results."""
        return f"{self.model} {self.variant}"

    @property
    def group(self) -> tuple[str, str]:
        """What is compared with the same engine."""
        return self.model, self.stock or self.variant

    @property
    def override(self) -> dict[str, Any] | None:
        """What is laid over the model's config.json."""
        if self.function == "own":
            return None
        return NAMED_SWISH if self.model.startswith("gpt_oss") else SWISH


NO_GRAPHS = {"disable_cuda_graph": True}
# Both need nothing but NCCL's plain collectives.
PARALLEL = {
    "tp2": {"tp_size": 2, "disable_custom_all_reduce": True},
    "ep2": {"tp_size": 2, "ep_size": 2, "disable_custom_all_reduce": True},
}


def engines(name: str) -> list[Job]:
    """One GPU, the backend triton."""
    found = [
        Job(name, "stock", stock=None),
        Job(name, "always", backend="triton"),
        Job(name, "swish", "swish", "triton"),
    ]
    if name in ("mixtral", "gpt_oss_mxfp4"):
        found.append(Job(name, "swish, no graphs", "swish", "triton", NO_GRAPHS, stock="swish"))
    return found


def cutlass(name: str) -> list[Job]:
    """One GPU, the backend cutlass, and what "auto" makes of it."""
    found = [
        Job(name, "stock", stock=None),
        Job(name, "always, cutlass", backend="cutlass"),
        Job(name, "swish, cutlass", "swish", "cutlass"),
    ]
    if name in ("mixtral", "gpt_oss_mxfp4"):
        options = {"backend": "cutlass", "options": NO_GRAPHS, "stock": "swish, cutlass"}
        found.append(Job(name, "swish, cutlass, no graphs", "swish", **options))
    if name == "mixtral":  # SGLang's own flag asks for it
        options = {"backend": "auto", "options": {"moe_runner_backend": "cutlass"}}
        found.append(Job(name, "swish, cutlass by flag", "swish", **options))
    if name in ("qwen3_moe_fp8", "gpt_oss_mxfp4"):
        found.append(Job(name, "swish, auto", "swish", "auto"))
    return found


def tp(name: str) -> list[Job]:
    """Two GPUs: experts divided by columns and by number, both backends."""
    found = []
    for how, options in PARALLEL.items():
        found.append(Job(name, f"stock, {how}", options=options, stock=None))
        for backend in ("triton", "cutlass"):
            measure = {"options": options, "stock": f"stock, {how}", "backend": backend}
            if backend == "triton":
                found.append(Job(name, f"always, {how} {backend}", **measure))
            found.append(Job(name, f"swish, {how} {backend}", "swish", **measure))
    return found


# set → (engines of a model, models), cheapest insight first
SETS: dict[str, tuple[Callable[[str], list[Job]], tuple[str, ...]]] = {
    "engines": (engines, tuple(name for name in MODELS if name != "qwen3_moe_nvfp4")),
    "cutlass": (
        cutlass,
        ("mixtral", "qwen3_moe_fp8", "mixtral_online_fp8", "gpt_oss_mxfp4", "qwen3_moe_nvfp4"),
    ),
    "tp": (tp, ("mixtral", "qwen3_moe_fp8", "gpt_oss_mxfp4", "qwen3_moe_nvfp4")),
}


def jobs(wanted: str, only: Collection[str] = ()) -> list[Job]:
    """Every engine that a set starts."""
    make, models = SETS[wanted]
    return [job for name in models if not only or name in only for job in make(name)]


# --- One engine, in a process of its own ----------------------------------------------------------


def engine(job: Job, folder: Path) -> dict[str, Any]:
    """Starts an engine, generates, and returns tokens, log-probabilities, counts, memory and times."""
    import torch

    begin = time.perf_counter()
    import sglang

    settings = {
        "model_path": str(folder), "attention_backend": "triton", "sampling_backend": "pytorch",
        "dtype": "bfloat16", "max_total_tokens": 16384, "max_running_requests": 16,
        "mem_fraction_static": 0.5, "cuda_graph_max_bs_decode": 16, "cuda_graph_max_bs_prefill": 128,
        "chunked_prefill_size": 256, "random_seed": 1, "log_level": "warning", **MODELS[job.model],
        **job.options,
    }  # fmt: skip
    if job.override:
        settings["json_model_override_args"] = json.dumps(job.override)
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
    if job.backend:
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
    given = json.loads(Path(job_file).read_text())
    folder = Path(given.pop("folder"))
    Path(result_file).write_text(json.dumps(engine(Job(**given), folder)))


# --- The whole run --------------------------------------------------------------------------------


class Run:
    """The run's results, written after every step."""

    def __init__(self, path: Path, deadline: float, set: str) -> None:
        self.path, self.begin, self.deadline = path, time.monotonic(), deadline
        self.results: dict[str, Any] = {"set": set, "engines": {}, "errors": {}}

    def note(self, text: str) -> None:
        """A line with the seconds since the start, and the file as it stands."""
        print(f"[{time.monotonic() - self.begin:5.0f}s] {text}", flush=True)
        self.path.write_text(json.dumps(self.results))

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - (time.monotonic() - self.begin)


def kernels(backend: str) -> dict[str, float]:
    """The largest RMS error beside the recipe's, by format: seconds, and no engine."""
    import flexact
    import flexact.moe
    from flexact import testing

    swish = flexact.ActivationRegistry.get_activation("swish", {"beta": BETA})
    result = {}
    for format in KERNEL_FORMATS:
        case = testing.random_case(
            format, tokens=33, experts=8, top_k=2, hidden=512, intermediate=256, device="cuda"
        )
        exact = testing.reference(case, swish)
        result_here = flexact.fused_moe(activation=swish, backend=backend, **case.arguments())
        ours = testing.errors(result_here, exact)[0]
        recipe = testing.errors(testing.recipe(case, swish, partial=case.hidden_states.dtype), exact)[0]
        result[format] = ours / recipe
    return result


# The end of a model's name → what quantises it
QUANTISED = {"fp8": "fp8_blocks", "mxfp4": "mxfp4", "nvfp4": "nvfp4"}
KERNEL_FORMATS = ("bf16", "fp8_block", "fp8_tensor", "mxfp4")


def build(name: str, root: Path) -> tuple[Path, Path]:
    """(what the engine loads, what the reference loads)."""
    import sglang_models

    if name == "austen":
        return AUSTEN, AUSTEN
    family = name.removesuffix("_online_fp8")
    for format in QUANTISED:
        family = family.removesuffix(f"_{format}")
    plain = root / family
    if not (plain / "config.json").is_file():
        sglang_models.build(family, plain)
    if name.endswith("_online_fp8") or name == family:
        return plain, plain
    make = getattr(sglang_models, QUANTISED[name.rsplit("_", 1)[-1]])
    make(plain, root / name, root / f"{name}_dequantised")
    return root / name, root / f"{name}_dequantised"


def start(job: Job, root: Path, folders: tuple[Path, Path]) -> dict[str, Any]:
    """Starts one engine's process."""
    stem = root / job.name.replace(" ", "_").replace(",", "")
    job_file, result_file = stem.with_suffix(".job"), stem.with_suffix(".result")
    plain = not job.backend and job.model.endswith("nvfp4")
    job_file.write_text(json.dumps({**asdict(job), "folder": str(folders[plain])}))
    result_file.unlink(missing_ok=True)
    environment = dict(os.environ, FLEXACT_MOE="always" if job.function == "own" else "auto")
    if job.backend:
        environment["FLEXACT_BACKEND"] = job.backend
    else:
        environment["SGLANG_PLUGINS"] = "none"
    log = stem.with_suffix(".log").open("w")
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", job_file, result_file],
        stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    )  # fmt: skip
    return {"job": job, "process": process, "result": result_file, "log": stem.with_suffix(".log")}


def errors(job: Job, result: dict[str, Any], folder: Path) -> dict[str, float]:
    """How far the engine's log-probabilities lie from float64's, and how much of SGLang's is in them.

    `share_of_sglangs_function` is the least-squares share of the way from the expected log-probabilities to
    those of SGLang's function: 0 for an engine that runs the expected one, 1 for one that runs SGLang's,
    give or take what rounding has to do with that direction.
    """
    import sglang_models
    import torch

    # SGLang alone computes the family's function: silu, whatever the shipped model's file says.
    host = 1.0 if job.model == "austen" else None
    if job.override:
        beta = BETA
    elif job.model == "austen" and job.backend:
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
    parser.add_argument("set", nargs="?", choices=sorted(SETS), default="engines")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--deadline", type=float, default=480)
    arguments = parser.parse_args()
    root = Path(os.environ.get("TMPDIR", "/tmp")) / "flexact-sglang-gpu"
    root.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.results, arguments.deadline, arguments.set)
    run.results["kernels"] = kernels("cutlass" if arguments.set == "cutlass" else "triton")
    run.note(f"kernels, error beside the recipe's: {run.results['kernels']}")
    waiting = jobs(arguments.set, arguments.only)
    folders = {}
    import sglang_models

    for name in dict.fromkeys(job.model for job in waiting):
        folders[name] = build(name, root)
        run.results.setdefault("expert_bytes", {})[name] = sglang_models.expert_bytes(folders[name][0])
    run.note("models are written")
    first = waiting[0].model if waiting else ""
    at_once = len(waiting) <= arguments.parallel
    running: list[dict[str, Any]] = []
    done = 0
    while waiting or running:
        while waiting and len(running) < arguments.parallel and run.left > 60:
            # Of more engines than can run at once the first one starts alone: it fills SGLang's caches, and
            # shows what is wrong everywhere.
            if running and not done and not at_once:
                break
            job = waiting.pop(0)
            running.append(start(job, root, folders[job.model]))
        if not running:
            break
        time.sleep(0.2)
        for each in [each for each in running if each["process"].poll() is not None or run.left < 0]:
            running.remove(each)
            done += 1
            job = each["job"]
            name = job.name
            if each["process"].poll() is None:
                os.killpg(each["process"].pid, 9)
            if not each["result"].is_file():
                run.results["errors"][name] = each["log"].read_text()[-4000:]
                run.note(f"{name}: no result\n{run.results['errors'][name]}")
                lost = waiting if job.model == first else [j for j in waiting if j.group == job.group]
                for other in list(lost):
                    waiting.remove(other)
                    run.results["errors"][other.name] = f"left out: {name} failed"
                continue
            result = json.loads(each["result"].read_text())
            result["error"] = errors(job, result, folders[job.model][1])
            result.pop("outputs")
            run.results["engines"][name] = result
            run.note(f"{name}: start {result['start_seconds']:.0f} s, {result['error']}")
    for job in waiting:
        run.results["errors"][job.name] = "not started: less than a minute was left"
    run.note(f"{len(run.results['engines'])} engines ran, {len(run.results['errors'])} did not")
    return 1 if run.results["errors"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:4])
    else:
        sys.exit(main())
