"""The `flexact` command for tests: runs it, and reads functions and reference values from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np


def command() -> str:
    """The command under test: FLEXACT_COMMAND, else the one beside this Python, else PATH's."""
    beside = Path(sys.executable).with_name("flexact")
    found = os.environ.get("FLEXACT_COMMAND") or (str(beside) if beside.exists() else shutil.which("flexact"))
    assert found, "the flexact command is not installed; set FLEXACT_COMMAND"
    return found


def flexact(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([command(), *arguments], capture_output=True, text=True, timeout=120)


def output(*arguments: str) -> str:
    done = flexact(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def catalogue() -> list[dict]:
    return json.loads(output("list", "--json"))


def sample_parameters(entry: dict) -> dict[str, float]:
    """A value for every parameter of a `list --json` entry, away from the defaults where possible."""
    chosen = {
        "alpha": 0.6,
        "beta": 0.7,
        "limit": 3.0,
        "linear_beta": 2.5,
        "scale": 4.0,
        "a": 0.3,
        "eps": -0.25,
    }
    return {p["name"]: chosen.get(p["name"], p.get("initial", 0.75)) for p in entry["parameters"]}


def text_of(values: np.ndarray) -> str:
    return ",".join(repr(float(v)) for v in values)


def reference(what: list[str], parameters: dict[str, float], **inputs: np.ndarray) -> np.ndarray:
    """fp64 reference values from `flexact eval`; `what` is [NAME] or ["--expr", TEXT]."""
    size = max(len(v) for v in inputs.values())
    results = []
    for begin in range(0, size, 4096):
        arguments = ["eval", *what]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}={value!r}"]
        for name, values in inputs.items():
            arguments += [f"--{name}", text_of(values[begin : begin + 4096])]
        results += [float(line) for line in output(*arguments).split()]
    return np.array(results)
