"""Times MoE blocks on a GPU, ours and a peer's, in one process.

    python benchmark/benchmark_moe_kernels.py --activation silu --precision bf16 --batch_size 32 > silu.txt
    python benchmark/benchmark_moe_kernels.py --activation swish --activation_params beta=1.0 > swish.txt
    python scripts/compare_benchmark.py silu.txt swish.txt
    python benchmark/benchmark_moe_kernels.py --precision mxfp4 --peer marlin --json marlin.json
    python benchmark/benchmark_moe_kernels.py --against all --json functions.json
    python benchmark/benchmark_moe_kernels.py --backend cutlass --beside triton --peer deep-gemm --json a.json
    python benchmark/benchmark_moe_kernels.py --backend cutlass --peer deep-gemm --kernels --json kernels.json
    python benchmark/benchmark_moe_kernels.py --dense --backend cutlass --beside triton --json dense.json
    python benchmark/benchmark_moe_kernels.py --start-up --backend triton --beside cutlass --json new.json

Peers are imported from where PYTHONPATH says; a peer that is not there, or that computes something else, is
an error. --dense times act_and_mul alone, beside torch, the backends of --beside, and SGLang's kernel where
it can be imported. --start-up times a new function for each backend, from its text to the first result and
to the end of `reserve`, apart from what a process pays once: with an empty cache, as on a new machine; with a
cache that another function has filled; from the cache.

--kernels also times each kernel of a call, as the driver's trace has them (a kernel that starts early
waits for its predecessor in its own time), and says how long the first product takes, alone and with what
stands between it and the second.

Every call is a CUDA graph that was captured once; the L2 is flushed before each replay. With a peer, ours
and the peer's take turns, and the ratio is the median of paired measurements. The machine's limits (copy,
matrix product) are measured in the same process; "limit" is the share of the time that the slower of the
two makes unavoidable. Text goes to stdout, JSON to --json; both can be compared by compare_benchmark.py.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import flexact
import flexact.moe
import torch
from flexact import ActivationRegistry, formats
from flexact.triton.shapes import SHAPES, Shape

# What --precision may say, and the format that it means.
PRECISIONS = {
    **{name: name for name in ("bf16", "fp16", *formats.FP8_FORMATS, *formats.FP4_FORMATS)},
    "fp8": "fp8_block", "fp4": "mxfp4",
}  # fmt: skip
DTYPES = dict.fromkeys(PRECISIONS, torch.bfloat16) | {"fp16": torch.float16}
# Bytes of a weight, its share of the scales included.
BYTES = {
    "bf16": 2.0, "fp16": 2.0, "fp8_block": 1.0, "fp8_tensor": 1.0, "fp8_channel": 1.0,
    "mxfp4": 0.5 + 1 / 32, "mxfp4_fp8": 0.5 + 1 / 32, "nvfp4": 0.5 + 1 / 16,
}  # fmt: skip
PEERS = {
    "sglang-triton": "peers.sglang_triton", "torch-grouped": "peers.torch_grouped",
    "deep-gemm": "peers.deep_gemm", "marlin": "peers.marlin", "triton-kernels": "peers.triton_kernels_moe",
}  # fmt: skip
DEVICE = "cuda"
# A deadline counts from here.
BEGIN = time.monotonic()


def make_weights(shape, precision, pairing):
    """Weights of the usual scale, and their scales where the precision has them."""
    generator = torch.Generator(device=DEVICE).manual_seed(1)
    rows = shape.intermediate * (2 if shape.gated else 1)

    def normal(*size):
        tensor = torch.empty(size, dtype=DTYPES[precision], device=DEVICE)
        return tensor.normal_(0, size[-1] ** -0.5, generator=generator)

    if DTYPES[precision].itemsize == BYTES[precision]:
        return {
            "w13": normal(shape.experts, rows, shape.hidden),
            "w2": normal(shape.experts, shape.hidden, shape.intermediate),
        }
    # Expert by expert: the packers work in fp32. One scale or global scale an expert, which every peer takes.
    pairing = "none" if not shape.gated or precision in ("nvfp4", "fp8_tensor") else pairing
    experts = []
    for _ in range(shape.experts):
        w13, w2 = normal(1, rows, shape.hidden), normal(1, shape.hidden, shape.intermediate)
        experts.append(formats.quantise_experts(w13, w2, format=precision, pairing=pairing))
    joined = {}
    for name, first in experts[0].items():
        # torch joins e4m3 only as bytes.
        raw = torch.uint8 if first.dtype == torch.float8_e4m3fn else first.dtype
        joined[name] = torch.cat([each[name].view(raw) for each in experts]).view(first.dtype)
    return joined


def make_inputs(shape, tokens, dtype):
    """Hidden states, router weights, expert numbers and logits of a random router."""
    generator = torch.Generator(device=DEVICE).manual_seed(100 + tokens)
    x = torch.randn(tokens, shape.hidden, device=DEVICE, generator=generator).to(dtype)
    logits = torch.randn(tokens, shape.experts, device=DEVICE, generator=generator)
    scores, ids = logits.topk(shape.top_k, -1)
    return x, torch.softmax(scores, -1).float(), ids.to(torch.int32), logits


class Captured:
    """A call as a CUDA graph, and the call: a graph knows addresses, and keeps no tensor that it reads."""

    def __init__(self, graph, call):
        self.graph, self.call = graph, call

    def replay(self):
        self.graph.replay()


class Timer:
    """Replays of captured graphs behind a flush of the L2, in turn and in random order."""

    def __init__(self, seconds):
        self.flush = torch.empty(64 << 20, dtype=torch.int32, device=DEVICE)
        self.seconds = seconds

    def capture(self, call):
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        # Capturing computes nothing.
        graph.replay()
        return Captured(graph, call), result

    def rounds(self, graphs, count):
        """Microseconds [round][graph]."""
        rows = []
        for _ in range(count):
            order = random.sample(range(len(graphs)), len(graphs))
            events = {}
            for index in order:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush.zero_()
                begin.record()
                graphs[index].replay()
                end.record()
                events[index] = (begin, end)
            rows.append(events)
        torch.cuda.synchronize()
        return [[begin.elapsed_time(end) * 1e3 for _, (begin, end) in sorted(row.items())] for row in rows]

    def measure(self, graphs):
        first = self.rounds(graphs, 2)[1]
        count = int(min(60, max(9, self.seconds * 1e6 / (sum(first) + 120 * len(first)))))
        return self.rounds(graphs, count)

    def kernels(self, captured, rounds=9):
        """[(name, microseconds)] of a call's kernels in the order of their starts: medians."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            for _ in range(rounds):
                self.flush.zero_()
                captured.replay()
            torch.cuda.synchronize()
        ran = sorted(
            (event.time_range.start, event.name, event.device_time)
            for event in trace.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        if not ran or len(ran) % rounds:
            raise RuntimeError(f"{len(ran)} kernels were traced in {rounds} equal calls")
        each = len(ran) // rounds
        calls = [ran[first : first + each] for first in range(0, len(ran), each)]
        # The first is the flush.
        return [(calls[0][place][1], median(call[place][2] for call in calls)) for place in range(1, each)]


def first_product(kernels):
    """Microseconds of the first of the two longest kernels, and from it up to the second."""
    longest = sorted(range(len(kernels)), key=lambda place: -kernels[place][1])[:2]
    first, second = sorted(longest)
    return kernels[first][1], sum(us for _, us in kernels[first:second])


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def interval(values):
    """A 95 % interval of the median, by ranks."""
    ordered = sorted(values)
    reach = math.ceil(0.98 * math.sqrt(len(ordered)))
    middle = len(ordered) // 2
    return ordered[max(0, middle - reach)], ordered[min(len(ordered) - 1, middle + reach)]


def limits(timer):
    """Bytes and FLOP a second that this machine reaches now."""
    a = torch.ones(1 << 30, dtype=torch.int32, device=DEVICE)
    b = torch.empty_like(a)
    x, y = (torch.randn(8192, 8192, device=DEVICE).bfloat16() for _ in range(2))
    copy, _ = timer.capture(lambda: b.copy_(a))
    product, _ = timer.capture(lambda: x @ y)
    bytes_s = 2 * a.numel() * 4 / median(row[0] for row in timer.measure([copy])) * 1e6
    flop_s = 2 * 8192**3 / median(row[0] for row in timer.measure([product])) * 1e6
    machine = {"copy_gb_s": round(bytes_s / 1e9), "bf16_matmul_tflop_s": round(flop_s / 1e12)}
    if torch.cuda.get_device_capability() >= (8, 9):
        x, y = x.to(torch.float8_e4m3fn), y.to(torch.float8_e4m3fn)
        one = torch.ones((), device=DEVICE)
        product, _ = timer.capture(lambda: torch._scaled_mm(x, y.t(), one, one, out_dtype=torch.bfloat16))
        flop_s = 2 * 8192**3 / median(row[0] for row in timer.measure([product])) * 1e6
        machine["fp8_matmul_tflop_s"] = round(flop_s / 1e12)
    return machine


def activation_of(name, values):
    """A catalogue function; a parameter that has no default and is not given is 2."""
    parameters = ActivationRegistry.get_function(name).parameters
    missing = {each.name: 2.0 for each in parameters if each.default is None}
    return ActivationRegistry.get_activation(name, missing | values)


def others_of(options):
    """What --against names: every function of the catalogue for "all"."""
    names = ActivationRegistry.list() if "all" in options.against else options.against
    return [name for name in names if name != options.activation]


def parse_parameters(text):
    return {name: float(value) for name, value in (item.split("=") for item in text.split(",") if item)}


def cost(shape, tokens, ids, precision):
    """FLOP, and the fewest bytes: weights of the experts that are hit, inputs and outputs."""
    matrices = 3 if shape.gated else 2
    flop = 2 * tokens * shape.top_k * matrices * shape.hidden * shape.intermediate
    weights = ids.unique().numel() * matrices * shape.hidden * shape.intermediate * BYTES[precision]
    return flop, weights + 2 * tokens * shape.hidden * 2


def best_of(timer, variants, reference, tolerance):
    """The fastest variant that computes the same: its name and graph."""
    best = None
    for name, call in variants:
        try:
            graph, result = timer.capture(call)
        except Exception as error:  # a tile that a GPU has no room for
            print(f"# {name}: {type(error).__name__} {str(error)[:100]}", file=sys.stderr)
            torch.cuda.synchronize()
            continue
        error = (result.float() - reference).norm() / reference.norm()
        if not error < tolerance:
            print(f"# {name}: its result differs by {error:.3g}", file=sys.stderr)
            continue
        fast = median(row[0] for row in timer.rounds([graph], 5))
        if best is None or fast < best[0]:
            best = (fast, name, graph)
    if best is None:
        raise RuntimeError("no variant of the peer ran")
    return best[1:]


def call_of(plan, inputs):
    """One call of a plan into memory of its own."""
    x, topk_weights, ids, _ = inputs
    out = torch.empty_like(x)
    return lambda: plan.run(x, topk_weights, ids, out=out)


def launch_of(plan, tokens):
    """How a plan computes so many tokens; one that decides anew for each call says what it is made of."""
    return plan.launch_of(tokens) if hasattr(plan, "launch_of") else plan.describe()


def compile_calls(shape, settings, activations, tokens):
    """Compiles what calls with these functions need, in as many processes as there are processors."""
    from flexact.triton import ahead
    from flexact.triton.moe import device_facts

    problem = {
        "experts": shape.experts, "hidden": shape.hidden, "intermediate": shape.intermediate,
        "io_dtype": "bfloat16", **{key: settings[key] for key in ("top_k", "format", "pairing")},
    }  # fmt: skip
    gated = settings["pairing"] != "none"
    names = [(act.function.gated() if gated else act.function).canonical for act in activations]
    begin = time.monotonic()
    jobs = [(problem, name, device_facts(0), count) for name in names for count in tokens]
    for failed in ahead.compile_calls(jobs, min(16, os.cpu_count() or 1)):
        print(f"# {failed}", file=sys.stderr)
    print(f"# compiled {len(jobs)} calls in {time.monotonic() - begin:.0f} s", flush=True)


def link_call(job):
    """Links what a function needs on CUTLASS, for a small layer: one link serves layers of every size."""
    precision, pairing, name = job
    weights = make_weights(Shape(8, 2, 512, 256, pairing != "none"), precision, pairing)
    settings = {"top_k": 2, "format": precision, "backend": "cutlass", "pairing": pairing}
    flexact.moe.plan(activation=activation_of(name, {}), **weights, **settings)


def link_calls(precision, pairing, names):
    """Links functions in several processes, into the cache that this one reads."""
    begin = time.monotonic()
    jobs = [(precision, pairing, name) for name in names]
    with multiprocessing.get_context("spawn").Pool(min(12, os.cpu_count() or 1)) as pool:
        pool.map(link_call, jobs)
    print(f"# linked {len(jobs)} functions in {time.monotonic() - begin:.0f} s", flush=True)


def size_of(model):
    """Weights of a layer: small ones are measured first, so that a deadline leaves the most cells."""
    shape = SHAPES[model]
    return shape.experts * shape.hidden * shape.intermediate


def first_use(peers, precision, options):
    """Runs each peer once on a small layer: what it compiles at first use is not part of a cell."""
    shape = Shape(8, 2, 512, 256)
    weights = make_weights(shape, precision, options.pairing)
    inputs = make_inputs(shape, 16, DTYPES[precision])
    for name, peer in peers.items():
        begin = time.monotonic()
        peer.set_up()
        try:
            _, call = next(iter(peer.variants(shape, weights, inputs, options.activation)))
            call()
            torch.cuda.synchronize()
        except Exception as error:  # a size that it does not take; a cell says what else is wrong
            print(f"# {name} on a small layer: {str(error)[:100]}", file=sys.stderr)
        print(f"# {name} was ready after {time.monotonic() - begin:.1f} s", flush=True)


def benchmark(options, emit):
    """Every model and token count, until the deadline."""
    timer = Timer(options.seconds)
    peers = {name: importlib.import_module(PEERS[name]) for name in options.peer}
    first_use(peers, PRECISIONS[options.precision], options)
    compared_with = set()
    machine = limits(timer)
    emit({"kind": "machine", **machine, **description()})
    precision = PRECISIONS[options.precision]
    # Quantised activations that differ by one code differ by a sixteenth.
    tolerance = 0.06 if "fp8" in precision else 0.02
    act = activation_of(options.activation, parse_parameters(options.activation_params))
    for model in sorted(options.model, key=size_of):
        if time.monotonic() > options.end:
            print(f"# the deadline has passed: {model} is left out", flush=True)
            continue
        shape = SHAPES[model]
        pairing = options.pairing if shape.gated else "none"
        weights = make_weights(shape, precision, pairing)
        settings = {
            "top_k": shape.top_k, "format": precision, "backend": options.backend, "pairing": pairing
        }  # fmt: skip
        if options.against and options.backend == "cutlass":
            link_calls(precision, pairing, others_of(options))
        plan = flexact.moe.plan(activation=act, **weights, **settings)
        others = {
            name: flexact.moe.plan(activation=activation_of(name, {}), **weights, **settings)
            for name in others_of(options)
        }
        if options.against and options.backend != "cutlass":
            # One after the other they would take minutes.
            functions = [act, *(activation_of(name, {}) for name in others_of(options))]
            compile_calls(shape, settings, functions, options.tokens)
        for backend in options.beside:
            beside = settings | {"backend": backend}
            others[backend] = flexact.moe.plan(activation=act, **weights, **beside)
        for tokens in options.tokens:
            if time.monotonic() > options.end:
                print(f"# the deadline has passed: {model} from M={tokens} on is left out", flush=True)
                return
            inputs = make_inputs(shape, tokens, DTYPES[precision])
            ids = inputs[2]
            begin = time.monotonic()
            graph, result = timer.capture(call_of(plan, inputs))
            graphs, names = [graph], {}
            for name, other in others.items():
                names[name] = "flexact"
                graphs.append(timer.capture(call_of(other, inputs))[0])
            for name, peer in peers.items():
                try:
                    variants = list(peer.variants(shape, weights, inputs, options.activation))
                except ValueError as error:  # a size that it does not take: the cell is without it
                    print(f"# {name} beside {model}: {error}", file=sys.stderr, flush=True)
                    continue
                names[name], graph = best_of(timer, variants, result.float(), tolerance)
                graphs.append(graph)
                compared_with.add(name)
            rows = timer.measure(graphs)
            ours = median(row[0] for row in rows)
            flop, size = cost(shape, tokens, ids, precision)
            product = machine["fp8_matmul_tflop_s" if "fp8" in precision else "bf16_matmul_tflop_s"]
            unavoidable = max(flop / product * 1e-6, size / machine["copy_gb_s"] * 1e-3)
            record = {
                "kind": "cell", "model": model, "tokens": tokens, "activation": options.activation,
                "parameters": options.activation_params, "precision": options.precision, "pairing": pairing,
                "backend": plan.describe().split(",")[0].split(":")[0],
                "us": round(ours, 2), "interval_us": interval([row[0] for row in rows]),
                "tflop_s": round(flop / ours * 1e-6, 1), "gb_s": round(size / ours * 1e-3, 1),
                "limit": round(unavoidable / ours, 3), "rounds": len(rows),
                "launch": launch_of(plan, tokens), "seconds": round(time.monotonic() - begin, 2),
            }  # fmt: skip
            record |= compared(rows, names)
            if options.kernels:
                record["kernels"] = [
                    {"of": name, **kernels_of(timer, each)}
                    for name, each in zip([options.backend, *names], graphs, strict=True)
                ]
            emit(record)
            del graphs, graph, result
        del plan, others, weights
        torch.cuda.empty_cache()
    if refused := set(peers) - compared_with:
        sys.exit(f"without any cell: {', '.join(sorted(refused))}; why is said above")


def kernels_of(timer, captured):
    """What a record says of a call's kernels."""
    kernels = timer.kernels(captured)
    alone, activated = first_product(kernels)
    return {
        "first_product_us": round(alone, 2), "with_activation_us": round(activated, 2),
        "kernels": [[name[:120], round(us, 2)] for name, us in kernels],
    }  # fmt: skip


def dense(options, emit):
    """act_and_mul alone, paired with SGLang's kernel where there is one."""
    from flexact import dense as ours

    try:
        from sglang.kernels.ops.activation.activation import silu_and_mul
    except ImportError:
        silu_and_mul = None
    timer = Timer(options.seconds)
    emit({"kind": "machine", **limits(timer), **description()})
    act = activation_of(options.activation, parse_parameters(options.activation_params))
    names = others_of(options)
    for model in options.model:
        width = SHAPES[model].intermediate
        for rows in options.tokens:
            x = torch.randn(rows, 2 * width, device=DEVICE).bfloat16()
            count = 3 + len(names) + len(options.beside)
            outs = [torch.empty(rows, width, dtype=x.dtype, device=DEVICE) for _ in range(count)]

            def call(activation, out, backend=options.backend, x=x):
                return lambda: ours.act_and_mul(x, activation, out=out, backend=backend)

            graphs = [timer.capture(call(act, outs[0]))[0]]
            graphs += [
                timer.capture(call(activation_of(each, {}), out))[0]
                for each, out in zip(names, outs[1:], strict=False)
            ]
            peers = {name: "flexact" for name in names}
            for backend, out in zip(options.beside, outs[1 + len(names) :], strict=False):
                graph, result = timer.capture(call(act, out, backend))
                torch.cuda.synchronize()
                torch.testing.assert_close(result, outs[0], rtol=2**-7, atol=2**-10)
                graphs.append(graph)
                peers[backend] = "flexact"
            if options.activation == "silu":

                def plain(x=x, out=outs[-2]):
                    gate, up = x.chunk(2, dim=-1)
                    return torch.mul(torch.nn.functional.silu(gate), up, out=out)

                graphs.append(timer.capture(plain)[0])
                peers["torch"] = "silu, mul"
            if silu_and_mul is not None and options.activation == "silu":

                def theirs(x=x, out=outs[-1]):
                    silu_and_mul(x, out)
                    return out

                graph, result = timer.capture(theirs)
                torch.cuda.synchronize()
                torch.testing.assert_close(result, outs[0], rtol=2**-7, atol=2**-10)
                graphs.append(graph)
                peers["sglang"] = "silu_and_mul"
            measured = timer.measure(graphs)
            size = 3 * rows * width * 2
            us = median(row[0] for row in measured)
            record = {
                "kind": "dense", "backend": options.backend, "model": model, "rows": rows, "width": width,
                "activation": options.activation, "us": round(us, 2), "gb_s": round(size / us * 1e-3, 1),
                "rounds": len(measured),
            }  # fmt: skip
            emit(record | compared(measured, peers))


def compared(rows, names):
    """{name: times and the ratio to ours with its interval} of rounds whose first column is ours."""
    found = {}
    for place, (name, variant) in enumerate(names.items(), 1):
        ratios = [row[place] / row[0] for row in rows]
        low, high = interval(ratios)
        found[name] = {
            "us": round(median(row[place] for row in rows), 2), "variant": variant,
            "speedup": round(median(ratios), 4), "interval": [round(low, 4), round(high, 4)],
        }  # fmt: skip
    return found


# The layer of --start-up: small, since no byte of its weights matters.
START_SHAPE = Shape(8, 2, 1024, 512)
START_TOKENS = 300
# Imports are timed before anything else is done in a process.
START = """
import json, sys, time
begin = time.perf_counter()
sys.path.insert(0, sys.argv[1])
import benchmark_moe_kernels
imported = time.perf_counter() - begin
print(json.dumps({"import_s": round(imported, 3), **benchmark_moe_kernels.start(**json.loads(sys.argv[2]))}))
"""


def start(backend, precision, pairing, known, new):
    """Seconds until a process has used the GPU, has `known` ready, and then for each step of `new`.

    `known` and `new` are constants of two functions that nobody else has; without `known`, `new` is the first
    function of the process. `call_s` ends with the result.
    """
    times = {}
    last = time.perf_counter()

    def lap(name=None):
        nonlocal last
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if name:
            times[name] = round(times.get(name, 0) + now - last, 4)
        last = now

    def use(constant, name, *steps):
        flexact.register_function(name, f"x*sigmoid(beta*x)+{constant!r}*tanh(x)")
        act = ActivationRegistry.get_activation(name, {"beta": 1.5})
        plan = flexact.moe.plan(activation=act, **weights, **settings)
        lap(steps[0])
        plan.run(*inputs)
        lap(steps[1])
        plan.reserve(START_TOKENS)
        lap(steps[2])

    torch.ones(1, device=DEVICE).add_(1)
    lap("gpu_s")
    weights = make_weights(START_SHAPE, precision, pairing)
    inputs = make_inputs(START_SHAPE, START_TOKENS, DTYPES[precision])[:3]
    settings = {"top_k": START_SHAPE.top_k, "format": precision, "backend": backend, "pairing": pairing}
    lap()
    if known is not None:
        use(known, "known", "known_s", "known_s", "known_s")
    use(new, "new", "plan_s", "call_s", "reserve_s")
    return times


def start_up(options, emit):
    """What each backend asked for takes to get a new function ready, each time in a process of its own."""
    emit({"kind": "machine", **description()})
    for backend in dict.fromkeys((options.backend, *options.beside)):
        first, second = random.random(), random.random()
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {
                "FLEXACT_CACHE_DIR": f"{folder}/flexact", "TRITON_CACHE_DIR": f"{folder}/triton-own"
            }  # fmt: skip
            for cache, known, new in (
                ("cold", None, first), ("cold function", first, second), ("cached", first, second)
            ):  # fmt: skip
                job = {
                    "backend": backend, "precision": PRECISIONS[options.precision],
                    "pairing": options.pairing, "known": known, "new": new,
                }  # fmt: skip
                command = [sys.executable, "-c", START, str(Path(__file__).parent), json.dumps(job)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                record = {"backend": backend, "precision": options.precision, "cache": cache}
                emit({"kind": "start", **record, **json.loads(done.stdout.splitlines()[-1])})


def description():
    """What was measured, on what."""
    import triton

    root = Path(__file__).parents[1]
    git = ["git", "-C", root, "rev-parse", "HEAD"]
    commit = (
        os.environ.get("FLEXACT_COMMIT")
        or subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    )
    chip = torch.cuda.get_device_properties(0)
    return {
        "device": chip.name, "capability": [chip.major, chip.minor],
        "multiprocessors": chip.multi_processor_count,
        "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
        "flexact": flexact.__version__, "commit": commit,
    }  # fmt: skip


def text_of(record):
    if record["kind"] == "machine":
        text = f"# {record['device']}, torch {record['torch']}, triton {record['triton']}"
        if "copy_gb_s" in record:
            text += f", copy {record['copy_gb_s']} GB/s, bf16 product {record['bf16_matmul_tflop_s']} TFLOP/s"
        return text
    if record["kind"] == "start":
        known = f", known function {record['known_s']:.2f} s" if "known_s" in record else ""
        return (
            f"start-up {record['backend']} {record['precision']}, {record['cache']}: import "
            f"{record['import_s']:.2f} s, GPU {record['gpu_s']:.2f} s{known}; new function: plan "
            f"{1e3 * record['plan_s']:.1f} ms, first call {1e3 * record['call_s']:.1f} ms, "
            f"reserve({START_TOKENS}) {1e3 * record['reserve_s']:.1f} ms"
        )
    if record["kind"] == "dense":
        text = (
            f"{record['model']:<16} dense      {record['activation']:<12} M={record['rows']:<6}"
            f" {record['us']:>10.1f} us {record['gb_s']:>7.1f} GB/s"
        )
        return text + ratios_of(record)
    text = (
        f"{record['model']:<16} {record['precision']:<10} {record['activation']:<12} M={record['tokens']:<6}"
        f" {record['us']:>10.1f} us {record['tflop_s']:>7.1f} TFLOP/s {record['gb_s']:>7.1f} GB/s"
        f" limit {100 * record['limit']:>5.1f} %"
    )
    text += ratios_of(record)
    for each in record.get("kernels", []):
        text += f"\n    {each['of']}: first product {each['first_product_us']:.1f} us, "
        text += f"with what follows {each['with_activation_us']:.1f} us"
    return text


def ratios_of(record):
    text = ""
    for name, peer in record.items():
        if isinstance(peer, dict):
            text += f"  {name} {peer['us']:.1f} us: x{peer['speedup']:.3f}"
    return text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--activation", default="silu")
    parser.add_argument("--activation_params", default="", help="name=value,…")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="bf16")
    parser.add_argument("--batch_size", type=int, help="one token count; --tokens takes several")
    parser.add_argument("--tokens", default="1,16,128,1024,4096,16384")
    parser.add_argument("--backend", default="auto", choices=["auto", "triton", "cutlass"])
    parser.add_argument(
        "--beside", action="append", choices=["triton", "cutlass"], default=[],
        help="another backend of ours, paired in the same way",
    )  # fmt: skip
    parser.add_argument("--model", action="append", choices=sorted(SHAPES))
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), default=[])
    parser.add_argument(
        "--against", action="append", default=[],
        help="another activation of ours, paired in the same way; all: the whole catalogue",
    )  # fmt: skip
    parser.add_argument("--pairing", choices=["concat", "up_first", "interleaved"], default="concat")
    parser.add_argument("--kernels", action="store_true", help="the time of each kernel of a call as well")
    parser.add_argument("--dense", action="store_true", help="act_and_mul alone; --tokens are rows")
    parser.add_argument("--start-up", action="store_true", help="of a function that was never seen")
    parser.add_argument("--seconds", type=float, default=0.15, help="measuring time of a cell")
    parser.add_argument(
        "--deadline", type=float, default=math.inf,
        help="seconds after which no further cell begins; what was measured is kept",
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.end = BEGIN + options.deadline
    options.model = options.model or ["qwen3-30b-a3b"]
    options.tokens = (
        [options.batch_size] if options.batch_size else [int(n) for n in options.tokens.split(",")]
    )
    if not torch.cuda.is_available():
        parser.error("no GPU here")
    records = []

    def emit(record):
        records.append(record)
        print(text_of(record), flush=True)
        if options.json:
            # Written as it goes: a run that is cut off leaves what it measured.
            options.json.write_text(json.dumps(records, indent=1) + "\n")

    with torch.no_grad():
        (dense if options.dense else start_up if options.start_up else benchmark)(options, emit)


if __name__ == "__main__":
    main()
