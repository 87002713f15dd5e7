"""Compiles the launches that the policy chooses for a GPU that is not there, and reports what they take.

`python triton_compile.py ARCH [all | bf16 | narrow]` (90 for Hopper) prints one JSON object a line and
kernel: registers, bytes of stack, shared memory; with "all" for small calls of every quantised format too,
with "bf16" for every kernel of that format instead, with "narrow" for tiles of two warps. The kernels are
reached through `Block.run`, with launches that only compile.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from flexact import ActivationRegistry, formats, testing
from flexact._core import LaunchTable, MoeProblem
from flexact.triton.ahead import compile_for, only_compiling
from flexact.triton.moe import Block

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def usage(kernel):
    """(registers, bytes of stack) of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(match[1]), int(match[2])


def waits_first(kernel):
    """Whether a kernel is started early, and touches no memory before its predecessor has ended."""
    ptx = kernel.asm["ptx"]
    first = re.search(r"(ld|st|atom|red|cp\.async[\w.]*)[\w.:]*\.global|cp\.async\.bulk", ptx)
    return kernel.metadata.launch_pdl and 0 < ptx.find("griddepcontrol.wait") < first.start()


def compiled(
    format, tokens, *, pairing="concat", hidden=2048, intermediate=768, experts=8, top_k=2, launch=None
):
    """The kernels that a call of `tokens` tokens would launch, by name; `launch` in the policy's place."""
    case = testing.random_case(
        format, tokens=1, experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate,
        pairing=pairing,
    )  # fmt: skip
    function = ActivationRegistry.get_activation("silu").function
    problem = MoeProblem(
        experts=experts, top_k=top_k, hidden=hidden, intermediate=intermediate, format=format, pairing=pairing
    )  # fmt: skip
    table = None
    if launch:
        layer = {"format": format, "experts": experts, "top_k": top_k, "tokens": tokens, "hidden": hidden}
        entry = {**layer, "intermediate": intermediate, "gated": pairing != "none", **launch}
        table = LaunchTable.from_json(json.dumps({"device": "none", "entries": [entry]}))
    block = Block(problem, function if pairing == "none" else function.gated(), torch.device("cpu"), table)
    with only_compiling() as kernels:
        block.run(
            case.hidden_states.expand(tokens, hidden).contiguous(), dict(case.weights),
            case.topk_weights.expand(tokens, top_k), case.topk_ids.expand(tokens, top_k),
            torch.zeros(1, 0), torch.empty(tokens, hidden, dtype=torch.bfloat16),
        )  # fmt: skip
    for name, kernel in kernels.items():
        assert waits_first(kernel), name
    return kernels


def half_precision(arch):
    """Every kernel of bf16: a handful of tokens, few pairs, many pairs."""
    for tokens in (1, 100, 8192) if arch == 90 else (8192,):
        for name, kernel in compiled("bf16", tokens, intermediate=1536, top_k=8).items():
            registers, stack = usage(kernel)
            report = {
                "format": "bf16", "kernel": name, "tokens": tokens, "registers": registers, "stack": stack,
                "shared": kernel.metadata.shared, "arch": arch, "wgmma": "wgmma" in kernel.asm["ptx"],
                "wide": kernel.asm["ptx"].count("ld.global.v4") + kernel.asm["ptx"].count("ld.global.v8"),
            }  # fmt: skip
            print(json.dumps(report), flush=True)


def narrow():
    """Tiles of two warps, with FP4 weights: what they must not contain."""
    tile = {"block_m": 16, "block_k": 128, "group_m": 1, "warps": 2, "stages": 4}
    launch = {"direct": True, "gate_up": {**tile, "block_n": 32}, "down": {**tile, "block_n": 64}}
    for name, kernel in compiled("mxfp4", 16, hidden=1024, intermediate=512, launch=launch).items():
        if name in ("gate_up", "down"):
            ptx = kernel.asm["ptx"]
            print(json.dumps({
                "kernel": name, "stack": usage(kernel)[1], "fences": ptx.count("fence.proxy.async"),
                "copies": ptx.count("cp.async.cg.shared.global"), "mma": "mma.sync" in ptx,
            }), flush=True)  # fmt: skip


def main():
    arch = int(sys.argv[1])
    compile_for(arch)
    if "narrow" in sys.argv:
        narrow()
        return
    if "bf16" in sys.argv:
        half_precision(arch)
        return
    # To the compiler fp8_channel and nvfp4 are fp8_tensor and mxfp4 but for the loads of scales.
    few = ("fp8_block", "fp8_tensor", "mxfp4", "mxfp4_fp8")
    for format in (*formats.FP8_FORMATS, *formats.FP4_FORMATS) if "all" in sys.argv else few:
        # A handful of tokens and many: the smallest and the largest tiles.
        # 256 are of those whose second GEMM has tiles of fewer rows, where a tensor has one scale.
        many = 256 if format == "fp8_tensor" else 2048
        for tokens in (4, many) if format == "fp8_block" or "all" in sys.argv else (many,):
            for name, kernel in compiled(format, tokens).items():
                if name not in ("gate_up", "down"):
                    continue
                registers, stack = usage(kernel)
                ptx = kernel.asm["ptx"]
                report = {
                    "format": format, "kernel": name, "tokens": tokens, "registers": registers,
                    "stack": stack, "shared": kernel.metadata.shared,
                    # FP4 weights are the first operand, of at least 64 rows.
                    "tensor_core": "wgmma" in ptx if tokens > 64 or "fp4" in format else "mma.sync" in ptx,
                    "from_registers": len(re.findall(r"wgmma\.mma_async[^;]*?\}\s*,\s*\{", ptx)),
                    "stores_to_shared": len(re.findall(r"st\.shared|stmatrix", ptx)),
                }  # fmt: skip
                print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
