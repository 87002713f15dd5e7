"""Counts what an element of each catalogue function costs on a Hopper GPU, from its machine code.

    python scripts/count_instructions.py [--target triton|cuda|both] [--function NAME …] [--json FILE]

The printed function is compiled for sm_90 in a kernel that applies it to 16 gated pairs a thread (unary
functions are lifted to f(g)*u, as a gated layer runs them); a kernel whose function is g*u is taken off,
and what is left is divided by 16. No GPU is needed. `special` counts what the special function unit
computes (exponentials, reciprocals, roots), `other` the rest. That unit takes a warp's instruction every 8
cycles, the others take one a cycle, and both run at once: `cycles` = max(8 special, special + other).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))

from flexact import ActivationRegistry

ELEMENTS = 16
# Functions that the others are measured against: what is left of them is nothing.
BASE = "bilinear"
LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
IGNORED = ("NOP", "BRA", "EXIT", "RET", "BSYNC", "BSSY", "WARPSYNC", "LDC", "ULDC", "S2R", "S2UR")

TRITON_KERNEL = """

@triton.jit
def kernel(g_ptr, u_ptr, y_ptr, p_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, flexact_act(tl.load(g_ptr + at), tl.load(u_ptr + at){parameters}))
"""

CUDA_KERNEL = """
__global__ void kernel_{name}(const float4* g, const float4* u, float4* y, const float* p) {{
  float4 a[4], b[4], r[4];
  const int at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  for (int i = 0; i < 4; ++i) a[i] = g[at + i], b[i] = u[at + i];
  const float* gs = &a[0].x;
  const float* us = &b[0].x;
  float* ys = &r[0].x;
  for (int i = 0; i < 16; i += 2) f_{name}::flexact_act2(gs + i, us + i, p, ys + i);
  for (int i = 0; i < 4; ++i) y[at + i] = r[i];
}}
"""


def counts(sass):
    """(special, other) instructions of a kernel's machine code."""
    names = [name for name in LINE.findall(sass) if not name.startswith(IGNORED)]
    special = sum(name.startswith("MUFU") for name in names)
    return special, len(names) - special


def disassemble(tool, cubin):
    """{kernel: text} of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : (\S+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def triton_counts(functions):
    """{name: (special, other)} of the printed Triton functions, 16 elements a thread."""
    import importlib.util

    import triton
    from flexact.triton.ahead import compile_for
    from triton.runtime.driver import driver
    from triton_compile import TOOLS

    compile_for(90)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, function in functions.items():
            loads = "".join(f", tl.load(p_ptr + {i})" for i in range(len(function.parameters)))
            path = Path(folder) / f"count_{name}.py"
            path.write_text(function.emit("triton") + TRITON_KERNEL.format(parameters=loads))
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            source = triton.compiler.ASTSource(
                module.kernel,
                signature=dict.fromkeys(("g_ptr", "u_ptr", "y_ptr", "p_ptr"), "*fp32"),
                constexprs={"BLOCK": 32 * ELEMENTS},
                attrs={(i,): [["tt.divisibility", 16]] for i in range(4)},
            )
            kernel = triton.compile(
                source, target=driver.active.get_current_target(), options={"num_warps": 1}
            )
            (text,) = disassemble(TOOLS / "cuobjdump", kernel.asm["cubin"]).values()
            found[name] = counts(text)
    return found


def cuda_counts(functions):
    """{name: (special, other)} of the printed CUDA functions."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("count_instructions: nvcc is not on PATH; --target triton needs none")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "all.cu", Path(folder) / "all.cubin"
        # As for layers in bf16, FP8 and FP4.
        text = "#define FLEXACT_BF16\n#define FLEXACT_ACT static __device__ __forceinline__\n"
        for name, function in functions.items():
            text += f"namespace f_{name} {{\n{function.emit('cuda')}\n}}\n" + CUDA_KERNEL.format(name=name)
        source.write_text(text)
        subprocess.run([nvcc, "-arch=sm_90a", "-cubin", "-o", cubin, source], check=True)
        tool = shutil.which("cuobjdump")
        if tool is None:
            from triton_compile import TOOLS as tools

            tool = tools / "cuobjdump"
        texts = disassemble(tool, cubin.read_bytes())
    found = {}
    for name in functions:
        (text,) = (text for kernel, text in texts.items() if f"kernel_{name}PK" in kernel)
        found[name] = counts(text)
    return found


def table(names, target):
    """{name: {special, other, cycles}} an element."""
    functions = {
        name: ActivationRegistry.get_function(name).gated() for name in dict.fromkeys([BASE, *names])
    }
    found = (triton_counts if target == "triton" else cuda_counts)(functions)
    base = found[BASE]
    rows = {}
    for name in names:
        special, other = ((each - less) / ELEMENTS for each, less in zip(found[name], base, strict=True))
        rows[name] = {
            "special": round(special, 2), "other": round(other, 2),
            "cycles": round(max(8 * special, special + other), 1),
        }  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", choices=["triton", "cuda", "both"], default="both")
    parser.add_argument("--function", action="append", help="default: the whole catalogue")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.function or ActivationRegistry.list()
    targets = ["triton", "cuda"] if options.target == "both" else [options.target]
    tables = {target: table(names, target) for target in targets}
    print(f"{'function':<22}" + "".join(f"{t:>10}: special  other cycles" for t in targets))
    for name in names:
        cells = (tables[t][name] for t in targets)
        print(
            f"{name:<22}"
            + "".join(f"{'':>10}  {c['special']:>7} {c['other']:>6} {c['cycles']:>6}" for c in cells)
        )
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
