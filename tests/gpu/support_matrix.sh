#!/usr/bin/env bash
# The rows of the support matrix of both GPU backends, on this machine's GPU: every function, pairing and format of
# Triton and CUTLASS against fp64, each with options from a covering array.
#
#   OUT=results CONFORMANCE=conformance.xz tests/gpu/support_matrix.sh [SECONDS]
#
# Needs about 90 seconds on 16 processors, nearly all of them for compiling. CONFORMANCE is the program of
# tests/conformance, packed or not (default build/developer/tests/conformance/conformance); Python (PYTHON, default
# python3) must find flexact, torch and triton. First one function in both backends, and nothing more where that
# fails; then all at the same time. After SECONDS (110) nothing begins. $OUT/matrix.tgz has what is finished, a few
# seconds old at most; EARLIER=matrix.tgz of the same commit goes on where that run was cut off. Afterwards:
#
#   tar xzf results/matrix.tgz && python scripts/merge_support_matrix.py matrix/*.json
#
# FLEXACT_COMMIT names the commit where there is no repository. FUNCTIONS and TRITON_OPTIONS (for instance
# "--device cpu --format nvfp4") are for trying the script itself.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${OUT:?}" && cd "$OUT" && pwd)
python=${PYTHON:-python3}
program=${CONFORMANCE:-build/developer/tests/conformance/conformance}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
export END=$(($(date +%s) + ${1:-110})) RESULTS=$work/matrix PROGRAM=$work/conformance
export FLEXACT_CACHE_DIR=${FLEXACT_CACHE_DIR:-$work/cache} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export FLEXACT_CUDA_PATH=${FLEXACT_CUDA_PATH:-$($python -c 'import nvidia; print(list(nvidia.__path__)[0] + "/cu13/lib")' 2>/dev/null)}
[ -d "$FLEXACT_CUDA_PATH" ] || unset FLEXACT_CUDA_PATH
mkdir -p "$RESULTS"
say() { echo "[$SECONDS s] $*" | tee -a "$RESULTS/log.txt"; }
save() { tar czf "$out/matrix.new" -C "$work" matrix && mv "$out/matrix.new" "$out/matrix.tgz"; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | tee "$RESULTS/gpu.txt"
case $program in *.xz) xz -dc "$program" ;; *) cat "$program" ;; esac > "$PROGRAM" && chmod +x "$PROGRAM" || exit 2
if [ -n "${EARLIER:-}" ]; then tar xzf "$EARLIER" -C "$work" --exclude log.txt || exit 2; fi
first=${FUNCTIONS:-relu}
first=${first%% *}
functions=${FUNCTIONS:-$($python -c 'from flexact import ActivationRegistry; print(*reversed(ActivationRegistry.list()))') expr1 expr2} || exit 2

# A function in every pairing and format that CUTLASS takes. Its file is written when all of it has run.
cutlass() {
  local file=$RESULTS/cutlass_$1 left=$((END - $(date +%s))) status=0
  [ ! -s "$file.json" ] && [ $left -gt 0 ] || return 0
  timeout -k 2 $((left + 15)) "$PROGRAM" test --gpu --rows 1 --only "cutlass/sm_90a/$1" --json "$file.json" \
    > "$file.log" 2>&1 || status=$?
  [ $status = 0 ] || { echo "cutlass $1: exit status $status"; grep -A3 FAILED "$file.log" | head -8; }
  return $status
}
export -f cutlass
triton() {
  local left=$((END - $(date +%s)))
  # shellcheck disable=SC2086
  timeout -k 2 $((left + 15)) "$python" tests/gpu/triton_conformance.py --rows 1 --json "$RESULTS/triton.json" --resume \
    --seconds $left ${TRITON_OPTIONS:-} "$@" > "$RESULTS/triton.log" 2>&1
}

say "one function"
triton --function "$first" &
cutlass "$first" || { say "CUTLASS: one function fails"; tail -3 "$RESULTS/cutlass_$first.log"; save; exit 1; }
say "CUTLASS: $(grep passed "$RESULTS/cutlass_$first.log")"
wait $! || { say "Triton: one function fails"; tail -5 "$RESULTS/triton.log"; save; exit 1; }
say "Triton: $(tail -1 "$RESULTS/triton.log")"
save

# shellcheck disable=SC2086
names=$(printf -- ' --function %s' $functions)
# shellcheck disable=SC2001,SC2086
triton $(echo "$names" | sed 's/ --function expr[12]//g') &
of_triton=$!
(while sleep 4; do save; done) &
saver=$!
# shellcheck disable=SC2086
printf '%s\n' $functions | xargs -P 10 -I {} bash -c 'cutlass {}' | tee -a "$RESULTS/log.txt"
say "CUTLASS: $(ls "$RESULTS"/cutlass_*.json | wc -l) of $(wc -w <<< "$functions") functions"
wait $of_triton
say "Triton: $(tail -1 "$RESULTS/triton.log")"
kill $saver
wait $saver 2>/dev/null
grep FAILED "$RESULTS/triton.log" | cut -c1-200 | head -20
"$python" - "$RESULTS" $functions << 'PY' | tee -a "$RESULTS/log.txt"
import json, pathlib, sys

folder, functions = pathlib.Path(sys.argv[1]), sys.argv[2:]
complete = True
for backend in ("cutlass", "triton"):
    runs = [json.loads(each.read_text()) for each in sorted(folder.glob(f"{backend}*.json"))]
    rows = [row for run in runs for row in run["rows"] if row[1] != "*"]
    sums = {key: sum(run["runs"][key] for run in runs) for key in ("passed", "failed")}
    proven = sum(bool(row[5]) for row in rows)
    claimed = sum(row[4] == "yes" for row in rows)
    wanted = [each for each in functions if backend == "cutlass" or not each.startswith("expr")]
    lacking = [each for each in wanted if each not in {row[1] for row in rows}]
    print(f"{backend}: {proven} of {claimed} claimed rows proven; {sums['passed']} runs passed, {sums['failed']} failed"
          + (f"; not run: {' '.join(lacking)}" if lacking else ""))
    complete &= bool(claimed) and proven == claimed and not lacking
sys.exit(not complete)
PY
code=${PIPESTATUS[0]}
say "end"
save
exit "$code"
