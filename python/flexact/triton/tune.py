"""`flexact tune`: measures tiles on this GPU and writes the table of launches that serving reads.

For each shape and token count the candidates of each GEMM are captured in a CUDA graph and replayed behind
a flush of the L2; a candidate whose result differs from the others' is left out and reported. Nothing here
runs while serving.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from flexact import ActivationRegistry, formats
from flexact._core import LaunchTable, MoeProblem, Tile, token_bucket
from flexact.triton.ahead import compile_for, only_compiling
from flexact.triton.formats import FORMATS, Operand
from flexact.triton.functions import cache_folder, compilation_cache
from flexact.triton.moe import _DIRECT_SIZES, Block
from flexact.triton.shapes import SHAPES, Shape

# Formats that can be tuned, and the type of their hidden states.
DTYPES = dict.fromkeys(("bf16", *formats.FP8_FORMATS, *formats.FP4_FORMATS), torch.bfloat16) | {
    "fp16": torch.float16
}
# A step along K is the 128 values that share a scale, and the first GEMM quantises whole groups of them.
GROUPED = ("fp8_block", "mxfp4_fp8")
DECODED = ("mxfp4", "nvfp4")
# Free bytes of the device below which the weights of layers that were measured are released.
_NEEDED = 40 << 30


# --- Candidates -----------------------------------------------------------------------------------


def _tiles(rows: Iterable[tuple[int, ...]]) -> list[dict[str, int]]:
    names = ("block_m", "block_n", "block_k", "group_m", "warps", "stages", "persistent")
    return [dict(zip(names, row, strict=True)) for row in rows]


def candidates(
    which: str, block_m: int, doubled: bool, direct: bool, format: str = "bf16"
) -> list[dict[str, int]]:
    """Tiles of a GEMM with block_m rows. `n` below is the width of the weight block."""
    rows: list[tuple[int, ...]] = []
    if format in GROUPED:
        shapes = _grouped_shapes(which, block_m, 256 if doubled and which == "gate_up" else 128)
        if rounds_later(format, block_m) and which == "gate_up":
            shapes += [(n, 128, 4, 4) for n in ((64, 128) if doubled else (32, 64))]
        groups: tuple[int, ...] = (1,) if block_m <= 32 else (4, 16) if which == "gate_up" else (4, 32)
    elif format in DECODED:
        shapes = _decoded_shapes(block_m)
        groups = (1,) if block_m <= 32 else (1, 8) if block_m == 64 else (4, 16)
    elif block_m <= 32:
        # Two warps read weights without the copy engine, and so without its fences.
        shapes = [(64, 128, 2, 4), (64, 64, 2, 6), (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 3),
                  (128, 128, 4, 3), (128, 128, 8, 3), (32, 128, 4, 6), (32, 256, 4, 4)]  # fmt: skip
        groups = (1,)
    elif block_m == 64:
        shapes = [(128, 64, 4, 4), (128, 64, 4, 3), (256, 64, 8, 4), (256, 64, 8, 3), (128, 128, 4, 3),
                  (256, 64, 4, 3), (64, 128, 4, 4)]  # fmt: skip
        groups = (1, 8)
    elif block_m == 128:
        shapes = [(256, 64, 8, 4), (256, 64, 8, 3), (128, 64, 4, 3), (128, 64, 8, 4), (128, 128, 8, 3)]
        groups = (4, 16)
    else:
        shapes = [(128, 64, 8, 4), (128, 64, 8, 3)]
        groups = (4, 16)
    if format in ("fp8_tensor", "fp8_channel"):
        # As many bytes along K as bf16 takes.
        shapes = [(n, min(2 * k, 256), warps, stages) for n, k, warps, stages in shapes]
        if block_m <= 32:
            shapes += [(64, 128, 4, 4), (128, 128, 4, 4), (64, 256, 4, 3)]
    for n, k, warps, stages in shapes:
        width = n // 2 if doubled and which == "gate_up" else n
        kinds = (0, 1) if block_m == 256 or (block_m == 128 and n == 256) else (0,)
        rows += [(block_m, width, k, group, warps, stages, kind) for group in groups for kind in kinds]
    return _tiles(rows)


def second_tiles(block_m: int, doubled: bool, direct: bool, format: str) -> list[dict[str, int]]:
    """Tiles of the second GEMM behind a first one with block_m rows: sorted, there may be fewer of them."""
    tiles = candidates("down", block_m, doubled, direct, format)
    if not direct and block_m == 128 and format in formats.FP8_FORMATS:
        tiles += candidates("down", 64, doubled, direct, format)
    return tiles


def rounds_later(format: str, block_m: int) -> bool:
    """Whether narrow tiles of the first GEMM are tried, which leave the quantisation to the second."""
    return format == "fp8_block" and block_m <= 32


def _grouped_shapes(which: str, block_m: int, whole: int) -> list[tuple[int, int, int, int]]:
    """(n, k, warps, stages) where a step is a group; `whole` is the width of the tiles of the first GEMM."""
    if which == "gate_up":
        kinds = [(4, 2), (4, 3), (4, 4), (8, 3), (8, 4)] if block_m <= 64 else [(8, 2), (8, 3), (8, 4)]
        return [(whole, 128, warps, stages) for warps, stages in kinds]
    if block_m <= 32:
        return [(64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 5), (128, 128, 4, 3), (128, 128, 4, 4)]
    if block_m == 64:
        return [(128, 128, 4, 3), (128, 128, 4, 4), (128, 128, 8, 4), (64, 128, 4, 4)]
    return [(128, 128, 8, 3), (128, 128, 8, 4), (128, 128, 8, 5), (64, 128, 4, 4), (128, 128, 4, 3)]


def _decoded_shapes(block_m: int) -> list[tuple[int, int, int, int]]:
    """(n, k, warps, stages) of FP4 weights beside bf16: steps whose scales are copied ahead, no spills.

    Two warps multiply without a group of warps and read without the copy engine: more, smaller programs that
    wait for nothing but their own data.
    """
    if block_m <= 32:
        return [(64, 128, 2, 4), (64, 128, 2, 8), (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 4),
                (64, 512, 4, 2), (64, 512, 4, 3), (128, 128, 4, 3), (128, 128, 4, 5), (128, 256, 4, 3),
                (128, 256, 4, 4), (128, 512, 4, 2), (128, 256, 8, 3), (128, 128, 8, 4)]  # fmt: skip
    if block_m == 64:
        return [(64, 256, 4, 3), (128, 128, 4, 3), (128, 128, 4, 4), (128, 256, 4, 2), (128, 256, 4, 3),
                (256, 64, 4, 3), (128, 128, 8, 3), (256, 128, 8, 3)]  # fmt: skip
    if block_m == 128:
        return [(256, 128, 8, 3), (256, 64, 8, 4), (128, 128, 8, 3), (128, 128, 4, 3), (128, 64, 8, 4)]
    return [(128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 4)]


def vector_candidates(which: str, format: str) -> list[dict[str, int]]:
    """Tiles of the kernels without tensor cores: (n, k, warps)."""
    if format in DECODED:
        # A lane has 16 bytes of a row, which share a scale.
        if which == "gate_up":
            shapes = [(4, 1024, 4), (8, 1024, 4), (2, 1024, 2), (4, 1024, 2), (8, 512, 4), (8, 1024, 8)]
        else:
            shapes = [(4, 1024, 4), (8, 1024, 4), (2, 1024, 2), (4, 1024, 2), (1, 1024, 1), (2, 1024, 1),
                      (8, 512, 4)]  # fmt: skip
    elif format in formats.FP8_FORMATS:
        if which == "gate_up":
            shapes = [(4, 512, 4), (8, 512, 4), (4, 1024, 4), (8, 1024, 4), (2, 1024, 2), (4, 1024, 2)]
        else:
            shapes = [(4, 1024, 4), (8, 512, 4), (8, 1024, 4), (2, 1024, 2), (4, 1024, 2), (8, 1024, 8),
                      (16, 512, 4), (1, 1024, 1)]  # fmt: skip
    elif which == "gate_up":
        shapes = [(2, 512, 4), (4, 256, 4), (4, 512, 4), (4, 512, 8), (8, 256, 4), (8, 512, 8), (2, 1024, 4)]
    else:
        # A row is one expert's, and there are at least as many as there are slots.
        shapes = [(2, 512, 1), (4, 512, 2), (4, 1024, 4), (8, 256, 1), (8, 256, 2), (8, 512, 4), (8, 1024, 4),
                  (8, 1024, 8), (16, 512, 8)]  # fmt: skip
    return _tiles((16, n, k, 1, warps, 2, 0) for n, k, warps in shapes)


def block_ms(shape: Shape, tokens: int, format: str = "bf16") -> list[int]:
    """Tile heights worth trying: around the rows that an expert gets."""
    heights = _block_ms(shape, tokens)
    if format in formats.FP8_FORMATS:
        # Tiles of 32 rows of codes are multiplied without a group of warps (the launch policy says more).
        heights = sorted({64 if each == 32 else each for each in heights})
    # Beside its sums a tile of grouped scales holds an unscaled product.
    return [min(each, 128) for each in heights if each <= 128 or format not in GROUPED]


def _block_ms(shape: Shape, tokens: int) -> list[int]:
    rows = tokens * shape.top_k / shape.experts
    if tokens <= 16 or rows <= 12:
        return [16]
    if rows <= 24:
        return [16, 32]
    if rows <= 48:
        return [32, 64]
    if rows <= 96:
        return [64, 128]
    if rows <= 400:
        return [64, 128]
    return [128, 256] if rows >= 1000 else [64, 128, 256]


def make_problem(shape: Shape, format: str) -> MoeProblem:
    """The problem of a shape, pairing concat or none."""
    return MoeProblem(
        experts=shape.experts, top_k=shape.top_k, hidden=shape.hidden, intermediate=shape.intermediate,
        format=format, io_dtype=str(DTYPES[format]).removeprefix("torch."),
        pairing="concat" if shape.gated else "none",
    )  # fmt: skip


# --- One shape and token count --------------------------------------------------------------------


class Bench:
    """Weights and one call's inputs on a device, and the kernels of a block one by one."""

    def __init__(self, shape: Shape, format: str, device: str = "cuda") -> None:
        self.shape = shape
        self.problem = make_problem(shape, format)
        self.dtype = DTYPES[format]
        self.device = torch.device(device)
        act = ActivationRegistry.get_activation("silu")
        function = act.function.gated() if shape.gated else act.function
        self.block = Block(self.problem, function, self.device, LaunchTable())
        self.weights = self._make_weights(format)
        self.values = torch.empty((1, 0), device=self.device)

    def _make_weights(self, format: str) -> dict[str, torch.Tensor]:
        shape = self.shape
        rows = shape.intermediate * (2 if shape.gated else 1)
        generator = torch.Generator(device=self.device).manual_seed(1)
        # Quantised experts are copies of one: rounding takes long, and its result is read all the same.
        experts = shape.experts if format in ("bf16", "fp16") else 1

        def normal(*size: int, scale: float) -> torch.Tensor:
            made = torch.empty(size, dtype=self.dtype, device=self.device)
            return made.normal_(0, scale, generator=generator)

        w13 = normal(experts, rows, shape.hidden, scale=shape.hidden**-0.5)
        w2 = normal(experts, shape.hidden, shape.intermediate, scale=shape.intermediate**-0.5)
        if experts == shape.experts:
            return {"w13": w13, "w2": w2}
        made = formats.quantise_experts(w13, w2, format=format, pairing=self.problem.pairing)
        weights = {}
        for name, tensor in made.items():
            # torch repeats e4m3 only as bytes.
            raw = torch.uint8 if tensor.dtype == torch.float8_e4m3fn else tensor.dtype
            many = tensor.view(raw).repeat(shape.experts, *[1] * (tensor.dim() - 1))
            weights[name] = many.view(tensor.dtype)
        return weights

    def inputs(self, tokens: int) -> None:
        """Tokens, and ids of a random router."""
        generator = torch.Generator(device=self.device).manual_seed(100 + tokens)
        shape = self.shape
        self.tokens, self.pairs = tokens, tokens * shape.top_k
        self.x = torch.randn(
            (tokens, shape.hidden), dtype=torch.float32, device=self.device, generator=generator
        ).to(self.dtype)
        logits = torch.randn((tokens, shape.experts), device=self.device, generator=generator)
        scores, ids = logits.topk(shape.top_k, -1)
        self.topk_weights, self.ids = torch.softmax(scores, -1), ids.to(torch.int32)
        self.direct = _direct_size(tokens, shape.top_k)

    def route(self, block_m: int) -> None:
        """Sorts for this height of the first GEMM's tiles, unless tiles find their rows themselves."""
        self.height = block_m
        if self.direct:
            self.sorted, self.bound = (self.ids,) * 3, self.pairs
        else:
            self.sorted, self.bound = self.block._sort(self.ids, block_m, self.pairs)

    def gate_up(self, tile: dict[str, int], permute: bool = False, mode: str = "wide") -> torch.Tensor:
        """Runs the first GEMM (and the copies before and after it) and returns h."""
        block = self.block
        made = Tile(**tile)
        by_token = mode == "tokens"
        boxes = permute or by_token
        given = block._format.inputs(self.x, self.ids, self.shape.experts, self.weights, made, boxes)
        if permute:
            given = Operand(block._permuted(given.tensor, self.sorted, self.pairs), given.extra)
        between = self.between(made, mode)
        arguments = (self.topk_weights, self.ids, self.sorted, self.values, between, self.pairs)
        block._gate_up(made, self.direct, self.bound, boxes, by_token, given, self.weights, *arguments)
        self.h = between.read()
        return self.h.tensor

    def between(self, tile: Tile, mode: str) -> Any:
        """Memory for h, as a second GEMM with as many warps as the mode says reads it."""
        rows = self.pairs * (tile.block_m if mode == "tokens" else 1)
        down = Tile(block_m=tile.block_m, block_n=128, block_k=128, warps=2 if mode == "narrow" else 4)
        return self.block._between(rows, self.weights, tile, down, mode == "pairs")

    def down(self, h: Operand, tile: dict[str, int], mode: str = "wide") -> torch.Tensor:
        """Runs the second GEMM and returns its rows for the pairs."""
        made = Tile(**tile)
        y = torch.empty((self.pairs, self.shape.hidden), dtype=self.dtype, device=self.device)
        arguments = (h, self.weights, self.topk_weights, self.ids, self.sorted)
        parts = 1 if self.direct else self.height // made.block_m
        self.block._down(made, self.direct, self.bound, parts, mode == "tokens", *arguments, y, 0, self.pairs)
        return y

    def defined(self, h: torch.Tensor, mode: str) -> torch.Tensor:
        """The rows of h that every tile writes: with "tokens" those of tiles that a pair leads."""
        if h.dtype == torch.float8_e4m3fn and len(self.h.extra) == 2 and self.h.extra[0].dim() == 2:
            # Other tiles leave what these codes stand for.
            h = h.float() * self.h.extra[0].repeat_interleave(128, 1)[:, : h.shape[1]]
        if h.dtype == torch.int32:
            # Two bf16 numbers each, times PLANE_SCALE, in four planes whose last words may be nobody's.
            words = h.view(len(h), 4, -1)[:, :, : self.shape.intermediate // 8]
            h = words.reshape(len(h), -1).view(self.dtype).float() * 2.0**-64
        if mode != "tokens":
            return h
        ids = self.ids.view(-1).tolist()
        leaders = [ids.index(expert) for expert in dict.fromkeys(ids)]
        return h.view(self.pairs, -1, h.shape[1])[leaders, : self.tokens]

    def vector(self, tile: dict[str, int]) -> torch.Tensor:
        """Runs the first GEMM without tensor cores and returns h."""
        made = Tile(**tile)
        between = self.between(made, "pairs")
        vector = self.block._format.vector
        inputs = vector.inputs(self.x, self.ids, self.shape.experts, self.weights, made, False)
        arguments = (self.topk_weights, self.ids, self.values, between, self.pairs)
        self.block._vector_gate_up(made, inputs, self.weights, *arguments)
        self.h = between.read()
        return self.h.tensor

    def fused(self, h: Operand, tile: dict[str, int]) -> torch.Tensor:
        """Runs down_and_combine and returns the block's result."""
        out = torch.empty((self.tokens, self.shape.hidden), dtype=self.dtype, device=self.device)
        arguments = (h, self.weights, self.topk_weights, self.ids, out, self.tokens)
        self.block._down_and_combine(Tile(**tile), *arguments)
        return out


def _direct_size(tokens: int, top_k: int) -> int:
    """The search of a direct kernel for so many tokens, or 0."""
    pairs = token_bucket(tokens) * top_k
    return next((size for size in _DIRECT_SIZES if size >= pairs), 0)


def modes(shape: Shape, tokens: int, block_m: int, format: str) -> list[str]:
    """How the two GEMMs hang together, each way measured for itself; see `mode_tiles`.

    "wide": at least four warps in both; "tokens" where moreover a tile's rows are the tokens. "narrow":
    fewer. "pairs": for the kernels without tensor cores.
    """
    direct = bool(_direct_size(tokens, shape.top_k))
    kernels = FORMATS[format]
    found = ["tokens" if direct and tokens <= block_m and kernels.by_token else "wide"]
    if block_m <= 32 and format not in GROUPED:
        found.append("narrow")
    if direct and tokens <= 4 and kernels.vector:
        found.append("pairs")
    return found


def mode_tiles(tiles: list[dict[str, int]], mode: str, which: str) -> list[dict[str, int]]:
    """The candidates of a mode; with "pairs" the second GEMM is the one without tensor cores."""
    if mode == "pairs":
        return tiles if which == "gate_up" else []
    return [tile for tile in tiles if (tile["warps"] >= 4) == (mode != "narrow")]


class Timer:
    """Medians of CUDA-graph replays behind a flush of the L2."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
        self.seconds = seconds

    def __call__(self, run: Callable[[], torch.Tensor], best: float) -> tuple[float, torch.Tensor]:
        """Microseconds, and the result; what is far from the best so far is not measured long."""
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        once = self._times(graph, 3)[0]
        if once > 1.3 * best + 2:
            return once, result
        count = max(5, min(31, int(self.seconds * 1e6 / (once + 100))))
        times = sorted(self._times(graph, count))
        return times[count // 2], result

    def _times(self, graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in events:
            self.flush.zero_()
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return sorted(begin.elapsed_time(end) * 1e3 for begin, end in events)


def _differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Values and their E4M3 codes are a few hundredths apart.
    return bool((a.float() - b.float()).norm() > 0.06 * b.float().norm())


def _fastest(
    timer: Timer, tiles: Iterable[dict[str, int]], run: Callable[[dict[str, int]], torch.Tensor],
    report: Callable[[dict[str, Any]], None], trusted: torch.Tensor | None = None,
    deadline: float = math.inf, part: Callable[[torch.Tensor], torch.Tensor] = lambda result: result,
) -> tuple[float, dict[str, int], torch.Tensor]:  # fmt: skip
    """The fastest tile that compiles, fits and agrees in `part` of its result, until the deadline."""
    best: tuple[float, dict[str, int]] | None = None
    result: torch.Tensor | None = trusted
    for tile in tiles:
        if best is not None and time.monotonic() > deadline:
            report({"tile": tile, "skipped": "the deadline has passed"})
            continue
        try:
            time_of, got = timer(lambda tile=tile: run(tile), best[0] if best else math.inf)
        except Exception as error:
            report({"tile": tile, "error": f"{type(error).__name__}: {str(error)[:120]}"})
            torch.cuda.synchronize()
            continue
        got = part(got)
        if result is None:
            result = got.clone()
        elif _differs(got, result):
            report({"tile": tile, "error": "the result differs"})
            continue
        report({"tile": tile, "us": round(time_of, 2)})
        if best is None or time_of < best[0]:
            best = (time_of, tile)
    if best is None or result is None:
        raise RuntimeError("no candidate ran")
    return *best, result


def measure(
    bench: Bench, tokens: int, timer: Timer, log: Callable[[dict[str, Any]], None], deadline: float = math.inf
) -> dict[str, Any]:
    """The best launch for a token count as an entry of the table."""
    _best = functools.partial(_fastest, deadline=deadline)
    bench.inputs(tokens)
    shape, problem = bench.shape, bench.problem
    best: dict[str, Any] = {}
    trusted: torch.Tensor | None = None
    format, direct = problem.format, bool(bench.direct)
    for block_m in block_ms(shape, tokens, format):
        bench.route(block_m)
        for mode in modes(shape, tokens, block_m, format):
            where = {"tokens": tokens, "block_m": block_m, "mode": mode}

            def report(kind: str, where: dict[str, Any] = where) -> Callable[[dict[str, Any]], None]:
                return lambda row: log({**where, "kind": kind, **row})

            entry: dict[str, Any] = {"direct": direct, "permute": False}
            tiles = mode_tiles(candidates("gate_up", block_m, shape.gated, direct, format), mode, "gate_up")
            run = functools.partial(bench.gate_up, mode=mode)
            part = functools.partial(bench.defined, mode=mode)
            up_us, entry["gate_up"], inner = _best(timer, tiles, run, report("gate_up"), part=part)
            if permutes(format, block_m, direct, mode):
                up = entry["gate_up"]
                few = [t for t in tiles if all(t[k] == up[k] for k in ("group_m", "block_n"))]
                run = functools.partial(bench.gate_up, permute=True, mode=mode)
                us, tile, _ = _best(timer, few, run, report("permuted gate_up"), inner)
                if us < up_us:
                    up_us, entry["gate_up"], entry["permute"] = us, tile, True
            if mode == "pairs":
                few = vector_candidates("gate_up", format)
                us, tile, _ = _best(timer, few, bench.vector, report("vector gate_up"), inner, part=part)
                if us < up_us:
                    up_us, entry["gate_up"], entry["vector"] = us, tile, True
                bench.vector(few[0])
                tiles, run = vector_candidates("down", format), functools.partial(bench.fused, bench.h)
                us, entry["down"], _ = _best(timer, tiles, run, report("vector down"), trusted)
                entry["fuse_combine"] = True
            else:
                bench.gate_up(entry["gate_up"], mode=mode)
                tiles = mode_tiles(second_tiles(block_m, shape.gated, direct, format), mode, "down")
                run = functools.partial(bench.down, bench.h, mode=mode)
                us, entry["down"], y = _best(timer, tiles, run, report("down"))
                trusted = y.view(tokens, shape.top_k, -1).float().sum(1)
                # The sum has a kernel of its own: about what starts and ends it.
                us += 2
            if not best or up_us + us < best["us"]:
                best = {**entry, "us": round(up_us + us, 2)}
    return {
        "format": problem.format, "experts": shape.experts, "top_k": shape.top_k, "hidden": shape.hidden,
        "intermediate": shape.intermediate, "gated": shape.gated, "tokens": tokens, **best,
    }  # fmt: skip


def permutes(format: str, block_m: int, direct: bool, mode: str) -> bool:
    """Whether rows copied into sorted order are tried: FP4's are put into the lanes' order with it."""
    return not direct and mode != "narrow" and FORMATS[format].copied and (block_m >= 64 or format in DECODED)


# --- Compiling ahead, in parallel -----------------------------------------------------------------


Job = tuple[Any, ...]


def _jobs(shape: Shape, tokens: int, format: str) -> list[Job]:
    """The distinct kernels that measuring a token count needs; the group is a run-time number."""
    jobs: dict[Job, None] = {}
    direct = _direct_size(tokens, shape.top_k)
    for block_m in block_ms(shape, tokens, format):
        for mode, which in itertools.product(modes(shape, tokens, block_m, format), ("gate_up", "down")):
            # What a kernel of the second GEMM knows of k is how many slots it searches.
            slots = shape.top_k if direct and which == "down" else 2
            arguments = (block_m, shape.gated, bool(direct), format)
            tiles = candidates(which, *arguments) if which == "gate_up" else second_tiles(*arguments)
            for tile in mode_tiles(tiles, mode, which):
                length = shape.hidden if which == "gate_up" else shape.intermediate
                width = _stand_in(length, tile["block_k"], format)
                # The first GEMM also knows how long the rows are that it writes.
                inner = _stand_in(shape.intermediate, 128, format) if which == "gate_up" else width
                flat = {k: bool(v) if k == "persistent" else v for k, v in tile.items() if k != "group_m"}
                # Whether rows are permuted; of the second GEMM, whether what it reads is not quantised yet.
                other = permutes(format, block_m, bool(direct), mode)
                if which == "down":
                    other = rounds_later(format, block_m)
                for permute in (False, True):
                    if not permute or other:
                        more = (direct, shape.gated, slots, (width, inner), permute, format, mode, block_m)
                        jobs[(which, (*flat.items(),), *more)] = None
            if mode == "pairs":
                for tile in vector_candidates(which, format):
                    sizes = (1024, shape.intermediate)
                    more = (direct, shape.gated, shape.top_k, sizes, False, format, mode, block_m)
                    jobs[("vector " + which, (*tile.items(),), *more)] = None
    return list(jobs)


def _stand_in(length: int, block_k: int, format: str) -> int:
    """A small K that compiles to the same kernel: a multiple of the step or not, scales aligned or not."""
    if format in GROUPED and length % block_k == 0 and length // 128 % 16 == 0:
        return 2048
    if format not in formats.FP4_FORMATS:
        return 1024 if length % block_k == 0 else 1024 + 16
    if length % block_k:
        return 1024 + 32
    if length // (16 if format == "nvfp4" else 32) % 16 == 0:
        return 1024
    return 1024 + 128 if block_k <= 128 else 1024 + 256


@functools.lru_cache(maxsize=8)
def _small(experts: int, top_k: int, width: int, inner: int, gated: bool, format: str) -> Bench:
    return Bench(Shape(experts, top_k, width, inner, gated), format, "cpu")


def _compile(job: Job) -> str:
    """Compiles one kernel for a tiny problem; the disk cache keeps it. An empty text, or what went wrong."""
    which, flat, direct, gated, slots, (width, inner), permute, format, mode, height = job
    tile = dict(flat)
    tile["persistent"] = int(tile.get("persistent", 0))
    try:
        bench = _small(max(2, slots), slots, width, inner, gated, format)
        with only_compiling(), compilation_cache(False):
            bench.inputs(2)
            bench.direct = direct
            bench.route(height)
            if which == "gate_up":
                bench.gate_up(tile, permute, mode)
            elif which == "vector gate_up":
                bench.vector(tile)
            else:
                # What the first GEMM leaves, whatever it computed.
                between = bench.between(Tile(**(tile | {"block_n": 64 if permute else 128})), mode)
                if which == "vector down":
                    bench.fused(between.read(), tile)
                else:
                    bench.down(between.read(), tile, mode)
    except Exception as error:
        return f"{which} {tile}: {type(error).__name__} {str(error)[:100]}"
    return ""


class Ahead:
    """Compiles the kernels of coming measurements in other processes, which do not touch the GPU."""

    def __init__(self, cells: Iterable[tuple[Shape, int, str]], workers: int, arch: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(workers, compile_for, (arch,))
        self._made: dict[Job, Any] = {}
        for cell in cells:
            for job in _jobs(*cell):
                if job not in self._made:
                    self._made[job] = self._pool.apply_async(_compile, (job,))

    def wait(self, cell: tuple[Shape, int, str], deadline: float) -> list[str]:
        """Until a measurement's kernels are there; returns what went wrong with them."""
        failed = []
        for job in _jobs(*cell):
            made = self._made[job]
            made.wait(max(0.0, deadline - time.monotonic()))
            if made.ready() and made.get():
                failed.append(made.get())
        return failed

    def end(self) -> None:
        """Stops what is not finished."""
        self._pool.terminate()


# --- The command ----------------------------------------------------------------------------------


def _progress(text: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        filled = 30 * done // max(1, total)
        print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {text:<60}", end="", file=sys.stderr, flush=True)
    else:
        print(f"flexact tune: {done}/{total} {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see `flexact tune --help`."""
    parser = argparse.ArgumentParser(prog="flexact tune", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--model", action="append", choices=sorted(SHAPES), help="a known layer; may be repeated"
    )
    parser.add_argument("--experts", type=int, help="or a layer by its sizes: E on this device")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--intermediate", type=int)
    parser.add_argument("--not-gated", action="store_true", help="experts without a gate")
    parser.add_argument("--format", action="append", choices=sorted(DTYPES), help="bf16; may be repeated")
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64,128,256,512,1024,4096,16384")
    parser.add_argument(
        "--workers", type=int, default=min(16, os.cpu_count() or 1), help="compiling processes"
    )
    parser.add_argument("--out", type=Path, help="default: in the cache folder, where serving finds it")
    parser.add_argument("--log", type=Path, help="every measurement, a JSON object a line")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long, keeping what is done")
    options = parser.parse_args(arguments)
    sizes = (options.experts, options.top_k, options.hidden, options.intermediate)
    shapes = [SHAPES[name] for name in options.model or []]
    if any(sizes):
        if not all(sizes):
            parser.error("--experts, --top-k, --hidden and --intermediate go together")
        shapes.append(Shape(*sizes, gated=not options.not_gated))
    if not shapes:
        parser.error("--model or the layer's sizes")
    if not torch.cuda.is_available():
        parser.error("no GPU here")
    counts = [int(text) for text in options.tokens.split(",")]
    # Serving looks for compiled kernels where tuning leaves them.
    os.environ.setdefault("FLEXACT_CACHE_DIR", str(cache_folder().parent))

    begin = time.monotonic()
    device = torch.cuda.get_device_name()
    name = "".join(c if c.isalnum() else "_" for c in device) + ".json"
    path = options.out or cache_folder() / "tuned" / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep(entries: list[dict[str, Any]]) -> None:
        write_table(path, device, entries, chip_of())

    # Token by token, so that a run that ends early leaves a few entries for each layer and format.
    cells = [
        (shape, tokens, format)
        for tokens in counts
        for format in options.format or ["bf16"]
        for shape in shapes
    ]
    major, minor = torch.cuda.get_device_capability()
    ahead = Ahead(cells, options.workers, 10 * major + minor)
    try:
        entries = tune(cells, ahead, options.log, begin + options.seconds, keep)
    finally:
        ahead.end()
    print(f"{len(entries)} launches of {len(cells)} in {path}")
    return 0 if len(entries) == len(cells) else 1


def tune(
    cells: list[tuple[Shape, int, str]], ahead: Ahead, log: Path | None, deadline: float,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures every cell until the deadline (of time.monotonic); `keep` gets what is measured."""
    timer = Timer()
    entries: list[dict[str, Any]] = []
    benches: dict[tuple[Shape, str], Bench] = {}
    with open(log or os.devnull, "a") as file, compilation_cache(False):
        for cell in cells:
            shape, tokens, format = cell
            row = {"format": format, "hidden": shape.hidden, "intermediate": shape.intermediate}

            def note(more: dict[str, Any], row: dict[str, Any] = row) -> None:
                print(json.dumps({**row, **more}), file=file, flush=True)

            _progress(f"{format} {shape} {tokens} tokens", len(entries), len(cells))
            for failed in ahead.wait(cell, deadline):
                note({"tokens": tokens, "error": failed})
            if time.monotonic() > deadline:
                break
            if (shape, format) not in benches:
                if torch.cuda.mem_get_info()[0] < _NEEDED:
                    benches.clear()
                    torch.cuda.empty_cache()
                benches[shape, format] = Bench(shape, format)
            begin = time.monotonic()
            try:
                entries.append(measure(benches[shape, format], tokens, timer, note, deadline))
            except RuntimeError as error:
                note({"tokens": tokens, "error": str(error)[:200]})
                continue
            note({"tokens": tokens, "seconds": round(time.monotonic() - begin, 2)})
            keep(entries)
    return entries


def chip_of() -> dict[str, Any]:
    """What a device must share for a table to serve it as well."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = [properties.major, properties.minor]
    return {"capability": capability, "multiprocessors": properties.multi_processor_count}


def write_table(path: Path, device: str, entries: list[dict[str, Any]], chip: dict[str, Any]) -> None:
    """Writes the table, an entry a line; entries of other shapes that the file held stay."""
    key = ("format", "experts", "top_k", "hidden", "intermediate", "gated", "tokens")
    kept = {}
    if path.is_file():
        kept = {tuple(each[k] for k in key): each for each in json.loads(path.read_text())["entries"]}
    kept |= {tuple(each[k] for k in key): each for each in entries}
    lines = ",\n  ".join(json.dumps(each) for each in kept.values())
    head = json.dumps({"device": device, **chip, "torch": torch.__version__})[:-1]
    text = f'{head}, "entries": [\n  {lines}\n]}}\n'
    LaunchTable.from_json(text)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
