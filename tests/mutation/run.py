"""Mutation testing: does a test notice a small wrong change in the activation compiler?

Builds the library once with every mutant in it (mutants.py), then runs for each mutant the tests that
should notice: the C++ tests of the activation room, and the tests that compile and run printed text
against the fp64 reference. Run by `make mutation`.

It may be interrupted at any time: what was caught is kept in build/mutation and not judged again as long
as the mutated sources are the same; what survived is, since a test may have been added. The result is
written after every mutant.

Usage: run.py [--output FILE] [--only NUMBER…] [--list] [--jobs N] [--idle]
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutation"
BUILD = WORK / "build"
JUDGED = WORK / "judged.jsonl"
sys.path.insert(0, str(HERE))

import mutants  # noqa: E402

# The printers' targets. A mutant of a printer changes the text of some functions; the others' tests, which
# compile and run that text, need not run again.
PRINTED = {
    "print_cuda.cpp": ("cuda",),
    "print_triton.cpp": ("triton",),
    "print_torch.cpp": ("torch",),
    "printers.cpp": ("cuda", "triton", "torch"),
}
TESTS_OF = {"cuda": "cuda_text", "triton": "triton", "torch": "torch"}
# {target: {function: its text}} without any mutant; the forks of this process inherit it.
unchanged: dict[str, dict[str, str]] = {}


def build() -> list[mutants.Mutant]:
    """The mutated tree, compiled."""
    tree, fresh = WORK / "tree", WORK / "fresh"
    tree.mkdir(parents=True, exist_ok=True)
    for entry in ROOT.iterdir():
        if entry.name not in ("build", "src", ".git", ".venv") and not (tree / entry.name).exists():
            (tree / entry.name).symlink_to(entry)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(ROOT / "src", fresh)
    every = mutants.mutate(fresh / "activation")
    # What is the same keeps its time, and is not compiled again.
    for path in fresh.rglob("*"):
        old = tree / "src" / path.relative_to(fresh)
        if path.is_file() and old.is_file() and old.read_bytes() == path.read_bytes():
            shutil.copystat(old, path)
    shutil.rmtree(tree / "src", ignore_errors=True)
    fresh.rename(tree / "src")
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


def in_fork(number: int, task: Callable[[], str | dict | None], seconds: float = 600) -> str | dict | None:
    """What `task` answers with this mutant alive, in a process that has torch already."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        os.environ.update(FLEXACT_MUTANT=str(number), FLEXACT_COMMAND=str(command()), OMP_NUM_THREADS="1")
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        sys.path.insert(0, str(ROOT / "tests" / "python"))
        sender.send(task())
        os._exit(0)
    sender.close()
    answer: str | dict | None = "a Python test that ends no more"
    if receiver.poll(seconds):
        try:
            answer = receiver.recv()
        except EOFError:
            answer = "a Python test that crashed"
    else:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return answer


def texts(target: str) -> dict[str, str]:
    """What the living mutant prints for each function of the printer tests."""
    import test_printers

    return {key: test_printers.Case(key).emit(target) for key in test_printers.all_cases()}


def python_tests(number: int, targets: tuple[str, ...], printer: bool = False) -> str | None:
    """The test of printed text that fails with this mutant alive; of a printer's, on texts that changed."""

    def task() -> str | None:
        import pytest

        selection = " or ".join(TESTS_OF[target] for target in targets)
        if printer:
            try:
                new = {target: texts(target) for target in targets}
            except AssertionError:
                return "the command fails"
            changed = {k for t in targets for k, text in new[t].items() if text != unchanged[t][k]}
            os.environ["FLEXACT_PRINTED_CASES"] = json.dumps(sorted(changed))
        for module in ("test_printers", "cli_tool"):
            sys.modules.pop(module, None)
        first = FirstFailure()
        folder = WORK / "pytest" / str(number)
        folder.parent.mkdir(exist_ok=True)
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}"]
        arguments += ["-o", "addopts=", "-k", selection]
        code = pytest.main([*arguments, str(ROOT / "tests" / "python" / "test_printers.py")], plugins=[first])
        shutil.rmtree(folder, ignore_errors=True)
        return None if code == 0 else first.name or f"pytest ends with {int(code)}"

    return in_fork(number, task)


