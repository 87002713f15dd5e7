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
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutation"
BUILD = WORK / "build"
JUDGED = WORK / "judged.jsonl"
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

    for name in (cpp_tests(0), python_tests(0, "cuda_text or torch or triton")):
        if name:
            print(f"without any mutant {name} fails")
            return 2
    sources = fingerprint()
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


def fingerprint() -> str:
    """Of the mutated sources: with the same ones a mutant's number means the same."""
    digest = hashlib.sha256()
    for path in sorted((WORK / "tree" / "src" / "activation").iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


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
