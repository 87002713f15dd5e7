"""Mutation testing: does a test notice a small wrong change in the activation compiler?

Builds the library once with every mutant in it (mutants.py), then runs for each mutant the tests that
should notice: the C++ tests of the activation room, and the tests that compile and run printed text
against the fp64 reference. Run by `make mutation`.

Usage: run.py [--output FILE] [--only NUMBER…] [--list] [--jobs N]
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutation"
BUILD = WORK / "build"
sys.path.insert(0, str(HERE))

import mutants  # noqa: E402

# Which of the printer tests read which printer's text.
PRINTED = {
    "print_cuda.cpp": "cuda_text or cuda_and_triton",
    "print_triton.cpp": "triton",
    "print_torch.cpp": "torch",
    "printers.cpp": "cuda_text or triton or torch",
}


def build() -> list[mutants.Mutant]:
    """The mutated tree, compiled."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if entry.name not in ("build", "src", ".git", ".venv"):
            (tree / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "src", tree / "src")
    every = mutants.mutate(tree / "src" / "activation")
    options = {
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-O1",
        "CMAKE_CXX_FLAGS": "-w",
        "FLEXACT_DEVELOPER_MODE": "ON",
        "FLEXACT_TEST_ROOMS": "activation",
        "FLEXACT_BUILD_BENCHMARKS": "OFF",
        "FLEXACT_CUDA": "OFF",
    }
    configure = ["cmake", "-G", "Ninja", "-S", tree, "-B", BUILD]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    targets = ["--target", "test_activation", "flexact_cli"]
    subprocess.run(["cmake", "--build", BUILD, f"-j{jobs}", *targets], check=True)
    return every


def command() -> Path:
    return next(path for path in BUILD.rglob("flexact") if path.is_file() and os.access(path, os.X_OK))


def cpp_tests(number: int) -> str | None:
    """The C++ test that fails with this mutant alive; None where none does."""
    program = BUILD / "tests" / "cpp" / "test_activation"
    environment = {**os.environ, "FLEXACT_MUTANT": str(number), "RC_PARAMS": "seed=1"}
    try:
        done = subprocess.run(
            [program, "--gtest_brief=1", "--gtest_fail_fast"],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return "a C++ test that ends no more"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if "[  FAILED  ]" in line]
    return (
        failed[0].split("]")[1].split(",")[0].split("(")[0].strip() if failed else "a C++ test that crashed"
    )


class FirstFailure:
    """A pytest plugin that remembers which test failed first."""

    def __init__(self) -> None:
        self.name: str | None = None

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid.split("::")[-1]


def python_tests(number: int, selection: str) -> str | None:
    """The same for the tests of printed text, in a process that has torch already."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        import pytest

        os.environ.update(FLEXACT_MUTANT=str(number), FLEXACT_COMMAND=str(command()), OMP_NUM_THREADS="1")
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        first = FirstFailure()
        folder = WORK / "pytest" / str(number)
        folder.parent.mkdir(exist_ok=True)
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}"]
        arguments += ["-o", "addopts=", "-k", selection]
        code = pytest.main([*arguments, str(ROOT / "tests" / "python" / "test_printers.py")], plugins=[first])
        sender.send(None if code == 0 else first.name or f"pytest ends with {int(code)}")
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    sender.close()
    answer = "a Python test that ends no more"
    if receiver.poll(600):
        try:
            answer = receiver.recv()
        except EOFError:
            answer = "a Python test that crashed"
    else:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return answer


def judge(mutant: mutants.Mutant) -> str | None:
    """The test that catches `mutant`; None: it survives."""
    printed = PRINTED.get(mutant.file)
    if printed:
        return python_tests(mutant.number, printed) or cpp_tests(mutant.number)
    return cpp_tests(mutant.number) or python_tests(mutant.number, "cuda_text or torch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmark" / "results" / "mutation.json")
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--no-build", action="store_true")
    options = parser.parse_args()
    if options.no_build:
        scratch = WORK / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(ROOT / "src" / "activation", scratch)
        every = mutants.mutate(scratch)
    else:
        every = build()
    chosen = [m for m in every if not options.only or m.number in options.only]
    if options.list:
        for m in chosen:
            print(f"{m.number:4} {m.file}:{m.line}  {m.before}  ->  {m.after}")
        return 0

    import numpy  # noqa: F401  loaded once, before the forks
    import torch  # noqa: F401

    for name in (cpp_tests(0), python_tests(0, "cuda_text or torch or triton")):
        if name:
            print(f"without any mutant {name} fails")
            return 2
    known = {
        (e["file"], e["before"], e["after"]): e["reason"]
        for e in json.loads((HERE / "equivalent.json").read_text())
    }
    results = []
    began = time.process_time(), time.time()
    for m in chosen:
        caught = judge(m)
        reason = known.get((m.file, m.before, m.after))
        status = "caught" if caught else "equivalent" if reason else "survived"
        results.append({**vars(m), "status": status, "by": caught, "reason": None if caught else reason})
        print(
            f"{status:10} {m.number:4} {m.file}:{m.line}  {m.before}  ->  {m.after}  [{caught or reason}]",
            flush=True,
        )

    counts = collections.Counter(r["status"] for r in results)
    share = counts["caught"] / max(1, len(results) - counts["equivalent"])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    files = {
        f: dict(collections.Counter(r["status"] for r in results if r["file"] == f)) for f in mutants.QUOTA
    }
    summary = {
        "commit": commit,
        "mutants": len(results),
        **{name: counts[name] for name in ("caught", "survived", "equivalent")},
        "caught_of_those_that_change_anything": round(share, 4),
        "seconds": round(time.time() - began[1]),
        "files": files,
    }
    print(json.dumps(summary, indent=2))
    if not options.only:
        options.output.write_text(json.dumps({**summary, "results": results}, indent=1) + "\n")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    raise SystemExit(main())
