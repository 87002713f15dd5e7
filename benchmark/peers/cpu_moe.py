"""The MoE block of flexact beside other implementations on one CPU thread, in one interleaved run.

    python benchmark/peers/cpu_moe.py [--rounds 7] [--kt-kernel FOLDER] [--busy-ok] [--out FILE]

Each implementation keeps three layers of bfloat16 weights and takes the next one at every call, so that
weights come from memory. All compute on one fixed processor with the same tokens and routing; routing
itself is not measured. A round runs every implementation at every number of tokens, starting with
another one each time, and the machine's limits (bench_limits, built with the C++ benchmarks); medians
are over the rounds.

    flexact      plan(...).run
    kt_kernel    AMXBF16_MOE's AVX512-BF16 code; its worker has the processor, the calling thread another
    grouped_mm   tokens sorted, two torch.nn.functional.grouped_mm, silu(g)*u (or relu2) by torch
    loop         one pair of linear() for each expert that was hit, as transformers' eager experts

kt_kernel: pip install --no-deps --target build/peers kt-kernel==0.7.2. What an implementation does not
have is recorded as not supported.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path

# Large pages for torch's weights as well; read when torch allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import flexact
import machine
from flexact.moe import plan

LAYERS = 3
TOKENS = (1, 4, 16, 32, 64, 128, 512)
# Qwen3-30B-A3B; a quarter of Mixtral 8x7B as one of four ranks has it; half of Nemotron 3 Nano's experts.
SHAPES = {
    "qwen3_30b": {"experts": 128, "hidden": 2048, "intermediate": 768, "top_k": 8, "function": "swiglu"},
    "mixtral_8x7b": {"experts": 8, "hidden": 4096, "intermediate": 3584, "top_k": 2, "function": "swiglu"},
    "relu2": {"experts": 64, "hidden": 2688, "intermediate": 1856, "top_k": 6, "function": "relu2"},
}


class NotSupported(Exception):
    """This implementation has no such block."""


def random_weights(*shape: int) -> torch.Tensor:
    """Bfloat16 values of a linear layer; a block of noise repeated, since filling gigabytes is slow."""
    noise = torch.empty(1 << 24, dtype=torch.bfloat16).normal_(0, shape[-1] ** -0.5)
    flat = torch.empty(shape, dtype=torch.bfloat16).view(-1)
    for begin in range(0, flat.numel(), noise.numel()):
        part = flat[begin : begin + noise.numel()]
        part.copy_(noise[: part.numel()])
    return flat.view(shape)


class Implementation:
    """Layers of one implementation. `clock` counts seconds of the thread that computes."""

    def __init__(self, shape: dict, w13: torch.Tensor, w2: torch.Tensor) -> None:
        self.shape = shape

    processor = 0  # where the computing thread stays

    def clock(self) -> float:
        return time.thread_time()

    def begin(self) -> None:
        """Before its calls: takes the processor."""
        os.sched_setaffinity(0, {self.processor})

    def end(self) -> None:
        """After its calls: leaves the processor to the next one."""

    def run(self, layer: int, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """x [M, H] bf16, weights [M, k] fp32, ids [M, k] int64 → [M, H] bf16."""
        raise NotImplementedError


class Flexact(Implementation):
    def __init__(self, shape: dict, w13: torch.Tensor, w2: torch.Tensor) -> None:
        super().__init__(shape, w13, w2)
        function = flexact.Function.named(shape["function"])
        pairing = "concat" if function.is_gated else "none"
        self.plans = [
            plan(w13, w2, function, top_k=shape["top_k"], pairing=pairing, backend="cpu")
            for _ in range(LAYERS)
        ]
        self.version = f"{flexact.__version__}: {self.plans[0].describe()}"

    def run(self, layer, x, weights, ids):
        return self.plans[layer].run(x, weights, ids)


class Torch(Implementation):
    def __init__(self, shape: dict, w13: torch.Tensor, w2: torch.Tensor) -> None:
        super().__init__(shape, w13, w2)
        # One set of weights serves both ways to use torch; the first layer is the caller's own.
        self.layers = shape.setdefault(
            "torch layers", [(w13, w2)] + [(w13.clone(), w2.clone()) for _ in range(LAYERS - 1)]
        )
        self.version = torch.__version__

    def activation(self, rows: torch.Tensor) -> torch.Tensor:
        if self.shape["function"] == "relu2":
            return torch.square(F.relu(rows))
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate) * up


class GroupedMm(Torch):
    def run(self, layer, x, weights, ids):
        w13, w2 = self.layers[layer]
        top_k = ids.shape[1]
        order = ids.flatten().argsort(stable=True)
        offsets = ids.flatten().bincount(minlength=len(w13)).cumsum(0).to(torch.int32)
        rows = F.grouped_mm(x[order // top_k], w13.transpose(1, 2), offs=offsets)
        rows = F.grouped_mm(self.activation(rows), w2.transpose(1, 2), offs=offsets)
        out = torch.empty_like(rows)
        out[order] = rows
        return (out.view(len(x), top_k, -1) * weights[..., None].to(x.dtype)).sum(dim=1)


class Loop(Torch):
    def run(self, layer, x, weights, ids):
        w13, w2 = self.layers[layer]
        out = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            rows = F.linear(self.activation(F.linear(x[token], w13[expert])), w2[expert])
            out.index_add_(0, token, rows * weights[token, slot, None].to(x.dtype))
        return out


class KtKernel(Implementation):
    """Its pool of one worker, fixed to our processor; while it works, the caller waits on another."""

    infer = None
    worker = 0

    def __init__(self, shape: dict, w13: torch.Tensor, w2: torch.Tensor) -> None:
        super().__init__(shape, w13, w2)
        if shape["function"] != "swiglu":
            raise NotSupported("gated experts with silu only")
        try:
            import kt_kernel
        except ImportError as error:
            raise NotSupported(f"not installed: {error}") from None
        from importlib.metadata import version

        self.version = f"{version('kt-kernel')}, variant {kt_kernel.__cpu_variant__}"
        self.extension = kt_kernel.kt_kernel_ext
        if KtKernel.infer is None:
            before = set(os.listdir("/proc/self/task"))
            KtKernel.infer = self.extension.CPUInfer(1)
            time.sleep(0.2)
            for task in sorted(set(os.listdir("/proc/self/task")) - before):
                name = Path(f"/proc/self/task/{task}/comm").read_text().strip()
                if name.startswith("numa"):
                    KtKernel.worker = int(task)
                else:
                    os.sched_setaffinity(int(task), self.elsewhere())
        self.begin()
        intermediate = shape["intermediate"]
        gate, up = (w13[:, i * intermediate : (i + 1) * intermediate].contiguous() for i in (0, 1))
        mapping = torch.arange(shape["experts"])
        self.layers = []
        for _ in range(LAYERS):
            config = self.extension.moe.MOEConfig(
                shape["experts"], shape["top_k"], shape["hidden"], intermediate, 0
            )
            config.max_len = max(TOKENS)
            config.gate_proj, config.up_proj = gate.data_ptr(), up.data_ptr()
            config.down_proj = w2.data_ptr()
            config.gate_scale = config.up_scale = config.down_scale = 0
            config.pool = self.infer.backend_
            layer = self.extension.moe.AMXBF16_MOE(config)
            self.infer.submit(layer.load_weights_task(mapping.data_ptr()))
            self.infer.sync()
            self.layers.append(layer)
        self.end()

    def begin(self) -> None:
        os.sched_setaffinity(0, self.elsewhere())
        os.sched_setaffinity(self.worker, {self.processor})

    def end(self) -> None:
        # It looks for work for a while before it sleeps, which must not take time from the others.
        os.sched_setaffinity(self.worker, self.elsewhere())
        os.sched_setaffinity(0, {self.processor})

    @classmethod
    def elsewhere(cls) -> set[int]:
        return set(range(os.cpu_count() or 1)) - {cls.processor} or {cls.processor}

    def clock(self) -> float:
        return int(Path(f"/proc/self/task/{self.worker}/schedstat").read_text().split()[0]) * 1e-9

    def run(self, layer, x, weights, ids):
        out = torch.empty_like(x)
        count = torch.tensor([len(x)], dtype=torch.int32)
        self.infer.submit(
            self.layers[layer].forward_task(
                count.data_ptr(), ids.shape[1], ids.data_ptr(), weights.data_ptr(), x.data_ptr(),
                out.data_ptr(), False,
            )
        )  # fmt: skip
        self.infer.sync()
        return out


IMPLEMENTATIONS = {"flexact": Flexact, "kt_kernel": KtKernel, "grouped_mm": GroupedMm, "loop": Loop}


class Limits:
    """The machine's multiply-adds and reads, by the C++ benchmarks' own loops."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.flexact_peak_gflops.restype = ctypes.c_double
        self._library.flexact_read_gbs.restype = ctypes.c_double
        self.gflops: list[float] = []
        self.read_gbs: list[float] = []

    def measure(self) -> None:
        self.gflops.append(self._library.flexact_peak_gflops())
        self.read_gbs.append(self._library.flexact_read_gbs())


