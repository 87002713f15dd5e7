"""Fills the tables of the pages on performance and of docs/testing.md from the files in benchmark/results.

    python scripts/fill_tables.py [--check | --goals]

A page marks each with `<!-- table: NAME -->` and `<!-- end -->`; what stands between is replaced. `--check`
writes nothing and ends with exit code 1 where a page differs from the files; `--goals` does so where what is
asked of the CPU block's speed is missed. No figure is copied by hand.
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmark" / "moe"))

import collect_cuda_moe  # noqa: E402

RESULTS = ROOT / "benchmark" / "results"
PAGES = (
    "docs/cuda.md",
    "docs/performance.md",
    "docs/performance-gpu.md",
    "docs/sglang.md",
    "docs/testing.md",
)

PEERS = {"kt_kernel": "kt-kernel", "grouped_mm": "torch `grouped_mm`", "loop": "torch, loop"}
# What measured GPU peers are called, and the letter that stands for each in a cell.
GPU_PEERS = {
    "sglang-triton": ("s", "SGLang's Triton kernels with the best of their tiles"),
    "deep-gemm": ("d", "DeepGEMM's two products with SGLang's kernels around them"),
    "torch-grouped": ("g", "torch `grouped_mm`"),
    "marlin": ("m", "Marlin"),
    "triton-kernels": ("t", "triton_kernels"),
}
SHAPES = {
    "qwen3_30b": "Qwen3-30B-A3B",
    "mixtral_8x7b": "Mixtral 8x7B, a quarter of I",
    "relu2": "Nemotron 3 Nano, half of its experts",
}


def read(name: str) -> dict:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def conditions(result: dict, *names: str) -> str:
    """On what a table was measured, and a warning where others disturbed it."""
    files = ", ".join(f"[`{name}.json`](../benchmark/results/{name}.json)" for name in names)
    text = f"{result['device']}, commit {result['commit']}; {files}."
    if result.get("clock", "wall") != "wall":
        text += " Processor time."
    if not result.get("undisturbed", False):
        text += (
            f" **Disturbed: other programs used {result.get('processors_used_by_others', '?')} processors "
            "meanwhile; preliminary.**"
        )
    return text


def milliseconds(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def roof_seconds(row: dict, result: dict) -> float:
    """The least time that the machine allows: reading the experts that are hit, or the arithmetic."""
    return max(
        row["bytes"] / (result["read_gbs"]["best"] * 1e9),
        row["operations"] / (result["peak_gflops"]["best"] * 1e9),
    )


def shape_text(name: str, shape: dict) -> str:
    """A shape's name and sizes."""
    sizes = f"E{shape['experts']} H{shape['hidden']} I{shape['intermediate']} k{shape['top_k']}"
    return f"{SHAPES[name]} ({sizes}, {shape['function']})"


def cpu_peers() -> Iterator[str]:
    """Every implementation at every number of tokens."""
    result = read("cpu_moe_peers")
    versions = result["shapes"]["qwen3_30b"]["versions"]
    yield conditions(result, "cpu_moe_peers")
    yield (
        f"One thread; {result['peak_gflops']['best']:.0f} GFLOP/s of multiply-adds and "
        f"{result['read_gbs']['best']:.1f} GB/s of reads in the same run. kt-kernel {versions['kt_kernel']}; "
        f"torch {versions['loop']}. Milliseconds, medians of {result['rounds']} rounds (range); "
        "*ahead*: the fastest other implementation's time over flexact's."
    )
    for name, shape in result["shapes"].items():
        yield ""
        yield f"**{shape_text(name, shape)}**"
        yield ""
        yield (
            "| tokens | flexact | GFLOP/s | GB/s | of the roof | " + " | ".join(PEERS.values()) + " | ahead |"
        )
        yield "|" + "---|" * (len(PEERS) + 6)
        for tokens, row in shape["tokens"].items():
            times = row["milliseconds"]
            ours = times["flexact"]["median"]
            others = [
                milliseconds(times[key]["median"]) if key in times else "not supported" for key in PEERS
            ]
            best = min(times[key]["median"] for key in PEERS if key in times)
            yield (
                f"| {tokens} | **{milliseconds(ours)}** ({milliseconds(times['flexact']['fastest'])} – "
                f"{milliseconds(times['flexact']['slowest'])}) | {row['operations'] / ours * 1e-6:.0f} | "
                f"{row['bytes'] / ours * 1e-6:.1f} | {roof_seconds(row, result) / ours * 1e5:.0f} % | "
                + " | ".join(others)
                + f" | {best / ours:.2f} × |"
            )


