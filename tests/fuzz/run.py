"""Fuzzes each target until it has used so much processor time; `make fuzz`.

New inputs are added to build/fuzz/found/TARGET, findings to build/fuzz/findings/TARGET; after a finding the
target goes on. Prints, and with --json writes, for each target: processor seconds, executions, findings.

Usage: run.py SECONDS [TARGET…] [--json FILE] [--idle] [--at-once N] [--workers N]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
TARGETS = ("config", "expression", "checkpoint", "isa")
# A target that ends sooner than this without a finding has not begun.
SHORTEST = 1.0
# SIGTERM ends all targets early, with the result of what was run.
stopped = threading.Event()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float, help="processor time of each target")
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--idle", action="store_true", help="use only time that nobody else wants")
    parser.add_argument("--at-once", type=int, default=1, help="targets that run side by side")
    parser.add_argument("--workers", type=int, default=1, help="processes of a target, which share its time")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    work = [(target, worker) for worker in range(options.workers) for target in options.targets]
    rows = {}
    with ThreadPoolExecutor(options.at_once * options.workers) as pool:
        for (target, _), row in zip(work, pool.map(lambda each: fuzz(*each, options), work), strict=True):
            rows[target] = added(rows[target], row) if target in rows else row
    for target, row in rows.items():
        print(
            f"{target:12} {row['executions']:12} executions {row['cpu_seconds']:8.0f} CPU seconds"
            f" {len(row['findings']):4} findings"
        )
    if options.json:
        options.json.write_text(json.dumps({**machine(), "targets": rows}, indent=1) + "\n")
    return any(row["findings"] for row in rows.values())


def added(a: dict, b: dict) -> dict:
    """What two workers of a target did."""
    return {
        "cpu_seconds": round(a["cpu_seconds"] + b["cpu_seconds"], 1),
        "executions": a["executions"] + b["executions"],
        "findings": sorted({*a["findings"], *b["findings"]}),
    }


def fuzz(target: str, worker: int, options: argparse.Namespace) -> dict:
    """Runs one process of a target, again after each finding, until its time is used."""
    found, findings = BUILD / "found" / target, BUILD / "findings" / target
    for folder in (found, findings):
        folder.mkdir(parents=True, exist_ok=True)
    known = set(findings.iterdir())
    row = {"cpu_seconds": 0.0, "executions": 0, "findings": []}
    log = BUILD / f"{target}.{worker}.log"
    seconds = options.seconds / options.workers
    log.unlink(missing_ok=True)
    while row["cpu_seconds"] < seconds and not stopped.is_set():
        used, executions, output = once(target, worker, options, seconds - row["cpu_seconds"])
        with log.open("a") as file:
            file.write(output)
        row["cpu_seconds"] = round(row["cpu_seconds"] + used, 1)
        row["executions"] += executions
        new = sorted(path.name for path in set(findings.iterdir()) - known)
        if used < SHORTEST and not stopped.is_set() and len(new) == len(row["findings"]):
            raise SystemExit(f"{target} does not start: {output[-2000:]}")
        row["findings"] = new
    return row


def once(target: str, worker: int, options: argparse.Namespace, seconds: float) -> tuple[float, int, str]:
    """(processor seconds, executions, output) of one process; it is interrupted after `seconds`."""
    arguments = [
        BUILD / "tests" / "fuzz" / f"fuzz_{target}",
        # Of time that passes, which is no measure on a machine whose processors others use.
        f"-timeout={600 if options.idle else 10}",
        "-report_slow_units=600",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={BUILD / 'findings' / target}/",
    ]
    words = ROOT / "tests" / "fuzz" / f"{target}.dict"
    if words.exists():
        arguments.append(f"-dict={words}")
    arguments += [BUILD / "found" / target, ROOT / "tests" / "fuzz" / "corpus" / target]
    if options.idle:
        arguments = ["chrt", "--idle", "0", *arguments]
    defaults = "detect_leaks=0:allocator_may_return_null=1"
    environment = {"ASAN_OPTIONS": defaults, **os.environ}
    output = BUILD / f"{target}.{worker}.part"
    with output.open("w") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment)
    used = 0.0
    while process.poll() is None:
        used = max(used, processor_seconds(process.pid))
        if used >= seconds or stopped.is_set():
            process.send_signal(signal.SIGINT)
            process.wait(timeout=600)
            break
        time.sleep(0.5)
    text = output.read_text(errors="replace")
    counted = re.search(r"stat::number_of_executed_units: *(\d+)", text)
    return used, int(counted[1]) if counted else 0, text


def processor_seconds(pid: int) -> float:
    """User and system time of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> dict:
    """Of what the result is: the commit, the processor, the day."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = os.environ.get("FLEXACT_COMMIT") or subprocess.check_output(git, cwd=ROOT, text=True).strip()
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "commit": commit,
        "processor": model[1] if model else "unknown",
        "date": datetime.date.today().isoformat(),
        "sanitizers": "address, undefined, float-cast-overflow",
    }


if __name__ == "__main__":
    sys.exit(main())
