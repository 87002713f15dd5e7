"""Makes a file of benchmark/results from what build/gpu/cuda_moe wrote, and prints a table of it.

    python benchmark/moe/collect_cuda_moe.py NAME --device "NVIDIA H200" --driver 580.159.04 \
        --commit 60d83da --command "…" RUN.json [RUN.json …] [--conformance RUN.json …]
    python benchmark/moe/collect_cuda_moe.py NAME --table [layer,gemm1,gemm2]

A run's lines become rows under `columns`, what the conformance program proved a row for each variant. The
table, in Markdown, has microseconds and TFLOP/s of the default, and for files with variants how many times
as fast as the default each is.
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ["shape", "M", "format", "variant", "function", "part", "us", "p10", "p90", "n", "tflops", "relerr"]
METHOD = (
    "CUDA-graph replays, 256 MiB written over the L2 cache before each, events, median, p10 and p90 of n; "
    "variants of a cell in turns; random ids without repetition within a token; relerr against fp64 on "
    "sampled tokens"
)


def proven(paths: list[str]) -> list[list]:
    """A row for each file: variants, functions, pairings, formats, cases passed and failed."""
    rows = []
    for path in paths:
        run = json.loads(Path(path).read_text())
        columns = [dict.fromkeys(column) for column in zip(*run["rows"], strict=True)]
        _, functions, pairings, formats, _, variants = columns
        said = [" ".join(each) for each in (variants, functions, pairings, formats)]
        rows.append([*said, run["runs"]["passed"], run["runs"]["failed"]])
    return rows


def collect(options) -> dict:
    """The result file's contents."""
    runs = [json.loads(line) for path in options.runs for line in Path(path).read_text().splitlines()]
    if options.parts:
        runs = [run for run in runs if run["part"] in options.parts.split(",")]
    result = {
        "benchmark": "cuda_moe",
        "device": options.device,
        "driver": options.driver,
        "commit": options.commit,
        "command": options.command,
        "method": METHOD,
        "columns": COLUMNS,
        "rows": [[run[column] for column in COLUMNS] for run in runs],
    }
    if options.conformance:
        result["conformance"] = proven(options.conformance)
    return result


def dump(result: dict) -> str:
    """JSON with one line for each row."""
    parts = []
    for key, value in result.items():
        text = json.dumps(value)
        if key in ("rows", "conformance"):
            text = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table(result: dict, parts: list[str]) -> str:
    """Markdown: a row for each shape, format (where there are several), part and variant."""
    rows = [dict(zip(result["columns"], row, strict=True)) for row in result["rows"]]
    if len({row["format"] for row in rows}) > 1:
        for row in rows:
            row["shape"] += f", {row['format']}"
    tokens = sorted({row["M"] for row in rows})
    cell = {(row["shape"], row["part"], row["variant"], row["M"]): row for row in rows}
    lines = [
        "| shape | part | M = " + " | ".join(map(str, tokens)) + " |",
        "|---|---|" + "---|" * len(tokens),
    ]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        for part in parts:
            for variant in dict.fromkeys(row["variant"] for row in rows):
                texts = []
                for m in tokens:
                    row, default = cell.get((shape, part, variant, m)), cell.get((shape, part, "default", m))
                    if row is None:
                        texts.append("")
                    elif variant == "default":
                        texts.append(f"{row['us']:.0f} ({row['tflops']:.0f})")
                    else:
                        texts.append(f"{default['us'] / row['us']:.3f}")
                if any(texts):
                    label = part if variant == "default" else f"{part}, {variant}"
                    lines.append(f"| {shape} | {label} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("runs", nargs="*")
    for name in ("device", "driver", "commit", "command"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--conformance", nargs="*", help="files of the conformance program")
    parser.add_argument("--parts", help="keep these parts alone")
    parser.add_argument("--table", nargs="?", const="layer,gemm1,gemm2")
    options = parser.parse_intermixed_args()
    path = RESULTS / f"{options.name}.json"
    if options.runs:
        if not (options.device and options.commit and options.command):
            parser.error("--device, --commit and --command say what was measured")
        path.write_text(dump(collect(options)))
    if options.table:
        print(table(json.loads(path.read_text()), options.table.split(",")))


if __name__ == "__main__":
    main()
