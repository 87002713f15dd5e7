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
from flexact._core import LaunchTable

pytest.importorskip("triton")

SCRIPT = Path(__file__).parent / "triton_cases.py"
COMPILE = Path(__file__).parent / "triton_compile.py"


def lines_of(folder, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "FLEXACT_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return lines_of(tmp_path_factory.mktemp("triton"), SCRIPT, "cpu", TRITON_INTERPRET="1")


def test_every_kernel_is_as_near_to_fp64_as_torch_with_the_same_roundings(reports):
    for report in reports:
        assert report["finite"], report
        assert report["rms"] <= 1.1 * report["recipe_rms"] + 1e-6, report
        assert report["max"] <= 60 * report["recipe_rms"] + 1e-6, report


def test_every_function_of_the_catalogue_runs_in_a_kernel(reports):
    ran = {report["case"].removeprefix("function ") for report in reports}
    # Other tests of this process register functions of their own.
    assert {name for name in ActivationRegistry.list() if not name.startswith("test_")} <= ran


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


@pytest.mark.parametrize("arch", [90, 100])
def test_every_kernel_compiles_for_a_gpu_that_is_not_there_without_spills(arch, tmp_path):
    reports = lines_of(tmp_path, COMPILE, str(arch), "bf16", TRITON_CACHE_DIR=str(tmp_path / "triton"))
    names = {report["kernel"] for report in reports}
    assert {"gate_up", "down", "combine", "count", "scan", "scatter"} <= names
    if arch == 90:
        assert {"route_small", "down_and_combine"} <= names
    for report in reports:
        assert report["stack"] == 0, report
        assert report["shared"] <= 232448, report
        if report["kernel"] in ("gate_up", "down") and report["tokens"] == 2048 and arch == 90:
            assert report["wgmma"], report
        if report["kernel"] in ("combine", "down_and_combine"):
            assert report["wide"] > 0, report


def test_forward_with_router_says_what_it_takes():
    from flexact.triton import triton_moe_forward

    arguments = [torch.zeros(2, 16), torch.zeros(16, 4), torch.zeros(4, 16, 8), torch.zeros(4, 8, 16)]
    with pytest.raises(flexact.InvalidArgument, match="swish_glu is gated"):
        triton_moe_forward(*arguments, activation_type=5, activation_params=[1.0])
    with pytest.raises(flexact.InvalidArgument, match="swish has 1 parameters: beta"):
        triton_moe_forward(*arguments, activation_type=1, activation_params=[])
    with pytest.raises(flexact.InvalidArgument, match="no activation has the id 77"):
        triton_moe_forward(*arguments, activation_type=77)


def test_shipped_launches_can_be_read_and_name_their_device():
    folder = Path(flexact.moe.__file__).parent / "triton" / "tuned"
    for path in folder.glob("*.json"):
        table = LaunchTable.from_json(path.read_text())
        assert len(table) > 0
        assert "".join(c if c.isalnum() else "_" for c in table.device) == path.stem
