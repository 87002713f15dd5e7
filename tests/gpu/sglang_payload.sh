#!/usr/bin/env bash
# sglang_payload.sh DEST: DEST/site.tar.xz, all that SGLang 0.5.17 and flexact need on a GPU machine that has
# no package index: what that machine must have is Python 3.12, torch 2.11 with CUDA 13, triton, and common
# packages (numpy, aiohttp, uvloop, psutil, safetensors, huggingface_hub, einops). About 45 MB.
#
#   PYTHON312=python3.12   builds flexact's wheel; WHEELS=DIR keeps downloads; FLEXACT_WHEEL=FILE skips the build
#
# On the machine: unpack, put site/ on PYTHONPATH, SGLANG_IS_FLASHINFER_AVAILABLE=false (docs/sglang.md).
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
dest=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wheels=${WHEELS:-$work/wheels}
python=${PYTHON312:-python3.12}
mkdir -p "$wheels" "$work/site"

# What sglang 0.5.17 pins, or what fits it; fastapi of today imports packages that it did not.
pins="sglang==0.5.17 sglang-kernel==0.4.5 sgl-deep-gemm==0.1.5.post1 apache-tvm-ffi==0.1.11 transformers==5.12.1
tokenizers==0.22.2 xgrammar==0.2.1 openai==2.6.1 openai-harmony==0.0.4 fastapi==0.120.0 starlette==0.48.0
uvicorn==0.54.0 pydantic==2.14.3 pydantic-core==2.50.4 msgspec==0.22.0 orjson==3.13.0 pyzmq==27.3.0 pybase64==1.5.1
dill==0.4.1 compressed-tensors==0.20.0 gguf==0.19.0 setproctitle==1.3.8 partial-json-parser==0.2.1.1.post7
annotated-types==0.8.0 typing-inspection==0.4.5 python-multipart==0.0.34 interegular==0.3.3 distro==1.9.0
jiter==0.19.0 sniffio==1.3.1 loguru==0.7.3 jsonschema==4.26.0 jsonschema-specifications==2025.9.1
referencing==0.37.0 rpds-py==2026.9.1 pytest==9.2.0 iniconfig==2.3.1 pluggy==1.7.0 pygments==2.21.0"
platforms=$(for n in 39 35 34 31 28 27 26 24 17 12 5; do echo "--platform manylinux_2_${n}_x86_64"; done)
for pin in $pins; do
  file="$wheels/$(tr - _ <<<"${pin%%==*}")-${pin##*==}-*.whl"
  # shellcheck disable=SC2086
  ls $file >/dev/null 2>&1 || "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp $platforms --platform manylinux2014_x86_64 -d "$wheels" "$pin"
  # Kernels of other architectures and parts that are not imported: a gigabyte.
  # shellcheck disable=SC2086
  unzip -q -o $file -d "$work/site" -x 'sgl_kernel/flash_ops*' 'sgl_kernel/infllm_ops*' 'sgl_kernel/flashmla_ops*' \
    'sgl_kernel/sm100/*' 'xgrammar/lib/*' 'sglang/multimodal_gen/*' 'sglang/test/*' 'sglang/srt/server/_core*' \
    'sglang/srt/grpc/_core*' 'sglang/srt/multimodal/_core*' 2>/dev/null || [ $? -eq 11 ]
done
# What SGLang's own tests of its fused MoE import.
unzip -q -o "$wheels"/sglang-0.5.17-*.whl -d "$work/site" 'sglang/test/ci/*' sglang/test/__init__.py \
  sglang/test/{test_utils,run_eval,simple_eval_common}.py
strip -s "$work/site/xgrammar/libxgrammar_bindings.so"

wheel=${FLEXACT_WHEEL:-}
if [ -z "$wheel" ]; then
  "$python" -m venv "$work/venv"
  "$work/venv/bin/pip" install -q scikit-build-core nanobind nlohmann-json cmake ninja
  PATH="$work/venv/bin:$PATH" "$work/venv/bin/pip" wheel -q --no-deps --no-build-isolation -w "$work" "$repository"
  wheel=$(ls "$work"/flexact-*.whl)
fi
unzip -q -o "$wheel" -d "$work/site"

# Stand-ins for packages that are imported and not used with triton attention and torch's sampling.
mkdir -p "$work/site"/{flashinfer,IPython,datasets}
cat > "$work/site/flashinfer/__init__.py" <<'PY'
"""Stand-in: SGLang imports names from here; each raises when it is called."""

__version__ = "0.6.15.post1"


def _absent(name):
    def call(*args, **kwargs):
        raise RuntimeError(f"flashinfer is not installed here, and {name} was called")

    return call


bmm_fp8 = _absent("bmm_fp8")
PY
for module in sampling prefill; do
  printf 'from flashinfer import _absent\n\n\ndef __getattr__(name):\n    return _absent(name)\n' \
    > "$work/site/flashinfer/$module.py"
done
touch "$work/site/IPython/__init__.py" "$work/site/soundfile.py"
printf 'def display(*args, **kwargs):\n    pass\n\n\nHTML = display\n' > "$work/site/IPython/display.py"
printf 'def load_dataset(*args, **kwargs):\n    raise RuntimeError("no data sets here")\n' \
  > "$work/site/datasets/__init__.py"

# Commands, flexact's too: what is unpacked is not installed. `python -m flexact.triton.tune` needs none.
rm -rf "$work"/site/*.data
tar -C "$work" -c --exclude=__pycache__ site | xz -T0 -3 > "$dest/site.tar.xz"
ls -l "$dest/site.tar.xz"
