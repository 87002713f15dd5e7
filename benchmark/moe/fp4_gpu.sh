#!/usr/bin/env bash
# Proves and times the FP4 kernels of the backend "cutlass" on a GPU of compute capability 9.0:
#
#   [FORMATS="mxfp4_fp8"] benchmark/moe/fp4_gpu.sh FOLDER [BUILD]
#
# First one case of each pairing against fp64, then every pairing and format with several functions, then time of whole
# layers and of each launch. Stops at the first failure; FOLDER gets a JSON file for each step as it ends. BUILD (default
# build/developer) has the conformance program and libflexact.a, build/gpu/cuda_moe is of build_cuda_moe.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
FORMATS=${FORMATS:-mxfp4 nvfp4 mxfp4_fp8}
mkdir -p "$OUT"

# FUNCTION PAIRING/FORMAT ROWS [VARIANT]
check() {
  timeout 60 "$CONFORMANCE" test --gpu --rows "$3" --only "cutlass/${4:-sm_90a}/$1/$2" \
    --json "$OUT/conformance_${4:-sm_90a}_$1_${2/\//_}.json"
}

for format in $FORMATS; do
  for pairing in concat none; do
    for variant in sm_90a_few sm_90a_routed; do check relu2 $pairing/$format 2 $variant; done
  done
done
for format in $FORMATS; do
  for pairing in concat up_first interleaved; do
    for function in swiglu situ xielu; do check $function $pairing/$format 8; done
  done
  check xielu none/$format 12
done
for format in $FORMATS; do
  build/gpu/cuda_moe "$OUT/cuda_moe_$format.json" --format $format --shapes mixtral,qwen3_30b,gptoss20b \
    --tokens 1,16,128,1024,4096 --seconds 35
done
