"""SGLang's own tests of its fused MoE, run as they are with flexact in the kernel's place.

    python tests/gpu/sglang_own_tests.py FILE … [--json RESULTS.json] [--cases N]

FILE: test_fused_moe.py, test_triton_moe_channel_fp8_kernel.py, … in test/registered/moe of an SGLang checkout
of the installed release. They import `fused_moe`; here that name computes through `flexact.fused_moe` on the
Triton backend and counts its calls. Upstream's tolerances let a result of zeros pass where weights are as
small as theirs, so every call is judged by a stricter twin as well: an RMS error against float64 of at most
1.1 × that of the stated recipe. Where upstream's numbers are so small that the recipe itself loses them (the
scales that it gives FP8 activations round everything to zero, and fp16 ends at 2^-24), the twin's call is the
same without those scales, with tokens and router weights that are powers of two larger. Then everything runs
once more with a kernel that writes zeros, which the twin has to reject in every call.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import sys
import unittest
from pathlib import Path
from typing import Any

import flexact
import torch
from flexact import ActivationRegistry, testing

PATCHED = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe"
# Modules that SGLang moved: a file of the release before or after names the other place.
MOVED = {
    "sglang.srt.layers.quantization.fp8_kernel": "sglang.kernels.ops.quantization.fp8_kernel",
    "sglang.srt.layers.moe.fused_moe_triton.fused_moe": PATCHED,
}
SILU = ActivationRegistry.get_activation("silu")
# An error of the recipe, relative to the result, that says that its roundings lost the numbers.
LOST = 0.25


class Stand:
    """Stands for SGLang's `fused_moe`: the same arguments, our kernel or zeros, and the twin's verdicts."""

    def __init__(self, zeros: bool, cases: int) -> None:
        self.zeros, self.cases = zeros, cases
        self.calls: dict[str, int] = {}
        self.rejected: dict[str, int] = {}
        self.worst: dict[str, float] = {}

    def __call__(self, hidden_states, w1, w2, topk_output, *args, **options) -> torch.Tensor:
        case = case_of(hidden_states, w1, w2, topk_output, *args, **options)
        result = self.compute(case)
        judged, found = case, result
        exact, allowed = judge(case)
        if allowed > LOST:
            judged = enlarged(case)
            found = self.compute(judged)
            exact, allowed = judge(judged)
        ours = testing.errors(found, exact)[0]
        key = f"{case.format} {str(hidden_states.dtype).removeprefix('torch.')}"
        self.calls[key] = self.calls.get(key, 0) + 1
        # Not "more than": a NaN is no success either.
        if not ours <= 1.1 * allowed:
            self.rejected[key] = self.rejected.get(key, 0) + 1
        ratio = ours / allowed
        self.worst[key] = max(self.worst.get(key, 0.0), ratio if math.isfinite(ratio) else 1e9)
        if self.cases and sum(self.calls.values()) >= self.cases:
            raise unittest.SkipTest("enough cases")
        return result

    def compute(self, case: testing.MoeCase) -> torch.Tensor:
        """The call's result: ours, or zeros."""
        if self.zeros:
            return torch.zeros_like(case.hidden_states)
        return flexact.fused_moe(activation=SILU, backend="triton", **case.arguments())

    def summary(self) -> dict[str, Any]:
        """Calls, those that the twin rejected, and the largest RMS error over the recipe's, by format."""
        return {
            key: {
                "calls": self.calls[key],
                "rejected_by_twin": self.rejected.get(key, 0),
                "rms_over_recipe": float(f"{self.worst[key]:.4g}"),
            }
            for key in sorted(self.calls)
        }


def judge(case: testing.MoeCase) -> tuple[torch.Tensor, float]:
    """float64's answer, and how far the recipe is from it, relative to its RMS."""
    exact = testing.reference(case, SILU)
    recipe = testing.recipe(case, SILU, partial=case.hidden_states.dtype)
    return exact, testing.errors(recipe, exact)[0]


