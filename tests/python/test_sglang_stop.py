"""How one process of a server tells the main one why it stops, without an engine."""

import itertools
import multiprocessing
import os
import time
import types
from pathlib import Path

import pytest

pytest.importorskip("torch")

from flexact.sglang import _stop


@pytest.fixture
def start():
    start = _stop.Start()
    yield start
    start.close()


def stop_in_child(monkeypatch, message):
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    with pytest.raises(_stop.Stop, match=message):
        _stop.stop(message)


def test_a_child_s_reason_reaches_the_main_process_once(start, monkeypatch, capsys):
    assert start.message() is None
    stop_in_child(monkeypatch, "first")
    stop_in_child(monkeypatch, "second")
    assert start.message() == "flexact: first"
    assert capsys.readouterr().err == ""
    assert len(list(start.folder.iterdir())) == 1


def test_where_nobody_waits_a_process_says_it_itself(start, monkeypatch, capsys):
    start.close()
    stop_in_child(monkeypatch, "a reason")
    assert capsys.readouterr().err == "flexact: a reason\n"
    monkeypatch.undo()
    with pytest.raises(_stop.Stop):
        _stop.stop("of the main process")
    assert capsys.readouterr().err == "flexact: of the main process\n"


def test_reports_come_by_process(start):
    _stop.report_loaded({"layers": 3})
    assert start.reports() == {os.getpid(): {"layers": 3}}


def test_a_meeting_inside_another_gives_the_folder_back(start):
    _stop.Start().close()
    _stop.report_loaded({})
    assert start.reports() == {os.getpid(): {}}
    start.close()
    _stop.report_loaded({})
    assert not Path(start.folder).exists()


class Process:
    """A process that does not end by itself."""

    killed = False

    def is_alive(self):
        return not self.killed

    def kill(self):
        self.killed = True


def test_who_waits_for_the_rest_is_ended_after_a_message(start, monkeypatch):
    # Three seconds of grace pass at once.
    clock = itertools.count(0, 2)
    quick = types.SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep)
    monkeypatch.setattr(_stop, "time", quick)
    process = Process()
    with start.watch([process]):
        assert process.is_alive()
        stop_in_child(monkeypatch, "a reason")
        for _ in range(600):
            if process.killed:
                break
            time.sleep(0.05)
    assert process.killed
