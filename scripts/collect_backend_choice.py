#!/usr/bin/env python3
"""Makes the tables by which "auto" chooses between Triton and CUTLASS from what was measured.

    python scripts/collect_backend_choice.py benchmark/results/FILE.json …

Reads files that `benchmark_moe_kernels.py --backend cutlass --beside triton --json FILE` (or the other way
round) wrote, and collected ones of the form of `gpu_peers_h200.json`, whose other rows are passed over. Of
two measurements of a cell the one that is named later counts. Writes a table for each device to
`python/flexact/triton/beside_cutlass`; what is in it: `flexact.backend_choice`.
"""

import argparse
import json
import sys
from pathlib import Path

from flexact.triton.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
TUNED = ROOT / "python/flexact/triton/tuned"
TABLES = ROOT / "python/flexact/triton/beside_cutlass"
# What --precision calls them.
FORMATS = {"fp8": "fp8_block", "fp4": "mxfp4"}


def cells_of(path):
    """(machine, cells) of a results file: a cell has the model, the format and both backends' times."""
    found = json.loads(path.read_text())
    if isinstance(found, dict):
        rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
        return found, [
            cell(row, row["format"], row["us"], row["peer us"], row["speedup"], row["interval"])
            for row in rows
            if row["backend"] == "cutlass" and row["peer"] == "flexact triton"
        ]
    machine = next(record for record in found if record["kind"] == "machine")
    cells = []
    for record in (record for record in found if record["kind"] == "cell"):
        record = {"commit": machine["commit"], **record}
        first = record["backend"].split()[0]
        format = FORMATS.get(record["precision"], record["precision"])
        other = {"cutlass": "triton", "triton": "cutlass"}.get(first)
        if other not in record:
            continue
        beside = record[other]
        if first == "cutlass":
            times = (record["us"], beside["us"], beside["speedup"], beside["interval"])
        else:
            low, high = beside["interval"]
            times = (beside["us"], record["us"], 1 / beside["speedup"], [1 / high, 1 / low])
        cells.append(cell(record, format, *times))
    return machine, cells


def cell(row, format, cutlass_us, triton_us, speedup, interval):
    """An entry of the table; `speedup` is Triton's time over CUTLASS's."""
    shape = SHAPES[row["model"]]
    return {
        "format": format, "experts": shape.experts, "top_k": shape.top_k, "hidden": shape.hidden,
        "intermediate": shape.intermediate, "gated": shape.gated, "tokens": row["tokens"],
        "cutlass_us": cutlass_us, "triton_us": triton_us, "speedup": round(speedup, 4),
        "interval": interval and [round(each, 4) for each in interval], "commit": row["commit"][:7],
    }  # fmt: skip


def chip_of(machine):
    """Compute capability and multiprocessors: as measured, or as the device's tuned table has them."""
    fields = ("capability", "multiprocessors")
    if all(field in machine for field in fields):
        return {field: machine[field] for field in fields}
    for path in TUNED.glob("*.json"):
        table = json.loads(path.read_text())
        if table["device"] == machine["device"]:
            return {field: table[field] for field in fields}
    sys.exit(f"{machine['device']}: neither the file nor a tuned table has {' and '.join(fields)}")


def tables_of(paths):
    """The tables by device."""
    tables = {}
    for path in paths:
        machine, cells = cells_of(path)
        if not cells:
            sys.exit(f"{path}: no cell has both backends")
        device = machine["device"]
        table = tables.setdefault(device, {"device": device, **chip_of(machine), "from": [], "entries": {}})
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
