// An activation is data: a function (one expression with named parameters) and a binding (the
// parameters' values). Everything here is an immutable value: it compares and hashes by content and
// copies share their compiled form, so all of it may be used from many threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flexact {

namespace activation {
class Graph;
}

enum class Arity {
  Unary,  // f(x): experts and MLPs without a gate, or the gate's half of f(g) * u
  Gated,  // f(g, u): the whole of a gated unit
};

// The interval in which a parameter's values must lie. Infinite ends are never included: values are
// always finite.
struct Domain {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_inclusive = true;
  bool max_inclusive = true;

  bool contains(double value) const noexcept;
  // "any finite number", "> 0", "0 to 1", …
  std::string to_string() const;
  friend bool operator==(const Domain&, const Domain&) = default;
};

// One named parameter of a function.
struct Parameter {
  std::string name;
  std::optional<double> default_value = std::nullopt;  // none: must be bound
  Domain domain = {};
  std::vector<std::string> aliases = {};  // short and foreign spellings accepted in configs
  // For parameters that models learn: the value a new module starts with. `explain` and `eval` use
  // it with a warning where no checkpoint is at hand; a backend refuses.
  std::optional<double> initial_value = std::nullopt;

  friend bool operator==(const Parameter&, const Parameter&) = default;
};

// What a function can be printed as.
enum class Target { Cuda, Triton, Torch, Text };

// One expression in `g`, `u` (gated) or `x` (unary) with named parameters; the only identity that
// is compiled, linked and cached. Parameter values are passed in the order of parameters().
class Function {
 public:
  // Copies share. There is no move, so that no function is ever empty.
  Function(const Function&) = default;
  Function& operator=(const Function&) = default;

  // The catalogue's (or the registry's) function of this name or alias.
  // Throws ConfigError for an unknown name, with the nearest known ones.
  static Function named(std::string_view name);

  // Compiles `text` in the expression language (docs/expressions.md). Names that are neither
  // variables, functions nor constants are parameters, in order of first use; `parameters` fixes
  // their order, defaults and domains, and then each of them must be used.
  // Throws ExpressionError with the column of the fault.
  static Function expression(std::string_view text);
  static Function expression(std::string_view text, std::vector<Parameter> parameters);

  // The inverse of canonical(). Throws ExpressionError.
  static Function from_canonical(std::string_view text);

  // The catalogue name it was made from, or "expr".
  const std::string& name() const noexcept;
  Arity arity() const noexcept;
  // Readable text of the expression, in the expression language; parses back to the same function.
  const std::string& formula() const noexcept;
  const std::vector<Parameter>& parameters() const noexcept;

  // The fp64 reference value: the formula evaluated as written, without simplification.
  // `values` has parameters().size() entries. Throws InvalidArgument for a wrong count or arity.
  double reference(double x, std::span<const double> values = {}) const;
  double reference(double g, double u, std::span<const double> values) const;

  // f(g) * u of a unary f; a gated function is returned as it is.
  Function gated() const;

  // The partial derivative by `variable` ("g", "u", "x" or a parameter's name), a function of the
  // same arity and parameters. Gradients follow torch's conventions (clamp passes its gradient at
  // the bounds, relu has 0 at 0, where() is masked).
  Function gradient(std::string_view variable) const;

  // "gated(alpha,limit): EXPRESSION": one spelling for each function, whatever it was made from;
  // the key of every cache, and what crosses a torch.library boundary.
  const std::string& canonical() const noexcept;
  // 32 hexadecimal digits over canonical(); stable between runs, machines and releases of one
  // expression language.
  std::string fingerprint() const;

  // Source text for `target`, printed from the graph; user text never reaches a compiler. Throws
  // InvalidArgument for a value that is no Target.
  std::string emit(Target target) const;

  // The compiled form, for the library's own backends.
  const activation::Graph& graph() const noexcept;

  friend bool operator==(const Function& a, const Function& b) noexcept {
    return a.canonical() == b.canonical();
  }

 private:
  struct Compiled;
  explicit Function(std::shared_ptr<const Compiled> compiled);
  friend class ActivationRegistry;
  friend struct FunctionAccess;
  std::shared_ptr<const Compiled> compiled_;
};

