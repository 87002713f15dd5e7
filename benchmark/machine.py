"""What a result was measured on, and whether the machine was idle while it was."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Share of one processor that everything else may use during a measurement that is called undisturbed.
TOLERATED = 0.10


def processor_name() -> str:
    """The processor as Linux names it: model name, family and model."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    if "model name" not in facts:
        return platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def commit() -> str:
    """The checkout's commit, with "+changes" where tracked files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD") or "unknown"
    # What the measurements write themselves does not count.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmark/results", ":!docs")
    return head + ("+changes" if changed else "")


def _busy_seconds() -> float:
    """Processor seconds that the whole machine has spent, stolen time included."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Watch:
    """Counts what others use of the processors from its construction on."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._busy = _busy_seconds()
        self._own = _own_seconds()
        self._load = os.getloadavg()[0]

    def others(self) -> float:
        """Processors that others kept busy on average, beside this process and its finished children."""
        elapsed = max(time.monotonic() - self._begin, 1e-3)
        used = _busy_seconds() - self._busy - (_own_seconds() - self._own)
        return max(0.0, used / elapsed)

    def facts(self) -> dict:
        """Device, commit and load for a result file."""
        others = self.others()
        return {
            "device": processor_name(),
            "processors": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "commit": commit(),
            "load_average_at_start": round(self._load, 2),
            "processors_used_by_others": round(others, 3),
            "undisturbed": others <= TOLERATED,
        }


def require_idle(busy_ok: bool, seconds: float = 2.0) -> None:
    """Ends the program where others use the machine, unless that is accepted (and then marked)."""
    watch = Watch()
    time.sleep(seconds)
    others = watch.others()
    if others <= TOLERATED:
        return
    if not busy_ok:
        sys.exit(
            f"other programs use {others:.2f} processors; measure on an idle machine, or pass --busy-ok "
            "for figures that are marked as disturbed"
        )
    print(f"other programs use {others:.2f} processors: the result is marked as disturbed", file=sys.stderr)
