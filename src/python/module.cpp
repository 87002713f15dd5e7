// The extension module flexact._core: the C++ API, object for object. It knows no framework:
// tensors cross as addresses, and what torch adds lives in the Python files beside it.
#include "module.hpp"

#include "flexact/version.hpp"

NB_MODULE(_core, module) {
  // Objects that Python still holds when it ends are no leak to report to a user's terminal.
  nb::set_leak_warnings(false);
  module.doc() = "flexact's compiled core";
  module.def("version", &flexact::version, "The version of the library.");
  flexact::python::bind_errors(module);
  flexact::python::bind_activation(module);
  flexact::python::bind_config(module);
  flexact::python::bind_formats(module);
  flexact::python::bind_moe(module);
  flexact::python::bind_launch(module);
}
