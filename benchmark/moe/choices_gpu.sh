#!/usr/bin/env bash
# Proves the choices of src/cuda/policy.hpp on a GPU of compute capability 9.0 and times them in turns:
#
#   benchmark/moe/choices_gpu.sh FOLDER [BUILD]
#
# First the default and the paths that it takes for some sizes alone are compared with fp64, the default under
# compute-sanitizer as well; what fails or hangs ends it. Then variants of the default are timed: of many tokens whole
# tiles in the last round, other numbers of tokens in the blocks of gather and combine, no extra rows, no early weights
# and other groups of row tiles, of few tokens the other path.
# FOLDER gets a JSON file for each step as it ends. BUILD (default build/developer) has the conformance program,
# build/gpu/cuda_moe is of build_cuda_moe.sh. About two and a half minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$1
CONFORMANCE=${2:-build/developer}/tests/conformance/conformance
SANITIZER=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
mkdir -p "$OUT"

check() { # VARIANT CELL ROWS
  timeout 60 "$CONFORMANCE" test --gpu --rows "$3" --only "cutlass/$1/$2/bf16" \
    --json "$OUT/conformance_$1_${2/\//_}.json"
}
check sm_90a bilinear/concat 4
for cell in swiglu/concat situ/up_first swiglu_oai/interleaved xielu/none xielu/concat; do
  for variant in sm_90a sm_90a_tiled; do check $variant $cell 24; done
done
for variant in sm_90a_stream sm_90a_stream_sum; do check $variant swiglu/concat 12; done
# Some machines run no sanitizer.
for tool in memcheck synccheck; do
  timeout 60 "$SANITIZER" --tool $tool --error-exitcode 3 "$CONFORMANCE" test --gpu --rows 5 \
    --only cutlass/sm_90a/bilinear/concat/bf16 || echo "compute-sanitizer, $tool: $?"
done

build/gpu/cuda_moe "$OUT/many.json" --variants whole,rows,short.,late.,g4,g8 --tokens 1024,4096,16384 --seconds 80
build/gpu/cuda_moe "$OUT/few.json" --variants tiled,serial --tokens 1,2,4,128 --seconds 30
