"""Counts what is compiled where several threads, launches and functions need the same kernels.

`python triton_together.py threads reserve mistake` runs these parts of it on a GPU that is not there: kernels
are compiled for Hopper, and launches are counted. It prints one JSON object a line: how often each kernel was
compiled, read from the cache, and launched.
"""

import collections
import concurrent.futures
import json
import sys
import threading

import torch
from flexact import Function
from flexact._core import MoeProblem
from flexact.triton.ahead import Elsewhere
from flexact.triton.moe import Block
from triton import knobs
from triton.runtime import _async_compile
from triton.runtime.driver import driver

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 4, 2, 256, 128
PROBLEM = MoeProblem(experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, intermediate=INTERMEDIATE)
WEIGHTS = {
    "w13": torch.zeros(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=torch.bfloat16),
    "w2": torch.zeros(EXPERTS, HIDDEN, INTERMEDIATE, dtype=torch.bfloat16),
}
compiled, read, launched = (collections.Counter() for _ in range(3))


class Counting(Elsewhere):
    """Loads every kernel, and counts launches."""

    def __init__(self):
        super().__init__(90)
        self.utils = self

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}

    def load_binary(self, name, kernel, shared, device):
        return object(), object(), 32, 0, 1024

    def launcher_cls(self, source, metadata):
        def launch(*arguments):
            launched[source.name] += 1

        return launch


def listen(*, src, cache_hit, **_):
    (read if cache_hit else compiled)[src.name] += 1


def block(scale):
    function = Function.expression(f"g*sigmoid({scale}*g)*u")
    return Block(PROBLEM, function, torch.device("cpu"), limits=(132, 232448))


def call(block, tokens=300, dtype=torch.int32):
    x = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16)
    ids = torch.zeros(tokens, TOP_K, dtype=dtype)
    block.run(x, WEIGHTS, torch.zeros(tokens, TOP_K), ids, torch.zeros(1, 0), torch.empty_like(x))


def at_once(calls):
    """Runs calls in as many threads, which start together."""
    start = threading.Barrier(len(calls))

    def run(each):
        start.wait()
        each()

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
        for each in [threads.submit(run, each) for each in calls]:
            each.result()


def report(what):
    print(json.dumps({"what": what, "compiled": compiled, "read": read, "launched": launched}), flush=True)
    for each in (compiled, read, launched):
        each.clear()


def threads():
    """One function in several threads, then several functions, each with a block of its own."""
    at_once([lambda: call(block(1.25))] * 4)
    report("same function")
    at_once([lambda scale=scale: call(block(scale)) for scale in (1.5, 1.75)])
    report("two functions")
    call(block(1.25), dtype=torch.int64)
    report("ids of another type")
    assert knobs.cache.dir is None or "compiled" not in str(knobs.cache.dir), knobs.cache.dir
    assert _async_compile.active_mode.get() is None


def reserve():
    """Everything that up to 8 tokens need, for ids of both types; then calls."""
    mine = block(2.0)
    types = (torch.int32, torch.int64)
    mine.warm_up(WEIGHTS, torch.zeros(1, 0), 8, types)
    report("reserved")
    at_once([
        lambda tokens=tokens, dtype=dtype: call(mine, tokens, dtype)
        for tokens in (1, 2, 3, 5, 8) for dtype in types
    ])  # fmt: skip
    report("called")


def mistake():
    """A function that does not compile: said to every thread, and nothing stays behind."""
    bad = Block(
        PROBLEM, Function.expression("x*tanh(x)"), torch.device("cpu"), limits=(132, 232448)
    )  # fmt: skip
    errors = []

    def failing():
        try:
            call(bad)
        except Exception as error:
            errors.append(type(error).__name__)

    at_once([failing] * 2)
    assert errors == ["CompilationError"] * 2, errors
    assert _async_compile.active_mode.get() is None
    launched.clear()
    read.clear()
    compiled.clear()
    call(block(2.25))
    report("after a mistake")


driver.set_active(Counting())
knobs.compilation.listener = listen
for part in sys.argv[1:]:
    {"threads": threads, "reserve": reserve, "mistake": mistake}[part]()
