"""Adds what benchmark_moe_kernels.py measured beside peers to a file of benchmark/results.

    python benchmark/collect_gpu_peers.py gpu_peers_h200 RUN.json [RUN.json …] [--driver 580.159.04]

A run adds a row for each cell and peer; where the file has one of the same format, model, token count,
function, backend and peer, the new one takes its place. A second backend of ours, measured in the same
rounds, has rows of its own, without intervals. Of a peer that a new run left out the file keeps its time, and
says that it is from before; the ratio is to our new time. scripts/fill_tables.py makes the page's tables of
the file.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benchmark_moe_kernels import PEERS, PRECISIONS

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = [
    "commit", "format", "model", "tokens", "function", "backend", "us", "peer", "peer's variant", "peer us",
    "speedup", "interval", "launches",
]  # fmt: skip
# Before the commit that a peer's time is from, where ours is newer.
BEFORE = "the peer's time is of "
# What makes a cell of a peer.
KEY = ["format", "model", "tokens", "function", "backend", "peer"]
METHOD = (
    "whole calls, CUDA-graph replay behind an L2 flush, medians, paired and interleaved in one process; "
    "speedup is the peer's time over ours, with its 95 % interval"
)
BACKENDS = ("triton", "cutlass")


def rows_of(run):
    """(machine, rows) of what the benchmark wrote."""
    machine = next(record for record in run if record["kind"] == "machine")
    rows = []
    for cell in (record for record in run if record["kind"] == "cell"):
        ours = cell["backend"].split()[0].rstrip(":")
        peers = {name: cell[name] for name in PEERS if name in cell}
        beside = {name: cell[name] for name in BACKENDS if name in cell}
        common = {
            "commit": machine["commit"][:7], "format": PRECISIONS[cell["precision"]],
            "function": cell["activation"],
        }  # fmt: skip
        for name, peer in (peers | {f"flexact {name}": each for name, each in beside.items()}).items():
            values = {
                "backend": ours, "peer": name, "peer's variant": peer["variant"], "peer us": peer["us"],
                "speedup": round(peer["speedup"], 3), "launches": cell["launch"],
                "interval": [round(each, 3) for each in peer["interval"]],
            }  # fmt: skip
            rows.append([{**cell, **common, **values}[column] for column in COLUMNS])
        for backend, other in beside.items():
            for name, peer in peers.items():
                values = {
                    "backend": backend, "us": other["us"], "peer": name, "peer's variant": peer["variant"],
                    "peer us": peer["us"], "speedup": round(peer["us"] / other["us"], 3),
                    "interval": None, "launches": f"beside {ours}",
                }  # fmt: skip
                rows.append([{**cell, **common, **values}[column] for column in COLUMNS])
    return machine, rows


def key_of(row):
    named = dict(zip(COLUMNS, row, strict=True))
    return tuple(named[name] for name in KEY)


def renewed(rows, paths):
    """Rows of cells that the runs have measured again without their peer, beside our new time."""
    newest = {}
    for path in paths:
        newest |= {cell_of(row): row for row in rows_of(json.loads(path.read_text()))[1]}
    kept = []
    for row in rows:
        named, ours = dict(zip(COLUMNS, row, strict=True)), newest.get(cell_of(row))
        if ours is not None and ours[COLUMNS.index("us")] != named["us"]:
            if named["peer"].startswith("flexact "):
                continue
            us = ours[COLUMNS.index("us")]
            if not named["launches"].startswith(BEFORE):
                named["launches"] = BEFORE + named["commit"]
            speedup = round(named["peer us"] / us, 3)
            named |= {"commit": ours[0], "us": us, "speedup": speedup, "interval": None}
        kept.append([named[column] for column in COLUMNS])
    return kept


def cell_of(row):
    """A cell of one backend, whatever the peer."""
    return key_of(row)[:-1]


def added(result, paths, rows_of, key_of, head_of):
    """The file's contents with the runs' rows; one of a cell that is there already takes its place.

    head_of(machine): what the file says once.
    """
    kept = {key_of(row): row for row in result.get("rows", [])}
    for path in paths:
        machine, rows = rows_of(json.loads(path.read_text()))
        if result.setdefault("device", machine["device"]) != machine["device"]:
            sys.exit(f"{path} is of {machine['device']}, the file of {result['device']}")
        result |= {name: machine[name] for name in ("torch", "triton")} | head_of(machine)
        kept |= {key_of(row): row for row in rows}
    return {**{name: result[name] for name in result if name != "rows"}, "rows": list(kept.values())}


def dump(result):
    """JSON with one line for each row."""
    rows = ",\n".join("  " + json.dumps(row) for row in result["rows"])
    head = json.dumps({name: result[name] for name in result if name != "rows"}, indent=1)[:-2]
    return f'{head},\n "rows": [\n{rows}\n ]\n}}\n'


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the file in benchmark/results")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--driver")
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}

    def head_of(machine):
        limits = {name: machine[name] for name in machine if name.endswith("_s")}
        driver = options.driver or result.get("driver")
        return {"driver": driver, "machine": limits, "method": METHOD, "columns": COLUMNS}

    result = added(result, options.runs, rows_of, key_of, head_of)
    path.write_text(dump(result | {"rows": renewed(result["rows"], options.runs)}))


if __name__ == "__main__":
    main()
