"""Emitted source text, run by its own compilers, against the fp64 reference."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tool import catalogue, output, reference, sample_parameters

CATALOGUE = {entry["name"]: entry for entry in catalogue()}

# Operations and corners that no row of the catalogue has.
EXPRESSIONS = {
    "powers": "x^3+x^-2+x^16+2^x+e^-x+x^0.5+x^-0.5",
    "division": "x/(1+abs(x))+1/x",
    "steps": "floor(x)*sign(x)+3*sign(x)+max(x,0.5)-min(x,-0.5)",
    "logarithms": "log(abs(x)+1)+log1p(abs(x))+exp2(-abs(x))+rsqrt(1+x^2)+3^-abs(x)",
    "conditions": "where(x>=1,x,where(x!=x,7,where(x<=-1,-x,where(x==0,5,where(x<0,1,2)))))",
    "sharing": "t = tanh(x*k); s = t*t+t; s*s/(1+s)",
    "gated_parts": "a*clamp(g,-b,b)*expm1(-abs(u))+gelu(u)-gelu_tanh(g)+erf(g*u)",
    "gates": "x*tanh(k*x)*sigmoid(x)*tanh(x/2)",
    "gates_apart": "t = tanh(x); s = sigmoid(x); t*s+s*sigmoid(k*x)+x/(1+k)",
    "normal": "x*(1+erf(k*x))+erf(x)",
    "constant": "where(1>0,3,x)",
    "parameter": "where(1>0,k,x)",
    "limits": "clamp(x,k,3)+clamp(x,-2,k)+clamp(x,-1,1)",
}


# Functions that are not 0 where x is small beside the terms that cancel in them.
NEAR_ZERO = ("tanh", "silu", "gelu", "gelu_tanh", "elu", "mish", "softplus")


def all_cases() -> list[str]:
    """Every function; of them those in FLEXACT_PRINTED_CASES, a JSON list, where that is set."""
    every = [
        *CATALOGUE,
        *(f"{name}+gated" for name, e in CATALOGUE.items() if e["arity"] == "unary"),
        *EXPRESSIONS,
    ]
    chosen = os.environ.get("FLEXACT_PRINTED_CASES")
    return every if chosen is None else [key for key in every if key in json.loads(chosen)]


class Case:
    """One function: how to name it to the command, its parameters and whether it is gated."""

    def __init__(self, key: str):
        name, _, lifted = key.partition("+")
        text = EXPRESSIONS.get(name, None if name in CATALOGUE else key)
        if text is not None:
            lifted = ""
            self.what = ["--expr", text]
            listing = output("emit", *self.what, "--target", "text")
            head = listing.split("): ")[0]
            self.gated = head.startswith("gated(")
            names = [n for n in head.split("(")[1].split(",") if n]
            self.parameters = {n: 0.75 + 0.5 * i for i, n in enumerate(names)}
        else:
            self.what = [name]
            self.gated = bool(lifted) or CATALOGUE[name]["arity"] == "gated"
            self.parameters = sample_parameters(CATALOGUE[name])
        self.options = ["--gated"] if lifted else []
        self.identifier = re.sub(r"\W", "_", key)

    def emit(self, target: str) -> str:
        return output("emit", *self.what, *self.options, "--target", target)

    def reference(self, g: np.ndarray, u: np.ndarray) -> np.ndarray:
        return reference(self.what, self.parameters, **({"g": g, "u": u} if self.gated else {"x": g}))


def bf16_values(step: int) -> np.ndarray:
    """Every `step`-th bfloat16 bit pattern, as float32: subnormals, infinities and NaN among them."""
    bits = np.arange(0, 1 << 16, step, dtype=np.uint32)
    special = np.array(
        [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x8001, 0x7F7F, 0xFF7F], dtype=np.uint32
    )
    return (np.concatenate([special, bits]) << 16).view(np.float32)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    g = bf16_values(61)
    # No infinite u: what underflows in fp32 and not in fp64 would be 0*inf.
    u = np.resize(np.array([1.0, -0.75, 3.0, 0.0, -6.5, 100.0, np.nan, 0.01], dtype=np.float32), len(g))
    # Where a gate's square leaves fp32's range, a small u would bring the exact product back into it.
    u = np.where((np.abs(g) > 1e18) & (np.abs(u) < 2), np.float32(2), u)
    return g, u


def assert_within_contract(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """One bf16 ulp of the exact value or 2^-14, whichever is larger; special values as they are."""
    got = got.astype(np.float64)
    largest = float(np.finfo(np.float32).max)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan), (
        f"{what}: NaN differs at {np.flatnonzero(np.isnan(got) != nan)[:5]}"
    )
    big = ~nan & (np.abs(want) > largest * 0.99)
    assert np.all(np.sign(got[big]) == np.sign(want[big]))
    assert np.all(np.abs(got[big]) > largest * 0.98)
    rest = ~nan & ~big
    ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(want[rest]), 2.0**-126))) - 7)
    error = np.abs(got[rest] - want[rest])
    bad = error > np.maximum(ulp, 2.0**-14)
    where = np.flatnonzero(rest)[bad][:5]
    assert not bad.any(), (
        f"{what}: {bad.sum()} values off, first {[(got[i], want[i]) for i in where]} at {where}"
    )


# --- torch ----------------------------------------------------------------------------------------


def torch_module(case: Case) -> dict:
    module: dict = {}
    exec(compile(case.emit("torch"), case.identifier, "exec"), module)
    return module


@pytest.mark.parametrize("key", all_cases())
def test_torch_forward_is_the_reference(key):
    case = Case(key)
    g, u = (torch.from_numpy(v).double() for v in inputs())
    module = torch_module(case)
    arguments = (g, u) if case.gated else (g,)
    got = module["forward"](*arguments, *case.parameters.values()).numpy()
    want = case.reference(g.numpy(), u.numpy())
    assert np.array_equal(np.isnan(got), np.isnan(want))
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite & ~np.isnan(want)], want[~finite & ~np.isnan(want)])
    # torch's own gelu cancels in its left tail; everything else is good to a few ulp.
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("key", all_cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_forward_keeps_the_dtype(key, dtype):
    case = Case(key)
    x = torch.linspace(-2, 2, 7, dtype=dtype)
    arguments = (x, x) if case.gated else (x,)
    y = torch_module(case)["forward"](*arguments, *case.parameters.values())
    assert y.dtype == dtype
    assert y.shape == x.shape


@pytest.mark.parametrize("key", all_cases())
def test_torch_gradients_are_autograd_s(key):
    case = Case(key)
    module = torch_module(case)
    # Kinks and ties of every function among them: 0, the sample limits, +-0.5, +-1, +-3, +-6, +-10.
    points = [
        -12,
        -10,
        -6,
        -3,
        -2.5,
        -1.25,
        -1,
        -0.75,
        -0.5,
        -0.25,
        -0.1,
        0,
        0.1,
        0.5,
        0.75,
        1,
        1.25,
        2.5,
        3,
        6,
        10,
        12,
    ]
    g = torch.tensor(points, dtype=torch.float64).repeat_interleave(5)
    u = torch.tensor([-3.0, -0.4, 0.0, 1.5, 3.0], dtype=torch.float64).repeat(len(points))
    names = ["g", "u"] if case.gated else ["x"]
    values = [v.requires_grad_() for v in ((g, u) if case.gated else (g,))]
    # One value for each point, so that autograd gives the parameters' derivatives point by point.
    values += [torch.full_like(g, v).requires_grad_() for v in case.parameters.values()]
    names += [f"p{i}" for i in range(len(case.parameters))]
    forward = module["forward"](*values)
    if forward.requires_grad:
        want = torch.autograd.grad(forward.sum(), values, allow_unused=True, materialize_grads=True)
    else:
        want = [torch.zeros_like(v) for v in values]
    for name, expected in zip(names, want, strict=True):
        got = module[f"gradient_{name}"](*(v.detach() for v in values))
        assert got.shape == g.shape
        # where() masks the gradient of the side not chosen; autograd's product with it can be NaN.
        usable = torch.isfinite(expected)
        torch.testing.assert_close(
            got[usable], expected[usable], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert torch.isfinite(got[torch.isfinite(forward)]).all() or key == "powers"


# --- Triton ---------------------------------------------------------------------------------------

TRITON_KERNEL = """

