"""Puts what functions cost beside one another on a GPU into a file of benchmark/results.

    python benchmark/collect_gpu_functions.py gpu_functions_h200 RUN.json [RUN.json …]

RUN.json: of benchmark_moe_kernels.py with --against. A row says how many times as long a whole MoE layer
takes with a function as with the one that it was measured beside, paired and interleaved; a row of the same
cell that the file has already gives way. scripts/fill_tables.py makes the page's table of the file.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benchmark_moe_kernels import PEERS, PRECISIONS
from collect_gpu_peers import BACKENDS, RESULTS, added, dump

COLUMNS = ["commit", "format", "model", "tokens", "backend", "function", "beside", "ratio", "interval"]
# What makes a cell.
KEY = slice(1, 7)
METHOD = (
    "whole calls, CUDA-graph replay behind an L2 flush, medians, paired and interleaved in one process; "
    "ratio is the function's time over the other's, with its 95 % interval"
)


def rows_of(run):
    """(machine, rows) of what the benchmark wrote."""
    machine = next(record for record in run if record["kind"] == "machine")
    commit = machine["commit"][:7]
    rows = []
    for cell in (record for record in run if record["kind"] == "cell"):
        backend = cell["backend"].split()[0].rstrip(":")
        for name, other in cell.items():
            if isinstance(other, dict) and name not in PEERS and name not in BACKENDS:
                rows.append([
                    commit, PRECISIONS[cell["precision"]], cell["model"], cell["tokens"], backend, name,
                    cell["activation"], round(other["speedup"], 4),
                    [round(each, 4) for each in other["interval"]],
                ])  # fmt: skip
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
