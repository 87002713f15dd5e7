"""Runs a benchmark program and records what it measured, on what, and whether others disturbed it.

A Google Benchmark executable: medians over interleaved rounds, on one core.

    python benchmark/record.py build/developer/benchmark/bench_cpu_tape [--core 1] [--rounds 5]

A program that writes its own JSON to `--out FILE`: its arguments follow `--`.

    python benchmark/record.py build/developer/benchmark/bench_cpu_moe --name cpu_moe_isas --core all \
        -- --variants avx512bf16,avx512,avx2

Both write benchmark/results/NAME.json: device, commit, command, load, and the figures. On a machine that
others use it stops, unless `--busy-ok` accepts figures that are marked as disturbed.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import machine


def run_rounds(command: list[str], rounds: int, pattern: str) -> dict:
    """Medians and ranges of a Google Benchmark executable; a slow minute hits all benchmarks alike."""
    samples: dict[str, list[dict]] = {}
    flags = ["--benchmark_format=json", "--benchmark_min_time=0.02", f"--benchmark_filter={pattern or '.'}"]
    for _ in range(rounds):
        output = subprocess.run([*command, *flags], check=True, capture_output=True, text=True).stdout
        for entry in json.loads(output)["benchmarks"]:
            samples.setdefault(entry["name"], []).append(entry)

    counters = ("ns_per_element", "gigabytes_per_second", "instructions")
    rows = {}
    for name, entries in samples.items():
        times = [entry["cpu_time"] for entry in entries]
        row = {
            "ns": round(statistics.median(times), 2),
            "ns_min": round(min(times), 2),
            "ns_max": round(max(times), 2),
        }
        for counter in counters:
            if counter in entries[0]:
                # Google Benchmark prints an inverted rate in seconds.
                values = [entry[counter] for entry in entries]
                row[counter] = float(f"{statistics.median(values):.4g}")
        rows[name] = row
    return {"rounds": rounds, "results": rows}


def run_own(command: list[str], arguments: list[str]) -> dict:
    """What a program writes to the file that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        subprocess.run([*command, *arguments, "--out", str(path)], check=True)
        return json.loads(path.read_text())


def main() -> None:
    """Runs the program and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("executable", type=Path)
    parser.add_argument("--name", help="of the result file; by default the executable's without bench_")
    parser.add_argument("--core", default="1", help="the processor it is fixed to, or all")
    parser.add_argument("--rounds", type=int, default=5, help="of a Google Benchmark executable")
    parser.add_argument("--filter", default="", help="of a Google Benchmark executable")
    parser.add_argument("--busy-ok", action="store_true")
    words = sys.argv[1:]
    own = words[words.index("--") + 1 :] if "--" in words else None
    options = parser.parse_args(words[: words.index("--")] if own is not None else words)

    machine.require_idle(options.busy_ok)
    watch = machine.Watch()
    command = [] if options.core == "all" else ["taskset", "-c", options.core]
    command.append(str(options.executable))
    rounds = (command, options.rounds, options.filter)
    measured = run_rounds(*rounds) if own is None else run_own(command, own)
    shown = ["python", "benchmark/record.py", *(word for word in words if word != "--busy-ok")]
    head = {**watch.facts(), "command": shlex.join(shown)}
    path = machine.ROOT / "benchmark" / "results" / f"{options.name or options.executable.name[6:]}.json"
    result = head | {key: value for key, value in measured.items() if key not in head}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
