// The extension module flexact._core: the C++ API, object for object. It knows no framework; what
// torch adds lives in the Python files beside it.
#include "module.hpp"

#include "flexact/version.hpp"

NB_MODULE(_core, module) {
  module.doc() = "flexact's compiled core";
  module.attr("__version__") = flexact::version();
  flexact::python::bind_errors(module);
}
