"""SGLang on a GPU under the plugin: judges the file that sglang_gpu.py writes, and has it written if need be.

FLEXACT_SGLANG_RESULTS names a file of an earlier run, of any of its sets; without it the set `engines` runs
now, some six minutes. Every engine is judged by the same rules: on one GPU or two, with either backend.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sglang_gpu

JOBS = [(name, job) for name in sglang_gpu.SETS for job in sglang_gpu.jobs(name)]


def of_jobs(**wanted):
    """The engines for which all of this holds, each a case of the test."""
    cases = [
        (name, job)
        for name, job in JOBS
        if all(condition(getattr(job, field)) for field, condition in wanted.items())
    ]
    return pytest.mark.parametrize(("name", "job"), cases, ids=[f"{name}: {job.name}" for name, job in cases])


def is_no_graphs(variant):
    return "no graphs" in variant


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = os.environ.get("FLEXACT_SGLANG_RESULTS")
    if path is None:
        pytest.importorskip("sglang")
        path = tmp_path_factory.mktemp("sglang") / "results.json"
        subprocess.run([sys.executable, Path(__file__).parent / "sglang_gpu.py", path], check=False)
    found = json.loads(Path(path).read_text())
    return {"set": "engines", **found}


def engine(results, name, model, variant):
    if results["set"] != name:
        pytest.skip(f"the file is of the set {results['set']}")
    key = f"{model} {variant}"
    assert key in results["engines"], results["errors"].get(key, "not run")
    return results["engines"][key]


def error(results, name, model, variant):
    return engine(results, name, model, variant)["error"]["mean"]


def test_the_kernels_alone_are_as_near_to_fp64_as_their_recipe(results):
    assert set(results["kernels"]) == set(sglang_gpu.KERNEL_FORMATS)
    assert max(results["kernels"].values()) <= 1.1


@of_jobs(backend=bool, function=lambda function: function == "own")
def test_the_models_own_function_is_as_near_to_fp64_as_sglangs_kernels(results, name, job):
    stock = error(results, name, job.model, job.stock)
    assert error(results, name, job.model, job.variant) <= 1.1 * stock


@of_jobs(function=lambda function: function == "swish", variant=lambda variant: not is_no_graphs(variant))
def test_swish_is_as_near_to_the_function_written_by_hand_as_silu_is_to_silu(results, name, job):
    stock = error(results, name, job.model, job.stock)
    assert error(results, name, job.model, job.variant) <= 2 * stock


@of_jobs(function=lambda function: function == "swish")
def test_nothing_of_sglangs_own_function_is_in_the_result(results, name, job):
    """1 where SGLang's function ran. In FP8 a mean error could not tell: rounding is as large."""
    found = engine(results, name, job.model, job.variant)["error"]
    assert abs(found["share_of_sglangs_function"]) <= 0.3, found


@of_jobs(variant=is_no_graphs)
def test_graphs_change_nothing(results, name, job):
    """Different batches round differently: as near to fp64, not the same bits."""
    with_graphs = error(results, name, job.model, job.stock)
    assert with_graphs <= 1.1 * error(results, name, job.model, job.variant)


@of_jobs(backend=bool)
def test_every_layer_is_counted_in_replays(results, name, job):
    executions = engine(results, name, job.model, job.variant)["executions"]
    # 24 tokens: a prefill and 23 steps, and a step or two that the overlapping schedule runs ahead.
    assert executions and all(24 <= count <= 26 for count in executions), executions


@of_jobs(backend=bool)
def test_experts_run_on_the_backend_that_was_asked_for(results, name, job):
    report = engine(results, name, job.model, job.variant)["report"]
    by_flag = job.options.get("moe_runner_backend")
    wanted = {"triton": "triton ", "cutlass": "cutlass,"}.get(
        by_flag or job.backend, ("triton", "cut", "auto")
    )
    rows = report["experts"]
    assert rows and {row["computed_by"] for row in rows} == {"flexact"}
    assert all(row["kernel"].startswith(wanted) for row in rows), rows
    assert max(row["relative_error"] for row in rows) <= 4e-2
    if by_flag:
        assert report["moe_runner_set_aside"] == by_flag


@of_jobs(backend=bool, options=lambda options: "tp_size" not in options)
def test_no_weight_is_held_twice(results, name, job):
    """At most 2 % more than the checkpoint has; what SGLang quantises itself is larger there."""
    rows = engine(results, name, job.model, job.variant)["report"]["experts"]
    if "expert_bytes" not in results:
        pytest.skip("an earlier file")
    assert sum(row["resident_bytes"] for row in rows) <= 1.02 * results["expert_bytes"][job.model] + 4096
