"""Compares two benchmark files, text or JSON, cell by cell; or ours against a peer within one file.

    python scripts/compare_benchmark.py baseline_silu.txt result_swish.txt
    python scripts/compare_benchmark.py --peer sglang-triton results.json

Prints a table. Exit status 1 where a cell is more than --threshold slower, 2 where there is nothing to
compare.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

LINE = re.compile(
    r"^(?P<model>\S+)\s+(?P<precision>\S+)\s+(?P<activation>\S+)\s+M=(?P<tokens>\d+)\s+(?P<us>[\d.]+) us\b"
)
PEER = re.compile(r"(\S+) ([\d.]+) us: x")


def cells(path):
    """{(model, precision, tokens): record with "us" and the peers' "us"} of a text or JSON file."""
    text = path.read_text()
    if text.lstrip().startswith("["):
        records = [record for record in json.loads(text) if record.get("kind") == "cell"]
    else:
        records = []
        for line in text.splitlines():
            if match := LINE.match(line):
                record = match.groupdict()
                record |= {"tokens": int(record["tokens"]), "us": float(record["us"])}
                record |= {name: {"us": float(us)} for name, us in PEER.findall(line)}
                records.append(record)
    return {(record["model"], record["precision"], record["tokens"]): record for record in records}


def pairs(options):
    """(cell, time before, time after), and what the two are called."""
    if options.peer:
        rows = []
        for path in options.files:
            for cell, record in cells(path).items():
                if options.peer in record:
                    rows.append((cell, record[options.peer]["us"], record["us"]))
        return rows, (options.peer, "flexact")
    before, after = map(cells, options.files)
    rows = [(cell, before[cell]["us"], after[cell]["us"]) for cell in before if cell in after]
    return rows, tuple(path.name for path in options.files)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="BASELINE RESULT, or one file with --peer")
    parser.add_argument("--peer", help="compare with this peer's times, recorded beside ours")
    parser.add_argument("--threshold", type=float, default=0.05, help="slower by more than this fails")
    options = parser.parse_args()
    if not options.peer and len(options.files) != 2:
        parser.error("two files, or --peer")
    try:
        rows, (first, second) = pairs(options)
    except (OSError, ValueError, KeyError) as error:
        print(f"compare_benchmark: {error}", file=sys.stderr)
        return 2
    if not rows:
        print("compare_benchmark: no cell is in both", file=sys.stderr)
        return 2
    width = max(len(first), len(second), 10)
    print(f"{'model':<18}{'precision':<12}{'M':>7}  {first:>{width}} us  {second:>{width}} us   change")
    slower = []
    for (model, precision, tokens), before, after in rows:
        change = after / before - 1
        mark = ""
        if change > options.threshold:
            mark = "  SLOWER"
            slower.append((model, tokens))
        print(
            f"{model:<18}{precision:<12}{tokens:>7}  {before:>{width}.1f}     {after:>{width}.1f}  "
            f"{100 * change:>+7.1f} %{mark}"
        )
    mean = math.exp(sum(math.log(before / after) for _, before, after in rows) / len(rows))
    print(f"geometric mean: x{mean:.3f} of {first}'s speed over {len(rows)} cells")
    if slower:
        print(f"{len(slower)} cells are more than {100 * options.threshold:g} % slower")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
