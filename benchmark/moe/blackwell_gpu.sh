#!/usr/bin/env bash
# Proves and times the kernels of the backend "cutlass" for sm_100a, on a GPU of compute capability 10.0:
#
#   benchmark/moe/blackwell_gpu.sh FOLDER [BUILD] [PYTHON]
#
# First one small case of each GEMM against fp64, then every pairing and format with functions of every kind, on the tiled
# path and on that of a few tokens, then act_and_mul, then time of whole layers and of each launch. Stops at the first
# failure or hang; FOLDER gets a JSON file for each step as it ends. BUILD (default build/developer) has the conformance
# program, build/gpu/cuda_moe is of build_cuda_moe.sh; PYTHON (default .venv/bin/python) has flexact, torch and pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
PYTHON=${3:-.venv/bin/python}
export FLEXACT_UNTRIED_KERNELS=run
mkdir -p "$OUT"

check() { # VARIANT CELL ROWS
  timeout 60 "$CONFORMANCE" test --gpu --rows "$3" --only "cutlass/$1/$2" --json "$OUT/conformance_$1_${2//\//_}.json"
}
for cell in bilinear/concat/bf16 relu/none/bf16 bilinear/concat/fp16 bilinear/concat/fp8_block bilinear/concat/fp8_channel; do
  check sm_100a_tiled $cell 1
done
for function in bilinear swiglu situ xielu; do
  for format in bf16 fp16 fp8_block fp8_tensor fp8_channel; do
    for pairing in concat up_first interleaved none; do
      if [ $pairing = none ] && [ $function != xielu ]; then continue; fi
      check sm_100a $function/$pairing/$format 4
      check sm_100a_tiled $function/$pairing/$format 4
    done
  done
done
for format in bf16 fp8_block fp8_tensor fp8_channel; do check sm_100a_stream swiglu/concat/$format 8; done
timeout 90 "$PYTHON" -m pytest -q -x tests/gpu/test_cutlass_dense.py --junitxml "$OUT/dense_tests.xml"

for format in bf16 fp16 fp8_block fp8_channel; do
  build/gpu/cuda_moe "$OUT/cuda_moe_$format.json" --format $format --shapes mixtral,qwen3_30b,gptoss20b \
    --tokens 1,16,128,1024,4096 --seconds 20
done
