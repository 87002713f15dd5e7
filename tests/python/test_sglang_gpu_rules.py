"""The rules by which GPU engines are judged (tests/gpu/test_sglang_gpu.py), on made-up results."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "gpu"


@pytest.fixture(scope="module")
def judge():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("sglang_gpu_judge", FOLDER / "test_sglang_gpu.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def good(judge, name):
    """Results of a set in which every engine does what it should."""
    engines = {}
    for job in judge.sglang_gpu.jobs(name):
        flag = job.options.get("moe_runner_backend")
        kernel = {"triton": "triton bf16", "cutlass": "cutlass, sm_90a"}.get(
            flag or job.backend, "auto: both"
        )
        row = {"computed_by": "flexact", "kernel": kernel, "relative_error": 0.01, "resident_bytes": 500_000}
        engines[job.name] = {
            "error": {"mean": 0.05, "share_of_sglangs_function": 0.02},
            "executions": [24, 25],
            "report": {"experts": [row, dict(row)], "moe_runner_set_aside": flag},
        }
    models = judge.sglang_gpu.MODELS
    kernels = dict.fromkeys(judge.sglang_gpu.KERNEL_FORMATS, 1.0)
    return {
        "set": name, "engines": engines, "errors": {}, "kernels": kernels,
        "expert_bytes": dict.fromkeys(models, 1_000_000),
    }  # fmt: skip


def verdicts(judge, results):
    """{test: [failed engines]} of a file, and how many cases were judged at all."""
    failed, judged = {}, 0
    for test_name, test in vars(judge).items():
        for mark in getattr(test, "pytestmark", ()):
            for name, job in mark.args[1]:
                try:
                    test(results, name, job)
                    judged += 1
                except pytest.skip.Exception:
                    pass
                except (AssertionError, KeyError):
                    judged += 1
                    failed.setdefault(test_name, []).append(job.name)
    return failed, judged


@pytest.mark.parametrize("name", ["engines", "cutlass", "tp"])
def test_results_that_are_right_pass(judge, name):
    failed, judged = verdicts(judge, good(judge, name))
    assert failed == {}
    assert judged > 60


@pytest.mark.parametrize(
    ("engine", "change", "test"),
    [
        ("mixtral always, cutlass", {"error": {"mean": 0.06}}, "own_function"),
        (
            "mixtral swish, cutlass",
            {"error": {"mean": 0.11, "share_of_sglangs_function": 0}},
            "written_by_hand",
        ),
        ("mixtral swish, cutlass", {"error": {"mean": 0.05, "share_of_sglangs_function": 1}}, "nothing_of"),
        ("mixtral swish, cutlass, no graphs", {"error": {"mean": 0.04}}, "graphs_change"),
        ("gpt_oss_mxfp4 swish, cutlass", {"executions": [24, 0]}, "counted"),
        ("gpt_oss_mxfp4 swish, cutlass", {"kernel": "triton mxfp4"}, "backend_that_was_asked_for"),
        ("qwen3_moe_fp8 swish, auto", {"computed_by": "sglang"}, "backend_that_was_asked_for"),
        ("mixtral swish, cutlass by flag", {"moe_runner_set_aside": None}, "backend_that_was_asked_for"),
        ("qwen3_moe_nvfp4 swish, cutlass", {"resident_bytes": 530_000}, "held_twice"),
    ],
)
def test_results_that_are_wrong_are_found(judge, engine, change, test):
    results = copy.deepcopy(good(judge, "cutlass"))
    found = results["engines"][engine]
    for key, value in change.items():
        if key in found:
            found[key] = value
        elif key in found["report"]:
            found["report"][key] = value
        else:
            for row in found["report"]["experts"]:
                row[key] = value
    failed, _ = verdicts(judge, results)
    assert any(test in name and engine in engines for name, engines in failed.items()), failed


def test_an_engine_that_did_not_run_fails(judge):
    results = good(judge, "tp")
    del results["engines"]["mixtral swish, ep2 cutlass"]
    failed, _ = verdicts(judge, results)
    assert all(engines == ["mixtral swish, ep2 cutlass"] for engines in failed.values())
    assert len(failed) == 4
