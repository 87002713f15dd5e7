"""Runs the Triton kernels, in the interpreter or on a GPU, against fp64 and a torch recipe.

`python triton_cases.py DEVICE` prints one JSON object a line and case: its name and its errors.
With DEVICE "cpu" it needs TRITON_INTERPRET=1 in the environment.
"""

import itertools
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from flexact import ActivationRegistry
from flexact._core import Function, LaunchTable, MoeProblem
from flexact.torch_functions import compiled
from flexact.triton import moe as launcher
from line_counting import stop
from moe_reference import split

torch.set_num_threads(1)
FORMAT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


# The cases of `kernel_cases` that between them run every line.
FIRST = 20


def tile(m, n, k, **more):
    return {"block_m": m, "block_n": n, "block_k": k, "group_m": 2, "warps": 4, "stages": 2, **more}


# Small tiles keep the interpreter quick; every flag of the kernels occurs.
LAUNCHES = {
    "vector": {
        "direct": True,
        "vector": True,
        "fuse_combine": True,
        "gate_up": tile(16, 8, 32),
        "down": tile(16, 16, 16),
    },
    "direct": {"direct": True, "gate_up": tile(16, 16, 32), "down": tile(16, 32, 32)},
    "sorted": {"gate_up": tile(16, 16, 32), "down": tile(16, 32, 32)},
    "permuted": {"permute": True, "gate_up": tile(16, 16, 32), "down": tile(16, 32, 32)},
    "persistent": {"gate_up": tile(16, 16, 32, persistent=1), "down": tile(16, 128, 32, persistent=2)},
}


def activation(name, params=()):
    """A catalogue function with values, parameters without a default given one in their domain."""
    function = Function.named(name)
    values = {each.name: 0.7 + 0.4 * i for i, each in enumerate(function.parameters)}
    values |= {name: value for name, value in (("limit", 3.0), ("eps", -1e-6)) if name in values}
    return ActivationRegistry.get_activation(name, values | dict(params))


