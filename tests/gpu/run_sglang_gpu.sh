#!/usr/bin/env bash
# On a GPU machine, with the payload of sglang_payload.sh in build/sglang-gpu: unpacks it, then runs sets of
# engines of sglang_gpu.py (tp: on two GPUs) and, with the seconds that are left, the serving benchmark.
# Everything goes to $OUT as it is made, compiled code included, which the next run takes from
# build/sglang-gpu/cache.tgz. A table of launches that was tuned for this GPU is taken from
# build/sglang-gpu/tuned, else the shipped ones.
#
#   OUT=results tests/gpu/run_sglang_gpu.sh [SECONDS] [engines|cutlass|tp|serving …]
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:?}
seconds=${1:-560}
what=${*:2}
payload=build/sglang-gpu
home=/tmp/flexact-gpu
say() { echo "[$SECONDS s] $*" | tee -a "$out/log.txt"; }
mkdir -p "$home" "$out"
[ -d "$home/site" ] || tar -xJf $payload/site.tar.xz -C "$home" || exit 1
[ ! -f $payload/cache.tgz ] || tar -xzf $payload/cache.tgz -C "$home"
if [ -d $payload/tuned ]; then
  mkdir -p "$home/cache/flexact/triton/tuned"
  cp $payload/tuned/*.json "$home/cache/flexact/triton/tuned/"
fi
export PYTHONPATH=$home/site:$PWD/tests/gpu PYTHONUNBUFFERED=1 SGLANG_IS_FLASHINFER_AVAILABLE=false HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false TRITON_CACHE_DIR=$home/cache/triton TVM_FFI_CACHE_DIR=$home/cache/tvm
export SGLANG_DG_CACHE_DIR=$home/cache/dg DG_JIT_CACHE_DIR=$home/cache/dg FLEXACT_CACHE_DIR=$home/cache/flexact
export TORCHINDUCTOR_CACHE_DIR=$home/cache/inductor FLEXACT_VERBOSE=1
# Plain collectives are all that the engines need.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$out/log.txt"
python3 -m compileall -q -j 16 "$home/site" >/dev/null 2>&1
python3 -c 'import flexact.sglang, sglang; print("sglang", sglang.__version__)' 2>&1 | tail -3 | tee -a "$out/log.txt"
[ "${PIPESTATUS[0]}" = 0 ] || { say "the payload does not import"; exit 1; }
say unpacked
code=0
keep() { tar -czf "$out/cache.tgz" -C "$home" cache 2>/dev/null; }
for set in engines cutlass tp; do
  [[ ${what:-engines} == *$set* ]] || continue
  timeout $((seconds - SECONDS - 20)) python3 tests/gpu/sglang_gpu.py "$out/$set.json" $set ${ONLY:+--only $ONLY} \
    --parallel "${PARALLEL:-5}" --deadline $((seconds - SECONDS - 40)) 2>&1 | tee -a "$out/$set.txt"
  failed=${PIPESTATUS[0]}
  [ $code != 0 ] || code=$failed
  say "$set: $failed"
  FLEXACT_SGLANG_RESULTS=$out/$set.json timeout 60 python3 -m pytest -q -p no:cacheprovider \
    tests/gpu/test_sglang_gpu.py 2>&1 | tail -40 | tee -a "$out/log.txt"
  keep
done
if [[ $what == *serving* ]] || { [ -z "$what" ] && [ $code = 0 ] && [ $((seconds - SECONDS)) -gt 200 ]; }; then
  timeout $((seconds - SECONDS - 10)) python3 benchmark/benchmark_sglang_gpu.py "$out/serving.json" \
    --deadline $((seconds - SECONDS - 45)) ${SERVING:-} 2>&1 | tee -a "$out/serving.txt"
  code=${PIPESTATUS[0]}
  keep
fi
ls -l "$out" | tee -a "$out/log.txt"
say end
exit $code
