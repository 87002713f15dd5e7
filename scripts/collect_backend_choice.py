#!/usr/bin/env python3
"""Makes the tables by which "auto" chooses between Triton and CUTLASS from what was measured.

    python scripts/collect_backend_choice.py benchmark/results/gpu_peers_h200.json …

Reads what benchmark/collect_gpu_peers.py collected of runs of `benchmark_moe_kernels.py --backend cutlass
--beside triton`, or the other way round; rows about peers are passed over. Of two measurements of a cell the
later one counts. Writes a table for each device to `python/flexact/triton/beside_cutlass`; what is in it:
`flexact.backend_choice`.
"""

import argparse
import json
import sys
from pathlib import Path

from flexact.triton.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
TUNED = ROOT / "python/flexact/triton/tuned"
TABLES = ROOT / "python/flexact/triton/beside_cutlass"


def cells_of(path):
    """(what the file says once, its cells): an entry for each row that has both backends' times."""
    found = json.loads(path.read_text())
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    return found, [cell(row) for row in rows if row["peer"] in ("flexact triton", "flexact cutlass")]


def cell(row):
    """An entry of the table; "speedup" is Triton's time over CUTLASS's, whichever stood beside the other."""
    shape = SHAPES[row["model"]]
    cutlass_us, triton_us = row["us"], row["peer us"]
    speedup, interval = row["speedup"], row["interval"]
    if row["backend"] == "triton":
        cutlass_us, triton_us, speedup = triton_us, cutlass_us, 1 / speedup
        interval = interval and [1 / each for each in reversed(interval)]
    return {
        "format": row["format"], "experts": shape.experts, "top_k": shape.top_k, "hidden": shape.hidden,
        "intermediate": shape.intermediate, "gated": shape.gated, "tokens": row["tokens"],
        "cutlass_us": cutlass_us, "triton_us": triton_us, "speedup": round(speedup, 4),
        "interval": interval and [round(each, 4) for each in interval], "commit": row["commit"][:7],
    }  # fmt: skip


def chip_of(device):
    """Compute capability and multiprocessors, as the device's tuned table has them."""
    for path in TUNED.glob("*.json"):
        table = json.loads(path.read_text())
        if table["device"] == device:
            return {field: table[field] for field in ("capability", "multiprocessors")}
    sys.exit(f"{device}: no tuned table has its capability and multiprocessors")


def tables_of(paths):
    """The tables by device."""
    tables = {}
    for path in paths:
        found, cells = cells_of(path)
        if not cells:
            sys.exit(f"{path}: no cell has both backends")
        device = found["device"]
        table = tables.setdefault(device, {"device": device, **chip_of(device), "from": [], "entries": {}})
        table["from"].append(path.name)
        for entry in cells:
            key = tuple(entry[name] for name in list(entry)[:7])
            table["entries"][key] = entry
    for table in tables.values():
        table["entries"] = [table["entries"][key] for key in sorted(table["entries"])]
    return tables


def text_of(table):
    """A table as JSON, an entry a line."""
    head = json.dumps({name: value for name, value in table.items() if name != "entries"})[:-1]
    lines = ",\n".join("  " + json.dumps(entry) for entry in table["entries"])
    return f'{head}, "entries": [\n{lines}\n]}}\n'


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="\n\n".join(__doc__.split("\n\n")[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=TABLES, help="the folder of the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for device, table in tables_of(options.results).items():
        name = "".join(c if c.isalnum() else "_" for c in device) + ".json"
        (options.out / name).write_text(text_of(table))
        print(f"{device}: {len(table['entries'])} cells in {options.out / name}")


if __name__ == "__main__":
    main()
