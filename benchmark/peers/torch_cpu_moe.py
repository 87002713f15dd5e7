"""Torch's ways to compute a SwiGLU MoE block on one CPU thread, as bench_cpu_moe measures flexact's.

    python benchmark/peers/torch_cpu_moe.py [--tokens 1,4,16,128,512] [--rounds 5] [--out FILE]

The shape is Qwen3-30B-A3B's (E 128, H 2048, I 768, k 8) in bfloat16, three layers in turn so that the
weights come from memory. `grouped_mm` sorts the tokens and calls `torch.nn.functional.grouped_mm` twice;
`loop` goes through the experts that were hit, as transformers' eager experts do. Both use
`silu(g) * u` as two torch operations. Times are the calling thread's processor time in milliseconds.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE, LAYERS = 128, 8, 2048, 768, 3


def grouped_mm(x, w13, w2, ids, weights):
    """Sort by expert, two grouped GEMMs, weighted sum. x [M, H] → [M, H], bfloat16."""
    order = ids.flatten().argsort(stable=True)
    offsets = ids.flatten().bincount(minlength=EXPERTS).cumsum(0).to(torch.int32)
    rows = x[order // TOP_K]
    gate, up = F.grouped_mm(rows, w13.transpose(1, 2), offs=offsets).chunk(2, dim=-1)
    down = F.grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=offsets)
    out = torch.zeros_like(down)
    out[order] = down
    return (out.view(len(x), TOP_K, HIDDEN) * weights[..., None]).sum(dim=1)


def loop(x, w13, w2, ids, weights):
    """One pair of GEMMs for each expert that was hit. x [M, H] → [M, H], bfloat16."""
    out = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, slot = torch.where(ids == expert)
        gate, up = F.linear(x[token], w13[expert]).chunk(2, dim=-1)
        down = F.linear(F.silu(gate) * up, w2[expert]) * weights[token, slot, None]
        out.index_add_(0, token, down)
    return out


def processor_name() -> str:
    """The processor's name, as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main() -> None:
    """Measures both and prints or writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", default="1,4,16,64,128,512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    torch.manual_seed(0)

    tokens = [int(t) for t in arguments.tokens.split(",")]
    w13 = [
        torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=torch.bfloat16).mul_(0.03) for _ in range(LAYERS)
    ]
    w2 = [torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, dtype=torch.bfloat16).mul_(0.03) for _ in range(LAYERS)]
    times: dict[str, dict[int, list[float]]] = {
        f.__name__: {t: [] for t in tokens} for f in (grouped_mm, loop)
    }
    layer = 0
    with torch.inference_mode():
        for round_number in range(arguments.rounds + 1):
            for count in tokens:
                x = torch.randn(count, HIDDEN, dtype=torch.bfloat16)
                ids = torch.rand(count, EXPERTS).topk(TOP_K).indices
                weights = torch.full((count, TOP_K), 1 / TOP_K, dtype=torch.bfloat16)
                for function in (grouped_mm, loop):
                    layer += 1
                    begin = time.thread_time()
                    function(x, w13[layer % LAYERS], w2[layer % LAYERS], ids, weights)
                    if round_number > 0:
                        times[function.__name__][count].append((time.thread_time() - begin) * 1e3)
    result = {
        "benchmark": "torch_cpu_moe",
        "processor": processor_name(),
        "torch": torch.__version__,
        "threads": 1,
        "clock": "processor time",
        "shape": {"experts": EXPERTS, "top_k": TOP_K, "hidden": HIDDEN, "intermediate": INTERMEDIATE},
        "milliseconds": {
            name: {
                str(t): {"median": statistics.median(v), "fastest": min(v), "slowest": max(v)}
                for t, v in rows.items()
            }
            for name, rows in times.items()
        },
    }
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