class Case:
    """One block: random weights of the usual scale, ids of which some are on no expert of this rank."""

    def __init__(
        self, name, launch, act, *, tokens=5, experts=3, top_k=2, hidden=40, intermediate=24,
        pairing="concat", dtype=torch.bfloat16, bias=False, weight_input=False, combine=True, scale=1.0,
        per_expert=False, transposed=False, device="cpu", ids=torch.int32, chunking=None, small=None, seed=0,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.name, self.pairing, self.combine, self.scale = name, pairing, combine, scale
        self.weight_input, self.dtype, self.chunking, self.device = weight_input, dtype, chunking, device
        self.small = small or launcher.routing.SMALL_PAIRS

        def normal(*shape, scale=1.0):
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        rows = intermediate if pairing == "none" else 2 * intermediate
        self.x = normal(tokens, hidden)
        self.weights = {
            "w13": normal(experts, rows, hidden, scale=hidden**-0.5),
            "w2": normal(experts, hidden, intermediate, scale=intermediate**-0.5),
        }
        if transposed:
            self.weights = {
                k: v.transpose(1, 2).contiguous().transpose(1, 2) for k, v in self.weights.items()
            }
        if bias:
            self.weights["w13_bias"] = normal(experts, rows, scale=0.5)
            self.weights["w2_bias"] = normal(experts, hidden, scale=0.5).float()
        self.topk_weights = torch.rand(tokens, top_k, generator=generator) + 0.1
        self.ids = torch.randint(-1, experts + 1, (tokens, top_k), generator=generator).to(ids)
        self.function = act.function if pairing == "none" else act.function.gated()
        table = act.values(0, (0, experts)) * (experts if per_expert else 1)
        self.values = torch.tensor(table, dtype=torch.float32).reshape(len(table), -1)
        if per_expert:
            self.values = self.values * torch.linspace(0.8, 1.2, experts)[:, None]
        self.problem = MoeProblem(
            experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate, format=FORMAT[dtype],
            io_dtype=str(dtype).removeprefix("torch."), pairing=pairing, bias13=bias, bias2=bias,
            router_weight_on_input=weight_input, combine=combine, routed_scaling_factor=scale,
        )  # fmt: skip
        self.table = None
        if launch is not None:
            entry = {
                "format": FORMAT[dtype], "experts": experts, "top_k": top_k, "hidden": hidden,
                "intermediate": intermediate, "gated": pairing != "none", "tokens": tokens,
                **LAUNCHES[launch],
            }  # fmt: skip
            self.table = LaunchTable.from_json(json.dumps({"device": "test", "entries": [entry]}))

    def on_device(self, tensor):
        if tensor.device.type == self.device:
            return tensor
        # Strides survive the copy.
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device
        ).copy_(tensor)

    def block(self):
        return launcher.Block(self.problem, self.function, torch.device(self.device), self.table)

    def arguments(self):
        on = self.on_device
        weights = {name: on(each) for name, each in self.weights.items()}
        return on(self.x), weights, on(self.topk_weights), on(self.ids), on(self.values)

    def run(self, block=None, arguments=None):
        block = block or self.block()
        x, weights, topk_weights, ids, values = arguments or self.arguments()
        shape = self.x.shape if self.combine else (*self.ids.shape, self.x.shape[1])
        out = torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)
        before, small = launcher.chunking, launcher.routing.SMALL_PAIRS
        launcher.routing.SMALL_PAIRS = self.small
        if self.chunking:
            launcher.chunking = lambda problem, tokens: list(self.chunking)
        try:
            return block.run(x, weights, topk_weights, ids, values, out)
        finally:
            launcher.chunking, launcher.routing.SMALL_PAIRS = before, small

    def expected(self, accumulate=torch.float64, rounded=None):
        """The block token by token; `rounded` where the kernels round, as the recipe does."""
        rounded = rounded or (lambda value: value)
        forward = compiled(self.function)["forward"]
        x, weights = self.x.to(accumulate), {k: v.to(accumulate) for k, v in self.weights.items()}
        slots = torch.zeros(*self.ids.shape, x.shape[1], dtype=accumulate)
        for expert in range(self.problem.experts):
            token, slot = torch.nonzero(self.ids == expert, as_tuple=True)
            weight = self.topk_weights[token, slot, None].to(accumulate)
            inner = x[token] @ weights["w13"][expert].T
            if self.weight_input:
                inner = inner * weight
            if "w13_bias" in weights:
                inner = inner + weights["w13_bias"][expert]
            row = self.values[expert if len(self.values) > 1 else 0].to(accumulate)
            arguments = (inner,) if self.pairing == "none" else split(inner, self.pairing)
            h = rounded(forward(*arguments, *row))
            y = h @ weights["w2"][expert].T
            if "w2_bias" in weights:
                y = y + weights["w2_bias"][expert]
            if self.combine and not self.weight_input:
                y = y * weight
            slots[token, slot] = rounded(y)
        return rounded(self.scale * slots.sum(1)) if self.combine else slots

    def errors(self, result):
        """RMS and largest error over the result's RMS, and the RMS error of the recipe."""
        want = self.expected()
        recipe = self.expected(torch.float32, lambda v: v.to(self.dtype).float()).double()
        got = result.cpu().double()
        size = want.pow(2).mean().sqrt().item() or 1.0
        return {
            "case": self.name,
            "finite": bool(torch.isfinite(got).all()),
            "rms": (got - want).pow(2).mean().sqrt().item() / size,
            "max": ((got - want).abs().max().item() / size) if got.numel() else 0.0,
            "recipe_rms": (recipe - want).pow(2).mean().sqrt().item() / size,
        }


