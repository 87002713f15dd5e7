"""The type stubs say what the module does."""

import ast
import subprocess
import sys
from pathlib import Path

import flexact
import pytest
from flexact import _core

PACKAGE = Path(flexact.__file__).parent


def test_stub_declares_exactly_what_the_module_has():
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    declared = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    present = {name for name in dir(_core) if not name.startswith("_")}
    assert declared == present


@pytest.mark.slow
def test_stub_agrees_with_the_module_by_mypy_s_stubtest(tmp_path):
    # Values of defaults and of constants differ between a stub and a compiled module by nature.
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "flexact._core", "--ignore-disjoint-bases"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_typed_programs_check(tmp_path):
    good = tmp_path / "good.py"
    good.write_text(
        "import flexact\n"
        "from flexact import Activation, ActivationRegistry, Function\n"
        "a: Activation = ActivationRegistry.get_activation('swish', {'beta': 1.5})\n"
        "f: Function = a.function\n"
        "v: float = f.reference(1.0, values=[1.5])\n"
        "rows: list[list[float]] = a.values(layer=3)\n"
        "m = flexact.resolve_config('path', {'hidden_act': 'gelu'})\n"
        "for layer in m.layers:\n"
        "    if layer.routed is not None:\n"
        "        p: str = layer.routed.pairing\n"
    )
    bad = tmp_path / "bad.py"
    bad.write_text("import flexact\nx: int = flexact.Function.named('silu').formula\n")
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([*command, "--strict", good], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "Incompatible types"
        in subprocess.run([*command, bad], capture_output=True, text=True, cwd=tmp_path).stdout
    )
