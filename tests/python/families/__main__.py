"""python -m families [--only CLASS,…] [--json FILE]: every model class of SGLang, see `sweep`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


def classes() -> tuple[dict[str, str], dict[str, str]]:
    """({class: model file}, {model file: why it cannot be imported}) of the installed SGLang."""
    import importlib
    import pkgutil

    import sglang.srt.models as package

    found, failed = {}, {}
    for _, name, is_package in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if is_package:
            continue
        short = name.rsplit(".", 1)[1]
        try:
            entry = getattr(importlib.import_module(name), "EntryClass", ())
        except Exception as error:
            failed[short] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        for each in entry if isinstance(entry, (list, tuple)) else [entry]:
            found[each.__name__] = short
    return found, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="these classes")
    parser.add_argument("--json", type=Path, help="where the observations go")
    parser.add_argument("--scratch", type=Path, help="where checkpoints and logs go")
    parser.add_argument("--interpret", action="store_true", help="Triton kernels by Triton's interpreter")
    parser.add_argument("--attention", default="", help="classes that get the Triton attention backend")
    parser.add_argument("--names", action="store_true", help="the models asked for by name, not all classes")
    parser.add_argument("--jobs", type=int, default=1, help="classes observed side by side")
    parser.add_argument("--resume", action="store_true", help="keep the file's rows of this commit")
    parser.add_argument("--idle", action="store_true", help="use only time that nobody else wants")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    arguments.scratch = arguments.scratch or Path(tempfile.mkdtemp(prefix="families-"))
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    if arguments.idle:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    only = [name for name in arguments.only.split(",") if name]
    rows, failed = observe(only, arguments)
    if not arguments.interpret:
        merge_interpreted(rows, [name for name, row in rows.items() if awaits_interpreter(row)], arguments)
    if arguments.json:
        write(arguments, rows, failed)
    return int(_Observer.failed)


def awaits_interpreter(row: dict[str, Any]) -> bool:
    """Whether the engine could not run it, and it has not been tried with Triton kernels interpreted."""
    runs = row.get("stock", {"runs": True}).get("runs")
    return not runs and "triton" not in row and "interpreted" not in row


def observe(only: list[str], arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """({class: row}, {file: why it cannot be imported}); SGLang is imported once, and forked for each run."""
    import logging

    from families import engine_ops

    logging.disable(logging.CRITICAL)
    engine_ops.install()
    import sglang.benchmark.one_batch
    import sglang.srt.model_executor.model_runner  # noqa: F401
    import torch

    from families import recipes

    torch.set_num_threads(1)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    found, failed = classes()
    logging.disable(logging.NOTSET)
    plans = recipes.by_name() if arguments.names else recipes.all_recipes(found)
    part = "names" if arguments.names else "classes"
    known = arguments.resume and arguments.json and arguments.json.exists()
    before = json.loads(arguments.json.read_text())[part] if known else {}
    chosen = only or sorted(plans)
    rows = {name: before[name] for name in chosen if before.get(name, {}).get("commit") == commit}
    for name in arguments.attention.split(","):
        if name:
            plans[name].options = {"attention_backend": "triton"}
    _Observer.plans, _Observer.scratch = plans, arguments.scratch
    how = " (Triton interpreted)" if arguments.interpret else ""
    # Each class is taken by a fork of this process, which forks once more for every run.
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as pool:
        waiting = [pool.submit(_Observer.observe, name) for name in chosen if name not in rows]
        for done in as_completed(waiting):
            name, row, seconds = done.result()
            if isinstance(row, str):
                print(f"{seconds:5.1f} s  {name}: no row\n{row}", flush=True)
                _Observer.failed = True
                continue
            rows[name] = {**row, "commit": commit}
            print(f"{seconds:5.1f} s  {name}: {row['verdict']}{how}", flush=True)
            if arguments.verbose:
                print(json.dumps(rows[name], indent=1), flush=True)
            if arguments.json:
                write(arguments, rows, failed)
    return rows, failed


class _Observer:
    """What the forks inherit, and what they do."""

    plans: ClassVar[dict[str, Any]] = {}
    scratch: ClassVar[Path] = Path()
    failed: ClassVar[bool] = False  # a class has no row

    @staticmethod
    def observe(name: str) -> tuple[str, dict[str, Any] | str, float]:
        """The class, its row or what went wrong in this program, and seconds."""
        from families import sweep

        begin = time.monotonic()
        row: dict[str, Any] | str
        try:
            row = sweep.one_class(name, _Observer.plans[name], _Observer.scratch)
        except Exception:
            row = traceback.format_exc()
        shutil.rmtree(_Observer.scratch / name / "model", ignore_errors=True)
        return name, row, time.monotonic() - begin


def merge_interpreted(rows: dict[str, Any], again: list[str], arguments: argparse.Namespace) -> None:
    """Runs what the engine could not run once more, with Triton kernels interpreted."""
    if not again:
        return
    needs_triton = [name for name in again if "attention" in str(rows[name]["stock"])]
    second = arguments.scratch / "interpreted.json"
    command = [sys.executable, "-m", "families", "--interpret", "--only", ",".join(again)]
    second.unlink(missing_ok=True)
    command += ["--json", str(second), "--scratch", str(arguments.scratch / "interpreted")]
    command += ["--attention", ",".join(needs_triton), "--jobs", str(arguments.jobs)]
    command += ["--names"] if arguments.names else []
    subprocess.run(command, check=True)
    for name, row in json.loads(second.read_text())["names" if arguments.names else "classes"].items():
        if row.get("stock", {}).get("runs"):
            rows[name] = {**row, "engine": rows[name]["stock"], "triton": "interpreted"}
        else:
            rows[name]["interpreted"] = row.get("stock", row.get("build"))


def write(arguments: argparse.Namespace, rows: dict[str, Any], failed: dict[str, str]) -> None:
    """Adds the rows to the file; those of other classes stay where they are of the same SGLang."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("sglang", "transformers", "torch")}
    content = {"versions": versions, "override": {"activation_params": {"name": "swish", "beta": 1.3}}}
    content |= {"files_not_importable": failed, "classes": {}, "names": {}, "engines": {}}
    if arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        if before["versions"] == versions:
            content |= {part: before[part] for part in ("classes", "names", "engines")}
    part = "names" if arguments.names else "classes"
    content[part] = dict(sorted({**content[part], **rows}.items()))
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
