"""What the Triton kernels claim and what is proven, as rows of the support matrix.

    python tests/gpu/triton_conformance.py --json benchmark/results/triton_conformance_h100.json
    python scripts/merge_support_matrix.py benchmark/results/triton_conformance_h100.json

Function × pairing × format are crossed in full, because each is a cell of the matrix. Everything else (sizes,
types, biases, ids, …) is drawn from a covering array: a short list of combinations in which every two choices
of different kinds meet. A cell runs some rows of it, each cell others, on memory full of NaN, and is judged
against the block in float64 on the stored weights: an RMS error of at most 1.1 × that of the stated recipe.
It is proven where all its runs agree. The file is written as cells finish, so that a run which is cut
off leaves what it found; what did not run stays claimed and not proven, and --resume goes on with it.

TRITON_INTERPRET=1 with --device cpu runs the same in Triton's interpreter.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import flexact
import torch
import triton_format_cases
from flexact import ActivationRegistry, formats, testing
from flexact._core import Function, MoeProblem, refuse

ROOT = Path(__file__).parents[2]
COLUMNS = ["backend", "function", "pairing", "format", "claimed", "proven"]
FORMATS = ("bf16", "fp16", *formats.FP8_FORMATS, *formats.FP4_FORMATS)
# (tokens, experts, top_k, hidden, intermediate): one token, pairs searched and sorted, short ends.
SIZES = [
    (1, 8, 2, 256, 192), (5, 4, 3, 160, 96), (40, 8, 4, 288, 160), (300, 4, 2, 192, 320), (2, 16, 8, 96, 64),
]  # fmt: skip
CHOICES = {
    "size": list(range(len(SIZES))),
    "io": ["bfloat16", "float16"],
    "bias": [False, True],
    "router_weight_on_input": [False, True],
    "combine": [True, False],
    "absent": [0.0, 0.3],
    "int64": [False, True],
    "per_expert": [False, True],
    "strided": [False, True],
    "routed_scaling_factor": [1.0, 2.5],
}


def legal(options):
    """A bias together with router weight on the input is refused by meaning."""
    return not (options.get("bias") and options.get("router_weight_on_input"))


def newly_met(open_pairs, row, kind, value):
    """How many pairs a row would meet with this choice."""
    with_it = {**row, kind: value}
    return sum((kind, value) in pair and all(with_it.get(k) == v for k, v in pair) for pair in open_pairs)


def covering():
    """Rows in which every two legal choices of different kinds meet, found greedily."""
    kinds = list(CHOICES)
    open_pairs = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(kinds, 2)
        for x in CHOICES[a]
        for y in CHOICES[b]
        if legal({a: x, b: y})
    }
    rows = []
    while open_pairs:
        row = dict(min(open_pairs, key=str))
        for kind in kinds:
            if kind in row:
                continue

            allowed = [value for value in CHOICES[kind] if legal({**row, kind: value})]
            row[kind] = max(allowed, key=functools.partial(newly_met, open_pairs, row, kind))
        open_pairs -= {pair for pair in open_pairs if all(row[k] == v for k, v in pair)}
        rows.append(row)
    return rows


def exercised(options):
    """A row in the words of the matrix's table of options."""
    words = [f"{options['io']} in and out", "int64 ids" if options["int64"] else "int32 ids"]
    words += ["bias of gate and up", "bias of down"] * options["bias"]
    words += ["router weight on the input"] * options["router_weight_on_input"]
    words += ["unweighted output of each expert"] * (not options["combine"])
    words += ["routed scaling factor"] * (options["routed_scaling_factor"] != 1)
    words += ["ids outside the range"] * bool(options["absent"])
    words += ["rows with gaps"] * options["strided"]
    words += ["parameters for each expert"] * options["per_expert"]
    return words


def activation_of(name, experts):
    """The function with values: one for all experts, or a row for each."""
    values = {}
    for i, each in enumerate(Function.named(name).parameters):
        value = {"limit": 3.0, "eps": -1e-6}.get(each.name, 0.7 + 0.1 * i)
        steps = [value * (1 + 0.05 * expert) for expert in range(experts)]
        values[each.name] = {"per_expert": steps} if experts and each.name != "eps" else value
    return ActivationRegistry.get_activation(name, values)


