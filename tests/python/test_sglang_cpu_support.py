"""Stand-ins for what SGLang's CPU engine imports and nobody builds for CPUs; real packages always win."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from flexact.sglang import cpu_support

FINDER = Path(cpu_support.__file__).with_name("finder.py")


def python(code: str, *, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `code` in an interpreter that reads no .pth file, with this environment's packages."""
    paths = [str(packages)] if packages else []
    paths += [path for path in sys.path if path and Path(path).is_dir()]
    begin = f"import sys; sys.path[:] = {paths!r}\nexec(open({str(FINDER)!r}).read())\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", begin + code], capture_output=True, text=True, check=False
    )


def test_an_absent_sgl_kernel_can_be_imported_and_not_used(tmp_path: Path) -> None:
    code = (
        "import importlib.machinery as m\n"
        "real = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(lambda c, n, *a: None if n == 'sgl_kernel' else real(n, *a))\n"
        "import sgl_kernel\n"
        "from sgl_kernel import anything\n"
        "try: anything(1)\n"
        "except NotImplementedError as error: print(error)\n"
        "print(hasattr(sgl_kernel, '__path__'))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "sgl_kernel.anything" in done.stdout and "stand-in" in done.stdout
    assert done.stdout.endswith("False\n")


def test_the_finders_supply_sgl_kernel_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "flexact.sglang.cpu_support.finder", raising=False)
    finder = importlib.import_module("flexact.sglang.cpu_support.finder")
    operators, stand_in = sys.meta_path[0], sys.meta_path[-1]
    assert isinstance(operators, finder.TorchvisionOperators)
    assert isinstance(stand_in, finder.KernelStandIn)
    assert operators.find_spec("numpy") is None and stand_in.find_spec("numpy") is None
    operators.declare(None)  # no torchvision: nothing to declare
    assert not hasattr(operators, "library")
    spec = stand_in.find_spec("sgl_kernel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.silu_and_mul"):
        module.silu_and_mul()
    assert not hasattr(module, "__path__")


def test_an_installed_sgl_kernel_wins(tmp_path: Path) -> None:
    (tmp_path / "sgl_kernel.py").write_text("name = 'real'\n")
    done = python("import sgl_kernel; print(sgl_kernel.name)", packages=tmp_path)
    assert done.stdout == "real\n", done.stderr


def test_torchvision_imports_beside_a_cpu_torch() -> None:
    pytest.importorskip("torchvision")
    done = python("import torchvision, torch; print(torch.ops.torchvision.nms)")
    assert done.returncode == 0, done.stderr
    assert "torchvision" in done.stdout


def test_nothing_is_written_where_both_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_support, "site_packages", lambda: tmp_path)
    monkeypatch.setattr(cpu_support, "missing", list)
    assert "nothing written" in cpu_support.install()
    monkeypatch.setattr(cpu_support, "has_gpu_torch", lambda: True)
    monkeypatch.setattr(cpu_support, "missing", lambda: ["sgl_kernel"])
    assert "GPU build" in cpu_support.install()
    assert list(tmp_path.iterdir()) == []


def test_install_writes_two_files_and_uninstall_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_support, "site_packages", lambda: tmp_path)
    monkeypatch.setattr(cpu_support, "missing", lambda: ["torchvision", "sgl_kernel"])
    monkeypatch.setattr(cpu_support, "has_gpu_torch", lambda: False)
    for _ in range(2):  # idempotent
        assert "torchvision and sgl_kernel" in cpu_support.install()
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "_flexact_sglang_cpu.pth",
            "_flexact_sglang_cpu.py",
        ]
    assert (tmp_path / "_flexact_sglang_cpu.pth").read_text() == "import _flexact_sglang_cpu\n"
    # An interpreter that finds the two files has the stand-ins.
    code = f"import site, sys; site.addsitedir({str(tmp_path)!r}); print(*map(type, sys.meta_path))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "TorchvisionOperators" in done.stdout and "KernelStandIn" in done.stdout
    assert cpu_support.uninstall() == "removed 2 files"
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_found_out_by_importing() -> None:
    assert set(cpu_support.missing()) <= {"torchvision", "sgl_kernel"}


def test_the_command_says_in_one_line_what_it_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexact.sglang.cpu_support.__main__ import main

    monkeypatch.setattr(cpu_support, "install", lambda: "done")
    assert main([]) == 0 and main(["install"]) == 0
    assert capsys.readouterr().out == "SGLang on a CPU: done\n" * 2
    assert main(["remove"]) == 2
    assert "usage" in capsys.readouterr().err

    def fails() -> str:
        raise RuntimeError("torch cannot be imported here")

    monkeypatch.setattr(cpu_support, "install", fails)
    assert main([]) == 1
