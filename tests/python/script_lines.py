"""Runs one of the scripts beside it in a process of its own and reads the JSON lines that it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

from line_counting import counted


def lines_of(script, cache_folder, *arguments, count=False, **environment):
    lines = counted() if count else {}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / script, *arguments],
        env={**os.environ, "FLEXACT_CACHE_DIR": str(cache_folder), **lines, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
