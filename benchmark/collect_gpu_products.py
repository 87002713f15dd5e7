"""Puts the times of first products, ours and peers', into a file of benchmark/results.

    python benchmark/collect_gpu_products.py gpu_products_h200 RUN.json [RUN.json …]

RUN.json: of benchmark_moe_kernels.py with --kernels. A row of the same cell that the file has already gives
way. scripts/fill_tables.py makes the page's table of the file.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benchmark_moe_kernels import PRECISIONS
from collect_gpu_peers import RESULTS, added, dump
from flexact.triton.shapes import SHAPES

COLUMNS = [
    "commit", "format", "model", "tokens", "activation", "of", "GFLOP", "first product us",
    "with what follows us",
]  # fmt: skip
# What makes a cell.
KEY = slice(1, 6)
METHOD = (
    "kernels of whole calls, as the driver's trace has them: CUDA-graph replays behind an L2 flush, medians; "
    "the first of the two longest kernels, and from it up to the second"
)


def gigaflop(shape, tokens):
    """Of the first product."""
    matrices = 2 if shape.gated else 1
    return round(2e-9 * tokens * shape.top_k * matrices * shape.hidden * shape.intermediate, 3)


def rows_of(run):
    """(machine, rows) of what the benchmark wrote."""
    machine = next(record for record in run if record["kind"] == "machine")
    commit = machine["commit"][:7]
    rows = [
        [
            commit, PRECISIONS[cell["precision"]], cell["model"], cell["tokens"], cell["activation"],
            each["of"], gigaflop(SHAPES[cell["model"]], cell["tokens"]), each["first_product_us"],
            each["with_activation_us"],
        ]
        for cell in run if cell["kind"] == "cell"
        for each in cell.get("kernels", [])
    ]  # fmt: skip
    return machine, rows


def key_of(row):
    return tuple(row[KEY])


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the file in benchmark/results")
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    head = {"method": METHOD, "columns": COLUMNS}
    path.write_text(dump(added(result, options.runs, rows_of, key_of, lambda _: head)))


if __name__ == "__main__":
    main()
