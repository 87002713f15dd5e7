"""Fills the tables of docs/performance.md from the files in benchmark/results.

    python scripts/fill_tables.py [--check]

A page marks each with `<!-- table: NAME -->` and `<!-- end -->`; what stands between is replaced. `--check`
writes nothing and ends with exit code 1 where a page differs from the files. No figure is copied by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmark" / "results"
PAGES = ("docs/performance.md",)

PEERS = {"kt_kernel": "kt-kernel", "grouped_mm": "torch `grouped_mm`", "loop": "torch, loop"}
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


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "cpu_peers": cpu_peers,
    "cpu_isas": cpu_isas,
    "cpu_threads": cpu_threads,
    "cpu_activation_cost": cpu_activation_cost,
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
    check = parser.parse_args().check
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
