#!/usr/bin/env bash
# Tests, tunes and measures the Triton kernels on this machine's GPU; results go to a folder as JSON.
#
#   benchmark/measure_triton.sh FOLDER [STEP …]        PYTHON, MODELS, SECONDS_EACH may be set
#
# Steps, in the order in which they should run (default: all):
#   test         the GPU tests of the formats and of every printed function; stops everything where one fails
#   tune         tiles for every format, into FOLDER/cache, which the steps after it read
#   compare      each format beside its peers, paired; peers are imported from PYTHONPATH
#   functions    every function of the catalogue beside silu, paired
#   dense        act_and_mul beside SGLang's silu_and_mul
#   start        a function that was never seen, from its text to its first result
#   conformance  the rows of the support matrix
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
models=${MODELS:-"mixtral-8x7b qwen3-30b-a3b gpt-oss-20b"}
seconds=${SECONDS_EACH:-60}
export FLEXACT_CACHE_DIR=${FLEXACT_CACHE_DIR:-$folder/cache}
bench="benchmark/benchmark_moe_kernels.py"
read -ra named <<< "$(printf -- '--model %s ' $models)"

# A peer that is missing, or a step that takes too long, is reported and the others still run.
attempt() {
  local name=$1
  shift
  timeout "$seconds" "$@" > "$folder/$name.log" 2>&1 || echo "$name: exit status $?, see $name.log"
}

run_test() {
  "$python" -m pytest -q -x tests/gpu/test_triton_formats.py -k "fp4 or bits_of_the_reference" \
    --junitxml="$folder/tests_formats.xml"
  "$python" -m pytest -q -x tests/gpu/test_triton_moe.py -k "function or dense" \
    --junitxml="$folder/tests_functions.xml"
}

run_tune() {
  for format in mxfp4 nvfp4 fp8_block bf16; do
    attempt "tune_$format" "$python" -m flexact tune "${named[@]}" --format "$format" \
      --tokens 1,16,128,1024,4096,16384 --seconds "$((seconds - 5))" --log "$folder/tune_$format.jsonl"
  done
}

run_compare() {
  local gated=("${named[@]}")
  attempt mxfp4_marlin "$python" $bench "${gated[@]}" --precision mxfp4 --peer marlin \
    --json "$folder/mxfp4_marlin.json"
  attempt mxfp4_triton_kernels "$python" $bench "${gated[@]}" --precision mxfp4 --peer triton-kernels \
    --activation swiglu_oai --pairing interleaved --json "$folder/mxfp4_triton_kernels.json"
  attempt nvfp4_marlin "$python" $bench "${gated[@]}" --precision nvfp4 --peer marlin \
    --json "$folder/nvfp4_marlin.json"
  attempt mxfp4_fp8 "$python" $bench "${gated[@]}" --precision mxfp4_fp8 --json "$folder/mxfp4_fp8.json"
  attempt fp8_block "$python" $bench --model mixtral-8x7b --model qwen3-30b-a3b --precision fp8_block \
    --peer sglang-triton --peer deep-gemm --json "$folder/fp8_block.json"
  attempt bf16 "$python" $bench "${gated[@]}" --peer sglang-triton --json "$folder/bf16.json"
}

run_functions() {
  attempt functions "$python" $bench "${named[@]}" --tokens 128,4096,16384 --against all \
    --json "$folder/functions.json"
}

run_dense() {
  attempt dense "$python" $bench "${named[@]}" --dense --against mish --against gelu \
    --json "$folder/dense.json"
}

run_start() {
  attempt start_up "$python" $bench --start-up --json "$folder/start_up.json"
}

run_conformance() {
  seconds=600 attempt conformance "$python" tests/gpu/triton_conformance.py \
    --json "$folder/triton_conformance.json" --seconds "${CONFORMANCE_SECONDS:-400}"
}

steps=("$@")
if [ ${#steps[@]} = 0 ]; then steps=(test tune compare functions dense start conformance); fi
for step in "${steps[@]}"; do
  "run_$step"
done
