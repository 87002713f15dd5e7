"""The documentation says what is true: links lead somewhere, commands print what is shown."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
COMMAND = Path(sys.executable).with_name("flexact")


def blocks(language):
    """Every fenced block of a language, as (page:line, text)."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def console_commands():
    """Every `$ flexact …` of the console blocks that shows its output below it."""
    found = []
    for block in blocks("console"):
        for number, part in enumerate(re.split(r"^\$ ", block.values[0], flags=re.M)[1:]):
            command, _, output = part.partition("\n")
            if command.startswith("flexact ") and output.strip():
                found.append(pytest.param(command, output, id=f"{block.id}:{number}"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@pytest.mark.skipif(not COMMAND.exists(), reason="the flexact command was not built")
@pytest.mark.parametrize(("command", "output"), console_commands())
def test_a_command_prints_what_the_page_shows(command, output):
    done = subprocess.run(
        [COMMAND, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout + done.stderr).strip() == output.strip()


def examples():
    """The Python blocks; one that stands on two pages runs once."""
    return {block.values[0]: block for block in reversed(blocks("python"))}.values()


@pytest.mark.parametrize("code", examples())
def test_the_python_of_a_page_runs(code):
    pytest.importorskip("torch")
    if "sglang" in code:
        pytest.importorskip("sglang")
        pytest.importorskip("flexact.sglang")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["draw_docs.py", "fill_tables.py"])
def test_pictures_and_tables_are_made_from_the_files_that_they_show(script):
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr
