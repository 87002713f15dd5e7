#!/usr/bin/env bash
# Proves and times the choices of src/cuda/policy.hpp that are not the default, on a GPU of compute capability 9.0:
#
#   benchmark/moe/choices_gpu.sh FOLDER [BUILD]
#
# Each choice is first compared with fp64 (conformance, then the same under compute-sanitizer on a few cases); one that
# fails or hangs is named and not timed. Then the others are timed in turns with the default: few tokens, then many.
# FOLDER gets a JSON file for each step as it ends. BUILD (default build/developer) has the conformance program,
# build/gpu/cuda_moe is of build_cuda_moe.sh. Under ten minutes.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
SANITIZER=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
mkdir -p "$OUT"

CELLS="swiglu/concat situ/up_first swiglu_oai/interleaved xielu/none xielu/concat"

passed=
check() { # CHOICE
  local variant=cutlass/sm_90a${1:+_$1} name=${1:-default} cell tool
  timeout 40 "$CONFORMANCE" test --gpu --rows 2 --only "$variant/bilinear/concat/bf16" >"$OUT/$name.log" 2>&1 || return 1
  for cell in $CELLS; do
    timeout 60 "$CONFORMANCE" test --gpu --rows 24 --only "$variant/$cell/bf16" \
      --json "$OUT/conformance_${name}_${cell/\//_}.json" >>"$OUT/$name.log" 2>&1 || return 1
  done
  $sanitize || return 0
  for tool in memcheck synccheck; do
    timeout 60 "$SANITIZER" --tool $tool --error-exitcode 3 "$CONFORMANCE" test --gpu --rows 5 \
      --only "$variant/bilinear/concat/bf16" >>"$OUT/$name.log" 2>&1 || return 1
  done
}
# Some machines run no sanitizer: what it says of the default tells.
sanitize=false
if check "" && timeout 60 "$SANITIZER" --tool memcheck --error-exitcode 3 "$CONFORMANCE" test --gpu --rows 5 \
  --only cutlass/sm_90a/bilinear/concat/bf16 >"$OUT/sanitizer.log" 2>&1; then
  sanitize=true
else
  echo "compute-sanitizer does not run here: see $OUT/sanitizer.log"
fi
for choice in "" tiled stream stream_sum; do
  if check "$choice"; then
    echo "passed: ${choice:-default}"
    passed=$passed,$choice
  else
    echo "FAILED: ${choice:-default}"
    tail -5 "$OUT/${choice:-default}.log"
  fi
done
build/gpu/cuda_moe "$OUT/few.json" --variants "${passed:-,}" --tokens 1,2,4,8,16 --seconds 90
build/gpu/cuda_moe "$OUT/many.json" --variants "${passed:-,}" --tokens 1024,4096,16384,128 --seconds 200
