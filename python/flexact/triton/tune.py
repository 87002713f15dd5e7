"""`flexact tune`: measures tiles on this GPU and writes the table of launches that serving reads.

For each shape and token count the candidates of each GEMM are captured in a CUDA graph and replayed behind
a flush of the L2; a candidate whose result differs from the others' is left out and reported. Nothing here
runs while serving.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from flexact import ActivationRegistry, formats
from flexact._core import LaunchTable, MoeProblem, Tile, token_bucket
from flexact.triton.formats import FORMATS, Operand
from flexact.triton.functions import cache_folder
from flexact.triton.moe import _DIRECT_SIZES, Block
from flexact.triton.shapes import SHAPES, Shape

DIRECT_PAIRS = _DIRECT_SIZES[-1]
# Formats that can be tuned, and the type of their hidden states.
DTYPES = dict.fromkeys(("bf16", *formats.FP8_FORMATS, *formats.FP4_FORMATS), torch.bfloat16) | {
    "fp16": torch.float16
}
# A step along K is the 128 values that share a scale, and the first GEMM quantises whole groups of them.
GROUPED = ("fp8_block", "mxfp4_fp8")
DECODED = ("mxfp4", "nvfp4")


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
        groups: tuple[int, ...] = (1,) if block_m <= 32 else (4, 16)
    elif format in DECODED:
        shapes = _decoded_shapes(block_m)
        groups = (1,) if block_m <= 32 else (1, 8) if block_m == 64 else (4, 16)
    elif block_m <= 32:
        # Two warps read weights without the copy engine, and so without its fences.
        shapes = [(64, 128, 2, 4), (64, 128, 2, 5), (64, 64, 2, 6), (64, 128, 4, 4), (64, 256, 4, 3),
                  (128, 128, 4, 3), (128, 128, 8, 3), (32, 128, 4, 5), (32, 256, 4, 4)]  # fmt: skip
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
    for n, k, warps, stages in shapes:
        width = n // 2 if doubled and which == "gate_up" else n
        kinds = (0, 1) if block_m == 256 or (block_m == 128 and n == 256) else (0,)
        rows += [(block_m, width, k, group, warps, stages, kind) for group in groups for kind in kinds]
    return _tiles(rows)


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
        return [(64, 128, 2, 4), (64, 128, 2, 6), (64, 128, 2, 8), (64, 128, 4, 4), (64, 128, 4, 6),
                (64, 256, 4, 3), (128, 128, 4, 3), (128, 128, 8, 4)]  # fmt: skip
    if block_m == 64:
        return [(128, 128, 4, 3), (128, 128, 4, 4), (256, 64, 4, 3), (128, 128, 8, 3), (256, 128, 8, 3)]
    if block_m == 128:
        return [(256, 128, 8, 3), (256, 64, 8, 4), (128, 128, 8, 3), (128, 128, 4, 3), (128, 64, 8, 4)]
    return [(128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 4)]


def vector_candidates(which: str) -> list[dict[str, int]]:
    """Tiles of the kernels without tensor cores."""
    if which == "gate_up":
        shapes = [(2, 512, 4), (4, 256, 4), (4, 512, 4), (4, 512, 8), (8, 256, 4), (8, 512, 8), (2, 1024, 4)]
    else:
        shapes = [
            (4, 512, 4),
            (4, 1024, 4),
            (8, 256, 4),
            (8, 512, 4),
            (8, 512, 8),
            (8, 1024, 8),
            (16, 512, 8),
        ]
    return _tiles((16, n, k, 1, warps, 2, 0) for n, k, warps in shapes)


def block_ms(shape: Shape, tokens: int, format: str = "bf16") -> list[int]:
    """Tile heights worth trying: around the rows that an expert gets."""
    heights = _block_ms(shape, tokens)
    # Beside its sums a tile of grouped scales holds an unscaled product.
    return [min(each, 128) for each in heights if each <= 128 or format not in GROUPED]


def _block_ms(shape: Shape, tokens: int) -> list[int]:
    rows = tokens * shape.top_k / shape.experts
    if tokens <= 16 or rows <= 12:
        return [16]
    if rows <= 24:
        return [16, 32]
    if rows <= 48:
        return [16, 32, 64]
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
        self.direct = 0
        if token_bucket(tokens) * shape.top_k <= DIRECT_PAIRS:
            self.direct = next(n for n in _DIRECT_SIZES if n >= token_bucket(tokens) * shape.top_k)

    def route(self, block_m: int) -> None:
        """Sorts for this tile height, unless tiles find their rows themselves."""
        if self.direct:
            self.sorted, self.bound = (self.ids,) * 3, self.pairs
        else:
            self.sorted, self.bound = self.block._sort(self.ids, block_m, self.pairs)

    def gate_up(self, tile: dict[str, int], permute: bool = False) -> torch.Tensor:
        """Runs the first GEMM (and the copies before and after it) and returns h."""
        block = self.block
        made = Tile(**tile)
        given = block._format.inputs(self.x, self.ids, self.shape.experts, self.weights, made)
        if permute:
            given = Operand(block._permuted(given.tensor, self.sorted, self.pairs), given.extra)
        between = self.between(made)
        arguments = (self.topk_weights, self.ids, self.sorted, self.values, between, self.pairs)
        block._gate_up(made, self.direct, self.bound, permute, given, self.weights, *arguments)
        self.h = between.read()
        return self.h.tensor

    def between(self, tile: Tile) -> Any:
        """Memory for h."""
        width = self.shape.intermediate
        return self.block._format.intermediate(self.pairs, width, self.dtype, self.device, self.weights, tile)

    def down(self, h: Operand, tile: dict[str, int]) -> torch.Tensor:
        """Runs the second GEMM and returns its rows for the pairs."""
        y = torch.empty((self.pairs, self.shape.hidden), dtype=self.dtype, device=self.device)
        arguments = (h, self.weights, self.topk_weights, self.ids, self.sorted)
        self.block._down(Tile(**tile), self.direct, self.bound, *arguments, y, 0, self.pairs)
        return y

    def vector(self, tile: dict[str, int]) -> torch.Tensor:
        """Runs the first GEMM without tensor cores and returns h."""
        made = Tile(**tile)
        self.h = h = self.between(made).written
        arguments = (self.x, self.weights, self.topk_weights, self.ids, self.values, h, self.pairs)
        self.block._vector_gate_up(made, *arguments)
        return h.tensor

    def fused(self, h: Operand, tile: dict[str, int]) -> torch.Tensor:
        """Runs down_and_combine and returns the block's result."""
        out = torch.empty((self.tokens, self.shape.hidden), dtype=self.dtype, device=self.device)
        arguments = (h, self.weights, self.topk_weights, self.ids, out, self.tokens)
        self.block._down_and_combine(Tile(**tile), *arguments)
        return out