def cpu_isas() -> Iterator[str]:
    """The same block with each instruction set."""
    result = read("cpu_moe_isas")
    yield conditions(result, "cpu_moe_isas")
    for shape in result["shapes"]:
        variants = shape["variants"]
        yield f"{shape_text(shape['shape'], shape)}, one thread, milliseconds (share of the roof)."
        yield ""
        heads = [f"`{v['variant']}` ({v['peak_gflops']:.0f} GFLOP/s)" for v in variants]
        yield "| tokens | " + " | ".join(heads) + " |"
        yield "|" + "---|" * (len(variants) + 1)
        for rows in zip(*(variant["runs"] for variant in variants), strict=True):
            cells = [f"{milliseconds(r['milliseconds'])} ({r['percent_of_roof']:.0f} %)" for r in rows]
            yield f"| {rows[0]['tokens']} | " + " | ".join(cells) + " |"


def cpu_threads() -> Iterator[str]:
    """Two threads against one, beside what the machine itself gains."""
    result = read("cpu_moe_threads")
    yield conditions(result, "cpu_moe_threads")
    for shape in result["shapes"]:
        one, two = shape["variants"]
        yield ""
        yield (
            f"**{shape_text(shape['shape'], shape)}**: the machine's multiply-adds gain "
            f"{two['peak_times_first_variant']:.2f} ×, its reads {two['read_times_first_variant']:.2f} ×."
        )
        yield ""
        yield "| tokens | one thread, ms | two threads, ms | gain |"
        yield "|---|---|---|---|"
        for a, b in zip(one["runs"], two["runs"], strict=True):
            yield (
                f"| {a['tokens']} | {milliseconds(a['milliseconds'])} | {milliseconds(b['milliseconds'])} | "
                f"{b['times_first_variant']:.2f} × |"
            )


def cpu_activation_cost() -> Iterator[str]:
    """What each function adds to the block."""
    result = read("cpu_moe_activation_cost")
    problem = result["problem"]
    yield conditions(result, "cpu_moe_activation_cost")
    yield (
        f"H {problem['hidden']}, I {problem['intermediate']}, "
        f"{problem['tokens'] * problem['top_k'] // problem['experts']} rows an expert, one thread, "
        f"{result['rounds']} pairs of calls each."
    )
    for arity, identity in (("gated", "`g*u`"), ("unary", "`x`")):
        rows = [
            (row["over_identity"], row["uncertainty"], name)
            for name, row in result["results"].items()
            if row["arity"] == arity and name not in ("bilinear", "linear") and not name.startswith("expr")
        ]
        yield ""
        yield f"| {arity} function | time over that of {identity} |"
        yield "|---|---|"
        for over, uncertainty, name in sorted(rows, reverse=True):
            yield f"| {name} | {100 * over:+.2f} ± {100 * uncertainty:.2f} % |"


# As collect_gpu_peers.py says that a row's two times are of two runs.
BEFORE = "the peer's time is of "


def gpu_cells(result: dict) -> dict[tuple, dict[int, list[tuple]]]:
    """{(format, function, model, backend): {tokens: [(peer's time over ours, peer, ours, not paired)]}}."""
    cells: dict[tuple, dict[int, list[tuple]]] = {}
    for values in result["rows"]:
        row = dict(zip(result["columns"], values, strict=True))
        if not row["peer"].startswith("flexact "):
            key = (row["format"], row["function"], row["model"], row["backend"])
            found = cells.setdefault(key, {}).setdefault(row["tokens"], [])
            found.append((row["speedup"], row["peer"], row["us"], row["launches"].startswith(BEFORE)))
    return cells


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def gpu_peers() -> Iterator[str]:
    """Both backends beside the fastest peer of each cell, format by format."""
    result = read("gpu_peers_h200")
    limits = result["machine"]
    yield (
        f"{result['device']}, driver {result['driver']}, torch {result['torch']}, Triton {result['triton']}; "
        "[`gpu_peers_h200.json`](../benchmark/results/gpu_peers_h200.json) has each row's commit, every peer "
        f"and the intervals. In the last run the machine copied {limits['copy_gb_s']} GB/s, and products of "
        f"size 8192 ran at {limits['bf16_matmul_tflop_s']} TFLOP/s in bf16, at "
        f"{limits['fp8_matmul_tflop_s']} in FP8."
    )
    yield ""
    letters = "; ".join(f"{letter}: {name}" for letter, name in GPU_PEERS.values())
    yield (
        "Microseconds of a whole call; in brackets how many times as long the **fastest** peer that was "
        f"measured in the cell took, and which it was ({letters}). With ~ the peer's time is of an "
        "earlier run, not paired with ours."
    )
    cells = gpu_cells(result)
    for format, function in dict.fromkeys(key[:2] for key in cells):
        group = {key[2:]: cell for key, cell in cells.items() if key[:2] == (format, function)}
        counts = sorted({tokens for cell in group.values() for tokens in cell})
        yield ""
        yield f"**`{format}`, {function}**"
        yield ""
        yield "| model | backend | " + " | ".join(map(str, counts)) + " |"
        yield "|---|---|" + "---|" * len(counts)
        for (model, backend), cell in sorted(group.items()):
            texts = []
            for tokens in counts:
                best = min(cell.get(tokens, []), default=None)
                apart = "~" if best and best[3] else ""
                text = f"{best[2]:.0f} ({apart}{best[0]:.2f} {GPU_PEERS[best[1]][0]})" if best else ""
                texts.append(text)
            yield f"| {model} | {backend} | " + " | ".join(texts) + " |"