def inputs(shape: dict, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, router weights and ids of `count` tokens."""
    x = torch.randn(count, shape["hidden"], dtype=torch.bfloat16)
    ids = torch.rand(count, shape["experts"]).topk(shape["top_k"]).indices.contiguous()
    weights = torch.rand(count, shape["top_k"])
    return x, weights / weights.sum(dim=1, keepdim=True), ids


def check_agreement(subjects: dict[str, Implementation], shape: dict) -> dict[str, float]:
    """The largest difference of each from float32 arithmetic on the same weights, relative."""
    x, weights, ids = inputs(shape, 8)
    w13, w2 = shape["torch layers"][0]
    exact = torch.zeros(len(x), shape["hidden"])
    torch_layer = subjects["loop"]
    for expert in ids.unique().tolist():
        token, slot = torch.where(ids == expert)
        rows = torch_layer.activation(F.linear(x[token].float(), w13[expert].float()))
        exact.index_add_(0, token, F.linear(rows, w2[expert].float()) * weights[token, slot, None])
    errors = {}
    for name, subject in subjects.items():
        error = (subject.run(0, x, weights, ids).float() - exact).abs().max() / exact.abs().max()
        errors[name] = float(error)
        if not error < 0.03:
            sys.exit(f"{name} computes something else: relative error {error:.3f}")
    return errors


def measure(name: str, options: argparse.Namespace, limits: Limits) -> dict:
    """All implementations on one shape."""
    shape = dict(SHAPES[name])
    rows = shape["intermediate"] * (1 if shape["function"] == "relu2" else 2)
    w13 = random_weights(shape["experts"], rows, shape["hidden"])
    w2 = random_weights(shape["experts"], shape["hidden"], shape["intermediate"])
    subjects: dict[str, Implementation] = {}
    missing = {}
    for key, kind in IMPLEMENTATIONS.items():
        try:
            subjects[key] = kind(shape, w13, w2)
        except NotSupported as reason:
            missing[key] = str(reason)
    agreement = check_agreement(subjects, shape)

    names = list(subjects)
    times: dict[str, dict[int, list[float]]] = {key: {t: [] for t in TOKENS} for key in names}
    hit: dict[int, list[int]] = {t: [] for t in TOKENS}
    layer = 0
    for round_number in range(-1, options.rounds):  # the first one warms up
        if round_number >= 0:
            limits.measure()
        for count in TOKENS:
            calls = [inputs(shape, count) for _ in range(7 if count == 1 else 3 if count <= 32 else 1)]
            if round_number >= 0:
                hit[count] += [int(ids.unique().numel()) for _, _, ids in calls]
            for key in names[round_number % len(names) :] + names[: round_number % len(names)]:
                subject = subjects[key]
                subject.begin()
                clock = subject.clock if options.clock == "processor" else time.perf_counter
                taken = []
                for x, weights, ids in calls:
                    layer += 1
                    begin = clock()
                    subject.run(layer % LAYERS, x, weights, ids)
                    taken.append((clock() - begin) * 1e3)
                subject.end()
                if round_number >= 0:
                    times[key][count].append(statistics.median(taken))

    expert_bytes = 2 * (rows + shape["intermediate"]) * shape["hidden"]
    result = {key: shape[key] for key in ("function", "experts", "hidden", "intermediate", "top_k")}
    result |= {"layers": LAYERS, "relative_error": agreement, "not_supported": missing, "tokens": {}}
    result["versions"] = {key: subject.version for key, subject in subjects.items()}
    for count in TOKENS:
        result["tokens"][str(count)] = {
            "operations": count * shape["top_k"] * expert_bytes,
            "bytes": statistics.median(hit[count]) * expert_bytes,
            "milliseconds": {
                key: {
                    "median": statistics.median(times[key][count]),
                    "fastest": min(times[key][count]),
                    "slowest": max(times[key][count]),
                }
                for key in names
            },
        }
        medians = {key: statistics.median(times[key][count]) for key in names}
        print(f"{name:13} T {count:4} " + "".join(f" {key} {ms:9.3f}" for key, ms in medians.items()))
    return result


def main() -> None:
    """Measures all shapes and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--processor", type=int, default=1)
    parser.add_argument("--kt-kernel", type=Path, default=machine.ROOT / "build/peers")
    parser.add_argument(
        "--limits", type=Path, default=machine.ROOT / "build/developer/benchmark/libbench_limits.so"
    )
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--busy-ok", action="store_true")
    parser.add_argument("--out", type=Path, default=machine.ROOT / "benchmark/results/cpu_moe_peers.json")
    options = parser.parse_args()
    machine.require_idle(options.busy_ok)
    watch = machine.Watch()
    os.environ["FLEXACT_NUM_THREADS"] = "1"
    sys.path.append(str(options.kt_kernel))  # at the end: it brings other packages along
    Implementation.processor = options.processor
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.sched_setaffinity(0, {options.processor})

    limits = Limits(options.limits)
    shapes = {}
    with torch.inference_mode():
        for name in options.shape or SHAPES:
            shapes[name] = measure(name, options, limits)
            gc.collect()
    result = {
        "benchmark": "cpu_moe_peers",
        **watch.facts(),
        "command": "python benchmark/peers/cpu_moe.py",
        "threads": 1,
        "clock": options.clock,
        "rounds": options.rounds,
        "peak_gflops": {"best": max(limits.gflops), "slowest": min(limits.gflops)},
        "read_gbs": {"best": max(limits.read_gbs), "slowest": min(limits.read_gbs)},
        "shapes": shapes,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
