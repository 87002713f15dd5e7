#!/usr/bin/env bash
# Fuzzes each target for a while, on one core: tests/fuzz/run.sh SECONDS [TARGET…]
# New inputs are added to build/fuzz/found/TARGET, findings to build/fuzz/findings. Prints, for each
# target, executions, processor seconds and findings.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:?seconds for each target}
shift
[ $# -gt 0 ] || set -- config expression checkpoint isa
build=build/fuzz
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:allocator_may_return_null=1}
failed=0
for target in "$@"; do
  found=$build/found/$target
  findings=$build/findings/$target
  mkdir -p "$found" "$findings"
  options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=1
    -artifact_prefix="$findings/")
  [ -f "tests/fuzz/$target.dict" ] && options+=(-dict="tests/fuzz/$target.dict")
  log=$build/$target.log
  status=0
  ( TIMEFORMAT='cpu_seconds %U'; time $build/tests/fuzz/fuzz_"$target" "${options[@]}" "$found" \
    "tests/fuzz/corpus/$target" ) >"$log" 2>&1 || status=1
  failed=$((failed | status))
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  cpu=$(sed -n 's/^cpu_seconds //p' "$log")
  printf '%-12s %12s executions %10s CPU seconds %4s findings\n' "$target" "${executions:-0}" "${cpu:-?}" \
    "$(find "$findings" -type f | wc -l)"
done
exit $failed
