#!/usr/bin/env bash
# Builds build/gpu/cuda_moe with the flexact of a build folder (default build/release) that has the CUDA kernels.
set -euo pipefail
cd "$(dirname "$0")/../.."
BUILD=${1:-build/release}
NVCC=${NVCC:-nvcc}
mkdir -p build/gpu
$NVCC -std=c++20 -O2 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_100a,code=sm_100a \
  -Iinclude -Isrc benchmark/moe/cuda_moe.cu \
  "$BUILD/libflexact.a" -cudart static -L"$(dirname "$(command -v "$NVCC")")/../lib" -Xcompiler -pthread -ldl -o build/gpu/cuda_moe