class Timer:
    """Medians of CUDA-graph replays behind a flush of the L2."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
        self.seconds = seconds

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
        """Microseconds, and the result."""
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        once = self._times(graph, 2)[0]
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
    return bool((a.float() - b.float()).norm() > 0.02 * b.float().norm())


def _fastest(
    timer: Timer, tiles: Iterable[dict[str, int]], run: Callable[[dict[str, int]], torch.Tensor],
    report: Callable[[dict[str, Any]], None], trusted: torch.Tensor | None = None,
    deadline: float = math.inf,
) -> tuple[float, dict[str, int], torch.Tensor]:  # fmt: skip
    """The fastest tile that compiles, fits and agrees; after the deadline the fastest until then."""
    best: tuple[float, dict[str, int]] | None = None
    result: torch.Tensor | None = trusted
    for tile in tiles:
        if best is not None and time.monotonic() > deadline:
            report({"tile": tile, "skipped": "the deadline has passed"})
            continue
        try:
            time_of, got = timer(lambda tile=tile: run(tile))
        except Exception as error:
            report({"tile": tile, "error": f"{type(error).__name__}: {str(error)[:120]}"})
            torch.cuda.synchronize()
            continue
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
    format, kernels = problem.format, bench.block._format
    for block_m in block_ms(shape, tokens, format):
        bench.route(block_m)
        where = {"tokens": tokens, "block_m": block_m}

        def report(kind: str, where: dict[str, Any] = where) -> Callable[[dict[str, Any]], None]:
            return lambda row: log({**where, "kind": kind, **row})

        tiles = candidates("gate_up", block_m, shape.gated, bool(bench.direct), format)
        up_us, up, inner = _best(timer, tiles, bench.gate_up, report("gate_up"))
        permute = False
        if not bench.direct and block_m >= 64 and kernels.copied:
            few = [
                tile
                for tile in tiles
                if tile["group_m"] == up["group_m"] and tile["block_n"] == up["block_n"]
            ]
            us, tile, _ = _best(
                timer, few, functools.partial(bench.gate_up, permute=True), report("permuted gate_up"), inner
            )
            if us < up_us:
                up_us, up, permute = us, tile, True
        bench.gate_up(up)
        h = bench.h
        tiles = candidates("down", block_m, shape.gated, bool(bench.direct), format)
        down_us, down, y = _best(timer, tiles, functools.partial(bench.down, h), report("down"))
        entry = {"direct": bool(bench.direct), "permute": permute, "gate_up": up, "down": down}
        if bench.direct and tokens <= 4 and kernels.plain:
            summed = y.view(tokens, shape.top_k, -1).float().sum(1)
            us, tile, _ = _best(
                timer,
                vector_candidates("down"),
                functools.partial(bench.fused, h),
                report("vector down"),
                summed,
            )
            # The sum has a kernel of its own otherwise: about what an empty replay takes.
            if us < down_us + 3:
                down_us, entry["down"], entry["fuse_combine"] = us, tile, True
            us, tile, _ = _best(
                timer, vector_candidates("gate_up"), bench.vector, report("vector gate_up"), inner
            )
            if us < up_us:
                up_us, entry["gate_up"], entry["vector"] = us, tile, True
        if not best or up_us + down_us < best["us"]:
            best = {**entry, "us": round(up_us + down_us, 2)}
    return {
        "format": problem.format, "experts": shape.experts, "top_k": shape.top_k, "hidden": shape.hidden,
        "intermediate": shape.intermediate, "gated": shape.gated, "tokens": tokens, **best,
    }  # fmt: skip


# --- Compiling ahead, in parallel -----------------------------------------------------------------


def _jobs(shapes: Iterable[Shape], counts: Iterable[int], format: str) -> list[tuple[Any, ...]]:
    """Distinct kernels that measuring will need; the group is a run-time number."""
    jobs: dict[Any, None] = {}
    for shape in shapes:
        for tokens in counts:
            pairs = token_bucket(tokens) * shape.top_k
            direct = next(n for n in _DIRECT_SIZES if n >= pairs) if pairs <= DIRECT_PAIRS else 0
            for block_m in block_ms(shape, tokens, format):
                for which in ("gate_up", "down"):
                    for tile in candidates(which, block_m, shape.gated, bool(direct), format):
                        length = shape.hidden if which == "gate_up" else shape.intermediate
                        width = _stand_in(length, tile["block_k"], format)
                        flat = (
                            *(
                                (k, bool(v) if k == "persistent" else v)
                                for k, v in tile.items()
                                if k != "group_m"
                            ),
                        )
                        jobs[(which, flat, direct, shape.gated, width, False, format)] = None
                        if which == "gate_up" and block_m >= 64 and not direct and FORMATS[format].copied:
                            jobs[(which, flat, direct, shape.gated, width, True, format)] = None
            if direct and tokens <= 4 and FORMATS[format].plain:
                for which in ("gate_up", "down"):
                    for tile in vector_candidates(which):
                        jobs[
                            (
                                "vector " + which,
                                (*tile.items(),),
                                direct,
                                shape.gated,
                                shape.top_k,
                                False,
                                format,
                            )
                        ] = None
    return list(jobs)


def _stand_in(length: int, block_k: int, format: str) -> int:
    """A small K that compiles to the same kernel: a multiple of the step or not, scales aligned or not."""
    if format not in formats.FP4_FORMATS:
        return 1024 if length % block_k == 0 else 1024 + 16
    if length % block_k:
        return 1024 + 32
    return 1024 if length // (16 if format == "nvfp4" else 32) % 16 == 0 else 768


def _compile(job: tuple[Any, ...]) -> str:
    """Compiles one kernel by running it on a tiny problem; the disk cache keeps it."""
    which, flat, direct, gated, number, permute, format = job
    tile = dict(flat)
    try:
        top_k, width = (number, 1024) if which.startswith("vector") else (2, number)
        bench = Bench(Shape(max(2, top_k), top_k, width, width, gated), format)
        bench.inputs(2)
        bench.direct = direct
        bench.route(tile["block_m"])
        tile["persistent"] = int(tile.get("persistent", 0))
        if which == "gate_up":
            bench.gate_up(tile, permute)
        elif which == "vector gate_up":
            bench.vector(tile)
        else:
            # What the first GEMM leaves, whatever it computed.
            between = bench.between(Tile(**(tile | {"block_n": 128})))
            (bench.fused if which == "vector down" else bench.down)(between.read(), tile)
        torch.cuda.synchronize()
    except Exception as error:
        return f"{which} {tile}: {type(error).__name__} {str(error)[:100]}"
    return ""


def compile_ahead(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[str]:
    """Compiles in as many processes; yields an empty text or what went wrong, one a kernel."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_compile, jobs, chunksize=1)


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
    parser.add_argument("--format", choices=sorted(DTYPES), default="bf16")
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

    jobs = _jobs(shapes, counts, options.format)
    for done, failed in enumerate(compile_ahead(jobs, options.workers), 1):
        _progress(f"compiling {failed}", done, len(jobs))
        if time.monotonic() > begin + options.seconds:
            print(f"the time was over with {done} of {len(jobs)} kernels compiled", file=sys.stderr)
            return 1
    entries = tune(shapes, counts, options.format, options.log, begin + options.seconds, keep)
    print(f"{len(entries)} launches in {path}")
    return 0


def tune(
    shapes: list[Shape], counts: list[int], format: str, log: Path | None, deadline: float,
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures every shape and token count until the deadline (of time.monotonic); `keep` gets them."""
    timer = Timer()
    entries = []
    total = len(shapes) * len(counts)
    with open(log or os.devnull, "a") as file:
        for shape in shapes:
            bench = Bench(shape, format)
            for tokens in counts:
                if time.monotonic() > deadline:
                    return entries
                _progress(f"{shape} {tokens} tokens", len(entries), total)
                row = {"experts": shape.experts, "hidden": shape.hidden, "intermediate": shape.intermediate}

                def note(more: dict[str, Any], row: dict[str, Any] = row) -> None:
                    print(json.dumps({**row, **more}), file=file, flush=True)

                entries.append(measure(bench, tokens, timer, note, deadline))
                keep(entries)
            del bench
            torch.cuda.empty_cache()
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
