"""What users of pip and of CMake receive."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import flexact
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADERS = {"activation.hpp", "backend.hpp", "config.hpp", "error.hpp", "moe.hpp", "version.hpp"}


def run(*command, **options):
    """Runs a command; its output is in the failure."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def jobs():
    return f"-j{len(os.sched_getaffinity(0))}"


def test_one_version_everywhere():
    header = (ROOT / "include/flexact/version.hpp").read_text()
    version = re.search(r'VERSION_STRING "([^"]+)"', header)[1]
    numbers = re.findall(r"VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    cmake = re.search(r"project\(flexact VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
    assert version == ".".join(numbers) == cmake
    assert version == flexact.__version__ == importlib.metadata.version("flexact")


def test_import_needs_no_torch():
    code = "import sys, flexact, flexact.config; sys.exit('torch' in sys.modules)"
    run(sys.executable, "-c", code)


def test_package_asks_for_nothing_at_run_time():
    needed = [each for each in importlib.metadata.requires("flexact") or [] if "extra ==" not in each]
    assert needed == []


def test_plugin_entry_point_is_registered():
    points = importlib.metadata.entry_points(group="sglang.srt.plugins")
    assert [each.value for each in points if each.name == "flexact"] == ["flexact.sglang:register"]


def test_command_is_installed_beside_the_interpreter():
    command = Path(sysconfig.get_path("scripts")) / "flexact"
    assert "silu" in run(command, "list")


def test_module_runs_the_command():
    assert "silu" in run(sys.executable, "-m", "flexact", "list")


def test_module_without_the_command_says_so_and_still_tunes(monkeypatch, tmp_path, capsys):
    from flexact import __main__

    monkeypatch.setattr(__main__.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["flexact", "list"])
    with pytest.raises(SystemExit, match="libcli11-dev"):
        __main__.main()
    pytest.importorskip("triton")
    monkeypatch.setattr(sys, "argv", ["flexact", "tune", "--help"])
    with pytest.raises(SystemExit) as exit:
        __main__.main()
    assert exit.value.code == 0
    assert "--seconds" in capsys.readouterr().out


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, "."),
        cwd=ROOT,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_the_command_and_nothing_of_the_library(wheel):
    names = wheel.namelist()
    python_files = {
        f"flexact/{path.relative_to(ROOT / 'python/flexact')}"
        for path in (ROOT / "python/flexact").rglob("*.py")
    }
    assert python_files <= set(names)
    assert {"flexact/py.typed", "flexact/_core.pyi"} <= set(names)
    assert any(re.fullmatch(r"flexact/_core\..*\.so", name) for name in names)
    assert any(re.fullmatch(r"flexact-.*\.data/scripts/flexact", name) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".hpp", ".a", ".cmake"))]


def test_wheel_s_metadata(wheel):
    (metadata,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert {"torch", "transformers", "sglang", "dev"} == set(re.findall(r"Provides-Extra: (\S+)", text))


def test_source_distribution_builds_and_leaves_bulk_out(tmp_path):
    code = f"from scikit_build_core.build import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    run(sys.executable, "-c", code, cwd=ROOT)
    (archive,) = tmp_path.glob("flexact-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (tree,) = tmp_path.glob("flexact-*/")
    for needed in (
        "CMakeLists.txt",
        "src/python/module.cpp",
        "include/flexact/moe.hpp",
        "LICENSE",
        "README.md",
    ):
        assert (tree / needed).is_file(), needed
    assert not (tree / "models").exists()
    assert archive.stat().st_size < 5_000_000


def test_pip_users_without_the_system_s_json_package_are_served(tmp_path):
    output = run(
        *("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"),
        "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON",
        "-DFLEXACT_BUILD_TOOLS=OFF",
    )
    found = re.search(r"nlohmann-json: (\S+)", output)[1]
    assert (Path(found) / "nlohmann/json.hpp").is_file()


@pytest.fixture(scope="module", params=["static", "shared"])
def prefix(request, tmp_path_factory):
    """The library as `cmake --install` leaves it."""
    build = ROOT / "build" / f"install-{request.param}"
    prefix = tmp_path_factory.mktemp(request.param)
    shared = "ON" if request.param == "shared" else "OFF"
    # The compiler that pip's build took, so that a compiler cache serves both; what is tested is the same
    # with and without CUDA's kernels.
    compiler = (sysconfig.get_config_var("CXX") or "c++").split()[0]
    options = [f"-DBUILD_SHARED_LIBS={shared}", f"-DCMAKE_CXX_COMPILER={compiler}", "-DFLEXACT_CUDA=OFF"]
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options)
    run("cmake", "--build", build, jobs())
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix


@pytest.mark.slow
def test_installed_library_serves_a_consumer(prefix, tmp_path):
    assert {path.name for path in (prefix / "include/flexact").iterdir()} == HEADERS
    run("cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    output = run(tmp_path / "moe_block")
    assert "beta" in output
    assert float(output.rpartition(": ")[2]) < 1e-5


@pytest.mark.slow
def test_installed_headers_and_library_need_only_the_standard_library(prefix):
    for header in (prefix / "include/flexact").iterdir():
        included = re.findall(r'#include\s+[<"]([^>"]+)[>"]', header.read_text())
        assert all("/" not in name or name.startswith("flexact/") for name in included), header
    for library in prefix.glob("lib*/**/libflexact.so"):
        needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", library))
        allowed = r"(libstdc\+\+|libm|libc|libgcc_s|libpthread|ld-linux-.*)\.so\.\d+"
        assert all(re.fullmatch(allowed, name) for name in needed), needed


@pytest.mark.slow
def test_installed_command_runs_from_its_prefix(prefix):
    assert "silu" in run(prefix / "bin/flexact", "list")
