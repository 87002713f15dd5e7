"""Random layers and routings on the CUTLASS kernels, each twice: near to fp64, and the same bits.

    python tests/gpu/cutlass_stress.py RESULTS.json [--cases 1000] [--workers 8] [--seconds 300] [--first 0]

A case is drawn from its number alone: format, pairing, function, 1 to 512 experts, k from 1 to 16, H and I
that are whole pieces of 16 bytes and seldom whole tiles, 1 to 700 tokens; experts chosen at random, by a few
favourites, one by all, with slots of other ranks and ids outside the range between; with biases, router
weight on the input, and results of experts instead of their sum. What a case computes must be finite, at most
1.1 times as far from float64 as the stated recipe (root of mean squares), and the same in both runs, the
first into memory full of NaN. A case that fails is named by its number: --first N --cases 1 runs it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import flexact
import flexact.moe
import torch
from flexact import ActivationRegistry, formats, testing

FORMATS = ("bf16", "fp16", *formats.FP8_FORMATS, *formats.FP4_FORMATS)
# Elements of a row in 16 bytes, or in a group of scales.
PIECE = {
    "bf16": 8,
    "fp16": 8,
    **dict.fromkeys(formats.FP8_FORMATS, 16),
    **dict.fromkeys(formats.FP4_FORMATS, 32),
}
# Few, because each is linked once: of one input and of two, with a pole, a clamp, and one costly.
FUNCTIONS = {
    "none": ["relu2", "xielu", "gelu"],
    "gated": ["swiglu", "swiglu_oai", "situ", "geglu"],
}
ROUTINGS = ("random", "favourites", "one", "few", "outside")


def drawn(number: int) -> dict:
    """What a case is, by its number."""
    chance = random.Random(number)
    format = FORMATS[number % len(FORMATS)]
    piece = PIECE[format]
    pairing = chance.choice(["concat", "up_first", "interleaved", "none"])
    experts = chance.choice([1, 2, 3, 8, 17, 60, 128, 256, 512])
    # A layer has at most some 50 million weights.
    most = 640 if experts <= 60 else 256
    case = {
        "format": format, "pairing": pairing, "experts": experts,
        "function": chance.choice(FUNCTIONS["none" if pairing == "none" else "gated"]),
        "top_k": min(chance.randint(1, 16), experts),
        "hidden": piece * chance.randint(max(1, 64 // piece), most // piece),
        "intermediate": piece * chance.randint(max(1, 64 // piece), most // piece),
        "tokens": chance.choice([1, 2, 3, 4, 7, 16, 33, 128, 129, 300, 700]),
        "routing": chance.choice(ROUTINGS), "bias": chance.random() < 0.4,
        "combine": chance.random() < 0.8, "absent": chance.choice([0, 0, 0.3]),
    }  # fmt: skip
    # A bias together with router weight on the input is refused by meaning.
    case["router_weight_on_input"] = not case["bias"] and chance.random() < 0.2
    case["static_scales"] = format == "fp8_tensor" and chance.random() < 0.5
    return case


def routed(case: testing.MoeCase, kind: str, number: int) -> torch.Tensor:
    """The ids of a routing of this kind."""
    ids, experts = case.topk_ids, case.weights["w13"].shape[0]
    generator = torch.Generator(device=ids.device).manual_seed(number)
    missing = ids < 0
    if kind == "favourites":
        scores = torch.randn(len(ids), experts, generator=generator, device=ids.device)
        scores += 4 / torch.arange(1, experts + 1, device=ids.device)
        ids = scores.topk(ids.shape[1], dim=-1).indices.to(torch.int32)
    elif kind == "one":
        ids = torch.full_like(ids, -1)
        ids[:, number % ids.shape[1]] = number % experts
    elif kind == "few":
        ids = torch.where(ids < max(ids.shape[1], 3), ids, -1).to(torch.int32)
    return torch.where(missing, -1, ids).to(torch.int32)


def run(number: int) -> dict:
    """One case: what it is, its errors, and what is wrong with it, if anything."""
    drawn_case = drawn(number)
    kinds = dict(drawn_case)
    name, routing = kinds.pop("function"), kinds.pop("routing")
    case = testing.random_case(kinds.pop("format"), seed=number, device="cuda", **kinds)
    case = dataclasses.replace(case, topk_ids=routed(case, routing, number))
    given = case.topk_ids
    if routing == "outside":
        # Ids that no expert has are nobody's.
        far = torch.where(
            torch.arange(given.shape[1], device="cuda") % 2 == 0, 1 << 20, drawn_case["experts"]
        )
        given = torch.where(given < 0, far, given).to(torch.int32)
    parameters = ActivationRegistry.get_function(name).parameters
    activation = ActivationRegistry.get_activation(
        name, {each.name: 2.0 for each in parameters if each.default is None}
    )
    plan = flexact.moe.plan(
        **case.weights, activation=activation, top_k=drawn_case["top_k"], format=case.format,
        pairing=case.pairing, backend="cutlass", combine=case.combine,
        router_weight_on_input=case.router_weight_on_input,
    )  # fmt: skip
    shape = case.hidden_states.shape
    size = shape if case.combine else (*given.shape, shape[1])
    outs = []
    for fill in (torch.nan, 0.0):
        outs.append(torch.full(size, fill, dtype=case.hidden_states.dtype, device="cuda"))
        plan.run(case.hidden_states, case.topk_weights, given, out=outs[-1])
    exact = testing.reference(case, activation)
    if not exact.any():
        # Nobody's tokens: there is nothing to be relative to.
        wrong = [] if not outs[0].any() and torch.equal(*outs) else ["not zero"]
        return {"number": number, **drawn_case, "wrong": wrong}
    rms, largest = testing.errors(outs[0], exact)
    stated = testing.recipe(case, activation, partial=outs[0].dtype, partial_weighted=False)
    recipe, _ = testing.errors(stated, exact)
    wrong = []
    if not outs[0].isfinite().all():
        wrong.append("not finite")
    elif not rms <= 1.1 * recipe + 1e-6:
        wrong.append("too far")
    if not torch.equal(*outs):
        wrong.append("other bits in the second run")
    return {"number": number, **drawn_case, "rms": rms, "recipe_rms": recipe, "max": largest, "wrong": wrong}


def attempt(number: int) -> dict:
    """The same, where an exception is what is wrong."""
    try:
        return run(number)
    except Exception as error:
        return {"number": number, **drawn(number), "wrong": [f"{type(error).__name__}: {str(error)[:300]}"]}


def main() -> int:
    """0 where every case agrees, and there was one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    begin = time.monotonic()
    found: list[dict] = []
    numbers = range(options.first, options.first + options.cases)
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for case in pool.imap_unordered(attempt, numbers, chunksize=4):
            found.append(case)
            if case["wrong"]:
                print("FAILED", json.dumps(case), flush=True)
            if time.monotonic() - begin > options.seconds:
                pool.terminate()
                break
    failed = [case for case in found if case["wrong"]]
    ratios = [case["rms"] / case["recipe_rms"] for case in found if case.get("recipe_rms")]
    result = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "flexact": flexact.__version__,
        "commit": os.environ.get("FLEXACT_COMMIT", "unknown"), "asked": options.cases, "ran": len(found),
        "failed": len(failed), "largest_ratio": max(ratios, default=None),
        "by_format": {
            each: sum(case["format"] == each for case in found) for each in FORMATS
        },
        "failures": failed[:20],
    }  # fmt: skip
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(found)} of {options.cases} cases, {len(failed)} failed, {time.monotonic() - begin:.0f} s")
    return 1 if failed or len(found) < options.cases else 0


if __name__ == "__main__":
    sys.exit(main())
