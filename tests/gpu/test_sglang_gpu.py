"""SGLang on a GPU under the plugin: judges the file that sglang_gpu.py writes, and has it written if need be.

FLEXACT_SGLANG_RESULTS names a file of an earlier run; without it the engines run now, some six minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sglang")

MODELS = (
    "mixtral", "qwen3_moe", "deepseek_v2", "glm4_moe", "gpt_oss", "austen", "qwen3_moe_fp8",
    "mixtral_online_fp8", "gpt_oss_mxfp4",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = os.environ.get("FLEXACT_SGLANG_RESULTS")
    if path is None:
        path = tmp_path_factory.mktemp("sglang") / "results.json"
        subprocess.run([sys.executable, Path(__file__).parent / "sglang_gpu.py", path], check=False)
    return json.loads(Path(path).read_text())


def error(results, model, variant):
    name = f"{model} {variant}"
    assert name in results["engines"], results["errors"].get(name, "not run")
    return results["engines"][name]["error"]["mean"]


def test_the_kernels_alone_are_as_near_to_fp64_as_their_recipe(results):
    assert set(results["kernels"]) == {"bf16", "fp8_block", "fp8_tensor", "mxfp4"}
    assert max(results["kernels"].values()) <= 1.1


@pytest.mark.parametrize("model", MODELS)
def test_the_models_own_function_is_as_near_to_fp64_as_sglangs_kernels(results, model):
    assert error(results, model, "always") <= 1.1 * error(results, model, "stock")


@pytest.mark.parametrize("model", MODELS)
def test_swish_is_as_near_to_the_function_written_by_hand_as_silu_is_to_silu(results, model):
    assert error(results, model, "swish") <= 2 * error(results, model, "stock")


@pytest.mark.parametrize("model", MODELS)
def test_nothing_of_sglangs_own_function_is_in_the_result(results, model):
    """1 where SGLang's function ran. In FP8 a mean error could not tell: rounding is as large."""
    found = results["engines"][f"{model} swish"]["error"]
    assert abs(found["share_of_sglangs_function"]) <= 0.3, found


@pytest.mark.parametrize("model", ["mixtral", "gpt_oss_mxfp4"])
def test_graphs_change_nothing(results, model):
    """Different batches round differently: as near to fp64, not the same bits."""
    assert error(results, model, "swish") <= 1.1 * error(results, model, "swish, no graphs")


@pytest.mark.parametrize("model", MODELS)
def test_every_layer_is_counted_in_replays(results, model):
    for variant in ("always", "swish"):
        executions = results["engines"][f"{model} {variant}"]["executions"]
        # 24 tokens: a prefill and 23 steps, and a step or two that the overlapping schedule runs ahead.
        assert executions and all(24 <= count <= 26 for count in executions), executions


@pytest.mark.parametrize("model", MODELS)
def test_experts_run_on_the_triton_backend(results, model):
    for variant in ("always", "swish"):
        rows = results["engines"][f"{model} {variant}"]["report"]["experts"]
        assert rows and {row["computed_by"] for row in rows} == {"flexact"}
        assert all(row["kernel"].startswith("triton ") for row in rows)
        assert max(row["relative_error"] for row in rows) <= 4e-2
