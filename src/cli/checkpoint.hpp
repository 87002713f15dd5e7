// Learned activation parameters out of a model folder's safetensors files.
#pragma once

#include <filesystem>

#include "flexact/activation.hpp"

namespace flexact::cli {

// Reads scalars and vectors (F64, F32, F16, BF16) by name; throws ConfigError for a tensor that the
// checkpoint lacks, IoError for a damaged file. Null where `path` is no folder with safetensors.
TensorReader checkpoint_reader(const std::filesystem::path& path);

}  // namespace flexact::cli
