"""Engines in processes of their own: `run(job)` starts one, asks what the job asks, and returns the answers.

An engine that must refuse ends its process, so none is started in the test's own. Run as a script, this
file is that process: it reads a job from a JSON file and writes the answers to another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import line_counting

# Long enough for a loaded machine; a start takes ten seconds on an idle one.
TIMEOUT = 300


class Outcome:
    """How an engine's process ended.

    Attributes:
        code: Exit code.
        stderr: All of it.
        answers: What the job asked for; empty where the engine did not start.
    """

    def __init__(self, code: int, stdout: str, stderr: str, answers: dict[str, Any]) -> None:
        self.code, self.stdout, self.stderr, self.answers = code, stdout, stderr, answers

    @property
    def messages(self) -> list[str]:
        """The lines that flexact itself wrote to stderr."""
        return [line for line in self.stderr.splitlines() if line.startswith("flexact: ")]


def run(
    model: Path,
    *,
    override: dict[str, Any] | None = None,
    steps: tuple[str, ...] = ("generate",),
    environment: dict[str, str] | None = None,
    stock: bool = False,
    prelude: str = "",
    count: bool = False,
    **kwargs: Any,
) -> Outcome:
    """Starts an engine in a process of its own.

    Args:
        model: The checkpoint's folder.
        override: `config_override`.
        steps: Names of functions in STEPS, in order.
        environment: Added to this process's.
        stock: Start the engine without flexact (SGLANG_PLUGINS names another plugin).
        prelude: Python text that the process runs before anything else.
        count: Count the lines that the engine's main process runs; its schedulers' are run in tests' own.
        **kwargs: SGLang's server arguments.
    """
    job = {
        "model": str(model),
        "override": override,
        "steps": steps,
        "stock": stock,
        "kwargs": kwargs,
        "prelude": prelude,
    }
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **(environment or {})}
    if count:
        env |= line_counting.counted()
    if stock:
        env["SGLANG_PLUGINS"] = "none"
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder) / "job.json", Path(folder) / "answers.json"
        given.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, __file__, given, answered],
            capture_output=True,
            text=True,
            env=env,
            timeout=TIMEOUT,
            check=False,
        )
        answers = json.loads(answered.read_text()) if answered.exists() else {}
    return Outcome(done.returncode, done.stdout, done.stderr, answers)


# --- In the engine's process -----------------------------------------------------------------------


def _generate(engine: Any, job: dict[str, Any]) -> Any:
    from tiny_models import PROMPTS

    sampling = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
    outputs = engine.generate(list(PROMPTS), sampling, return_logprob=True, logprob_start_len=0)
    return [
        {
            "text": each["text"],
            "prompt_ids": [entry[1] for entry in each["meta_info"]["input_token_logprobs"]],
            "ids": each["output_ids"],
            "logprobs": [entry[0] for entry in each["meta_info"]["output_token_logprobs"]],
            "prompt_logprobs": [entry[0] for entry in each["meta_info"]["input_token_logprobs"]][1:],
        }
        for each in outputs
    ]


def _report(engine: Any, job: dict[str, Any]) -> Any:
    import flexact.sglang

    return flexact.sglang.report(engine)


def _update_weights(engine: Any, job: dict[str, Any]) -> Any:
    return [str(part) for part in engine.update_weights_from_disk(job["model"])]


def _read_weights(engine: Any, job: dict[str, Any]) -> Any:
    return repr(engine.get_weights_by_name("model.layers.0.block_sparse_moe.experts.0.w1.weight"))


def _memory(engine: Any, job: dict[str, Any]) -> Any:
    """Bytes of expert weights that the scheduler holds, by its own report."""
    return [row["resident_bytes"] for state in _report(engine, job) for row in state["experts"]]


STEPS = {
    "generate": _generate,
    "report": _report,
    "update_weights": _update_weights,
    "read_weights": _read_weights,
    "memory": _memory,
}


def _main(job_file: str, answers_file: str) -> None:
    os.environ.pop(line_counting.NAME, None)  # this process's lines at most, not those of the ones it starts
    job = json.loads(Path(job_file).read_text())
    exec(job["prelude"], {})
    import sglang

    settings = {
        "dtype": "float32",
        "context_length": 256,
        "max_total_tokens": 2048,
        "random_seed": 1,
        **job["kwargs"],
    }
    if job["stock"]:
        from flexact.sglang._server_args import CPU_DEFAULTS

        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        settings = {**CPU_DEFAULTS, "model_path": job["model"], **settings}
        settings["json_model_override_args"] = json.dumps(job["override"] or {})
    else:
        import flexact.sglang

        settings = flexact.sglang.server_args(job["model"], config_override=job["override"], **settings)
    begin = time.perf_counter()
    engine = sglang.Engine(**settings)
    answers: dict[str, Any] = {"start_seconds": time.perf_counter() - begin}
    for step in job["steps"]:
        answers[step] = STEPS[step](engine, job)
    Path(answers_file).write_text(json.dumps(answers))
    engine.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _main(*sys.argv[1:3])
