#!/usr/bin/env bash
# Builds build/gpu/activation_cuda_check from the flexact of a build folder (default build/developer).
set -euo pipefail
cd "$(dirname "$0")/../.."
BUILD=${1:-build/developer}
OUT=build/gpu
mkdir -p $OUT
python3 tests/gpu/generate_activation_cuda.py "$BUILD/src/cli/flexact" $OUT/activation_cuda.cu
nvcc -std=c++20 -O2 -arch=sm_90a -Itests/gpu -c $OUT/activation_cuda.cu -o $OUT/activation_cuda.o
nvcc -std=c++20 -O2 -arch=sm_90a -Itests/gpu -Iinclude tests/gpu/activation_cuda_check.cpp $OUT/activation_cuda.o \
  "$BUILD/libflexact.a" -cudart static -Xcompiler -pthread -o $OUT/activation_cuda_check
