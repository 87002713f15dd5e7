"""The demonstration's driver, through the host that every platform has."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    arguments = ["--host", "transformers", "--windows", "1", "--out", str(out)]
    program = [sys.executable, ROOT / "examples/demo/run.py", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, out


def test_the_demonstration_says_which_host_it_uses_and_that_every_claim_held(finished):
    printed, _ = finished
    assert "runs through transformers" in printed
    assert "FAILED" not in printed
    assert printed.count("  ok ") == 4


def test_the_numbers_are_those_of_the_hand_written_module(finished):
    facts = json.loads((finished[1] / "facts.json").read_text())
    assert max(facts["difference"].values()) < 1e-3
    assert facts["perplexity"]["host_silu"] > 1.05 * facts["perplexity"]["host_right"]
    assert [row["params"] for row in facts["rows"]] == [{"beta": 1.7}] * 6


def test_the_report_needs_nothing_from_outside(finished):
    page = (finished[1] / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", page)
    assert "betta" in page
