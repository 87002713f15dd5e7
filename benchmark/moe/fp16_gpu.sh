#!/usr/bin/env bash
# Proves and times fp16 and act_and_mul of the backend "cutlass" on a GPU of compute capability 9.0:
#
#   benchmark/moe/fp16_gpu.sh FOLDER [BUILD] [PYTHON]
#
# First one case against fp64, then every pairing with functions of every kind, launched ahead and not, then
# act_and_mul from Python; what fails or hangs ends it. Then whole layers and their launches are timed, bf16 beside fp16,
# and act_and_mul beside Triton's kernel and torch. FOLDER gets a JSON file for each step as it ends. BUILD (default
# build/developer) has the conformance program, build/gpu/cuda_moe is of build_cuda_moe.sh; PYTHON (default
# .venv/bin/python) has flexact, torch and pytest. About 90 seconds to prove and 60 to time.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
PYTHON=${3:-.venv/bin/python}
mkdir -p "$OUT"

check() { # VARIANT CELL ROWS
  timeout 40 "$CONFORMANCE" test --gpu --rows "$3" --only "cutlass/$1/$2/fp16" \
    --json "$OUT/conformance_$1_${2/\//_}.json"
}
check sm_90a bilinear/concat 2
timeout 60 "$PYTHON" -m pytest -q -x tests/gpu/test_cutlass_dense.py -k "graph or stream"
for cell in swiglu/concat situ/up_first swiglu_oai/interleaved xielu/none; do
  for variant in sm_90a sm_90a_tiled; do check $variant $cell 8; done
done
timeout 90 "$PYTHON" -m pytest -q -x tests/gpu/test_cutlass_dense.py --junitxml "$OUT/dense_tests.xml"
timeout 60 "$PYTHON" -m pytest -q -x tests/gpu/test_cutlass_moe.py -k "fp16" --junitxml "$OUT/fp16_tests.xml"

for format in fp16 bf16; do
  build/gpu/cuda_moe "$OUT/cuda_moe_$format.json" --format $format --shapes mixtral,qwen3_30b --tokens 1,16,1024,4096 \
    --seconds 15
done
timeout 60 "$PYTHON" benchmark/benchmark_moe_kernels.py --dense --backend cutlass --beside triton \
  --activation silu --model mixtral-8x7b --model qwen3-30b-a3b --tokens 1,16,128,1024,4096,16384 --json "$OUT/dense.json"
