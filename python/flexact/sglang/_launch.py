"""The main process's part: refuse before anything is spawned, and require every scheduler's report."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from flexact.sglang._stop import Start, Stop, stop

_current: Start | None = None


def launch_subprocesses(original: Callable[..., Any], cls: type, *args: Any, **kwargs: Any) -> Any:
    """Around `Engine._launch_subprocesses`: one meeting place for this start's processes."""
    global _current
    from flexact.sglang import _policy

    _policy.check_start(kwargs.get("server_args", args[0] if args else None))
    with _children_ended_on_stop():
        _current = Start()
        try:
            return original(cls, *args, **kwargs)
        finally:
            _current.close()
            _current = None


def set_envs_and_config(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around SGLang's set-up of signals: a child's reason wins over "a child process failed"."""
    result = original(*args, **kwargs)
    if threading.current_thread() is threading.main_thread():
        host = signal.getsignal(signal.SIGQUIT)

        def on_quit(number: int, frame: Any) -> None:
            message = _current.message() if _current else None
            if message is not None:
                _end(message)
            if callable(host):
                host(number, frame)

        signal.signal(signal.SIGQUIT, on_quit)
    return result


def wait_for_scheduler_ready(original: Callable[..., Any], readers: list[Any], processes: list[Any]) -> Any:
    """Around `_wait_for_scheduler_ready`: passes a scheduler's reason on, and checks the handshake."""
    start = _current
    if start is None:  # SGLang's launch was entered by a way of its own: the reports still count
        return original(readers, processes)
    with start.watch(processes):
        try:
            infos = original(readers, processes)
        except RuntimeError:
            if (message := start.message()) is not None:
                _end(message)
            raise
    expected = {pid for info in infos for pid in info.get("scheduler_pids", ())} or {p.pid for p in processes}
    silent = sorted(expected - set(start.reports()))
    if silent:
        stop(
            f"{len(silent)} of {len(expected)} scheduler processes started without the plugin"
            f" (process ids {', '.join(map(str, silent))}): their layers would run SGLang's own activation"
        )
    # From now on nobody waits here: a process that ends prints its own reason.
    start.close()
    return infos


def _end(message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    raise Stop(message)


@contextlib.contextmanager
def _children_ended_on_stop():
    before = set(multiprocessing.active_children())
    try:
        yield
    except Stop:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise
