// Names and sizes of element types and formats.
#include <array>
#include <string>
#include <utility>

#include "flexact/error.hpp"
#include "flexact/moe.hpp"

namespace flexact {

namespace {

constexpr std::array<std::pair<Format, std::string_view>, 9> kFormats{{
    {Format::Bf16, "bf16"},
    {Format::Fp16, "fp16"},
    {Format::Fp32, "fp32"},
    {Format::Fp8Block, "fp8_block"},
    {Format::Fp8Tensor, "fp8_tensor"},
    {Format::Fp8Channel, "fp8_channel"},
    {Format::Mxfp4, "mxfp4"},
    {Format::Nvfp4, "nvfp4"},
    {Format::Mxfp4Fp8, "mxfp4_fp8"},
}};

}  // namespace

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::Float32:
      return "float32";
    case DType::BFloat16:
      return "bfloat16";
    case DType::Float16:
      return "float16";
    case DType::Float8E4M3:
      return "float8_e4m3";
    case DType::UInt8:
      return "uint8";
    case DType::Int32:
      return "int32";
    case DType::Int64:
      return "int64";
  }
  return "unknown";
}

std::int64_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::Float8E4M3:
    case DType::UInt8:
      return 1;
    case DType::BFloat16:
    case DType::Float16:
      return 2;
    case DType::Float32:
    case DType::Int32:
      return 4;
    case DType::Int64:
      return 8;
  }
  return 0;
}

std::string_view to_string(Format format) noexcept {
  for (const auto& [value, name] : kFormats) {
    if (value == format) return name;
  }
  return "unknown";
}

Format parse_format(std::string_view text) {
  std::string known;
  for (const auto& [value, name] : kFormats) {
    if (name == text) return value;
    known += known.empty() ? "" : ", ";
    known += name;
  }
  throw Error(ErrorCode::InvalidArgument, "unknown format '" + std::string(text) + "'", "format",
              "one of " + known);
}

}  // namespace flexact
