#!/usr/bin/env bash
# Leaves everything that building, testing and the demo need: the system packages, .venv with the
# pinned Python packages, and flexact itself in it. Each step is skipped while its inputs are unchanged.
#
#   PYTHON=…             the interpreter that .venv is made with (3.11 or newer)
#   FLEXACT_PIP_ARGS=…   more arguments for pip, e.g. an index with CPU builds of torch
#   COVERAGE=1           the extension module counts the lines that it runs
#   FLEXACT_SGLANG=0     leave SGLang out (the demo then runs through transformers)
#   FLEXACT_CUDA=0       leave the CUDA compiler's packages out (the CUDA kernels are then not built)
# With the argument `system` it installs the system packages alone.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
STAMPS=$VENV/.flexact
PACKAGES=(g++ make git cmake ninja-build ccache clang-format-14 clang-14 libclang-rt-14-dev gcovr nlohmann-json3-dev libcli11-dev
  libfmt-dev libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev libmpfr-dev)
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "needs root or sudo for: $*"; fi
}

# install_system PACKAGE…: those of them that are missing.
install_system() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing system packages: ${missing[*]}"
  # A package list can be stale in one mirror and still hold what is asked for: only the install decides.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null || true
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null \
    || fail "apt-get could not install: ${missing[*]}"
}

system_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "not a Debian system: expecting what these packages hold to be there: ${PACKAGES[*]}"
    return
  fi
  install_system "${PACKAGES[@]}"
}

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if usable "$candidate"; then echo "$candidate"; return; fi
  done
  fail "needs Python 3.11 or newer; name one with PYTHON=/path/to/python"
}

virtual_environment() {
  local python
  [ -x $VENV/bin/python ] && usable $VENV/bin/python && [ -x $VENV/bin/pip ] && return
  python=$(find_python)
  # Debian splits these two off its Python; other Pythons bring them along.
  if [ "$("$python" -c 'import sys; print(sys.prefix)')" = /usr ] && command -v apt-get >/dev/null; then
    install_system python3-venv python3-dev
  fi
  say "creating $VENV with $("$python" --version)"
  "$python" -m venv --clear $VENV
}

pip_install() { $VENV/bin/pip install -qq ${FLEXACT_PIP_ARGS:-} "$@"; }

# changed NAME FILE…: whether the files differ from those that step NAME last succeeded with.
changed() {
  local name=$1; shift
  fresh=$({ echo "${FLEXACT_SGLANG:-1} ${coverage:-}"; sha256sum "$@"; } | sha256sum)
  [ "$(cat "$STAMPS/$name" 2>/dev/null)" != "$fresh" ]
}
done_with() { mkdir -p $STAMPS; printf '%s\n' "$fresh" > "$STAMPS/$1"; }

# PyPI's Linux torch is a CUDA build: without its CUDA libraries it imports only from a CPU index.
complete_torch() {
  local reason
  reason=$($VENV/bin/python -c 'import torch' 2>&1) && return
  # Only a missing CUDA library is mended here; anything else is shown, not answered with a download.
  grep -qE 'lib(cu|nv|nccl)[A-Za-z]*\.so' <<<"$reason" || fail "torch does not import: $reason"
  say "this torch needs its CUDA libraries even on a CPU; installing them (several GB)"
  pip_install torch==2.13.0
  $VENV/bin/python -c 'import torch'
}

python_packages() {
  changed packages requirements/*.txt || return 0
  say "installing Python packages (torch, transformers, SGLang, tools): one to three minutes"
  if [ "${FLEXACT_SGLANG:-1}" != 0 ] && pip_install --no-deps -r requirements/sglang-cpu.txt; then
    complete_torch
  else
    say "SGLang cannot be installed here; the demo and its tests run through transformers"
    pip_install -r requirements/transformers-cpu.txt
  fi
  pip_install -r requirements/dev.txt
  done_with packages
}

cuda_packages() {
  [ "${FLEXACT_CUDA:-1}" != 0 ] || return 0
  changed cuda requirements/cuda.txt || return 0
  say "installing the CUDA compiler's Python packages (240 MB): no GPU is needed for them"
  if pip_install --no-deps -r requirements/cuda.txt; then
    done_with cuda
  else
    say "they cannot be installed here; the CUDA kernels are not built"
  fi
}

package() {
  local sources coverage=OFF
  [ -z "${COVERAGE:-}" ] || coverage=ON
  mapfile -t sources < <(find CMakeLists.txt cmake include src python pyproject.toml README.md LICENSE licenses \
    -type f -not -name '*.pyc' | LC_ALL=C sort)
  changed flexact "${sources[@]}" requirements/dev.txt requirements/cuda.txt || return 0
  say "building flexact"
  # nproc answers OMP_NUM_THREADS where that is set, and the Makefile sets it to one.
  CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(env -u OMP_NUM_THREADS nproc)} \
    pip_install --no-deps --no-build-isolation --force-reinstall \
    -C cmake.define.FLEXACT_COVERAGE_BINDINGS=$coverage .
  # SGLang's CPU engine imports two packages that have no CPU build; stand-ins for them.
  if $VENV/bin/python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("sglang") and u.find_spec("flexact.sglang.cpu_support")))' 2>/dev/null; then
    $VENV/bin/python -m flexact.sglang.cpu_support
  fi
  done_with flexact
}

system_packages
[ "${1:-}" != system ] || exit 0
virtual_environment
python_packages
cuda_packages
package
[ -x $VENV/bin/flexact ] || say "the flexact command was not built: CMake found no CLI11 or fmt"
say "ready: $VENV/bin/python$([ -x $VENV/bin/flexact ] && echo ", $VENV/bin/flexact")"
