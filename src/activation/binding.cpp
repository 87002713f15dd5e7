// Parameter values: domains, the forms that a value may have, and the table of one layer.
#include "activation/binding.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "activation/function_access.hpp"
#include "activation/language.hpp"
#include "activation/numerics.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {

using activation::number_text;

bool Domain::contains(double value) const noexcept {
  if (!std::isfinite(value)) return false;
  const bool above = min_inclusive ? value >= min : value > min;
  const bool below = max_inclusive ? value <= max : value < max;
  return above && below;
}

std::string Domain::to_string() const {
  const bool low = std::isfinite(min);
  const bool high = std::isfinite(max);
  if (!low && !high) return "any finite number";
  const std::string from = (min_inclusive ? ">= " : "> ") + number_text(min);
  const std::string to = (max_inclusive ? "<= " : "< ") + number_text(max);
  if (!high) return from;
  if (!low) return to;
  if (min_inclusive && max_inclusive) return number_text(min) + " to " + number_text(max);
  return from + " and " + to;
}

ParameterValue::ParameterValue(double scalar) : scalar_(scalar) {}

ParameterValue ParameterValue::list(Kind kind, std::vector<ParameterValue> values) {
  constexpr int kMaxDepth = 4;
  ParameterValue made;
  made.kind_ = kind;
  for (const ParameterValue& value : values) made.depth_ = std::max(made.depth_, value.depth_ + 1);
  if (made.depth_ > kMaxDepth) {
    throw Error(ErrorCode::ConfigError, "lists of values nest deeper than any meaning has", {},
                "one per_layer and one per_expert within one another");
  }
  made.elements_ = std::move(values);
  return made;
}

ParameterValue ParameterValue::per_layer(std::vector<ParameterValue> values) {
  return list(Kind::PerLayer, std::move(values));
}

ParameterValue ParameterValue::per_expert(std::vector<ParameterValue> values) {
  return list(Kind::PerExpert, std::move(values));
}

ParameterValue ParameterValue::tensor(std::string name) {
  ParameterValue made;
  made.kind_ = Kind::Tensor;
  made.tensor_ = std::move(name);
  return made;
}

namespace {

using Kind = ParameterValue::Kind;

[[noreturn]] void fail(const std::string& message, const std::string& where,
                       const std::string& hint = {}) {
  throw Error(ErrorCode::ConfigError, message, where, hint);
}

void check_number(const Parameter& parameter, double value, const std::string& where) {
  if (!parameter.domain.contains(value)) {
    fail("parameter '" + parameter.name + "' cannot be " + number_text(value), where,
         parameter.domain.to_string());
  }
}

// `name` with the layer's number in place of every {layer}.
std::string with_layer(std::string_view name, std::int64_t layer) {
  constexpr std::string_view kPlace = "{layer}";
  std::string out;
  while (true) {
    const std::size_t at = name.find(kPlace);
    out += name.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += std::to_string(layer);
    name.remove_prefix(at + kPlace.size());
  }
}

// A checkpoint tensor's name: dotted words and {layer}. Nothing that could leave a folder.
void check_tensor_name(const std::string& name, const std::string& where) {
  const std::string plain = name.size() > 512 ? std::string() : with_layer(name, 0);
  const auto allowed = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           c == '.' || c == '-';
  };
  const bool bad = plain.empty() || plain.front() == '.' || plain.back() == '.' ||
                   plain.find("..") != std::string::npos ||
                   !std::all_of(plain.begin(), plain.end(), allowed);
  if (bad) {
    fail("this is not a tensor's name", where,
         "letters, digits, '_', '-' and single dots, with {layer} for the layer number; never a "
         "path");
  }
}

void check_value(const Parameter& parameter, const ParameterValue& value, const std::string& where,
                 bool in_layers, bool in_experts) {
  const auto check_elements = [&](const char* key, bool layers, bool experts) {
    const std::string at = where + "/" + key;
    if (value.elements().empty()) fail(std::string("an empty ") + key + " list", at);
    for (std::size_t i = 0; i < value.elements().size(); ++i) {
      check_value(parameter, value.elements()[i], at + "/" + std::to_string(i), layers, experts);
    }
  };
  switch (value.kind()) {
    case Kind::Scalar:
      check_number(parameter, value.scalar(), where);
      return;
    case Kind::Tensor:
      check_tensor_name(value.tensor_name(), where + "/tensor");
      return;
    case Kind::PerLayer:
      if (in_layers) fail("per_layer inside per_layer", where);
      check_elements("per_layer", true, in_experts);
      return;
    case Kind::PerExpert:
      if (in_experts) fail("per_expert inside per_expert", where);
      check_elements("per_expert", in_layers, true);
      return;
  }
}

