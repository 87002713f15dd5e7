// flexact::Error as the Python class of its code, with the same parts.
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include "flexact/error.hpp"
#include "module.hpp"

namespace flexact::python {

namespace {

void raise(const Error& error) {
  const nb::object kind =
      nb::module_::import_("flexact.errors").attr(to_string(error.code()).data());
  const nb::object value = kind(error.message(), error.where(), error.hint());
  PyErr_SetObject(kind.ptr(), value.ptr());
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& error) {
      try {
        raise(error);
      } catch (nb::python_error& nested) {
        nested.restore();  // errors.py itself failed: show that, not a lost exception
      }
    }
  });
}

}  // namespace flexact::python
