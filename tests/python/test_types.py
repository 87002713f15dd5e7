"""The type stubs say what the module does."""

import ast
import subprocess
import sys
from pathlib import Path

import flexact
import pytest
from flexact import _core

PACKAGE = Path(flexact.__file__).parent


def public(names):
    return {name for name in names if not name.startswith("_")}


def declarations():
    """What the stub declares: name → members of a class, None for a function."""
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    functions = {node.name: None for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {
        node.name: {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    return functions | classes


def test_stub_declares_exactly_what_the_module_has():
    declared = declarations()
    assert set(declared) == public(dir(_core))
    for name, members in declared.items():
        value = getattr(_core, name)
        assert isinstance(value, type) == (members is not None), name
        if members is not None:
            assert public(members) == public(dir(value)), name
            assert members <= set(dir(value)), name


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
    # mypy follows the imports into the package, and not from there into torch, which takes it a minute.
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([*command, "--strict", good], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "Incompatible types"
        in subprocess.run([*command, bad], capture_output=True, text=True, cwd=tmp_path).stdout
    )
