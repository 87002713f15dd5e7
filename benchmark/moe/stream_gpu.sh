#!/usr/bin/env bash
# Proves the kernels for a few tokens of the quantised formats on a GPU of compute capability 9.0 and times them beside
# the tiled ones:
#
#   [FORMATS="mxfp4 nvfp4"] benchmark/moe/stream_gpu.sh FOLDER [BUILD]
#
# First one case of each format against fp64, then every pairing with functions of several kinds, with and without the
# sum in the second kernel; then layers of 1 to 16 tokens on either path, in turns, and of one token with every division
# of the stream kernels. Stops at the first failure; FOLDER gets a JSON file for each step as it ends. BUILD (default
# build/developer) has the conformance program, build/gpu/cuda_moe is of build_cuda_moe.sh. About seven minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
FORMATS=${FORMATS:-mxfp4 nvfp4 fp8_block fp8_channel fp8_tensor}
mkdir -p "$OUT"

check() { # VARIANT FUNCTION/PAIRING FORMAT ROWS
  timeout 60 "$CONFORMANCE" test --gpu --rows "$4" --only "cutlass/sm_90a_$1/$2/$3" \
    --json "$OUT/conformance_$1_${2/\//_}_$3.json"
}
for format in $FORMATS; do check stream bilinear/concat "$format" 3; done
for format in $FORMATS; do
  for cell in swiglu/concat situ/up_first swiglu_oai/interleaved xielu/none; do
    for variant in stream stream_sum; do check $variant $cell "$format" 16; done
  done
done

measure() { # FORMAT
  local common="--format $1 --shapes mixtral,qwen3_30b,gptoss20b"
  build/gpu/cuda_moe "$OUT/few_$1.json" $common --tokens 1,2,4,8,16 --variants tiled,stream. --seconds 25
  build/gpu/cuda_moe "$OUT/one_$1.json" $common --tokens 1 --variants stream_ --seconds 15
}
for format in $FORMATS; do
  measure "$format"
  if [ "$format" = fp8_tensor ]; then measure fp8_tensor_given; fi
done