def kernel_cases(device="cpu"):
    """Every kernel and flag, each with three kinds of function."""
    swish, oai, relu2 = activation("swish"), activation("swiglu_oai"), activation("relu2")
    half = torch.float16
    rows = [
        ("vector", swish, {"tokens": 1}),
        ("vector", oai, {"tokens": 2, "bias": True, "scale": 2.5, "pairing": "interleaved", "hidden": 33}),
        ("vector", relu2, {"tokens": 2, "pairing": "none", "weight_input": True, "dtype": half}),
        ("vector", oai, {"tokens": 3, "pairing": "up_first", "bias": True, "per_expert": True}),
        ("vector", swish, {"tokens": 1, "combine": False}),
        ("direct", swish, {"tokens": 9, "pairing": "up_first", "dtype": half, "per_expert": True}),
        ("direct", oai, {"tokens": 7, "pairing": "interleaved", "bias": True, "ids": torch.int64}),
        ("direct", relu2, {"tokens": 12, "pairing": "none", "combine": False, "intermediate": 20}),
        ("sorted", swish, {"tokens": 40, "scale": 0.5, "transposed": True}),
        ("sorted", oai, {"tokens": 17, "top_k": 3, "bias": True, "hidden": 33, "intermediate": 19}),
        ("sorted", relu2, {"tokens": 3, "pairing": "none", "weight_input": True, "experts": 9}),
        ("permuted", swish, {"tokens": 40, "pairing": "up_first"}),
        ("permuted", oai, {"tokens": 21, "bias": True, "ids": torch.int64, "intermediate": 19}),
        ("permuted", relu2, {"tokens": 20, "pairing": "none", "weight_input": True, "dtype": half}),
        ("persistent", swish, {"tokens": 40, "pairing": "up_first", "bias": True}),
        ("persistent", oai, {"tokens": 33, "pairing": "interleaved", "combine": False, "dtype": half}),
        ("persistent", relu2, {"tokens": 40, "pairing": "none", "per_expert": True, "bias": True}),
        # What the model chooses.
        (None, swish, {"tokens": 3}),
        # More pairs than a step of the sort takes; and sorted by three kernels, as very many are.
        ("sorted", swish, {"tokens": 1100, "top_k": 2, "hidden": 16, "intermediate": 16}),
        (
            "sorted",
            swish,
            {"tokens": 1100, "top_k": 1, "hidden": 16, "intermediate": 8, "ids": torch.int64, "small": 1024},
        ),
        # More experts a token than there are experts, and every id on another rank.
        ("direct", oai, {"tokens": 2, "top_k": 32, "experts": 2, "hidden": 16}),
        # Chunks of tokens and slabs of columns.
        ("sorted", oai, {"tokens": 13, "chunking": (5, 16)}),
        ("direct", swish, {"tokens": 3, "chunking": (2, 32), "bias": True}),
    ]
    cases = []
    for launch, act, options in rows:
        text = " ".join(f"{key}={str(value).removeprefix('torch.')}" for key, value in options.items())
        name = f"{launch or 'model'} {act.function.name} {text}"
        cases.append(Case(name, launch, act, device=device, seed=len(cases), **options))
    return cases


def function_cases(device="cpu"):
    """One kernel with every function of the catalogue."""
    cases = []
    for name in ActivationRegistry.list():
        act = activation(name)
        gate = act.function.is_gated
        cases.append(
            Case(
                f"function {name}",
                "direct",
                act,
                tokens=4,
                hidden=32,
                intermediate=16,
                experts=2,
                pairing="concat" if gate else "none",
                dtype=torch.float16,
                device=device,
                seed=len(cases),
            )
        )
    return cases


def forward_report(device="cpu", tokens=9, hidden=32, experts=4, inner=24, dtype=torch.bfloat16):
    """triton_moe_forward with the arguments of reference_moe_forward, against the block written out."""
    from flexact.triton import triton_moe_forward

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    router = torch.randn(hidden, experts, generator=generator) / hidden**0.5
    up = (torch.randn(experts, hidden, inner, generator=generator) / hidden**0.5).to(dtype)
    down = (torch.randn(experts, inner, hidden, generator=generator) / inner**0.5).to(dtype)
    on = [each.to(device) for each in (x, router, up, down)]
    got = triton_moe_forward(*on, activation_type=1, activation_params=[1.5]).cpu().double()
    # On the device, as the kernels' router is: a tie decided otherwise would be another block.
    weights, chosen = torch.softmax(on[0].float() @ on[1].float(), -1).topk(2, -1)
    weights, chosen = (weights / weights.sum(-1, keepdim=True)).cpu().double(), chosen.cpu()
    want = torch.zeros_like(got)
    for expert in range(experts):
        token, slot = torch.nonzero(chosen == expert, as_tuple=True)
        inner_rows = x[token].double() @ up[expert].double()
        rows = (inner_rows * torch.sigmoid(1.5 * inner_rows)) @ down[expert].double()
        want.index_add_(0, token, weights[token, slot, None] * rows)
    size = want.pow(2).mean().sqrt().item()
    return {
        "case": "triton_moe_forward", "finite": bool(torch.isfinite(got).all()),
        "rms": (got - want).pow(2).mean().sqrt().item() / size, "max": (got - want).abs().max().item() / size,
        "recipe_rms": 2.6e-3,
    }  # fmt: skip