// The value of one parameter: a number, or a form that says where the number comes from. Forms
// nest, at most four deep; deeper ones throw ConfigError when they are made.
class ParameterValue {
 public:
  enum class Kind { Scalar, PerLayer, PerExpert, Tensor };

  ParameterValue(double scalar);  // NOLINT: a number is a value
  static ParameterValue per_layer(std::vector<ParameterValue> values);
  static ParameterValue per_expert(std::vector<ParameterValue> values);
  // `name` is a checkpoint tensor's name, with `{layer}` for the absolute layer number; never a
  // path.
  static ParameterValue tensor(std::string name);

  Kind kind() const noexcept { return kind_; }
  double scalar() const noexcept { return scalar_; }
  const std::vector<ParameterValue>& elements() const noexcept { return elements_; }
  const std::string& tensor_name() const noexcept { return tensor_; }

  friend bool operator==(const ParameterValue&, const ParameterValue&) = default;

 private:
  ParameterValue() = default;
  static ParameterValue list(Kind kind, std::vector<ParameterValue> values);
  Kind kind_ = Kind::Scalar;
  int depth_ = 0;
  double scalar_ = 0;
  std::vector<ParameterValue> elements_;
  std::string tensor_;
};

using Binding = std::map<std::string, ParameterValue>;

// The experts a rank holds, as global logical expert numbers [begin, end).
struct ExpertRange {
  std::int64_t begin = 0;
  std::int64_t end = 1;
};

// Parameter values of one layer: [rows, columns], row-major; rows is 1 (all experts alike) or the
// number of experts asked for, columns is the function's parameter count.
struct ValueTable {
  std::int64_t rows = 1;
  std::int64_t columns = 0;
  std::vector<double> data;

  // The same table in fp32, as kernels read it.
  std::vector<float> to_float() const;
  friend bool operator==(const ValueTable&, const ValueTable&) = default;
};

// Reads a checkpoint tensor by name: one value (a scalar), or one for each expert.
using TensorReader = std::function<std::vector<double>(const std::string& name)>;

// A function and its binding.
class Activation {
 public:
  // Parameters that `binding` leaves out take their defaults.
  // Throws ConfigError for an unknown or missing parameter or a value outside its domain.
  explicit Activation(Function function, Binding binding = {});

  // {"name": "swish", "beta": 1.5} or {"expr": "…", "beta": 1.1}; scope forms are accepted except
  // the split by role. Throws ConfigError with a JSON pointer.
  static Activation from_json(std::string_view json);
  std::string to_json() const;

  const Function& function() const noexcept { return function_; }
  const Binding& binding() const noexcept { return binding_; }

  // f(g) * u where the function is unary; the binding is kept.
  Activation gated() const;

  // The table for one layer. `layer` is the absolute layer number. Tensor values are read through
  // `tensors`; without a reader a parameter's initial value is used and `missing`, where given,
  // receives the tensor's name. Throws ConfigError where neither is there.
  ValueTable values(std::int64_t layer, ExpertRange experts, const TensorReader& tensors = nullptr,
                    std::vector<std::string>* missing = nullptr) const;

  friend bool operator==(const Activation&, const Activation&) = default;

 private:
  Function function_;
  Binding binding_;
};

// The catalogue, and what a program registers beside it. Safe for concurrent use.
class ActivationRegistry {
 public:
  // The process's registry; it starts with the catalogue.
  static ActivationRegistry& instance();

  // `params` maps parameter names (or aliases) to values; the rest take their defaults.
  Activation get_activation(std::string_view name, const Binding& params = {}) const;
  // Adds a function under a new name. Throws InvalidArgument where the name is taken or reserved,
  // ExpressionError where the expression is wrong.
  Function register_function(std::string name, std::string_view expression,
                             std::vector<Parameter> parameters = {});
  Function get_function(std::string_view name) const;
  // Canonical names, catalogue order, then registered ones.
  std::vector<std::string> list() const;

 private:
  ActivationRegistry();
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace flexact

template <>
struct std::hash<flexact::Function> {
  std::size_t operator()(const flexact::Function& f) const noexcept {
    return std::hash<std::string>{}(f.canonical());
  }
};