def run(name, pairing, format, options, device, seed):
    """None where a run agrees, else what is wrong."""
    tokens, experts, top_k, hidden, intermediate = SIZES[options["size"]]
    if format.startswith("fp8"):
        hidden, intermediate = hidden - 16, intermediate + 8  # short groups, which FP4 has not
    # Of one token all experts may be absent; then there is nothing to compare.
    for again in itertools.count(seed, 100_000):
        case = testing.random_case(
            format, tokens=tokens, experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate,
            pairing=pairing, bias=options["bias"], absent=options["absent"], seed=again, device=device,
            combine=options["combine"], router_weight_on_input=options["router_weight_on_input"],
            routed_scaling_factor=options["routed_scaling_factor"] if options["combine"] else 1.0,
            static_scales=format == "fp8_tensor" and bool(seed % 2),
        )  # fmt: skip
        if (case.topk_ids >= 0).any():
            break
    x, ids = case.hidden_states, case.topk_ids
    if format in formats.FP8_FORMATS or format == "mxfp4_fp8":
        x = x.to(getattr(torch, options["io"]))
    if options["strided"]:
        wide = torch.full((tokens, hidden + 8), torch.nan, dtype=x.dtype, device=device)
        wide[:, :hidden] = x
        x = wide[:, :hidden]
    case = dataclasses.replace(
        case, hidden_states=x, topk_ids=ids.to(torch.int64 if options["int64"] else torch.int32)
    )
    activation = activation_of(name, experts if options["per_expert"] else 0)
    block = triton_format_cases.block_of(case, activation, None)
    count = experts if options["per_expert"] and activation.function.parameters else 1
    table = activation.values(0, (0, count))
    values = torch.tensor(table, dtype=torch.float32, device=device).reshape(count, -1)
    shape = x.shape if case.combine else (*ids.shape, hidden)
    out = torch.full(shape, torch.nan, dtype=x.dtype, device=device)
    block.run(x, dict(case.weights), case.topk_weights, case.topk_ids, values, out)
    report = triton_format_cases.report("", case, activation, out)
    if not report["finite"] or not report["rms"] <= 1.1 * report["recipe_rms"] + 1e-6:
        return f"rms {report['rms']:.3g}, recipe's {report['recipe_rms']:.3g}, finite {report['finite']}"
    return None if out.abs().max() > 0 else "the result is zero"


def claimed(name, pairing, format):
    """Nothing, or the backend's reason."""
    function = Function.named(name)
    problem = MoeProblem(
        experts=8, top_k=2, hidden=64, intermediate=64, format=format, pairing=pairing,
        io_dtype="float16" if format == "fp16" else "bfloat16",
    )  # fmt: skip
    refusal = refuse("triton", problem, function if pairing == "none" else function.gated())
    return refusal and refusal[0]


def usable(device):
    """Whether this process can still launch: after an invalid access on a GPU it cannot."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def run_cell(job):
    """(cell, [(options, None or what is wrong)]); nothing of a cell where the process has lost its GPU."""
    number, cell, rows, device = job
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter multiplies rows that nobody keeps
    outcomes = []
    for place, options in enumerate(rows):
        if not usable(device):
            break
        try:
            wrong = run(*cell, options, device, number + place)
        except Exception as error:
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        outcomes.append((options, wrong))
    return cell, outcomes


def rows_of_cell(number, count, array):
    """`count` rows; each cell starts elsewhere, so that together they run all rows many times."""
    # One place further after each round: the cells of a format are as many apart as there are formats.
    first = number + number // len(array)
    return [array[(first + i) % len(array)] for i in range(count)]


def cells_of(functions, wanted):
    """Every (function, pairing, format), formats innermost so that a function's compilations are near."""
    for name in functions:
        gated = Function.named(name).is_gated
        for pairing in ["concat", "up_first", "interleaved"] + ([] if gated else ["none"]):
            for format in wanted:
                yield name, pairing, format


