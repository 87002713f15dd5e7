"""Which of the processes that tests start count their lines where `make coverage` measures.

Counting makes a process of SGLang take half as long again and Triton's interpreter three times as long,
and most of them run no line that the tests' own process does not run too. So a process counts its lines
where its environment is `counted()`, and only there; one that has run all of its lines once can `stop()`.
"""

import os
import sys

# What tells a new process that it is measured.
NAME = "COVERAGE_PROCESS_CONFIG"
_settings = {NAME: os.environ[NAME]} if NAME in os.environ else {}


def counted() -> dict[str, str]:
    """What to add to the environment of a process whose lines count."""
    return dict(_settings)


def stop() -> None:
    """From here on this process runs only lines that it has already run."""
    if (coverage := sys.modules.get("coverage")) and (current := coverage.Coverage.current()):
        current.stop()