def judge(mutant: mutants.Mutant) -> str | None:
    """The test that catches `mutant`; None: it survives."""
    if targets := PRINTED.get(mutant.file):
        return python_tests(mutant.number, targets, printer=True) or cpp_tests(mutant.number)
    return cpp_tests(mutant.number) or python_tests(mutant.number, ("cuda", "torch"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmark" / "results" / "mutation.json")
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="mutants judged side by side")
    parser.add_argument("--idle", action="store_true", help="use only time that nobody else wants")
    options = parser.parse_args()
    if options.idle:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if options.list:
        scratch = WORK / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(ROOT / "src" / "activation", scratch)
        for m in mutants.mutate(scratch):
            print(f"{m.number:4} {m.file}:{m.line}  {m.before}  ->  {m.after}")
        return 0
    every = build()
    chosen = [m for m in every if not options.only or m.number in options.only]

    import numpy  # noqa: F401  loaded once, before the forks
    import torch  # noqa: F401

    sources = fingerprint(*sorted((WORK / "tree" / "src" / "activation").iterdir()))
    if name := unchanged_fails(sources):
        print(f"without any mutant {name} fails")
        return 2
    for target in TESTS_OF:
        unchanged[target] = in_fork(0, functools.partial(texts, target))
    caught = caught_before(sources)
    results: dict[int, dict] = {}

    def note(mutant: mutants.Mutant, by: str | None) -> None:
        reason = None if by else reason_of_equivalence(mutant)
        status = "caught" if by else "equivalent" if reason else "survived"
        results[mutant.number] = {**vars(mutant), "status": status, "by": by, "reason": reason}
        place = f"{mutant.file}:{mutant.line}  {mutant.before}  ->  {mutant.after}"
        print(f"{status:10} {mutant.number:4} {place}  [{by or reason}]", flush=True)

    for m in chosen:
        if m.number in caught and not options.only:
            note(m, caught[m.number])
    rest = [m for m in chosen if m.number not in results]
    with (
        concurrent.futures.ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool,
        JUDGED.open("a") as log,
    ):
        waiting = {pool.submit(judge, m): m for m in rest}
        for done in concurrent.futures.as_completed(waiting):
            m, by = waiting[done], done.result()
            note(m, by)
            if by:
                log.write(json.dumps({"sources": sources, "number": m.number, "by": by}) + "\n")
                log.flush()
            if not options.only:
                write(options.output, len(every), results)
    summary = summarise(len(every), results)
    print(json.dumps(summary, indent=2))
    if not options.only:
        write(options.output, len(every), results)
    return 0 if summary["caught_of_those_that_change_anything"] >= 0.95 else 1


def fingerprint(*files: Path) -> str:
    """Of the mutated sources: with the same ones a mutant's number means the same."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def unchanged_fails(sources: str) -> str | None:
    """The test that fails without any mutant, asked once for each state of sources and tests."""
    tests = ROOT / "tests"
    files = (*(tests / "cpp").glob("activation_*"), *(tests / "python").glob("test_printers.py"))
    state, passed = sources + fingerprint(*sorted(files)), WORK / "passed"
    if passed.exists() and passed.read_text() == state:
        return None
    name = cpp_tests(0) or python_tests(0, tuple(TESTS_OF))
    if not name:
        passed.write_text(state)
    return name


def caught_before(sources: str) -> dict[int, str]:
    if not JUDGED.exists():
        return {}
    entries = map(json.loads, JUDGED.read_text().splitlines())
    return {e["number"]: e["by"] for e in entries if e["sources"] == sources}


@functools.cache
def equivalents() -> dict[tuple[str, str, str], str]:
    entries = json.loads((HERE / "equivalent.json").read_text())
    return {(e["file"], e["before"], e["after"]): e["reason"] for e in entries}


def reason_of_equivalence(mutant: mutants.Mutant) -> str | None:
    return equivalents().get((mutant.file, mutant.before, mutant.after))


def summarise(mutants_made: int, results: dict[int, dict]) -> dict:
    counts = collections.Counter(r["status"] for r in results.values())
    share = counts["caught"] / max(1, len(results) - counts["equivalent"])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    files = {
        f: dict(collections.Counter(r["status"] for r in results.values() if r["file"] == f))
        for f in mutants.QUOTA
    }
    return {
        "commit": commit,
        "mutants": mutants_made,
        "judged": len(results),
        **{name: counts[name] for name in ("caught", "survived", "equivalent")},
        "caught_of_those_that_change_anything": round(share, 4),
        "files": files,
    }


def write(output: Path, mutants_made: int, results: dict[int, dict]) -> None:
    rows = [results[number] for number in sorted(results)]
    output.write_text(json.dumps({**summarise(mutants_made, results), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