def gpu_products() -> Iterator[str]:
    """The first product of a layer, alone and with its function, ours and peers'."""
    result = read("gpu_products_h200")
    yield (
        f"{result['device']}, torch {result['torch']}, Triton {result['triton']}; "
        "[`gpu_products_h200.json`](../benchmark/results/gpu_products_h200.json)."
    )
    yield ""
    yield "| format | model | tokens | of | product alone, TFLOP/s | with what follows | commit |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(result["rows"], key=lambda row: row[1:6]):
        cell = dict(zip(result["columns"], row, strict=True))
        alone, whole = (
            cell["GFLOP"] / cell[name] * 1e3 for name in ("first product us", "with what follows us")
        )
        yield (
            f"| `{cell['format']}` | {cell['model']} | {cell['tokens']} | {cell['of']} | {alone:.0f} | "
            f"{whole:.0f} | {cell['commit']} |"
        )


def gpu_means() -> Iterator[str]:
    """Geometric means and smallest ratios by format, backend and number of tokens."""
    groups: dict[tuple, list[float]] = {}
    for (format, _, _, backend), cell in gpu_cells(read("gpu_peers_h200")).items():
        for tokens, peers in cell.items():
            size = "1" if tokens == 1 else "16 to 128" if tokens <= 128 else "1024 and more"
            groups.setdefault((format, backend, "the fastest", size), []).append(min(peers)[0])
            for speedup, peer, *_ in peers:
                groups.setdefault((format, backend, peer, size), []).append(speedup)
    yield "| format | backend | beside | tokens | cells | geometric mean | smallest |"
    yield "|---|---|---|---|---|---|---|"
    for group in sorted(groups, key=lambda group: (*group[:2], group[2] != "the fastest", *group[2:])):
        format, *names = group
        ratios = groups[group]
        yield (
            f"| `{format}` | {' | '.join(names)} | {len(ratios)} | {geometric_mean(ratios):.2f} | "
            f"{min(ratios):.2f} |"
        )


def gpu_functions() -> Iterator[str]:
    """What other functions cost beside silu, cell by cell."""
    result = read("gpu_functions_h200")
    cells: dict[tuple, list[tuple[float, str]]] = {}
    commits = {}
    for row in result["rows"]:
        cell = dict(zip(result["columns"], row, strict=True))
        key = (cell["backend"], cell["format"], cell["model"], cell["tokens"])
        cells.setdefault(key, []).append((cell["ratio"], cell["function"]))
        commits[key] = cell["commit"]
    yield (
        f"{result['device']}, torch {result['torch']}, Triton {result['triton']}; "
        "[`gpu_functions_h200.json`](../benchmark/results/gpu_functions_h200.json) has every function and "
        "the intervals."
    )
    yield ""
    yield "| backend | format | model | tokens | functions | geometric mean | those that cost most | commit |"
    yield "|---|---|---|---|---|---|---|---|"
    for key, found in sorted(cells.items()):
        worst = ", ".join(f"`{name}` {ratio:.3f}" for ratio, name in sorted(found, reverse=True)[:3])
        mean = geometric_mean([ratio for ratio, _ in found])
        columns = [key[0], f"`{key[1]}`", *key[2:], len(found), f"{mean:.3f}", worst, commits[key]]
        yield "| " + " | ".join(map(str, columns)) + " |"


