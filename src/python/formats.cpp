// The quantised formats in Python, on memory that the caller owns: addresses of contiguous arrays
// on the CPU. flexact.formats is the same on torch tensors of any device.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "flexact/error.hpp"
#include "flexact/moe.hpp"
#include "module.hpp"
#include "moe/quantised.hpp"
#include "moe/small_floats.hpp"

namespace flexact::python {

namespace {

template <typename T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

moe::QuantisedMatrix matrix(std::uintptr_t codes, std::uintptr_t scales, float global_scale) {
  return {at<std::uint8_t>(codes), at<void>(scales), global_scale};
}

void encode(std::string_view type, std::uintptr_t values, std::int64_t count,
            std::uintptr_t codes) {
  const auto each = [&](auto function) {
    for (std::int64_t i = 0; i < count; ++i)
      at<std::uint8_t>(codes)[i] = function(at<const float>(values)[i]);
  };
  if (type == "e4m3") return each(moe::encode_e4m3);
  if (type == "e2m1") return each(moe::encode_e2m1);
  if (type == "e8m0_scale") return each(moe::e8m0_scale);
  throw Error(ErrorCode::InvalidArgument, "unknown type '" + std::string(type) + "'", "type",
              "e4m3, e2m1 or e8m0_scale");
}

void decode(std::string_view type, std::uintptr_t codes, std::int64_t count,
            std::uintptr_t values) {
  const auto each = [&](auto function) {
    for (std::int64_t i = 0; i < count; ++i)
      at<float>(values)[i] = function(at<const std::uint8_t>(codes)[i]);
  };
  if (type == "e4m3") return each(moe::decode_e4m3);
  if (type == "e2m1") return each(moe::decode_e2m1);
  if (type == "e8m0") return each(moe::decode_e8m0);
  throw Error(ErrorCode::InvalidArgument, "unknown type '" + std::string(type) + "'", "type",
              "e4m3, e2m1 or e8m0");
}

}  // namespace

void bind_formats(nb::module_& module) {
  module.def("encode", &encode, nb::arg("type"), nb::arg("values"), nb::arg("count"),
             nb::arg("codes"),
             "Encodes fp32 values, one code a byte: 'e4m3', 'e2m1', or 'e8m0_scale' (the scale of "
             "groups whose largest magnitudes the values are).");
  module.def("decode", &decode, nb::arg("type"), nb::arg("codes"), nb::arg("count"),
             nb::arg("values"), "Decodes one code a byte to fp32: 'e4m3', 'e2m1' or 'e8m0'.");
  module.def(
      "quantised_layout",
      [](std::string_view format, std::int64_t rows, std::int64_t k) {
        const auto layout = moe::layout_of(parse_format(format), rows, k);
        return std::tuple(layout.code_bytes, layout.scale_rows, layout.scale_columns,
                          to_string(layout.scale_dtype));
      },
      nb::arg("format"), nb::arg("rows"), nb::arg("k"),
      "How a matrix is stored: bytes of codes a row, rows and columns of scales, their dtype.");
  module.def(
      "quantise",
      [](std::string_view format, std::uintptr_t w, std::int64_t rows, std::int64_t k,
         std::uintptr_t codes, std::uintptr_t scales, float global_scale) {
        const Format parsed = parse_format(format);
        const nb::gil_scoped_release unlocked;
        moe::quantise(parsed, at<const float>(w), rows, k, matrix(codes, scales, global_scale));
      },
      nb::arg("format"), nb::arg("w"), nb::arg("rows"), nb::arg("k"), nb::arg("codes"),
      nb::arg("scales"), nb::arg("global_scale") = 1.0f, "Rounds a matrix of fp32 to a format.");
  module.def(
      "dequantise",
      [](std::string_view format, std::uintptr_t codes, std::uintptr_t scales, float global_scale,
         std::int64_t rows, std::int64_t k, std::uintptr_t w) {
        const Format parsed = parse_format(format);
        const nb::gil_scoped_release unlocked;
        moe::dequantise(parsed, matrix(codes, scales, global_scale), rows, k, at<double>(w));
      },
      nb::arg("format"), nb::arg("codes"), nb::arg("scales"), nb::arg("global_scale"),
      nb::arg("rows"), nb::arg("k"), nb::arg("w"), "The values of a matrix, exact in fp64.");
  module.def(
      "quantise_activations",
      [](std::string_view format, std::uintptr_t x, std::int64_t rows, std::int64_t k,
         std::uintptr_t codes, std::uintptr_t scales, std::optional<float> given) {
        const Format parsed = parse_format(format);
        const nb::gil_scoped_release unlocked;
        moe::quantise_activations(parsed, at<const float>(x), rows, k, at<std::uint8_t>(codes),
                                  at<float>(scales), given ? &*given : nullptr);
      },
      nb::arg("format"), nb::arg("x"), nb::arg("rows"), nb::arg("k"), nb::arg("codes"),
      nb::arg("scales"), nb::arg("given") = nb::none(), "Rounds fp32 activations to E4M3.");
}

}  // namespace flexact::python
