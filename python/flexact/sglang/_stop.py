"""Ending a server cleanly: one message and exit code 2, whichever process finds the reason.

SGLang answers an ordinary exception in a scheduler by killing its parent, and logs away what a plugin
raises while it is loaded. So a refusal is a `SystemExit`, which neither catches; a scheduler hands its
message to the main process through a file, and the main process prints it once and ends the rest.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODE = 2
# Where the processes of one start meet; inherited by every child.
_FOLDER = "_FLEXACT_START_FOLDER"
_MESSAGE = "stop"


class Stop(SystemExit):
    """The server ends for the reason in `message`."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def stop(message: str) -> NoReturn:
    """Ends this process with `message`, which reaches the user once.

    Raises:
        Stop: Always.
    """
    text = f"flexact: {message}"
    if not (is_child() and _hand_over(text)):
        print(text, file=sys.stderr, flush=True)
    raise Stop(text)


def is_child() -> bool:
    """Whether this process was started by another of the same server."""
    return multiprocessing.parent_process() is not None


def _hand_over(text: str) -> bool:
    """Leaves `text` for the main process; False where nobody is waiting for it."""
    folder = os.environ.get(_FOLDER)
    if not folder or not os.path.isdir(folder):
        return False
    handle, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    # The first rank's message stands: link() never replaces, and the file appears complete.
    with contextlib.suppress(FileExistsError):
        os.link(name, os.path.join(folder, _MESSAGE))
    os.unlink(name)
    return True


def report_loaded(report: dict[str, Any]) -> None:
    """Tells the main process that this scheduler loaded its model under the plugin."""
    folder = os.environ.get(_FOLDER)
    if folder and os.path.isdir(folder):
        partial = Path(folder) / f".{os.getpid()}"
        partial.write_text(json.dumps(report), encoding="utf-8")
        partial.rename(Path(folder) / f"{os.getpid()}.json")


class Start:
    """The main process's side of one start: children's reports, and their reason to stop."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="flexact-start-"))
        self._before = os.environ.get(_FOLDER)
        os.environ[_FOLDER] = str(self.folder)

    def close(self) -> None:
        """Ends the meeting; from now on a process prints its own message."""
        if self._before is None:
            os.environ.pop(_FOLDER, None)
        else:
            os.environ[_FOLDER] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)

    def message(self) -> str | None:
        """A child's reason to stop, where one has given it."""
        try:
            return (self.folder / _MESSAGE).read_text(encoding="utf-8")
        except OSError:
            return None

    def reports(self) -> dict[int, dict[str, Any]]:
        """What the schedulers reported, by process id."""
        return {
            int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in self.folder.glob("[0-9]*.json")
        }

    @contextlib.contextmanager
    def watch(self, processes: list[Any]):
        """Ends `processes` soon after one of them has left a message, so that nobody waits for the rest."""
        done = threading.Event()

        def wait() -> None:
            while not done.wait(0.1):
                if self.message() is not None:
                    deadline = time.monotonic() + 3
                    while time.monotonic() < deadline and any(p.is_alive() for p in processes):
                        time.sleep(0.05)
                    for process in processes:
                        if process.is_alive():
                            process.kill()
                    return

        thread = threading.Thread(target=wait, name="flexact-start", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