def facts_of(device, command):
    """Device, commit and versions."""
    git = ["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    name = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter"
    commit = os.environ.get("FLEXACT_COMMIT") or head or "unknown"
    return {"device": name, "commit": commit, "version": flexact.__version__, "command": command}


class Record:
    """What is known of each cell, and the file that says it."""

    def __init__(self, path, facts):
        self.path, self.facts = path, facts
        self.rows, self.tallies = {}, Counter()
        self.counts = Counter(passed=0, failed=0, refused=0)
        self.counts["not run"] = 0

    def claim(self, cell, reason):
        """A cell of which nothing is proven yet, or that is refused."""
        self.rows[cell] = ["triton", *cell, "yes" if reason is None else f"no: {reason}", ""]
        self.counts["not run" if reason is None else "refused"] += 1

    def add(self, cell, outcomes, variant):
        """A cell that has run."""
        self.counts["not run"] -= 1
        for tried, wrong in outcomes:
            self.counts["failed" if wrong else "passed"] += 1
            for word in exercised(tried):
                self.tallies[word, not wrong] += 1
            if wrong:
                print(f"FAILED {'/'.join(cell)} {tried}: {wrong}", flush=True)
        self.rows[cell][-1] = "" if any(wrong for _, wrong in outcomes) else variant

    def go_on(self):
        """Takes over what an earlier run of the same thing proved; returns its cells."""
        if not self.path.is_file():
            return set()
        earlier = json.loads(self.path.read_text())
        differ = [key for key, value in self.facts.items() if earlier[key] != value]
        if differ:
            raise SystemExit(f"--resume: {self.path} is of another {' and '.join(differ)}")
        proven = {tuple(row[1:4]): row for row in earlier["rows"] if row[5] and tuple(row[1:4]) in self.rows}
        self.rows.update(proven)
        self.counts["not run"] -= len(proven)
        self.counts["passed"] = earlier["runs"]["passed"]
        for each in earlier["options"]:
            self.tallies[each["option"], True] = each["passed"]
        return set(proven)

    def write(self):
        """The file, a row a line."""
        lines = {
            **self.facts, "runs": dict(self.counts), "columns": COLUMNS, "rows": list(self.rows.values()),
            "options": [
                {"backend": "triton", "option": word, "passed": self.tallies[word, True],
                 "failed": self.tallies[word, False]}
                for word in sorted({word for word, _ in self.tallies})
            ],
        }  # fmt: skip
        text = []
        for key, value in lines.items():
            if key in ("rows", "options"):
                body = "[\n  " + ",\n  ".join(json.dumps(each) for each in value) + "\n ]"
            else:
                body = json.dumps(value)
            text.append(f" {json.dumps(key)}: {body}")
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("{\n" + ",\n".join(text) + "\n}\n")
        os.replace(temporary, self.path)


def finished(pool, jobs, until):
    """What run_cell returns, as cells finish, and None at least every second; ends at a time."""
    results = pool.imap_unordered(run_cell, jobs)
    while time.monotonic() < until:
        try:
            yield results.next(timeout=1)
        except multiprocessing.TimeoutError:
            yield None
        except StopIteration:
            return


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2, help="rows of the covering array for each cell")
    parser.add_argument("--function", action="append", help="default: the whole catalogue")
    parser.add_argument("--format", action="append", choices=FORMATS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long, keeping what is done")
    parser.add_argument("--resume", action="store_true", help="cells that the file has as proven stay so")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    begin = time.monotonic()
    # Of the functions and formats rows tell: files of some of them are parts of one run.
    command = f"triton_conformance.py --rows {options.rows}"
    record = Record(options.json, facts_of(options.device, command))
    array = covering()
    jobs = []
    cells = cells_of(options.function or ActivationRegistry.list(), options.format or FORMATS)
    for number, cell in enumerate(cells):
        reason = claimed(*cell)
        record.claim(cell, reason)
        if reason is None:
            jobs.append((number, cell, rows_of_cell(number, options.rows, array), options.device))
    if options.resume:
        done = record.go_on()
        jobs = [job for job in jobs if job[1] not in done]
    variant = "interpreter"
    context = multiprocessing.get_context("spawn")
    if options.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        variant = f"sm_{major}{minor}"
        # Workers are copies of a process that has imported everything and not touched the GPU.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "triton", "flexact.triton.moe", "flexact.testing"])
    written = 0.0
    with context.Pool(options.workers) as pool:
        for each in finished(pool, jobs, begin + options.seconds):
            if each is not None and each[1]:
                record.add(*each, variant)
            if time.monotonic() > written + 2:
                record.write()
                written = time.monotonic()
        pool.terminate()
    record.write()
    counts = record.counts
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['refused']} cells refused, "
          f"{counts['not run']} cells not run, {time.monotonic() - begin:.0f} s")  # fmt: skip
    return 1 if counts["failed"] or counts["not run"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
