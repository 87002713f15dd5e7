"""Runs a Google Benchmark executable pinned to one core and records its medians.

    python benchmark/record.py build/developer/benchmark/bench_cpu_tape [--core 1] [--rounds 5]

writes benchmark/results/NAME.json: the device, the commit, the command, and for each benchmark the
median and the range over the rounds. Rounds are interleaved, so that a slow minute of a shared machine
hits every benchmark alike.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """The processor's name and how many cores this process may use, in words."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def main() -> None:
    """Runs the rounds and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("executable", type=Path)
    parser.add_argument("--core", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--filter", default="")
    arguments = parser.parse_args()

    samples: dict[str, list[dict]] = {}
    for _ in range(arguments.rounds):
        command = ["taskset", "-c", arguments.core, str(arguments.executable)]
        command += ["--benchmark_format=json", "--benchmark_min_time=0.02"]
        command += [f"--benchmark_filter={arguments.filter or '.'}"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
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
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    result = {
        "device": f"{cpu_model()}, one pinned core of a shared machine",
        "commit": commit,
        "command": f"python benchmark/record.py {arguments.executable}",
        "rounds": arguments.rounds,
        "results": rows,
    }
    name = arguments.executable.name.removeprefix("bench_")
    path = ROOT / "benchmark" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
