#!/usr/bin/env bash
# Tests, tunes and measures the Triton kernels on this machine's GPU; results go to a folder as JSON.
#
#   benchmark/measure_triton.sh FOLDER [STEP …]
#
# Variables: PYTHON; MODELS and FORMATS, lists; TOKENS and PEER_TOKENS, counts to tune and to compare;
# SECONDS_EACH, how long one measurement may go on: after it no cell begins, and what was measured is kept.
#
# Steps, in the order in which they should run (default: all):
#   test         the GPU tests of the formats and of every printed function; stops everything where one fails
#   tune         tiles for every format, into FLEXACT_CACHE_DIR (FOLDER/cache), which the steps after it read
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
formats=${FORMATS:-"mxfp4 nvfp4 mxfp4_fp8 fp8_block bf16"}
seconds=${SECONDS_EACH:-90}
tokens=${TOKENS:-1,16,128,1024,4096,16384}
peer_tokens=${PEER_TOKENS:-1,16,128,1024,4096,16384}
# A cell that has begun is let to its end; a program that hangs is not.
grace=60
export FLEXACT_CACHE_DIR=${FLEXACT_CACHE_DIR:-$folder/cache}
bench="benchmark/benchmark_moe_kernels.py"
read -ra named <<< "$(printf -- '--model %s ' $models)"

# A peer that is missing, or a step that takes too long, is reported and the others still run.
attempt() {
  local name=$1
  shift
  timeout "$((seconds + grace))" "$@" > "$folder/$name.log" 2>&1 || echo "$name: exit status $?, see $name.log"
}

run_test() {
  "$python" -m pytest -q -x tests/gpu/test_triton_formats.py -k "fp4 or bits_of_the_reference" \
    --junitxml="$folder/tests_formats.xml"
  "$python" -m pytest -q -x tests/gpu/test_triton_moe.py -k "function or dense" \
    --junitxml="$folder/tests_functions.xml"
}

run_tune() {
  for format in $formats; do
    attempt "tune_$format" "$python" -m flexact tune "${named[@]}" --format "$format" \
      --tokens "$tokens" --seconds "$seconds" --log "$folder/tune_$format.jsonl"
  done
  cp "$FLEXACT_CACHE_DIR"/triton/tuned/*.json "$folder/" || echo "tune: no table was written"
}

# compared FORMAT PEERS [OPTION …]: one file for a format and its peers.
compared() {
  local format=$1 peers=$2 name="compare_$1"
  shift 2
  read -ra flags <<< "$(printf -- '--peer %s ' $peers)"
  for peer in $peers; do name+="_$peer"; done
  [[ " $formats " == *" $format "* ]] || return 0
  attempt "$name" "$python" $bench --precision "$format" "${flags[@]}" "$@" \
    --tokens "$peer_tokens" --deadline "$seconds" --json "$folder/$name.json"
}

run_compare() {
  compared mxfp4 marlin "${named[@]}"
  compared mxfp4 triton-kernels "${named[@]}" --activation swiglu_oai --pairing interleaved
  compared nvfp4 marlin "${named[@]}"
  # Sizes of whole blocks of 128.
  compared fp8_block "sglang-triton deep-gemm" --model mixtral-8x7b --model qwen3-30b-a3b
  compared bf16 sglang-triton "${named[@]}"
  # No peer rounds activations beside FP4 weights here; it is to be faster than mxfp4 with many tokens.
  if [[ " $formats " == *" mxfp4_fp8 "* ]]; then
    attempt compare_mxfp4_fp8 "$python" $bench --precision mxfp4_fp8 "${named[@]}" \
      --json "$folder/compare_mxfp4_fp8.json"
  fi
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
