// The parts of flexact._core, one binding file for each public header.
#pragma once

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace flexact::python {

void bind_errors(nb::module_& module);
void bind_activation(nb::module_& module);
void bind_config(nb::module_& module);
void bind_formats(nb::module_& module);
void bind_moe(nb::module_& module);
void bind_launch(nb::module_& module);

}  // namespace flexact::python