def serving() -> Iterator[str]:
    """SGLang's serving benchmark with the plugin beside stock."""
    result = read("sglang_serving_h200")
    runs: dict[str, list[dict]] = {}
    for run in result["runs"]:
        if run["round"] and "loads" in run:
            runs.setdefault(run["variant"], []).append(run)
    yield (
        f"{result['device']}, commit {result['commit']}; "
        "[`sglang_serving_h200.json`](../benchmark/results/sglang_serving_h200.json)."
    )
    yield ""
    yield "| | stock SGLang, silu | flexact, swish β = 1.5 | ratio |"
    yield "|---|---|---|---|"
    rows: list[tuple[str, Callable[[dict], float], str]] = [
        ("seconds until it answers", lambda run: run["start_seconds"], ".1f"),
        ("weights on the GPU, GB", lambda run: run["memory_usage"]["weight"], ".2f"),
        ("graphs, GB", lambda run: sum(run["memory_usage"]["graph"].values()), ".2f"),
        ("tokens that the cache holds", lambda run: run["cache_tokens"], ",.0f"),
    ]
    for count in next(iter(runs.values()))[0]["loads"]:
        for name, key in (
            ("tokens a second", "output_throughput"),
            ("ms per token, median", "median_tpot_ms"),
        ):
            rows.append((f"{name}, {count} at once", lambda run, c=count, k=key: run["loads"][c][k], ".1f"))
    for name, value, form in rows:
        stock, ours = (statistics.median(map(value, runs[each])) for each in ("stock", "swish"))
        yield f"| {name} | {stock:{form}} | {ours:{form}} | {ours / stock:.3f} |"


def goals() -> Iterator[tuple[str, str, bool]]:
    """(what is asked of the CPU block, the worst that was measured, whether it holds)."""
    result = read("cpu_moe_peers")
    rows = [
        (name, int(tokens), row)
        for name, shape in result["shapes"].items()
        for tokens, row in shape["tokens"].items()
    ]

    def least(
        what: str, least_share: float, tokens: range, share: Callable[[dict], float]
    ) -> tuple[str, str, bool]:
        worst, shape, at = min((share(row), name, t) for name, t, row in rows if t in tokens)
        return what, f"{100 * worst:.0f} % ({SHAPES[shape]}, {at})", worst >= least_share

    def seconds(row: dict) -> float:
        return row["milliseconds"]["flexact"]["median"] * 1e-3

    peak, reads = result["peak_gflops"]["best"] * 1e9, result["read_gbs"]["best"] * 1e9
    yield least(
        "512 tokens: 75 % of the multiply-adds",
        0.75,
        range(512, 513),
        lambda r: r["operations"] / peak / seconds(r),
    )
    yield least(
        "16 to 128 tokens: 65 % of the roof",
        0.65,
        range(16, 129),
        lambda r: roof_seconds(r, result) / seconds(r),
    )
    yield least("one token: 75 % of the reads", 0.75, range(1, 2), lambda r: r["bytes"] / reads / seconds(r))
    for key, name in PEERS.items():
        ahead, shape, at = min(
            (row["milliseconds"][key]["median"] / seconds(row) * 1e-3, shape, tokens)
            for shape, tokens, row in rows
            if key in row["milliseconds"]
        )
        yield f"ahead of {name} at every size", f"{ahead:.2f} × ({SHAPES[shape]}, {at})", ahead > 1

    def limit(run: dict) -> str:
        return "peak" if run["percent_of_peak"] > run["percent_of_bandwidth"] else "read"

    gains = [
        (run["times_first_variant"], shape["shape"], run["tokens"])
        for shape in read("cpu_moe_threads")["shapes"]
        for run in shape["variants"][1]["runs"]
        if shape["variants"][1][f"{limit(run)}_times_first_variant"] >= 1.9
    ]
    # Where the machine gives nothing to gain, nothing was shown.
    gain, shape, at = min(gains, default=(0.0, "", 0))
    worst = f"{gain:.2f} × ({SHAPES[shape]}, {at})" if gains else "the machine's limits gain less"
    yield "two threads: 1.7 × one, where what limits the cell gains 1.9 × on the machine", worst, gain >= 1.7
    cost, name = max(
        (row["over_identity"], name)
        for name, row in read("cpu_moe_activation_cost")["results"].items()
        if not name.startswith("expr")
    )
    yield "the costliest function of the catalogue: below 3 %", f"{100 * cost:.2f} % ({name})", cost < 0.03


def cpu_goals() -> Iterator[str]:
    """What is asked of the block, and the worst of what the tables below hold."""
    yield "| asked | measured, at worst | |"
    yield "|---|---|---|"
    for asked, measured, holds in goals():
        yield f"| {asked} | {measured} | {'holds' if holds else '**missed**'} |"


