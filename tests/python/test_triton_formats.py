"""The Triton kernels in every quantised format: in the interpreter against fp64, and compiled for a GPU.

The interpreter replaces Triton's operations when kernels are imported, so it has a process of its own
(triton_format_cases.py), and so has compilation for a GPU that is not there (triton_compile.py).
"""

import pytest
from flexact import formats
from script_lines import lines_of

pytest.importorskip("triton")

FORMATS = formats.FP8_FORMATS + formats.FP4_FORMATS


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    return lines_of("triton_format_cases.py", folder, "cpu", count=True, TRITON_INTERPRET="1")


def test_every_format_is_as_near_to_fp64_as_its_recipe(reports):
    blocks = [report for report in reports if "rms" in report]
    assert {report["format"] for report in blocks} == set(FORMATS)
    for report in blocks:
        assert report["finite"], report
        assert report["rms"] <= 1.1 * report["recipe_rms"], report
        if report["summed"]:
            continue  # the sum over experts is rounded once, where the recipe rounds every product
        # Rounded at the same places: what is left of the difference is the order of fp32 sums.
        assert report["to_recipe"] <= 0.05 * report["recipe_rms"], report


def test_small_floats_and_quantisers_have_the_bits_of_the_reference(reports):
    small = [report for report in reports if "same" in report]
    assert len(small) == 14
    for report in small:
        assert report["same"], report


def test_every_format_compiles_for_hopper_without_spills(tmp_path):
    compiled = lines_of("triton_compile.py", tmp_path, "90", TRITON_CACHE_DIR=str(tmp_path / "triton"))
    assert {report["format"] for report in compiled} == {"fp8_block", "fp8_tensor", "mxfp4", "mxfp4_fp8"}
    for report in compiled:
        # A few registers saved once around the epilogue are no matter; spills in a loop take far more.
        assert report["stack"] <= 64, report
        assert report["shared"] <= 232448, report
        assert report["tensor_core"], report
        if "fp4" in report["format"]:
            # Decoded weights go to the tensor cores from registers; what is stored is the result.
            assert report["from_registers"] > 0, report
            if report["format"] != "mxfp4_fp8":
                assert report["stores_to_shared"] <= 16, report


def test_tiles_of_two_warps_wait_for_no_fence(tmp_path):
    reports = lines_of(
        "triton_compile.py", tmp_path, "90", "narrow", TRITON_CACHE_DIR=str(tmp_path / "triton")
    )
    assert {report["kernel"] for report in reports} == {"gate_up", "down"}
    for report in reports:
        assert report["fences"] == report["stack"] == 0, report
        assert report["copies"] > 0, report
        assert report["mma"], report