def enlarged(case: testing.MoeCase) -> testing.MoeCase:
    """`case` with numbers near 1, by powers of two, and activations quantised by their own scales."""
    kept = {name: t for name, t in case.weights.items() if name not in ("a13_scale", "a2_scale")}
    larger = dataclasses.replace(case, weights=kept, hidden_states=near_one(case.hidden_states))
    size = testing.reference(larger, SILU).square().mean().sqrt().item()
    return dataclasses.replace(larger, topk_weights=case.topk_weights * 2.0 ** -round(math.log2(size)))


def near_one(x: torch.Tensor) -> torch.Tensor:
    """`x` times the power of two that brings its RMS nearest to 1."""
    return x * 2.0 ** -round(math.log2(x.double().square().mean().sqrt().item()))


def case_of(
    hidden_states, w1, w2, topk_output, config=None, *, use_fp8_w8a8=False, per_channel_quant=False,
    w1_scale=None, w2_scale=None, a1_scale=None, a2_scale=None, block_shape=None, **others,
) -> testing.MoeCase:  # fmt: skip
    """The call in flexact's terms; what it cannot say is an error, never left out."""
    if config is not None or block_shape is not None or any(value for value in others.values()):
        raise NotImplementedError(f"the test asks for {config or block_shape or others}")
    weights = {"w13": w1, "w2": w2}
    format = {torch.bfloat16: "bf16", torch.float16: "fp16"}[hidden_states.dtype]
    if use_fp8_w8a8:
        format = "fp8_channel" if per_channel_quant else "fp8_tensor"
        scales = {"w13_scale": w1_scale, "w2_scale": w2_scale, "a13_scale": a1_scale, "a2_scale": a2_scale}
        weights |= {name: scale for name, scale in scales.items() if scale is not None}
    return testing.MoeCase(
        hidden_states, topk_output.topk_weights, topk_output.topk_ids, weights, format=format
    )


def run(files: list[Path], stand: Stand) -> dict[str, Any]:
    """The files with `stand` in place; what unittest counts, and the first failures."""
    module = importlib.import_module(PATCHED)
    for name, now in MOVED.items():
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = importlib.import_module(now)
    original, module.fused_moe = module.fused_moe, stand
    counts: dict[str, Any] = {"run": 0, "failed": 0, "skipped": 0, "first_failures": []}
    try:
        for file in files:
            spec = importlib.util.spec_from_file_location(file.stem, file)
            tests = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(tests)
            if tests.fused_moe is not stand:
                raise RuntimeError(f"{file} does not take fused_moe from {PATCHED}")
            with contextlib.redirect_stdout(io.StringIO()):
                found = unittest.TextTestRunner(stream=io.StringIO()).run(
                    unittest.defaultTestLoader.loadTestsFromModule(tests)
                )
            failures = found.failures + found.errors
            counts["run"] += found.testsRun
            counts["failed"] += len(failures)
            counts["skipped"] += len(found.skipped)
            counts["first_failures"] += [str(text)[-800:] for _, text in failures[:2]]
    finally:
        module.fused_moe = original
    return {"unittest": counts, "twin": stand.summary()}


def main() -> int:
    """0 where upstream's tests pass, the twin accepts every call, and it rejects every call of zeros."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=int, default=0, help="stop a test after so many calls; 0: never")
    options = parser.parse_args()
    import sglang

    results: dict[str, Any] = {"sglang": sglang.__version__, "torch": torch.__version__}
    results["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    wrong = []
    for name in ("flexact", "zeros"):
        found = run(options.files, Stand(name == "zeros", options.cases))
        results[name] = found
        print(name, json.dumps(found), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        if not found["twin"]:
            wrong.append(f"{name}: the tests made no call")
        for key, row in found["twin"].items():
            expected = row["calls"] if name == "zeros" else 0
            if row["rejected_by_twin"] != expected:
                rejected = f"{row['rejected_by_twin']} of {row['calls']}"
                wrong.append(f"{name} {key}: the twin rejects {rejected} calls")
    if results["flexact"]["unittest"]["failed"]:
        wrong.append("upstream's tests fail")
    print("\n".join(wrong) or "as expected", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
