// The kernels that this build carries, as LTO-IR: everything but the activation.
#pragma once

#include <span>
#include <string_view>

#include "cuda/jit/toolchain.hpp"

namespace flexact::cuda {

struct KernelImage {
  std::string_view name;  // of its source file: "sm90_bf16_gated", "dense_bf16_gated"
  ToolVersion toolkit;    // whose nvcc made it; the linker must be as new
  std::string_view ir;    // a fat binary
};

// Written by the build (cmake/cuda.cmake); empty where it had no nvcc.
std::span<const KernelImage> kernel_images();

// Throws Unsupported where this build has none of that name.
const KernelImage& kernel_image(std::string_view name);

}  // namespace flexact::cuda
