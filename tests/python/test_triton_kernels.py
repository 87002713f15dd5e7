"""The Triton kernels in Triton's interpreter against fp64: every kernel, flag and function.

The interpreter replaces Triton's operations when kernels are imported, so it has a process of its own
(triton_cases.py); these tests judge what that process reports.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import flexact.moe
import pytest
import torch
from flexact import ActivationRegistry, fused_moe

pytest.importorskip("triton")

SCRIPT = Path(__file__).parent / "triton_cases.py"
UNIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


def interpreted(tmp_path_factory, *arguments):
    folder = tmp_path_factory.mktemp("triton")
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "FLEXACT_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return interpreted(tmp_path_factory, SCRIPT, "cpu")


def test_every_kernel_is_as_near_to_fp64_as_torch_with_the_same_roundings(reports):
    for report in reports:
        assert report["finite"], report
        assert report["rms"] <= 1.1 * report["recipe_rms"] + 1e-6, report
        assert report["max"] <= 60 * report["recipe_rms"] + 1e-6, report


def test_every_function_of_the_catalogue_runs_in_a_kernel(reports):
    ran = {report["case"].removeprefix("function ") for report in reports}
    assert set(ActivationRegistry.list()) <= ran


def test_what_the_kernels_do_not_compute_is_refused_before_they_are_loaded():
    x, w13, w2 = torch.zeros(3, 32), torch.zeros(2, 48, 32), torch.zeros(2, 32, 24)
    ids, weights = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    silu = ActivationRegistry.get_activation("silu")

    def call(dtype, hidden_dtype=None, **options):
        hidden = x.to(hidden_dtype or dtype)
        return fused_moe(hidden, w13.to(dtype), w2.to(dtype), weights, ids, silu, backend="triton", **options)

    with pytest.raises(flexact.Unsupported, match="no Triton kernels for format fp32"):
        call(torch.float32, format="fp32")
    with pytest.raises(flexact.Unsupported, match="convert the hidden states to bfloat16"):
        call(torch.bfloat16, hidden_dtype=torch.float32)
    with pytest.raises(flexact.Unsupported, match="do not run on cpu tensors"):
        call(torch.bfloat16)
    with pytest.raises(flexact.Unsupported, match="do not run on cpu tensors"):
        flexact.moe.plan(w13.bfloat16(), w2.bfloat16(), silu, top_k=1, backend="triton")
