"""Runs every model class four ways and writes what was observed as one JSON.

Each run is a forked process, so a crash, a hang or a refusal ends only itself:

- stock: SGLang without the plugin;
- plain: with the plugin and the checkpoint's own configuration; every log-probability must be the same;
- swish: with the plugin and `{"activation_params": {"name": "swish", "beta": 1.3}}`;
- by hand: the same function written into transformers, or into SGLang without the plugin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWISH = {"activation_params": {"name": "swish", "beta": 1.3}}
TIMEOUT = 1800  # of the wall clock: a run in the background may wait for its turn
# What float32 arithmetic in another order may move a log-probability by.
TOLERANCE = 2e-4
# The same in bfloat16, where SGLang's class insists on it: some of its 3 digits, over all layers.
TOLERANCE_HALF = 0.1
# A log-probability that SGLang alone has off by more than this comes of tensors that it did not load.
UNREAD = 0.1


class Failure(Exception):
    """A run ended without a result: the stage it was in and what it said."""

    def __init__(self, stage: str, reason: str, where: str = "") -> None:
        super().__init__(reason)
        self.stage, self.reason, self.where = stage, reason, where

    def row(self) -> dict[str, str]:
        return {"stage": self.stage, "reason": self.reason, **({"at": self.where} if self.where else {})}


def forked(task: Callable[[Callable[[str], None]], Any], log: Path) -> Any:
    """The result of `task(progress)`, run in a forked process whose output goes to `log`."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        result, stage = Path(folder) / "result", Path(folder) / "stage"
        child = os.fork()
        if child == 0:
            _in_child(task, log, result, stage)
        ended = _wait(child, TIMEOUT)
        at = stage.read_text() if stage.exists() else "start"
        if ended is None:
            raise Failure(at, f"did not end within {TIMEOUT} s")
        if not result.exists():
            raise Failure(at, f"the process ended with status {ended} and no result: {_last_line(log)}")
        value = torch.load(result, weights_only=False)
    if isinstance(value, dict) and "failed" in value:
        raise Failure(at, *value["failed"])
    return value


def _in_child(task: Any, log: Path, result: Path, stage: Path) -> None:
    import torch

    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        value = task(stage.write_text)
    except BaseException as error:
        traceback.print_exc()
        value = {"failed": _describe(error)}
    try:
        torch.save(value, result.with_suffix(".part"))
        result.with_suffix(".part").rename(result)
    finally:
        sys.stdout.flush()
        os._exit(0)


