#!/usr/bin/env bash
# Proves and times the FP8 kernels of the backend "cutlass" on a GPU of compute capability 9.0:
#
#   [FUNCTIONS="xielu expr1"] benchmark/moe/fp8_gpu.sh FOLDER [BUILD]
#
# First a few cases against fp64, then every pairing and format with several functions, then time of whole layers and
# of each launch. Stops at the first failure; FOLDER gets a JSON file for each step as it ends. BUILD (default
# build/developer) has the conformance program and libflexact.a, build/gpu/cuda_moe is of build_cuda_moe.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
mkdir -p "$OUT"

# Every pairing in bf16 and the FP8 formats.
check() { # FUNCTION ROWS
  timeout 120 "$CONFORMANCE" test --gpu --rows "$2" --only "cutlass/sm_90a/$1" --json "$OUT/conformance_$1.json"
}

check bilinear 2
for function in ${FUNCTIONS:-xielu swiglu situ swiglu_oai relu2 expr1}; do check $function 12; done
for format in fp8_block fp8_channel fp8_tensor_given fp8_tensor; do
  build/gpu/cuda_moe "$OUT/cuda_moe.json" --format $format --shapes mixtral,qwen3_30b,gptoss20b \
    --tokens 1,16,128,1024,4096 --variants dependent --seconds 45
done