def mutation() -> Iterator[str]:
    """Mutants of each file."""
    result = read("mutation")
    yield f"Commit {result['commit']}; [`mutation.json`](../benchmark/results/mutation.json)."
    yield ""
    yield "| file | mutants | caught | change nothing that could be seen | survived |"
    yield "|---|---|---|---|---|"
    every = {"caught": result["caught"], "equivalent": result["equivalent"], "survived": result["survived"]}
    share = f"{100 * result['caught_of_those_that_change_anything']:.1f} %"
    rows = {**{f"`{name}`": counts for name, counts in result["files"].items() if counts}, "all": every}
    for name, counts in rows.items():
        caught = counts.get("caught", 0)
        caught = f"{caught}, {share} of those that change anything" if counts is every else caught
        yield (
            f"| {name} | {sum(counts.values())} | {caught} | {counts.get('equivalent', 0)} |"
            f" {counts.get('survived', 0)} |"
        )
    if result["judged"] < result["mutants"]:
        yield ""
        yield f"{result['mutants'] - result['judged']} of {result['mutants']} mutants were not judged."


def fuzz() -> Iterator[str]:
    """Processor time, executions and findings of each target."""
    result = read("fuzz")
    yield (
        f"{result['processor']}, commit {result['commit']}, {result['date']}, sanitizers "
        f"{result['sanitizers']}; [`fuzz.json`](../benchmark/results/fuzz.json)."
    )
    yield ""
    yield "| target | processor time | executions | findings |"
    yield "|---|---|---|---|"
    for name, row in result["targets"].items():
        minutes, findings = row["cpu_seconds"] / 60, len(row["findings"])
        yield f"| `{name}` | {minutes:.0f} min | {row['executions']:,} | {findings} |"


def cuda_layers(name: str, parts: str) -> Callable[[], Iterator[str]]:
    """The table of a file that collect_cuda_moe.py made, and what it is of."""

    def lines() -> Iterator[str]:
        result = read(name)
        text = (
            f"One {result['device']} (driver {result['driver']}), SwiGLU, commit {result['commit']}; "
            f"[`{name}.json`](../benchmark/results/{name}.json)."
        )
        if proofs := result.get("conformance"):
            passed, failed = (sum(row[column] for row in proofs) for column in (4, 5))
            text += f" In the same run {passed} cases agreed with fp64 and {failed} did not."
        yield text
        yield ""
        yield collect_cuda_moe.table(result, parts.split(","))

    return lines


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "cpu_peers": cpu_peers,
    "gpu_functions": gpu_functions,
    "serving": serving,
    "cpu_isas": cpu_isas,
    "cpu_threads": cpu_threads,
    "cpu_activation_cost": cpu_activation_cost,
    "gpu_peers": gpu_peers,
    "gpu_means": gpu_means,
    "gpu_products": gpu_products,
    "cuda_bf16": cuda_layers("cuda_moe_h200", "layer,gemm1,gemm2"),
    "cuda_fp16": cuda_layers("cuda_moe_fp16_h200", "layer"),
    "cuda_fp8": cuda_layers("cuda_moe_fp8_h200", "layer"),
    "cuda_fp4": cuda_layers("cuda_moe_fp4_h200", "layer,gemm1,gemm2"),
    "cuda_few": cuda_layers("cuda_choices_few_h200", "layer"),
    "cuda_few_rows": cuda_layers("cuda_choices_few_rows_h200", "layer"),
    "cpu_goals": cpu_goals,
    "mutation": mutation,
    "fuzz": fuzz,
}


def filled(text: str) -> str:
    """The page with its tables as the result files have them."""

    def table(match: re.Match) -> str:
        try:
            body = "\n".join(TABLES[match.group(1)]())
        except FileNotFoundError as missing:
            body = f"Not measured yet: there is no {Path(missing.filename).name}."
        return f"<!-- table: {match.group(1)} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    """Fills the pages, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--goals", action="store_true")
    arguments = parser.parse_args()
    if arguments.goals:
        missed = [f"{asked}: {measured}" for asked, measured, holds in goals() if not holds]
        print("\n".join(missed) or "all goals of the CPU block's speed hold")
        return int(bool(missed))
    check = arguments.check
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if check and new != text:
            stale.append(page)
        elif not check:
            path.write_text(new, encoding="utf-8")
    if stale:
        print(f"not as measured: {', '.join(stale)}; run python scripts/fill_tables.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
