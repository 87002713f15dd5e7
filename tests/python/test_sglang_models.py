"""The observations of `make test-families`, and the page that is written from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import page
from families.by_name import BY_NAME


@pytest.fixture(scope="module")
def observations() -> dict[str, Any]:
    return json.loads(page.OBSERVATIONS.read_text(encoding="utf-8"))


def test_the_page_is_what_the_observations_say(observations: dict[str, Any]) -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(observations), "run python -m families.page"


def test_no_class_is_broken_or_wrong(observations: dict[str, Any]) -> None:
    rows = observations["classes"]
    assert len(rows) > 200
    assert [name for name, row in rows.items() if row["verdict"] in ("broken", "wrong")] == []


def test_every_verdict_follows_from_what_was_observed(observations: dict[str, Any]) -> None:
    from families import sweep

    for name, row in {**observations["classes"], **observations["names"]}.items():
        assert row["verdict"] in page.VERDICTS, name
        if "stock" in row and "plain" in row:
            assert sweep.verdict(row) == row["verdict"], name
        if row["verdict"] in ("proven", "corrected", "only with the plugin"):
            layers = row["swish"]["layers"]
            assert layers["by_flexact"] == layers["experts"] + layers["mlps"] > 0, name
            # Whisper's encoder has no sound to encode here.
            assert layers["least_calls"] >= 1 or name == "WhisperForConditionalGeneration", name


def test_models_asked_for_by_name_are_proven(observations: dict[str, Any]) -> None:
    assert set(observations["names"]) == set(BY_NAME)
    unproven = {name for name, row in observations["names"].items() if row["verdict"] != "proven"}
    assert unproven <= {"DeepSeek-V2"}, unproven


def test_the_list_of_families_follows_from_the_rows(observations: dict[str, Any]) -> None:
    assert observations["families"] == page.families(observations)


def test_whole_engines_agree_with_transformers(observations: dict[str, Any]) -> None:
    engines = observations["engines"]
    for name, row in {**engines["parallel"], **engines["releases"]}.items():
        assert row["runs"] and row["max_difference"] <= 1e-4, name
        assert row["by_flexact"] == row["layers"] > 0 and row["least_calls"] > 0, name


def test_the_program_still_runs(tmp_path: Path) -> None:
    """One class of `make test-families`, all four ways."""
    pytest.importorskip("sglang")
    pytest.importorskip("flexact.sglang")
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "families", "--only", "MixtralForCausalLM", "--json", str(found)]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(found.read_text())["classes"]["MixtralForCausalLM"]
    assert row["verdict"] == "proven", row
    assert row["plain"]["max_difference"] == 0 and row["swish"]["transformers"]["max_difference"] < 1e-4
    assert row["swish"]["moves"] > 0.1