@triton.jit
def kernel(g_ptr, u_ptr, y_ptr, p_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(g_ptr + at, mask=at < n, other=0.0)
    u = tl.load(u_ptr + at, mask=at < n, other=0.0)
    tl.store(y_ptr + at, flexact_act({arguments}), mask=at < n)
"""

TRITON_RUNNER = """
import importlib.util, pathlib, sys
import numpy as np, torch
folder = pathlib.Path(sys.argv[1])
g = torch.from_numpy(np.load(folder / "g.npy"))
u = torch.from_numpy(np.load(folder / "u.npy"))
for path in sorted(folder.glob("*.py")):
    if path.name == "runner.py":
        continue
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    p = torch.from_numpy(np.load(folder / f"{path.stem}.p.npy"))
    y = torch.full_like(g, 12345.0)
    module.kernel[(-(-len(g) // 512),)](g, u, y, p, len(g), BLOCK=512)
    np.save(folder / f"{path.stem}.y.npy", y.numpy())
"""


@pytest.fixture(scope="module")
def triton_results(tmp_path_factory):
    """What every case's Triton function computes in Triton's interpreter, by case."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    g, u = inputs()
    np.save(folder / "g.npy", g)
    np.save(folder / "u.npy", u)
    cases = {key: Case(key) for key in all_cases()}
    for case in cases.values():
        arguments = (
            ["g"] + ["u"] * case.gated + [f"tl.load(p_ptr + {i})" for i in range(len(case.parameters))]
        )
        text = case.emit("triton") + TRITON_KERNEL.format(arguments=", ".join(arguments))
        (folder / f"{case.identifier}.py").write_text(text)
        values = np.array([*case.parameters.values(), 0.0], dtype=np.float32)
        np.save(folder / f"{case.identifier}.p.npy", values)
    (folder / "runner.py").write_text(textwrap.dedent(TRITON_RUNNER))
    done = subprocess.run(
        [sys.executable, folder / "runner.py", folder],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {key: (case, np.load(folder / f"{case.identifier}.y.npy")) for key, case in cases.items()}


@pytest.mark.parametrize("key", all_cases())
def test_triton_meets_the_numerics_contract(key, triton_results):
    case, got = triton_results[key]
    g, u = inputs()
    # The kernel reads parameters in fp32; the reference uses the same numbers.
    case.parameters = {n: float(np.float32(v)) for n, v in case.parameters.items()}
    assert_within_contract(got, case.reference(g, u), key)


@pytest.mark.parametrize("key", all_cases())
def test_triton_is_accurate_where_models_work(key, triton_results):
    """Beyond the contract: single-precision accuracy over the range of trained models' inputs."""
    case, got = triton_results[key]
    g, u = inputs()
    case.parameters = {n: float(np.float32(v)) for n, v in case.parameters.items()}
    want = case.reference(g, u)
    models = (np.abs(g) < 12) & (np.abs(g) > 2.0**-7) & np.isfinite(want) & np.isfinite(u)
    allowed = 2e-5 * np.abs(want) + 3e-6 * (1 + np.abs(u))
    bad = models & ~(np.abs(got - want) <= allowed)
    assert not bad.any(), [(g[i], u[i], got[i], want[i]) for i in np.flatnonzero(bad)[:5]]


def test_triton_asks_every_minimum_and_maximum_to_pass_nan_on():
    """Triton's interpreter passes NaN on unasked; devices do not."""
    for key in all_cases():
        text = Case(key).emit("triton")
        assert text.count("tl.minimum(") + text.count("tl.maximum(") == text.count("tl.PropagateNan.ALL")


def test_small_inputs_keep_their_relative_accuracy_in_triton(triton_results):
    g, u = inputs()
    small = (np.abs(g) > 1e-30) & (np.abs(g) < 0.5)
    for key in set(NEAR_ZERO) & set(triton_results):
        case, got = triton_results[key]
        want = case.reference(g, u)[small]
        np.testing.assert_allclose(got[small], want, rtol=2e-6, err_msg=key)


# --- CUDA -----------------------------------------------------------------------------------------


# What the device's instructions compute, on the host. Approximations of single precision are exact here:
# their own errors are measured on a device (tests/gpu).
CUDA_ON_HOST = """
#include <math.h>
#include <string.h>
#define __device__
#define __forceinline__ inline
#define FLEXACT_ACT static
static float __int_as_float(int bits) { float f; memcpy(&f, &bits, 4); return f; }
static float flushed(float v) { return fabsf(v) < 0x1p-126f ? copysignf(0.0f, v) : v; }
static float ptx_min_NaN_f32(float a, float b) { return a != a || b != b ? a + b : fminf(a, b); }
static float ptx_max_NaN_f32(float a, float b) { return a != a || b != b ? a + b : fmaxf(a, b); }
static float ptx_div_full_f32(float a, float b) { return a / b; }
static float ptx_ex2_approx_ftz_f32(float a) { return flushed(float(exp2(double(flushed(a))))); }
static float ptx_rcp_approx_ftz_f32(float a) { return flushed(1.0f / flushed(a)); }
static float ptx_sqrt_approx_f32(float a) { return sqrtf(a); }
static float ptx_sqrt_approx_ftz_f32(float a) { return sqrtf(flushed(a)); }
// As far off as it may be, now above and now below.
static float ptx_tanh_approx_f32(float a) {
  int bits;
  memcpy(&bits, &a, 4);
  return isinf(a) ? copysignf(1.0f, a) : float(tanh(double(a)) * (1 + (bits >> 16 & 1 ? 0x1p-11 : -0x1p-11)));
}
static float ptx_rsqrt_approx_f32(float a) { return float(1.0 / sqrt(double(a))); }
"""

CUDA_DRIVER = """
extern "C" void run_{mode}_{name}(const float* g, const float* u, const float* p, float* y, int n) {{
  for (int i = 0; i + 1 < n; i += 2) {mode}_{name}::{call};
}}
"""


def host_text(case: Case) -> str:
    """The CUDA text with each instruction in assembly as a call of the function above."""
    text = case.emit("cuda")

    def as_call(match: re.Match) -> str:
        name, result, operands = match[1].replace(".", "_"), match[2], match[3].replace('"f"', "")
        return f"{result} = ptx_{name}({operands});"

    text = re.sub(r'asm\("([\w.]+) [^"]*" : "=f"\((\w+)\) : (.*)\);', as_call, text)
    assert "asm" not in text
    return text


MODES = {"fast": "FLEXACT_FAST", "bf16": "FLEXACT_BF16", "precise": "FLEXACT_PRECISE"}


def compile_on_host(cases: list[Case], folder: Path) -> ctypes.CDLL:
    """A library with every case's CUDA text in all of its forms."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    parts = [CUDA_ON_HOST]
    for case in cases:
        call = "flexact_act2(g + i, u + i, p, y + i)"
        call = call if case.gated else "flexact_act2_unary(g + i, p, y + i)"
        text = host_text(case)
        for mode, macro in MODES.items():
            parts.append(
                f"#define {macro}\nnamespace {mode}_{case.identifier} {{\n{text}\n}}\n#undef {macro}\n"
            )
            parts.append(CUDA_DRIVER.format(mode=mode, name=case.identifier, call=call))
    (folder / "all.cpp").write_text("".join(parts))
    library = folder / "all.so"
    flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", "-ffp-contract=off"]
    done = subprocess.run(
        [compiler, *flags, "-o", library, folder / "all.cpp"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def cuda_on_host(tmp_path_factory):
    return compile_on_host([Case(key) for key in all_cases()], tmp_path_factory.mktemp("cuda"))


def run_on_host(library, mode: str, case: Case, g: np.ndarray, u: np.ndarray) -> np.ndarray:
    pairs = len(g) // 2 * 2
    g, u = (np.ascontiguousarray(v[:pairs], dtype=np.float32) for v in (g, u))
    p = np.array([*case.parameters.values(), np.nan], dtype=np.float32)
    y = np.full(pairs, -8.5e33, dtype=np.float32)
    pointers = [v.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for v in (g, u, p, y)]
    getattr(library, f"run_{mode}_{case.identifier}")(*pointers, ctypes.c_int(pairs))
    return y


@pytest.mark.parametrize("key", all_cases())
def test_cuda_text_meets_the_numerics_contract_on_the_host(key, cuda_on_host):
    case = Case(key)
    g, u = (v[: len(v) // 2 * 2] for v in inputs())
    case.parameters = {n: float(np.float32(v)) for n, v in case.parameters.items()}
    want = case.reference(g, u)
    for mode in MODES:
        assert_within_contract(run_on_host(cuda_on_host, mode, case, g, u), want, f"{key} {mode}")


@pytest.mark.parametrize("key", all_cases())
def test_cuda_text_for_bf16_adds_little_to_its_rounding(key, cuda_on_host):
    """At most 0.3 of a bf16 ulp, or 2^-15, at every bf16 input."""
    case = Case(key)
    g = bf16_values(1)
    g = g[: len(g) // 2 * 2]
    g = np.where(np.isfinite(g) & (np.abs(g) < 1e15), g, np.float32(0.5))
    u = np.resize(np.array([1.0, -0.75, 3.0, -6.5, 100.0], dtype=np.float32), len(g))
    case.parameters = {n: float(np.float32(v)) for n, v in case.parameters.items()}
    want = case.reference(g, u)
    got = run_on_host(cuda_on_host, "bf16", case, g, u).astype(np.float64)
    known = np.isfinite(want) & (np.abs(want) < 1e37)
    got, want = got[known], want[known]
    ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(want), 2.0**-126))) - 7)
    bad = ~(np.abs(got - want) <= np.maximum(0.3 * ulp, 2.0**-15))
    assert not bad.any(), [(g[known][i], u[known][i], got[i], want[i]) for i in np.flatnonzero(bad)[:5]]


def test_cuda_text_for_bf16_is_of_single_precision_where_it_is_no_factor(tmp_path):
    """Terms of a sum, which others may cancel, and powers keep the accuracy of all other types."""
    texts = ("tanh(x)-0.5*x", "gelu(x)-relu(x)", "tanh(x)^3", "softplus(x)-x", "sign(tanh(x)-0.5)")
    cases = [Case(text) for text in (*texts, "x*tanh(x)")]
    library = compile_on_host(cases, tmp_path)
    x = np.linspace(-12, 12, 1202, dtype=np.float32)
    for case in cases[:-1]:
        want = case.reference(x, x)
        got = run_on_host(library, "bf16", case, x, x)
        np.testing.assert_allclose(got, want, rtol=5e-5, atol=3e-6, err_msg=str(case.what))
    got = run_on_host(library, "bf16", cases[-1], x, x)
    assert np.max(np.abs(got / (x * np.tanh(x)) - 1)) > 1e-4  # the test would see coarse forms


@pytest.mark.parametrize("key", all_cases())
def test_cuda_text_is_accurate_where_models_work(key, cuda_on_host):
    """Beyond the contract: single-precision accuracy over the range of trained models' inputs."""
    case = Case(key)
    g = np.linspace(-12, 12, 1202, dtype=np.float32)
    u = np.resize(np.array([1.0, -0.75, 3.0, -6.5], dtype=np.float32), len(g))
    case.parameters = {n: float(np.float32(v)) for n, v in case.parameters.items()}
    want = case.reference(g, u)
    for mode, rtol, atol in (("fast", 2e-5, 3e-6), ("precise", 4e-6, 1e-6)):
        got = run_on_host(cuda_on_host, mode, case, g, u)
        bad = ~(np.abs(got - want) <= rtol * np.abs(want) + atol * (1 + np.abs(u))) & np.isfinite(want)
        assert not bad.any(), (mode, [(g[i], u[i], got[i], want[i]) for i in np.flatnonzero(bad)[:5]])


def test_cuda_text_keeps_its_relative_accuracy_near_zero_and_in_gelu_s_tail(cuda_on_host):
    small = np.linspace(-0.5, 0.5, 1202, dtype=np.float32)
    tail = np.linspace(-12, -0.7, 1202, dtype=np.float32)
    cases = [(key, mode, small, 2e-6) for key in NEAR_ZERO for mode in ("fast", "precise")]
    for key, mode, x, rtol in [*cases, ("gelu", "precise", tail, 1e-6)]:
        if key not in all_cases():
            continue
        case = Case(key)
        got = run_on_host(cuda_on_host, mode, case, x, x)
        np.testing.assert_allclose(got, case.reference(x, x), rtol=rtol, err_msg=f"{key} {mode}")


def test_cuda_text_divides_by_numbers_whose_reciprocal_is_none(tmp_path):
    """Constants below and above the normal range of fp32's reciprocals, fp32's own among them."""
    texts = [
        "1e-37",
        "1.205e-38",
        "6e-39",
        "-3e-41",
        "1e-45",
        "1e-70",
        "1e-300",
        "9e37",
        "-3.4e38",
        "1e45",
        "1e300",
    ]
    constants = [Case(f"x/{text}") for text in texts]
    # As a parameter: one that fp32 holds.
    held = [text for text in texts if 1e-45 <= abs(float(text)) <= 3.5e38]
    parameters = [Case("x/k") for text in held]
    for case, text in zip(parameters, held, strict=True):
        case.parameters = {"k": float(np.float32(text))}
    library = compile_on_host([*constants, parameters[0]], tmp_path)
    # 4 over the second constant is finite, and 4 times the power of two that smaller ones need is not.
    x = np.append(bf16_values(61), [4.0, -4.0]).astype(np.float32)
    x = x[np.isnan(x) | (x == 0) | (np.abs(x) >= 2.0**-126)]
    x = x[: len(x) // 2 * 2]
    for case in constants + parameters:
        with np.errstate(over="ignore"):
            want = case.reference(x, x)
        for mode in ("fast", "precise"):
            got = run_on_host(library, mode, case, x, x)
            assert_within_contract(got, want, f"{case.what} {case.parameters} {mode}")
            normal = (np.abs(want) >= 2.0**-126) & (np.abs(want) < 2.0**127)
            np.testing.assert_allclose(got[normal], want[normal], rtol=4e-7)


@pytest.mark.parametrize("precise", [False, True])
def test_cuda_compiles_without_headers(precise, tmp_path):
    """All functions in one unit, each in its own namespace: 2 ulp of nvcc's time instead of 90."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    parts = ["#define FLEXACT_ACT __device__\n"]
    for key in all_cases():
        case = Case(key)
        parts.append(f"namespace f_{case.identifier} {{\n{case.emit('cuda')}\n}}\n")
    source = tmp_path / "all.cu"
    source.write_text("".join(parts))
    defines = ["-DFLEXACT_PRECISE"] if precise else []
    flags = ["-arch=sm_90a", "-rdc=true", "-cubin", "-Werror=all-warnings", "-Xptxas=-v", *defines]
    done = subprocess.run(
        [nvcc, *flags, "-o", tmp_path / "all.cubin", source],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case in map(Case, all_cases()):
        assert f"f_{case.identifier}" in done.stderr  # compiled as a function of its own
