"""Rows of GPU runs in the support matrix: the covering design, a run in the interpreter, the merge."""

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cli_tool import output

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "gpu" / "triton_conformance.py"


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_two_choices_of_different_kinds_meet_in_some_row():
    conformance = module(PROGRAM)
    rows = conformance.covering()
    assert len(rows) < 30
    assert all(conformance.legal(row) for row in rows)
    for a, b in itertools.combinations(conformance.CHOICES, 2):
        for x, y in itertools.product(conformance.CHOICES[a], conformance.CHOICES[b]):
            if conformance.legal({a: x, b: y}):
                assert any(row[a] == x and row[b] == y for row in rows), (a, x, b, y)


# Stands for the conformance program: every function is proven in one cell.
CUTLASS = """#!/usr/bin/env bash
while [ $# -gt 1 ]; do declare "${1#--}=$2" 2>/dev/null; shift; done
echo "1 passed, 0 failed, 0 refused"
echo '{"device": "none", "commit": "none", "version": "0", "command": "conformance",
  "runs": {"passed": 1, "failed": 0, "refused": 0}, "options": [],
  "columns": ["backend", "function", "pairing", "format", "claimed", "proven"],
  "rows": [["cutlass", "'${only##*/}'", "concat", "bf16", "yes", "sm_90a"]]}' > "$json"
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the script of GPU machines leaves, its programs replaced."""
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "conformance").write_text(CUTLASS)
    done = subprocess.run(
        [ROOT / "tests" / "gpu" / "support_matrix.sh", "600"],
        capture_output=True, text=True, timeout=600,
        env={
            **os.environ, "TRITON_INTERPRET": "1", "OUT": str(folder), "PYTHON": sys.executable,
            "CONFORMANCE": str(folder / "conformance"), "FUNCTIONS": "swiglu mish expr1",
            "TRITON_OPTIONS": "--device cpu --workers 1 --format bf16",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with tarfile.open(folder / "matrix.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "matrix"


@pytest.fixture(scope="module")
def run_file(results):
    return results / "triton.json"


def test_the_script_runs_each_function_once_and_counts_the_rows(results):
    proven = [json.loads(each.read_text())["rows"][0][1] for each in results.glob("cutlass_*.json")]
    assert sorted(proven) == ["expr1", "mish", "swiglu"]
    lines = (results / "log.txt").read_text()
    assert "cutlass: 3 of 3 claimed rows proven; 3 runs passed, 0 failed" in lines
    assert "triton: 7 of 7 claimed rows proven; 7 runs passed, 0 failed" in lines


def test_a_run_proves_the_cells_that_agree(run_file):
    run = json.loads(run_file.read_text())
    assert run["runs"] == {"passed": 7, "failed": 0, "refused": 0, "not run": 0}
    assert len(run["rows"]) == 7  # three pairings of swiglu, four of mish
    assert {tuple(row[4:]) for row in run["rows"]} == {("yes", "interpreter")}
    assert sum(each["passed"] for each in run["options"] if "ids" in each["option"]) >= 7


def test_a_run_takes_the_place_of_what_the_matrix_said_of_its_backends(run_file, tmp_path):
    for name in ("support_matrix.json", "support-matrix.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path / name)
    merge = module(ROOT / "scripts" / "merge_support_matrix.py")
    before = json.loads((tmp_path / "support_matrix.json").read_text())
    merge.main([run_file], tmp_path)
    once = (tmp_path / "support_matrix.json").read_text(), (tmp_path / "support-matrix.md").read_text()
    merge.main([run_file], tmp_path)
    assert once == (
        (tmp_path / "support_matrix.json").read_text(),
        (tmp_path / "support-matrix.md").read_text(),
    )
    after = json.loads(once[0])
    others = [row for row in before["rows"] if row[0] != "triton"]
    assert [row for row in after["rows"] if row[0] != "triton"] == others
    assert [row for row in after["rows"] if row[0] == "triton"] == json.loads(run_file.read_text())["rows"]
    assert "| mish | none | interpreter |" in once[1]
    assert once[1].count("## triton") == 1
    listing = output("matrix", "--file", str(tmp_path / "support_matrix.json"))
    assert "triton" in listing


def test_what_did_not_agree_is_claimed_and_not_proven(run_file, tmp_path):
    for name in ("support_matrix.json", "support-matrix.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path / name)
    run = json.loads(run_file.read_text())
    run["rows"][0][5] = ""
    run["rows"][1][4] = "no: a reason"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(run))
    module(ROOT / "scripts" / "merge_support_matrix.py").main([changed], tmp_path)
    page = (tmp_path / "support-matrix.md").read_text()
    assert "| swiglu | concat | *claimed* |" in page
    assert "| swiglu | up_first | – |" in page


def test_parts_of_a_run_are_joined(run_file, tmp_path):
    for name in ("support_matrix.json", "support-matrix.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path / name)
    run = json.loads(run_file.read_text())
    whole = ["triton", "*", "*", "fp32", "no: a reason", ""]
    files = []
    for number, chosen in enumerate((slice(0, 3), slice(3, None))):
        part = {**run, "rows": [*run["rows"][chosen], whole]}
        files.append(tmp_path / f"part{number}.json")
        files[-1].write_text(json.dumps(part))
    module(ROOT / "scripts" / "merge_support_matrix.py").main(files, tmp_path)
    after = json.loads((tmp_path / "support_matrix.json").read_text())
    found = [row for row in after["rows"] if row[0] == "triton"]
    assert sorted(found) == sorted([*run["rows"], whole])
    of_triton = [each for each in after["options"] if each["backend"] == "triton"]
    assert [each["passed"] for each in of_triton] == [2 * each["passed"] for each in run["options"]]
    assert after["others"][-1]["runs"]["passed"] == 2 * run["runs"]["passed"]