def _wait(child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    pause = 0.01
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _describe(error: BaseException) -> tuple[str, str]:
    """(one line, where): the exception as it was raised and the last frame outside torch."""
    message = str(error).strip()
    text = message.splitlines()[0] if message else ""
    if type(error).__name__ == "Stop":
        return message, ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    where = ""
    if frames:
        file = frames[-1].filename.removeprefix(sysconfig.get_path("stdlib") + "/")
        file = file.rsplit("site-packages/", 1)[-1].rsplit("tests/python/", 1)[-1]
        where = f"{file}:{frames[-1].lineno}"
    return f"{type(error).__name__}: {text}"[:300], where


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


# --- The four ways ---------------------------------------------------------------------------------


def stock(folder: Path, spec: dict[str, Any], progress: Any) -> Any:
    from families import host

    result = host.run(folder, spec.get("options", {}), drawn=spec["drawn"], progress=progress)
    result.pop("runner")
    return result


def with_plugin(folder: Path, spec: dict[str, Any], override: dict[str, Any], progress: Any) -> Any:
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from flexact.sglang import _hooks, _report

    from families import host

    assert _hooks.is_installed()
    loaded: dict[str, Any] = {}

    def noting(stage: str) -> None:
        progress(stage)
        if stage == "memory":  # loading is over, and every layer proven
            print("flexact: every layer proven", flush=True)

    options = {
        **spec.get("options", {}),
        **({"json_model_override_args": json.dumps(override)} if override else {}),
    }
    result = host.run(folder, options, drawn=spec["drawn"], progress=noting)
    loaded = _report.summary(result.pop("runner")._flexact)
    return {**result, "layers": _count(loaded)}


def _count(summary: dict[str, Any]) -> dict[str, Any]:
    rows = summary["experts"] + summary["mlps"]
    ours = [row for row in rows if row["computed_by"] == "flexact"]
    return {
        "experts": len(summary["experts"]),
        "mlps": len(summary["mlps"]),
        "by_flexact": len(ours),
        "least_calls": min((row["calls"] for row in ours), default=None),
        "functions": sorted({row["function"] for row in rows}),
        "model_type": summary["model_type"],
        "set_aside": summary["set_aside"],
    }


def by_hand(folder: Path, spec: dict[str, Any], progress: Any, *, plain: Any = None) -> Any:
    """SGLang without the plugin, its activations exchanged by hand after loading.

    `plain`: the family's own function in the experts, which SGLang's CPU loop computes without its limit.
    """
    from families import host, reference

    reference.exchange_expert_loop(plain)
    if plain is not None:
        result = host.run(folder, spec.get("options", {}), drawn=spec["drawn"], progress=progress)
        result.pop("runner")
        return result
    reference.before_loading(spec)
    original = host._generate

    def generate(runner: Any, ids: Any) -> Any:
        reference.exchange_in_sglang(runner.model)
        return original(runner, ids)

    host._generate = generate
    result = host.run(folder, spec.get("options", {}), drawn=spec["drawn"], progress=progress)
    result.pop("runner")
    return result


def by_transformers(folder: Path, sequences: list[list[int]], hand: bool, progress: Any) -> Any:
    from families import reference

    progress("load")
    model = reference.load(folder, by_hand=hand)
    progress("forward")
    return [reference.logits(model, ids) for ids in sequences]


# --- Comparing -------------------------------------------------------------------------------------


def difference(one: list[Any], other: list[Any], *, logits: bool) -> float:
    """The largest difference of any log-probability (of any entry, for embeddings), NaN as infinite."""
    import torch

    worst = 0.0
    for a, b in zip(one, other, strict=True):
        width = min(a.shape[-1], b.shape[-1])
        a, b = a[..., :width].double(), b[: a.shape[0], :width].double()
        if logits:
            a, b = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
        delta = (a - b).abs()
        worst = max(worst, delta.nan_to_num(nan=float("inf")).max().item())
    return worst


def one_class(name: str, recipe: Any, scratch: Path) -> dict[str, Any]:
    """Everything observed about one model class."""
    from families import recipes

    row: dict[str, Any] = {"module": recipe.module}
    if recipe.cannot:
        return row | {"verdict": "not run", "reason": recipe.cannot}
    folder, logs = scratch / name / "model", scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        spec = forked(lambda progress: recipe.build(folder, progress), logs / "build.log")
    except Failure as failure:
        return row | {"verdict": "no checkpoint", "build": failure.row()}
    row["model_type"] = json.loads((folder / "config.json").read_text())["model_type"]
    results: dict[str, Any] = {}
    if not spec["drawn"]:
        # Where SGLang does not read what transformers saves, the weights are drawn inside SGLang.
        try:
            results["stock"] = forked(lambda p: stock(folder, spec, p), logs / "stock.log")
            beside: dict[str, Any] = {}
            log = logs / "stock_reference.log"
            generates = bool(results["stock"]["generated"])
            _with_transformers(beside, results["stock"], False, folder, spec, log, generates)
            if beside.get("transformers", {}).get("max_difference", 0) > UNREAD:
                results.clear()
                row["checkpoint"] = {"reason": "SGLang does not load every tensor as transformers saves them"}
                spec = recipe.build_drawn(folder, None)
        except Failure as failure:
            row["stock"] = failure.row()
            if failure.stage == "load" or name in recipes.NOT_READ:
                row["checkpoint"] = row.pop("stock")
                spec = recipe.build_drawn(folder, None)
    row |= {"weights": "drawn in SGLang" if spec["drawn"] else "transformers"}
    if "dtype" in spec["options"]:
        row["dtype"] = spec["options"]["dtype"]
    for way, task in (
        ("stock", lambda p: stock(folder, spec, p)),
        ("plain", lambda p: with_plugin(folder, spec, {}, p)),
        ("swish", lambda p: with_plugin(folder, spec, SWISH, p)),
    ):
        if way in results or way in row:
            continue
        try:
            results[way] = forked(task, logs / f"{way}.log")
        except Failure as failure:
            row[way] = failure.row()
            row[way]["proven_at_load"] = "flexact: every layer proven" in (logs / f"{way}.log").read_text(
                errors="replace"
            )
    _compare(row, results, folder, spec, logs)
    row["verdict"] = verdict(row)
    return row


def _compare(
    row: dict[str, Any], results: dict[str, Any], folder: Path, spec: dict[str, Any], logs: Path
) -> None:
    generates = any(result["generated"] for result in results.values())

    def transformers(way: str, hand: bool) -> None:
        _with_transformers(
            row[way], results[way], hand, folder, spec, logs / f"{way}_reference.log", generates
        )

    if "stock" in results:
        row["stock"] = {"runs": True, "generates": generates}
        transformers("stock", False)
    if "plain" in results:
        row["plain"] = {"runs": True, "layers": results["plain"]["layers"]}
        if "stock" in results:
            row["plain"] |= {
                "max_difference": difference(
                    results["plain"]["logits"], results["stock"]["logits"], logits=generates
                ),
                "tokens_equal": results["plain"]["generated"] == results["stock"]["generated"],
            }
        if row["plain"].get("max_difference") != 0:
            transformers("plain", False)
        if spec["plain"] is not None:
            hand = forked(lambda p: by_hand(folder, spec, p, plain=spec["plain"]), logs / "plain_hand.log")
            row["plain"]["sglang_by_hand"] = {
                "max_difference": difference(results["plain"]["logits"], hand["logits"], logits=generates)
            }
    if "swish" not in results:
        return
    ours = results["swish"]
    row["swish"] = {"runs": True, "layers": ours["layers"]}
    if "plain" in results:
        pairs = zip(results["plain"]["logits"], ours["logits"], ours["prompts"], strict=True)
        one, other = zip(*((a[: len(p)], b[: len(p)]) for a, b, p in pairs), strict=True)
        row["swish"]["moves"] = difference(one, other, logits=generates)
    transformers("swish", True)
    if row["swish"].get("transformers", {}).get("max_difference", 1) > _tolerance(row):
        try:
            hand = forked(lambda p: by_hand(folder, spec, p), logs / "hand.log")
            row["swish"]["sglang_by_hand"] = {
                "max_difference": difference(ours["logits"], hand["logits"], logits=generates),
                "tokens_equal": ours["generated"] == hand["generated"],
            }
        except Failure as failure:
            row["swish"]["sglang_by_hand"] = failure.row()


def _with_transformers(
    row: dict[str, Any],
    ours: dict[str, Any],
    hand: bool,
    folder: Path,
    spec: dict[str, Any],
    log: Path,
    generates: bool,
) -> None:
    if spec["drawn"] or not generates:
        return
    sequences = [p + g[:-1] for p, g in zip(ours["prompts"], ours["generated"], strict=True)]
    try:
        theirs = forked(lambda p: by_transformers(folder, sequences, hand, p), log)
        row["transformers"] = {"max_difference": difference(ours["logits"], theirs, logits=generates)}
    except Failure as failure:
        row["transformers"] = failure.row()


def verdict(row: dict[str, Any]) -> str:
    """One of the words that `page` explains."""
    stock, plain, swish = row.get("stock", {}), row.get("plain", {}), row.get("swish", {})
    if not stock.get("runs") and not plain.get("runs"):
        loads = _ORDER.index(stock["stage"]) > _ORDER.index("load")
        earlier = _ORDER.index(plain["stage"]) < _ORDER.index(stock["stage"])
        return "broken" if loads and earlier else "not on this engine"
    if not plain.get("runs"):
        return "broken"
    unchanged = plain.get("max_difference") == 0 and plain["tokens_equal"]
    if stock.get("runs") and not unchanged and not _corrected(row):
        return "broken"
    if plain["layers"]["set_aside"]:
        return "left as it is"
    if not swish.get("runs"):
        return "refused"
    known = [
        value
        for key in ("transformers", "sglang_by_hand")
        if (value := swish.get(key, {}).get("max_difference")) is not None
    ]
    if not known:
        return "unverified"
    if min(known) > _tolerance(row) or swish["moves"] < _margin(row) * max(min(known), 1e-6):
        return "wrong"
    return "proven" if unchanged else "corrected" if stock.get("runs") else "only with the plugin"


def _tolerance(row: dict[str, Any]) -> float:
    return TOLERANCE_HALF if row.get("dtype") == "bfloat16" else TOLERANCE


def _margin(row: dict[str, Any]) -> float:
    """How much further than the difference another activation must have moved the result."""
    return 10 if row.get("dtype") == "bfloat16" else 20


def _corrected(row: dict[str, Any]) -> bool:
    """Whether flexact replaced a function of SGLang's, and rightly: only rounding moved, or transformers
    agrees with the plugin and not with SGLang.
    """
    if row["plain"]["layers"]["by_flexact"] and row["plain"]["max_difference"] <= TOLERANCE / 10:
        return True
    if (hand := row["plain"].get("sglang_by_hand", {}).get("max_difference")) is not None:
        return hand <= TOLERANCE
    mine, theirs = (row[way].get("transformers", {}).get("max_difference") for way in ("plain", "stock"))
    return mine is not None and theirs is not None and mine <= TOLERANCE < theirs


_ORDER = ["start", "arguments", "configuration", "load", "memory", "forward"]