def dense_error(rows, width, pairing, dtype, device="cpu"):
    """How far act_and_mul of random rows is beyond one rounding of fp64's result; every bit of memory past
    the rows' ends must stay.
    """
    from flexact.triton import dense

    act = activation("swish")
    function = act.function if pairing == "none" else act.function.gated()
    values = torch.tensor(act.values(0, (0, 1)), dtype=torch.float32, device=device)
    generator = torch.Generator().manual_seed(rows + width)
    columns = width * (1 if pairing == "none" else 2)
    # Rows of both lie further apart than they are long.
    x = torch.randn(rows, columns + 8, generator=generator).to(dtype).to(device)[:, :columns]
    memory = torch.full((rows, width + 8), float("nan"), dtype=dtype, device=device)
    got = dense.run(function, values, pairing, x, memory[:, :width])
    parts = (x,) if pairing == "none" else split(x, pairing)
    want = compiled(function)["forward"](*(part.double() for part in parts), *values[0].double())
    relative = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 4e-6}[dtype]
    error = ((got.double() - want).abs() - relative * want.abs()).max().item()
    return error if bool(memory[:, width:].isnan().all()) else float("inf")


def dense_reports():
    sizes = itertools.cycle([(3, 40), (1, 1000), (70, 24), (5, 256)])
    for pairing, dtype in itertools.product(
        ("concat", "up_first", "interleaved", "none"), (torch.bfloat16, torch.float16, torch.float32)
    ):
        rows, width = next(sizes)
        error = dense_error(rows, width, pairing, dtype)
        yield {"dense": f"{pairing} {rows} x {width}", "dtype": str(dtype), "error": error}


def tuning_reports():
    """Tuning's choice of launches on a CPU by a clock that runs backwards: the last candidate is the best."""
    from flexact.triton import tune
    from flexact.triton.shapes import Shape

    class Few:
        """The first and the last candidate of each list."""

        def __init__(self, made):
            self.made = made

        def __call__(self, *arguments):
            tiles = self.made(*arguments)
            return [tiles[0], tiles[-1]]

    empty = torch.empty

    def poisoned(*size, **options):
        """Memory of numbers that show wherever they are compared, others each time."""
        made = empty(*size, **options)
        large = made.dtype in (torch.float32, torch.bfloat16)
        return made.copy_(1e30 * torch.randn(made.shape)) if large else made

    torch.empty = poisoned
    tune.candidates, tune.vector_candidates = Few(tune.candidates), Few(tune.vector_candidates)
    clock = itertools.count(1e6, -1)
    subjects = [
        (Shape(3, 2, 64, 80, True), 1, "bf16"),
        (Shape(2, 1, 64, 64, False), 200, "bf16"),
        (Shape(3, 2, 64, 64, True), 1, "mxfp4"),
        (Shape(2, 1, 128, 128, True), 1, "fp8_block"),
    ]
    for shape, tokens, format in subjects:
        bench, log = tune.Bench(shape, format, "cpu"), []
        entry = tune.measure(bench, tokens, lambda run, best: (next(clock), run()), log.append)
        yield {"tuned": entry, "log": log}
    torch.empty = empty
    # One candidate that computes something else.
    log, answers = [], iter([torch.ones(4), 2 * torch.ones(4), torch.ones(4)])
    tiles = [{"n": 0}, {"n": 1}, {"n": 2}]
    timer = lambda run, best: (next(clock), run())  # noqa: E731
    chosen = tune._fastest(timer, tiles, lambda _: next(answers), log.append)[1]
    yield {"odd_one": log, "chosen": chosen}


def main():
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter multiplies rows that nobody keeps
    device = sys.argv[1]
    print(json.dumps(forward_report(device)), flush=True)
    if device == "cpu":
        for report in itertools.chain(dense_reports(), tuning_reports()):
            print(json.dumps(report), flush=True)
    kernels = kernel_cases(device)
    for case in kernels[:FIRST]:
        print(json.dumps(case.errors(case.run())), flush=True)
    stop()
    for case in kernels[FIRST:] + function_cases(device):
        print(json.dumps(case.errors(case.run())), flush=True)


if __name__ == "__main__":
    main()
