#!/usr/bin/env bash
# Tests, tunes and measures the Triton kernels on this machine's GPU; results go to a folder as JSON.
#
#   benchmark/measure_triton.sh FOLDER [STEP[=SECONDS] …]
#
# A step ends after its seconds: no cell begins, a program that hangs is stopped, and what was measured is kept.
# Steps, in the order in which they should run, and their seconds:
#   test=170         the GPU tests, in parallel processes; stops everything where one fails
#   tune=360         tiles for every format, into FLEXACT_CACHE_DIR, which the steps after it read; a copy to FOLDER
#   compare=480      each format beside its peers, paired; peers are imported from PYTHONPATH
#   functions=180    every function of the catalogue beside silu, paired
#   dense=50         act_and_mul beside SGLang's silu_and_mul
#   start=60         a function that was never seen, from its text to its first result
#   conformance=400  the rows of the support matrix
#
# Variables: PYTHON; MODELS and FORMATS, lists; TOKENS and PEER_TOKENS, counts to tune and to compare; TUNED, a
# table of an earlier run that comparing starts from; FLEXACT_CACHE_DIR, by default a folder under TMPDIR that the
# next run on this machine finds again.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
tuned=${TUNED:+$(realpath "$TUNED")}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
models=${MODELS:-"qwen3-30b-a3b mixtral-8x7b gpt-oss-20b"}
formats=${FORMATS:-"bf16 fp8_block fp8_tensor mxfp4 nvfp4 mxfp4_fp8"}
tokens=${TOKENS:-1,16,64,128,1024,4096}
peer_tokens=${PEER_TOKENS:-1,16,128,1024,4096,16384}
export FLEXACT_CACHE_DIR=${FLEXACT_CACHE_DIR:-${TMPDIR:-/tmp}/flexact-measure}
bench="benchmark/benchmark_moe_kernels.py"
read -ra named <<< "$(printf -- '--model %s ' $models)"
if [ -n "$tuned" ]; then
  mkdir -p "$FLEXACT_CACHE_DIR/triton/tuned"
  cp "$tuned" "$FLEXACT_CACHE_DIR/triton/tuned/"
fi
begin=$SECONDS

# attempt NAME SECONDS COMMAND …: what takes longer or fails is reported, and what comes next still runs.
attempt() {
  local name=$1 limit=$2 started=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" > "$folder/$name.log" 2>&1 || status=$?
  echo "[$((SECONDS - begin)) s] $name: $((SECONDS - started)) s, exit status $status"
  [ $status = 0 ] || tail -3 "$folder/$name.log"
}

# One process compiles one kernel at a time, so the tests are spread over several.
run_test() {
  local jobs=() failed=0
  part() {
    local name=$1
    shift
    timeout "$seconds" "$python" -m pytest -q -p no:cacheprovider --junitxml="$folder/tests_$name.xml" "$@" \
      > "$folder/tests_$name.log" 2>&1 &
    jobs+=("$! $name")
  }
  part formats_fp4 tests/gpu/test_triton_formats.py -k "mxfp4 or nvfp4"
  part formats_fp8 tests/gpu/test_triton_formats.py -k "not mxfp4 and not nvfp4"
  part kernels tests/gpu/test_triton_moe.py -k "as_near and not function and not real"
  part real tests/gpu/test_triton_moe.py -k "as_near and real"
  part functions tests/gpu/test_triton_moe.py -k "as_near and function"
  part calls tests/gpu/test_triton_moe.py -k "not as_near"
  part transformers tests/gpu/test_transformers_gpu.py
  for job in "${jobs[@]}"; do
    wait "${job%% *}" || failed=1
    echo "[$((SECONDS - begin)) s] ${job#* }: $(tail -1 "$folder/tests_${job#* }.log")"
    grep -hE "^(FAILED|ERROR)" "$folder/tests_${job#* }.log" | head -5 || true
  done
  return $failed
}

run_tune() {
  read -ra each <<< "$(printf -- '--format %s ' $formats)"
  attempt tune "$((seconds + 15))" "$python" -m flexact.triton.tune "${named[@]}" "${each[@]}" --tokens "$tokens" \
    --seconds "$seconds" --log "$folder/tune.jsonl"
  cp "$FLEXACT_CACHE_DIR"/triton/tuned/*.json "$folder/" || echo "tune: no table was written"
}

# compared SHARE FORMAT PEERS [OPTION …]: one file for a format and its peers, in a share of the step's seconds.
compared() {
  local limit=$((seconds * $1 / 100)) format=$2 peers=$3 name="compare_$2" flags=()
  shift 3
  for peer in $peers; do
    flags+=(--peer "$peer")
    name+="_$peer"
  done
  [[ " $formats " == *" $format "* ]] || return 0
  # A cell that has begun is let to its end.
  attempt "$name" "$limit" "$python" $bench --backend triton --precision "$format" "${flags[@]}" "$@" --tokens "$peer_tokens" \
    --seconds 0.1 --deadline "$((limit - 12))" --json "$folder/$name.json"
}

run_compare() {
  compared 23 bf16 sglang-triton "${named[@]}"
  # Sizes of whole blocks of 128.
  compared 17 fp8_block sglang-triton --model qwen3-30b-a3b --model mixtral-8x7b
  compared 12 fp8_tensor sglang-triton --model qwen3-30b-a3b
  compared 16 nvfp4 marlin --model qwen3-30b-a3b --model mixtral-8x7b
  compared 13 mxfp4 marlin --model qwen3-30b-a3b --model mixtral-8x7b
  compared 13 mxfp4 triton-kernels --model qwen3-30b-a3b --model gpt-oss-20b --activation swiglu_oai \
    --pairing interleaved
  # No peer rounds activations beside FP4 weights here; it is to be faster than mxfp4 with many tokens.
  compared 6 mxfp4_fp8 "" --model qwen3-30b-a3b
}

run_functions() {
  attempt functions "$seconds" "$python" $bench --backend triton --model qwen3-30b-a3b --tokens 128,4096,16384 --against all \
    --seconds 1 --deadline "$((seconds - 15))" --json "$folder/functions.json"
}

run_dense() {
  attempt dense "$seconds" "$python" $bench "${named[@]}" --dense --against mish --against gelu \
    --json "$folder/dense.json"
}

run_start() {
  attempt start_up "$seconds" "$python" $bench --start-up --json "$folder/start_up.json"
}

run_conformance() {
  attempt conformance "$((seconds + 30))" "$python" tests/gpu/triton_conformance.py \
    --json "$folder/triton_conformance.json" --seconds "$seconds"
}

declare -A lasting=([test]=170 [tune]=360 [compare]=480 [functions]=180 [dense]=50 [start]=60 [conformance]=400)
steps=("$@")
if [ ${#steps[@]} = 0 ]; then steps=(test tune compare functions dense start conformance); fi
for step in "${steps[@]}"; do
  name=${step%%=*}
  seconds=${lasting[$name]:?no such step}
  [ "$name" = "$step" ] || seconds=${step#*=}
  "run_$name"
done