// Reads the values of one parameter in one layer.
class Reader {
 public:
  Reader(const Parameter& parameter, std::int64_t layer, ExpertRange experts,
         const TensorReader& tensors, std::vector<std::string>* missing)
      : parameter_(parameter),
        layer_(layer),
        experts_(experts),
        tensors_(tensors),
        missing_(missing) {}

  // One value, or one for each expert of the range.
  std::vector<double> read(const ParameterValue* value) {
    const std::string where = "/" + parameter_.name;
    if (value == nullptr) return {initial(parameter_.name, where)};
    return read(*value, where, -1);
  }

 private:
  // `expert` is the global number of the one expert asked for, or -1 for the range.
  std::vector<double> read(const ParameterValue& value, const std::string& where,
                           std::int64_t expert) {
    switch (value.kind()) {
      case Kind::Scalar:
        return {value.scalar()};
      case Kind::PerLayer: {
        const auto& list = value.elements();
        if (layer_ < 0 || layer_ >= static_cast<std::int64_t>(list.size())) {
          fail("layer " + std::to_string(layer_) + " is outside a per_layer list of " +
                   std::to_string(list.size()),
               where + "/per_layer");
        }
        return read(list[static_cast<std::size_t>(layer_)],
                    where + "/per_layer/" + std::to_string(layer_), expert);
      }
      case Kind::PerExpert:
        return read_experts(value.elements(), where + "/per_expert");
      case Kind::Tensor:
        return read_tensor(value.tensor_name(), where + "/tensor", expert);
    }
    return {};
  }

  std::vector<double> read_experts(const std::vector<ParameterValue>& list,
                                   const std::string& where) {
    if (experts_.end > static_cast<std::int64_t>(list.size())) {
      fail("experts " + std::to_string(experts_.begin) + " to " + std::to_string(experts_.end - 1) +
               " are asked of a list of " + std::to_string(list.size()),
           where, "one value for each expert of the model");
    }
    std::vector<double> values;
    for (std::int64_t e = experts_.begin; e < experts_.end; ++e) {
      values.push_back(
          read(list[static_cast<std::size_t>(e)], where + "/" + std::to_string(e), e).front());
    }
    return values;
  }

  std::vector<double> read_tensor(const std::string& pattern, const std::string& where,
                                  std::int64_t expert) {
    const std::string name = with_layer(pattern, layer_);
    if (!tensors_) return {initial(name, where)};
    const std::vector<double> data = tensors_(name);
    for (double v : data) check_number(parameter_, v, where + " (" + name + ")");
    if (data.size() == 1) return data;
    if (expert >= 0 || experts_.end > static_cast<std::int64_t>(data.size())) {
      fail("tensor '" + name + "' has " + std::to_string(data.size()) + " values", where,
           expert >= 0 ? "one value for this expert" : "one value, or one for each expert");
    }
    return {data.begin() + experts_.begin, data.begin() + experts_.end};
  }

  double initial(const std::string& name, const std::string& where) {
    if (!parameter_.initial_value || (tensors_ && name == parameter_.name)) {
      fail("parameter '" + parameter_.name + "' needs the checkpoint's values", where);
    }
    if (missing_ != nullptr) missing_->push_back(name);
    return *parameter_.initial_value;
  }

  const Parameter& parameter_;
  std::int64_t layer_;
  ExpertRange experts_;
  const TensorReader& tensors_;
  std::vector<std::string>* missing_;
};

