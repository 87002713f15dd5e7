#!/usr/bin/env bash
# Proves on a GPU of compute capability 9.0 how calls of few tokens are gathered and, in FP4, multiplied, and times that
# against a route before the gather and the kernels of all other calls, in turns:
#
#   [FORMATS="mxfp4 nvfp4"] benchmark/moe/few_rows_gpu.sh FOLDER [BUILD]
#
# First a case of each format against fp64, then all pairings with functions of several kinds, each as by default, with
# the new way wherever it can go (sm_90a_few), and with the old one alone (sm_90a_routed). Stops at the first failure;
# FOLDER gets a JSON file for each step as it ends. Of the timed variants `new` and `old` are the two ways; `routed` and
# `many` leave out one of the two choices each. BUILD (default build/developer) has the conformance program,
# build/gpu/cuda_moe is of build_cuda_moe.sh. About five minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
FORMATS=${FORMATS:-mxfp4 nvfp4 bf16 fp8_block fp8_channel mxfp4_fp8}
mkdir -p "$OUT"

check() { # VARIANT FUNCTION PAIRING/FORMAT ROWS
  timeout 60 "$CONFORMANCE" test --gpu --rows "$4" --only "cutlass/$1/$2/$3" \
    --json "$OUT/conformance_$1_$2_${3/\//_}.json"
}

for format in $FORMATS; do check sm_90a_few relu2 concat/$format 3; done
for format in $FORMATS; do
  for variant in sm_90a_few sm_90a sm_90a_routed; do
    for cell in swiglu/concat situ/up_first swiglu_oai/interleaved xielu/none; do
      check $variant ${cell%/*} ${cell#*/}/$format 12
    done
  done
done
for format in $FORMATS; do
  case $format in
    mxfp4 | nvfp4) variants=new,old,routed,many ;;
    *) variants=new,old ;;
  esac
  build/gpu/cuda_moe "$OUT/few_rows_$format.json" --format $format --shapes mixtral,qwen3_30b,gptoss20b \
    --tokens 4,16,64,128 --variants $variants --seconds 60
done
