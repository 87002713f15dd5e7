"""Writes the CUDA unit of activation_cuda_check: every catalogue function's text in all of its forms.

Usage: generate_activation_cuda.py FLEXACT OUTPUT.cu
"""

import json
import subprocess
import sys

HEAD = """#include "activation_cuda_table.hpp"
#define FLEXACT_ACT static __device__ __forceinline__

template <typename Kernel>
static bool run_kernel(Kernel kernel, const float* g, const float* u, const float* p, int count,
                       float* y, int n) {
  float* device = nullptr;
  if (cudaMalloc(&device, (3 * size_t(n) + 16) * sizeof(float)) != cudaSuccess) return false;
  float *dg = device, *du = device + n, *dy = device + 2 * size_t(n), *dp = device + 3 * size_t(n);
  cudaMemcpy(dg, g, n * sizeof(float), cudaMemcpyHostToDevice);
  cudaMemcpy(du, u, n * sizeof(float), cudaMemcpyHostToDevice);
  cudaMemcpy(dy, y, n * sizeof(float), cudaMemcpyHostToDevice);
  cudaMemcpy(dp, p, count * sizeof(float), cudaMemcpyHostToDevice);
  kernel<<<(n / 2 + 255) / 256, 256>>>(dg, du, dp, dy, n / 2);
  cudaMemcpy(y, dy, n * sizeof(float), cudaMemcpyDeviceToHost);
  const bool good = cudaDeviceSynchronize() == cudaSuccess;
  cudaFree(device);
  return good;
}
"""

KERNEL = """
static __global__ void kernel(const float* g, const float* u, const float* p, float* y, int pairs) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const float a[2] = {g[2 * i], g[2 * i + 1]};
  const float b[2] = {u[2 * i], u[2 * i + 1]};
  float r[2];
  CALL
  y[2 * i] = r[0];
  y[2 * i + 1] = r[1];
}
"""

RUN = """
static bool run_NAME(Form form, const float* g, const float* u, const float* p, int count,
                     float* y, int n) {
  return run_kernel(form == Form::Precise ? precise_NAME::kernel
                    : form == Form::Bf16  ? bf16_NAME::kernel
                                          : fast_NAME::kernel,
                    g, u, p, count, y, n);
}
"""

SAMPLES = {
    "alpha": 0.625,
    "beta": 0.5,
    "limit": 3.0,
    "linear_beta": 2.5,
    "scale": 4.0,
    "a": 0.25,
    "eps": -0.25,
}


def main() -> None:
    flexact, path = sys.argv[1:]

    def read(*arguments: str) -> str:
        return subprocess.run([flexact, *arguments], check=True, capture_output=True, text=True).stdout

    text, rows = HEAD, []
    for entry in json.loads(read("list", "--json")):
        values = [SAMPLES.get(p["name"], p.get("initial", 0.75)) for p in entry["parameters"]]
        for lifted in [False, True] if entry["arity"] == "unary" else [False]:
            name = entry["name"] + "_lifted" * lifted
            gated = lifted or entry["arity"] == "gated"
            source = read("emit", entry["name"], "--target", "cuda", *["--gated"] * lifted)
            call = "flexact_act2(a, b, p, r);" if gated else "flexact_act2_unary(a, p, r);"
            kernel = KERNEL.replace("CALL", call)
            text += f"namespace fast_{name} {{\n{source}{kernel}}}\n"
            for form in ("bf16", "precise"):
                macro = f"FLEXACT_{form.upper()}"
                text += f"#define {macro}\nnamespace {form}_{name} {{\n{source}{kernel}}}\n#undef {macro}\n"
            text += RUN.replace("NAME", name)
            listed = ", ".join(f"{v!r}f" for v in values)
            rows.append(f'    {{"{entry["name"]}", {str(lifted).lower()}, {{{listed}}}, run_{name}}},')
    text += "\nconst std::vector<CudaFunction>& cuda_functions() {\n"
    text += (
        "  static const std::vector<CudaFunction> list = {\n"
        + "\n".join(rows)
        + "\n  };\n  return list;\n}\n"
    )
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