// The binding under the parameters' own names, with defaults filled in.
Binding complete(const Function& function, const Binding& given) {
  Binding bound;
  for (const auto& [key, value] : given) {
    const Parameter* parameter = activation::find_parameter(function.parameters(), key);
    const std::string where = "/" + key;
    if (parameter == nullptr) {
      const std::vector<std::string> known = activation::parameter_names(function.parameters());
      fail("'" + function.name() + "' has no parameter '" + key + "'", where,
           known.empty() ? "it has none" : "it has " + activation::join(known));
    }
    check_value(*parameter, value, where, false, false);
    if (!bound.emplace(parameter->name, value).second) {
      fail("parameter '" + parameter->name + "' is given twice, once by an alias", where);
    }
  }
  for (const Parameter& parameter : function.parameters()) {
    if (bound.contains(parameter.name) || parameter.initial_value) continue;
    if (!parameter.default_value) {
      fail("parameter '" + parameter.name + "' of '" + function.name() + "' is missing", {},
           "it has no default; " + parameter.domain.to_string());
    }
    bound.emplace(parameter.name, *parameter.default_value);
  }
  return bound;
}

}  // namespace

namespace activation {

const Parameter* find_parameter(const std::vector<Parameter>& parameters, std::string_view name) {
  for (const Parameter& parameter : parameters) {
    if (parameter.name == name) return &parameter;
    for (const std::string& alias : parameter.aliases) {
      if (alias == name) return &parameter;
    }
  }
  return nullptr;
}

void check_clamps(const Function& function, std::span<const double> values) {
  const Graph& graph = function.graph();
  std::vector<std::optional<double>> known(graph.nodes.size());
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    std::array<double, 3> in{};
    bool uniform = true;
    for (int k = 0; k < operand_count(node.op); ++k) {
      const auto& operand = known[static_cast<std::size_t>(node.operands[k])];
      if (operand) in[k] = *operand;
      if (!operand && !(node.op == Op::Clamp && k == 0)) uniform = false;
    }
    if (node.op == Op::Clamp && uniform && in[1] > in[2]) {
      fail("clamp with a lower bound " + number_text(in[1]) + " above its upper bound " +
               number_text(in[2]),
           {}, "in " + function.formula());
    }
    if (node.op == Op::Constant) known[i] = node.value;
    if (node.op == Op::Parameter) known[i] = values[static_cast<std::size_t>(node.index)];
    if (operand_count(node.op) == 0 || !uniform) continue;
    if (node.op == Op::Clamp && !known[static_cast<std::size_t>(node.operands[0])]) continue;
    known[i] = apply(node.op, in[0], in[1], in[2], node.index);
  }
}

}  // namespace activation

std::vector<float> ValueTable::to_float() const {
  std::vector<float> floats;
  floats.reserve(data.size());
  for (double v : data) floats.push_back(static_cast<float>(v));
  return floats;
}

Activation::Activation(Function function, Binding binding)
    : function_(std::move(function)), binding_(complete(function_, binding)) {
  const bool scalars = std::all_of(binding_.begin(), binding_.end(), [](const auto& entry) {
    return entry.second.kind() == Kind::Scalar;
  });
  if (scalars) values(0, {0, 1});  // bounds of clamps that depend on parameters
}

Activation Activation::gated() const {
  Activation lifted = *this;
  lifted.function_ = function_.gated();
  return lifted;
}

ValueTable Activation::values(std::int64_t layer, ExpertRange experts, const TensorReader& tensors,
                              std::vector<std::string>* missing) const {
  if (experts.begin < 0 || experts.end <= experts.begin) {
    throw Error(ErrorCode::InvalidArgument, "an empty range of experts");
  }
  std::vector<std::vector<double>> columns;
  ValueTable table;
  for (const Parameter& parameter : function_.parameters()) {
    const auto bound = binding_.find(parameter.name);
    Reader reader(parameter, layer, experts, tensors, missing);
    columns.push_back(reader.read(bound == binding_.end() ? nullptr : &bound->second));
    if (columns.back().size() > 1) table.rows = experts.end - experts.begin;
  }
  table.columns = static_cast<std::int64_t>(columns.size());
  for (std::int64_t row = 0; row < table.rows; ++row) {
    for (const auto& column : columns) {
      table.data.push_back(column.size() == 1 ? column[0] : column[static_cast<std::size_t>(row)]);
    }
    const std::span<const double> all(table.data);
    activation::check_clamps(function_, all.last(columns.size()));
  }
  return table;
}

}  // namespace flexact
