// Function, Activation and the registry in Python. Parameter values travel as plain Python numbers
// and as the same scope forms that activation_params has: {"per_layer": […]}, {"per_expert": […]},
// {"tensor": "…"}.
#include "flexact/activation.hpp"

#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "activation/catalogue.hpp"
#include "flexact/error.hpp"
#include "module.hpp"

namespace flexact::python {

namespace {

constexpr const char* kValueForms =
    R"(a finite number, {"per_layer": [...]}, {"per_expert": [...]} or {"tensor": "NAME"})";

ParameterValue to_value(nb::handle object, const std::string& where);

std::vector<ParameterValue> to_values(nb::handle list, const std::string& where) {
  if (!nb::isinstance<nb::list>(list) && !nb::isinstance<nb::tuple>(list))
    throw Error(ErrorCode::ConfigError, "a list is needed here", where, "a list of numbers");
  std::vector<ParameterValue> values;
  for (nb::handle element : list)
    values.push_back(to_value(element, where + "/" + std::to_string(values.size())));
  return values;
}

ParameterValue to_form(const nb::dict& form, const std::string& where) {
  if (form.size() == 1) {
    const auto [key, content] = *form.begin();
    const std::string name = nb::cast<std::string>(nb::str(key));
    if (name == "per_layer")
      return ParameterValue::per_layer(to_values(content, where + "/per_layer"));
    if (name == "per_expert")
      return ParameterValue::per_expert(to_values(content, where + "/per_expert"));
    if (name == "tensor" && nb::isinstance<nb::str>(content))
      return ParameterValue::tensor(nb::cast<std::string>(content));
  }
  throw Error(ErrorCode::ConfigError, "not a parameter value", where, kValueForms);
}

// Numbers of any kind (int, float, numpy and torch scalars), but neither booleans nor text: those
// are mistakes in a configuration and stay mistakes here.
ParameterValue to_value(nb::handle object, const std::string& where) {
  if (nb::isinstance<nb::dict>(object)) return to_form(nb::cast<nb::dict>(object), where);
  if (nb::isinstance<nb::bool_>(object) || nb::isinstance<nb::str>(object) || object.is_none() ||
      !PyNumber_Check(object.ptr()))
    throw Error(ErrorCode::ConfigError,
                "not a parameter value: " + nb::cast<std::string>(nb::repr(object)), where,
                kValueForms);
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) throw nb::python_error();
  return ParameterValue(value);
}

Binding to_binding(const nb::dict& params) {
  Binding binding;
  for (const auto [key, value] : params) {
    const std::string name = nb::cast<std::string>(nb::str(key));
    binding.emplace(name, to_value(value, "/" + name));
  }
  return binding;
}

nb::object from_value(const ParameterValue& value) {
  if (value.kind() == ParameterValue::Kind::Scalar) return nb::float_(value.scalar());
  nb::dict form;
  if (value.kind() == ParameterValue::Kind::Tensor) {
    form["tensor"] = value.tensor_name();
    return form;
  }
  nb::list elements;
  for (const ParameterValue& element : value.elements()) elements.append(from_value(element));
  form[value.kind() == ParameterValue::Kind::PerLayer ? "per_layer" : "per_expert"] = elements;
  return form;
}

nb::dict from_binding(const Binding& binding) {
  nb::dict params;
  for (const auto& [name, value] : binding) params[name.c_str()] = from_value(value);
  return params;
}

Target to_target(std::string_view name) {
  if (name == "cuda") return Target::Cuda;
  if (name == "triton") return Target::Triton;
  if (name == "torch") return Target::Torch;
  if (name == "text") return Target::Text;
  throw Error(ErrorCode::InvalidArgument, "unknown target '" + std::string(name) + "'", {},
              "cuda, triton, torch or text");
}

double reference(const Function& function, const nb::args& inputs,
                 const std::vector<double>& values) {
  const bool gated = function.arity() == Arity::Gated;
  if (inputs.size() != (gated ? 2u : 1u))
    throw Error(ErrorCode::InvalidArgument,
                "got " + std::to_string(inputs.size()) + " inputs for " + function.name(), {},
                gated ? "a gated function takes g and u" : "a unary function takes x");
  const double first = nb::cast<double>(inputs[0]);
  return gated ? function.reference(first, nb::cast<double>(inputs[1]), values)
               : function.reference(first, values);
}

// A function registered in the sending process may be unknown in the receiving one; its canonical
// text always is enough.
Function restore(const std::string& name, const std::string& canonical) {
  try {
    if (Function function = Function::named(name); function.canonical() == canonical)
      return function;
  } catch (const Error&) {
  }
  return Function::from_canonical(canonical);
}

std::vector<std::vector<double>> rows_of(const ValueTable& table) {
  std::vector<std::vector<double>> rows;
  for (std::int64_t row = 0; row < table.rows; ++row)
    rows.emplace_back(table.data.begin() + row * table.columns,
                      table.data.begin() + (row + 1) * table.columns);
  return rows;
}

std::vector<std::vector<double>> values(const Activation& activation, std::int64_t layer,
                                        std::pair<std::int64_t, std::int64_t> experts,
                                        const std::optional<TensorReader>& tensors, bool initial) {
  std::vector<std::string> missing;
  const ValueTable table = activation.values(layer, {experts.first, experts.second},
                                             tensors ? *tensors : TensorReader(), &missing);
  if (!missing.empty() && !initial)
    throw Error(ErrorCode::ConfigError,
                "the values of '" + missing.front() + "' are in the checkpoint", {},
                "give tensors, a reader of checkpoint tensors");
  return rows_of(table);
}

// As in a configuration, "expr" is the name of a function that is given by its text.
Activation get_activation(std::string_view name, const nb::dict& params) {
  if (name != "expr" || !params.contains("expr"))
    return ActivationRegistry::instance().get_activation(name, to_binding(params));
  nb::dict rest;
  rest.update(params);
  if (!nb::isinstance<nb::str>(params["expr"]))
    throw Error(ErrorCode::ConfigError, "not an expression", "/expr", "a text");
  nb::del(rest["expr"]);
  return Activation(Function::expression(nb::cast<std::string>(params["expr"])), to_binding(rest));
}

// The torch part is written in Python and imported when it is first called.
nb::object call_with_torch(const nb::object& self, const nb::args& args, const nb::kwargs& kwargs) {
  return nb::module_::import_("flexact.torch_functions").attr("call")(self, *args, **kwargs);
}

void bind_parameter(nb::module_& module) {
  nb::class_<Parameter>(module, "Parameter", "One named parameter of a function.")
      .def(
          "__init__",
          [](Parameter* self, std::string name, std::optional<double> default_value, double min,
             double max, bool min_inclusive, bool max_inclusive, std::vector<std::string> aliases,
             std::optional<double> initial_value) {
            new (self) Parameter{std::move(name), default_value,
                                 Domain{min, max, min_inclusive, max_inclusive}, std::move(aliases),
                                 initial_value};
          },
          nb::arg("name"), nb::arg("default") = nb::none(), nb::kw_only(),
          nb::arg("min") = -std::numeric_limits<double>::infinity(),
          nb::arg("max") = std::numeric_limits<double>::infinity(), nb::arg("min_inclusive") = true,
          nb::arg("max_inclusive") = true, nb::arg("aliases") = std::vector<std::string>{},
          nb::arg("initial") = nb::none(),
          nb::sig(
              "def __init__(self, name: str, default: float | None = None, *, min: float = ..., "
              "max: float = ..., min_inclusive: bool = True, max_inclusive: bool = True, "
              "aliases: collections.abc.Sequence[str] = (), initial: float | None = None) -> None"))
      .def_ro("name", &Parameter::name)
      .def_ro("default", &Parameter::default_value, "None: the parameter must be given.")
      .def_ro("aliases", &Parameter::aliases)
      .def_ro("initial", &Parameter::initial_value,
              "What a new module starts with, where models learn this parameter.")
      .def_prop_ro(
          "domain", [](const Parameter& self) { return self.domain.to_string(); },
          "The allowed values in words.")
      .def(
          "allows", [](const Parameter& self, double value) { return self.domain.contains(value); },
          nb::arg("value"))
      .def(
          "__eq__", [](const Parameter& a, const Parameter& b) { return a == b; },
          nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", [](const Parameter& self) { return "Parameter('" + self.name + "')"; });
}

void bind_function(nb::module_& module) {
  nb::class_<Function>(module, "Function",
                       "One expression in g, u (gated) or x (unary) with named parameters.")
      .def_static("named", &Function::named, nb::arg("name"),
                  "The catalogue's or the registry's function of this name or alias.")
      .def_static(
          "expression",
          nb::overload_cast<std::string_view, std::vector<Parameter>>(&Function::expression),
          nb::arg("text"), nb::arg("parameters"))
      .def_static("expression", nb::overload_cast<std::string_view>(&Function::expression),
                  nb::arg("text"), "Compiles text in the expression language.")
      .def_static("from_canonical", &Function::from_canonical, nb::arg("text"))
      .def_prop_ro("name", &Function::name)
      .def_prop_ro("is_gated", [](const Function& self) { return self.arity() == Arity::Gated; })
      .def_prop_ro("formula", &Function::formula)
      .def_prop_ro("parameters", [](const Function& self) { return self.parameters(); })
      .def_prop_ro("canonical", &Function::canonical)
      .def_prop_ro("fingerprint", &Function::fingerprint)
      .def("reference", &reference, nb::arg("inputs"), nb::kw_only(),
           nb::arg("values") = std::vector<double>{},
           nb::sig("def reference(self, *inputs: float, values: collections.abc.Sequence[float] = "
                   "()) -> float"),
           "The float64 reference value of (g, u) or (x,).")
      .def("gated", &Function::gated, "f(g) * u of a unary f; a gated function as it is.")
      .def("gradient", &Function::gradient, nb::arg("variable"),
           "The partial derivative by g, u, x or a parameter.")
      .def(
          "emit",
          [](const Function& self, std::string_view target) {
            return self.emit(to_target(target));
          },
          nb::arg("target"), "Source text for 'cuda', 'triton', 'torch' or 'text'.")
      .def(
          "__eq__", [](const Function& a, const Function& b) { return a == b; }, nb::is_operator(),
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const Function& self) { return std::hash<Function>{}(self); })
      .def("__repr__",
           [](const Function& self) {
             return "Function(" + self.name() + ": " + self.formula() + ")";
           })
      .def("__copy__", [](const Function& self) { return self; })
      .def(
          "__deepcopy__", [](const Function& self, nb::handle) { return self; }, nb::arg("memo"))
      .def("__getstate__",
           [](const Function& self) { return nb::make_tuple(self.name(), self.canonical()); })
      .def("__setstate__", [](Function& self, const std::pair<std::string, std::string>& state) {
        new (&self) Function(restore(state.first, state.second));
      });
}

void bind_activation_class(nb::module_& module) {
  nb::class_<Activation>(module, "Activation",
                         "A function and its binding: what the parameters' values are.")
      .def(
          "__init__",
          [](Activation* self, const Function& function, const nb::dict& params) {
            new (self) Activation(function, to_binding(params));
          },
          nb::arg("function"), nb::arg("params") = nb::dict(),
          nb::sig("def __init__(self, function: Function, params: collections.abc.Mapping[str, "
                  "typing.Any] = {}) -> None"))
      .def_static("from_json", &Activation::from_json, nb::arg("json"),
                  R"(Reads {"name": "swish", "beta": 1.5} or {"expr": "...", "beta": 1.1}.)")
      .def("to_json", &Activation::to_json)
      .def_prop_ro("function", [](const Activation& self) { return self.function(); })
      .def_prop_ro(
          "params", [](const Activation& self) { return from_binding(self.binding()); },
          nb::sig("def params(self) -> dict[str, typing.Any]"))
      .def("gated", &Activation::gated, "f(g) * u of a unary f, with the same parameters.")
      .def("values", &values, nb::arg("layer") = 0,
           nb::arg("experts") = std::pair<std::int64_t, std::int64_t>{0, 1},
           nb::arg("tensors") = nb::none(), nb::arg("initial") = false,
           "The parameter table of one layer, [1 or experts, parameters], as nested lists. "
           "`experts` is "
           "the rank's range of global expert numbers (begin, end); `tensors` reads a checkpoint "
           "tensor "
           "by name as a list of numbers; `initial` takes what a new module starts with instead.")
      .def("__call__", &call_with_torch,
           nb::sig(
               "def __call__(self, *tensors: typing.Any, layer: int | None = None, expert: int | "
               "None "
               "= None, "
               "parameters: collections.abc.Mapping[str, typing.Any] | None = None) -> typing.Any"),
           "The activation on torch tensors: see flexact.torch_functions.call.")
      .def(
          "__eq__", [](const Activation& a, const Activation& b) { return a == b; },
          nb::is_operator(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__",
           [](const Activation& self) {
             return std::hash<Function>{}(self.function()) ^
                    std::hash<std::string>{}(self.to_json());
           })
      .def("__repr__", [](const Activation& self) { return "Activation(" + self.to_json() + ")"; })
      .def("__copy__", [](const Activation& self) { return self; })
      .def(
          "__deepcopy__", [](const Activation& self, nb::handle) { return self; }, nb::arg("memo"))
      .def("__getstate__",
           [](const Activation& self) {
             return nb::make_tuple(self.function(), from_binding(self.binding()));
           })
      .def("__setstate__", [](Activation& self, const std::pair<Function, nb::dict>& state) {
        new (&self) Activation(state.first, to_binding(state.second));
      });
}

void bind_registry(nb::module_& module) {
  nb::class_<ActivationRegistry>(
      module, "ActivationRegistry",
      "The process's registry of functions: the catalogue, and what a program adds.")
      .def("__init__",
           [](ActivationRegistry* self) {
             new (self) ActivationRegistry(ActivationRegistry::instance());
           })
      .def_static(
          "name_of_id",
          [](int id) {
            if (const activation::CatalogueEntry* row = activation::find_entry(id))
              return std::string(row->name);
            throw Error(ErrorCode::InvalidArgument,
                        "no activation has the id " + std::to_string(id), "activation_type",
                        "an id that 'flexact list' shows, or a name");
          },
          nb::arg("id"), "The catalogue name of a frozen id.")
      .def_static(
          "get_activation", &get_activation, nb::arg("name"), nb::arg("params") = nb::dict(),
          nb::sig("def get_activation(name: str, params: collections.abc.Mapping[str, typing.Any] "
                  "= {}) -> Activation"),
          "The activation of this name with these parameter values; the rest take their defaults.")
      .def_static(
          "get_function",
          [](std::string_view name) { return ActivationRegistry::instance().get_function(name); },
          nb::arg("name"))
      .def_static(
          "register_function",
          [](std::string name, std::string_view expression, std::vector<Parameter> parameters) {
            return ActivationRegistry::instance().register_function(std::move(name), expression,
                                                                    std::move(parameters));
          },
          nb::arg("name"), nb::arg("expression"), nb::arg("parameters") = std::vector<Parameter>{},
          "Adds a function under a new name.")
      .def_static(
          "list", [] { return ActivationRegistry::instance().list(); },
          "Canonical names in catalogue order, then registered ones.");
}

}  // namespace

void bind_activation(nb::module_& module) {
  bind_parameter(module);
  bind_function(module);
  bind_activation_class(module);
  bind_registry(module);
}

}  // namespace flexact::python
