// The configuration resolver's answers in Python.
#include "flexact/config.hpp"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "module.hpp"

namespace flexact::python {

void bind_config(nb::module_& module) {
  nb::class_<ResolvedActivation>(module, "ResolvedActivation",
                                 "What one role of one layer computes.")
      .def_prop_ro(
          "activation", [](const ResolvedActivation& self) { return self.activation; },
          "The activation, lifted to f(g) * u where the layer is gated.")
      .def_ro("name", &ResolvedActivation::name)
      .def_ro("gated", &ResolvedActivation::gated)
      .def_prop_ro(
          "pairing", [](const ResolvedActivation& self) { return to_string(self.pairing); },
          "concat, up_first, interleaved, separate or none.")
      .def_ro("transposed", &ResolvedActivation::transposed,
              "Weights stored [E, H, 2I] and [E, I, H].")
      .def_ro("bias", &ResolvedActivation::bias)
      .def_ro("source", &ResolvedActivation::from, "The keys and defaults that decided.")
      .def("__repr__", [](const ResolvedActivation& self) {
        return "ResolvedActivation(" + self.name + ", " + self.activation.to_json() + ")";
      });

  nb::class_<LayerActivations>(module, "LayerActivations", "The activations of one layer by role.")
      .def_ro("index", &LayerActivations::index)
      .def_prop_ro("routed", [](const LayerActivations& self) { return self.routed; })
      .def_prop_ro("shared", [](const LayerActivations& self) { return self.shared; })
      .def_prop_ro("dense", [](const LayerActivations& self) { return self.dense; })
      .def(
          "role",
          [](const LayerActivations& self, std::string_view role) {
            return self.role(parse_role(role));
          },
          nb::arg("role"),
          "The activation of 'routed', 'shared' or 'dense'; None where there is none.");

  nb::class_<ModelActivations>(module, "ModelActivations",
                               "Exactly one activation per layer and role.")
      .def_ro("model_type", &ModelActivations::model_type)
      .def_prop_ro("layers", [](const ModelActivations& self) { return self.layers; })
      .def_prop_ro("warnings", [](const ModelActivations& self) { return self.warnings; })
      .def_ro("layers_known", &ModelActivations::layers_known,
              "False: layers[0] stands for every layer, the configuration does not count them.")
      .def("to_json", &ModelActivations::to_json, nb::arg("indent") = -1);

  module.def(
      "resolve_config_path",
      [](const std::filesystem::path& path, std::string overrides, std::string from_stack) {
        return resolve_config(path, {std::move(overrides), std::move(from_stack)});
      },
      nb::arg("path"), nb::arg("overrides") = "", nb::arg("from_stack") = "");
  module.def(
      "resolve_config_text",
      [](std::string_view json, std::string overrides, std::string from_stack) {
        return resolve_config_text(json, {std::move(overrides), std::move(from_stack)});
      },
      nb::arg("json"), nb::arg("overrides") = "", nb::arg("from_stack") = "");
  module.def("known_stacks", &known_stacks, "The stacks whose names `from_stack` admits.");
  module.def("function_from_stack", &function_from_stack, nb::arg("name"), nb::arg("stack"),
             "What `stack` means by `name`.");
}

}  // namespace flexact::python
