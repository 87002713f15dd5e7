// Compiles a graph into a tape: which nodes become which instruction, and where values live.
#include "cpu/tape.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/tape_program.hpp"
#include "flexact/error.hpp"

namespace flexact::cpu {

using activation::Graph;
using activation::Node;
using activation::Op;

struct TapeProgram {
  std::vector<UniformSource> sources;
  std::vector<Instruction> prologue;
  std::vector<Instruction> body;
  std::size_t uniforms = 0;
  std::size_t slots = 0;
  bool gated = false;
  bool reads_gate = false;
  bool reads_up = false;
  TapeRun run = nullptr;

  TapeView view() const noexcept {
    return {sources.data(), sources.size(), prologue.data(), prologue.size(), body.data(),
            body.size(),    uniforms,       slots,           reads_gate,      reads_up};
  }
};

namespace {

const char* tape_op_name(TapeOp op) noexcept {
  switch (op) {
    case TapeOp::Copy:
      return "copy";
    case TapeOp::Neg:
      return "neg";
    case TapeOp::Add:
      return "add";
    case TapeOp::Sub:
      return "sub";
    case TapeOp::Mul:
      return "mul";
    case TapeOp::Mul3:
      return "mul3";
    case TapeOp::Div:
      return "div";
    case TapeOp::Fma:
      return "fma";
    case TapeOp::Fms:
      return "fms";
    case TapeOp::Fnma:
      return "fnma";
    case TapeOp::Powi:
      return "powi";
    case TapeOp::Exp:
      return "exp";
    case TapeOp::Exp2:
      return "exp2";
    case TapeOp::Expm1:
      return "expm1";
    case TapeOp::Log:
      return "log";
    case TapeOp::Log1p:
      return "log1p";
    case TapeOp::Sqrt:
      return "sqrt";
    case TapeOp::Rsqrt:
      return "rsqrt";
    case TapeOp::Abs:
      return "abs";
    case TapeOp::Sign:
      return "sign";
    case TapeOp::Floor:
      return "floor";
    case TapeOp::Tanh:
      return "tanh";
    case TapeOp::Erf:
      return "erf";
    case TapeOp::OnePlusErf:
      return "one_plus_erf";
    case TapeOp::Softplus:
      return "softplus";
    case TapeOp::Relu:
      return "relu";
    case TapeOp::SigmoidProduct:
      return "sigmoid_product";
    case TapeOp::GeluProduct:
      return "gelu_product";
    case TapeOp::GeluTanhProduct:
      return "gelu_tanh_product";
    case TapeOp::MishProduct:
      return "mish_product";
    case TapeOp::Min:
      return "min";
    case TapeOp::Max:
      return "max";
    case TapeOp::MinBound:
      return "min_bound";
    case TapeOp::MaxBound:
      return "max_bound";
    case TapeOp::ClampBound:
      return "clamp_bound";
    case TapeOp::WhereLt:
      return "where_lt";
    case TapeOp::WhereLe:
      return "where_le";
    case TapeOp::WhereEq:
      return "where_eq";
    case TapeOp::WhereNe:
      return "where_ne";
  }
  return "?";
}

// Operations that map one to one.
std::optional<TapeOp> direct_op(Op op) noexcept {
  switch (op) {
    case Op::Neg:
      return TapeOp::Neg;
    case Op::Add:
      return TapeOp::Add;
    case Op::Sub:
      return TapeOp::Sub;
    case Op::Mul:
      return TapeOp::Mul;
    case Op::Div:
      return TapeOp::Div;
    case Op::Exp:
      return TapeOp::Exp;
    case Op::Exp2:
      return TapeOp::Exp2;
    case Op::Expm1:
      return TapeOp::Expm1;
    case Op::Log:
      return TapeOp::Log;
    case Op::Log1p:
      return TapeOp::Log1p;
    case Op::Sqrt:
      return TapeOp::Sqrt;
    case Op::Rsqrt:
      return TapeOp::Rsqrt;
    case Op::Abs:
      return TapeOp::Abs;
    case Op::Sign:
      return TapeOp::Sign;
    case Op::Floor:
      return TapeOp::Floor;
    case Op::Tanh:
      return TapeOp::Tanh;
    case Op::Erf:
      return TapeOp::Erf;
    case Op::Softplus:
      return TapeOp::Softplus;
    case Op::Relu:
      return TapeOp::Relu;
    default:
      return std::nullopt;
  }
}

bool is_leaf(const Node& node) noexcept {
  return node.operands[0] < 0;
}

// A value during selection: a node of the graph, or a constant that selection added.
struct Value {
  int node = -1;
  double constant = 0;

  static Value number(double value) { return {-1, value}; }
  friend bool operator==(const Value&, const Value&) = default;
};

// An instruction on values; `result` is the node it computes, or one of the temporaries that
// selection numbers from the graph's size upwards.
struct Selected {
  TapeOp op = TapeOp::Copy;
  int exponent = 0;
  int result = -1;
  std::vector<Value> operands;
};

// Chooses instructions from the result backwards, so that a node swallowed by its only reader's
// pattern is never computed.
class Selection {
 public:
  explicit Selection(const Graph& graph) : graph_(graph), next_temporary_(size()) {
    readers_.assign(graph.nodes.size(), 0);
    for (const Node& node : graph.nodes) {
      for (std::int32_t operand : node.operands) {
        if (operand >= 0) ++readers_[operand];
      }
    }
    uniform_.resize(graph.nodes.size());
    for (int i = 0; i < size(); ++i) uniform_[i] = is_uniform(graph.nodes[i]);

    std::vector<bool> needed(graph.nodes.size(), false);
    needed[graph.result()] = true;
    for (int i = graph.result(); i >= 0; --i) {
      if (!needed[i] || is_leaf(graph.nodes[i])) continue;
      const std::size_t first = reversed_.size();
      select(i);
      for (std::size_t k = first; k < reversed_.size(); ++k) {
        for (const Value& value : reversed_[k].operands) {
          if (value.node >= 0 && value.node < size()) needed[value.node] = true;
        }
      }
    }
    if (is_leaf(graph.nodes.back()) || uniform_[graph.result()]) {
      reversed_.insert(reversed_.begin(),
                       Selected{TapeOp::Copy, 0, next_temporary_++, {Value{graph.result()}}});
      uniform_.push_back(false);
    }
  }

  // In order of execution.
  std::vector<Selected> take() { return {reversed_.rbegin(), reversed_.rend()}; }
  bool uniform(const Value& value) const { return value.node < 0 || uniform_[value.node]; }
  int value_count() const { return next_temporary_; }

 private:
  int size() const { return static_cast<int>(graph_.nodes.size()); }
  const Node& node(const Value& value) const { return graph_.nodes[value.node]; }

  bool is_uniform(const Node& n) const {
    if (n.op == Op::Gate || n.op == Op::Up || n.op == Op::Input) return false;
    for (std::int32_t operand : n.operands) {
      if (operand >= 0 && !uniform_[operand]) return false;
    }
    return true;
  }

  Value operand(const Value& value, int which) const { return {node(value).operands[which]}; }

  // True where `value` is an `op` that only the current instruction reads and that is not hoisted.
  bool swallows(const Value& value, Op op) const {
    return value.node >= 0 && value.node < size() && node(value).op == op &&
           readers_[value.node] == 1 && !uniform_[value.node];
  }

  bool is_constant(const Value& value, double number) const {
    return value.node >= 0 && node(value).op == Op::Constant && node(value).value == number;
  }

  // Constants and parameters are finite or at least ordered: they can bound without a NaN check.
  bool is_bound(const Value& value) const {
    const Op op = node(value).op;
    if (op == Op::Neg) return is_bound(operand(value, 0));
    return (op == Op::Constant && !std::isnan(node(value).value)) || op == Op::Parameter;
  }

  void emit(TapeOp op, int result, std::vector<Value> operands, int exponent = 0) {
    reversed_.push_back({op, exponent, result, std::move(operands)});
  }

  // The z = b * c that a sigmoid reads.
  std::pair<Value, Value> factors(const Value& z) const {
    if (swallows(z, Op::Mul)) return {operand(z, 0), operand(z, 1)};
    return {Value::number(1.0), z};
  }

  // The z of 1 + tanh z = 2 sigmoid(2 z), which does not cancel where z is far below 0.
  std::optional<Value> one_plus_tanh(const Value& sum) const {
    if (!swallows(sum, Op::Add)) return std::nullopt;
    return one_plus(Op::Tanh, operand(sum, 0), operand(sum, 1));
  }

  // The z where one of two summands is 1 and the other op(z).
  std::optional<Value> one_plus(Op op, const Value& left, const Value& right) const {
    for (const auto& [one, other] : {std::pair{left, right}, std::pair{right, left}}) {
      if (is_constant(one, 1.0) && swallows(other, op)) return operand(other, 0);
    }
    return std::nullopt;
  }

  // A factor of a product that is one of the fused functions: value = scale * f(…) as
  // SigmoidProduct's b and c and an optional own factor.
  struct Gate {
    Value a, b, c;
  };
  std::optional<Gate> as_gate(const Value& value) const {
    if (swallows(value, Op::Sigmoid)) {
      const auto [b, c] = factors(operand(value, 0));
      return Gate{Value::number(1.0), b, c};
    }
    if (swallows(value, Op::Silu)) {
      const Value z = operand(value, 0);
      return Gate{z, Value::number(1.0), z};
    }
    if (const auto z = one_plus_tanh(value)) {
      return Gate{Value::number(2.0), Value::number(2.0), *z};
    }
    return std::nullopt;
  }

  void select(int index) {
    const Node& n = graph_.nodes[index];
    const Value a{n.operands[0]}, b{n.operands[1]}, c{n.operands[2]};
    switch (n.op) {
      case Op::Mul:
        return select_product(index, a, b);
      case Op::Add:
        return select_sum(index, a, b);
      case Op::Sub:
        if (swallows(a, Op::Mul))
          return emit(TapeOp::Fms, index, {operand(a, 0), operand(a, 1), b});
        if (swallows(b, Op::Mul))
          return emit(TapeOp::Fnma, index, {operand(b, 0), operand(b, 1), a});
        // 1 - f(z) = 1 + f(-z) for these two.
        if (is_constant(a, 1.0) && swallows(b, Op::Tanh))
          return emit(TapeOp::SigmoidProduct, index,
                      {Value::number(2.0), Value::number(-2.0), operand(b, 0), Value::number(1.0)});
        if (is_constant(a, 1.0) && swallows(b, Op::Erf)) {
          const Value negated{next_temporary_++};
          uniform_.push_back(uniform_[index]);
          emit(TapeOp::OnePlusErf, index, {negated});
          return emit(TapeOp::Neg, negated.node, {operand(b, 0)});
        }
        return emit(TapeOp::Sub, index, {a, b});
      case Op::Div:
        return select_quotient(index, a, b);
      case Op::Powi:
        if (n.index == 2) return emit(TapeOp::Mul, index, {a, a});
        if (n.index == 3) return emit(TapeOp::Mul3, index, {a, a, a});
        return emit(TapeOp::Powi, index, {a}, n.index);
      case Op::Sigmoid: {
        const auto [first, second] = factors(a);
        return emit(TapeOp::SigmoidProduct, index,
                    {Value::number(1.0), first, second, Value::number(1.0)});
      }
      case Op::Silu:
        return emit(TapeOp::SigmoidProduct, index, {a, Value::number(1.0), a, Value::number(1.0)});
      case Op::Gelu:
        return emit(TapeOp::GeluProduct, index, {a, Value::number(1.0)});
      case Op::GeluTanh:
        return emit(TapeOp::GeluTanhProduct, index, {a, Value::number(1.0)});
      case Op::Tanh:
        if (swallows(a, Op::Softplus)) {
          return emit(TapeOp::MishProduct, index, {operand(a, 0), Value::number(1.0)});
        }
        return emit(TapeOp::Tanh, index, {a});
      case Op::Min:
      case Op::Max:
        return select_bound(n.op, index, a, b);
      case Op::Clamp:
        return select_clamp(index, a, b, c);
      case Op::Where:
        return select_where(index, a, b, c);
      default:
        break;
    }
    if (const auto op = direct_op(n.op)) {
      std::vector<Value> operands;
      for (std::int32_t operand : n.operands) {
        if (operand >= 0) operands.push_back(Value{operand});
      }
      return emit(*op, index, std::move(operands));
    }
    throw Error(ErrorCode::InternalError, "the CPU tape has no instruction for an operation");
  }

  void select_product(int index, const Value& left, const Value& right) {
    for (const auto& [one, other] : {std::pair{left, right}, std::pair{right, left}}) {
      // (f * x) * d, where f is a fused function.
      if (swallows(one, Op::Mul)) {
        const Value p = operand(one, 0), q = operand(one, 1);
        for (const auto& [f, x] : {std::pair{p, q}, std::pair{q, p}}) {
          if (const auto gate = as_gate(f); gate && gate->a == Value::number(1.0)) {
            return emit(TapeOp::SigmoidProduct, index, {x, gate->b, gate->c, other});
          }
        }
      }
    }
    for (const auto& [one, other] : {std::pair{left, right}, std::pair{right, left}}) {
      if (const auto gate = as_gate(one)) {
        if (gate->a == Value::number(1.0) && swallows(other, Op::Mul)) {
          return emit(TapeOp::SigmoidProduct, index,
                      {operand(other, 0), gate->b, gate->c, operand(other, 1)});
        }
        return emit(TapeOp::SigmoidProduct, index, {gate->a, gate->b, gate->c, other});
      }
      if (swallows(one, Op::Gelu)) {
        return emit(TapeOp::GeluProduct, index, {operand(one, 0), other});
      }
      if (swallows(one, Op::GeluTanh)) {
        return emit(TapeOp::GeluTanhProduct, index, {operand(one, 0), other});
      }
      if (swallows(one, Op::Tanh) && swallows(operand(one, 0), Op::Softplus)) {
        return emit(TapeOp::MishProduct, index, {operand(operand(one, 0), 0), other});
      }
    }
    for (const auto& [one, other] : {std::pair{left, right}, std::pair{right, left}}) {
      // (x * d) * x: a huge x squared must not meet d = 0 as infinity.
      if (swallows(one, Op::Powi) && node(one).index == 2) {
        const Value base = operand(one, 0);
        return emit(TapeOp::Mul3, index, {base, other, base});
      }
      // Not where a factor is itself a product worth fusing.
      if (swallows(one, Op::Mul) && !fuses_alone(one)) {
        return emit(TapeOp::Mul3, index, {operand(one, 0), operand(one, 1), other});
      }
    }
    emit(TapeOp::Mul, index, {left, right});
  }

  // True where `product` becomes a fused instruction by itself.
  bool fuses_alone(const Value& product) const {
    for (int side : {0, 1}) {
      const Value f = operand(product, side);
      if (as_gate(f) || swallows(f, Op::Gelu) || swallows(f, Op::GeluTanh) ||
          (swallows(f, Op::Tanh) && swallows(operand(f, 0), Op::Softplus))) {
        return true;
      }
    }
    return false;
  }

  void select_sum(int index, const Value& left, const Value& right) {
    if (const auto z = one_plus(Op::Tanh, left, right)) {
      return emit(TapeOp::SigmoidProduct, index,
                  {Value::number(2.0), Value::number(2.0), *z, Value::number(1.0)});
    }
    if (const auto z = one_plus(Op::Erf, left, right)) {
      return emit(TapeOp::OnePlusErf, index, {*z});
    }
    for (const auto& [one, other] : {std::pair{left, right}, std::pair{right, left}}) {
      if (swallows(one, Op::Mul) && !fuses_alone(one)) {
        return emit(TapeOp::Fma, index, {operand(one, 0), operand(one, 1), other});
      }
    }
    emit(TapeOp::Add, index, {left, right});
  }

  // x / c as x * (1/c) for an ordinary constant: one rounding more, a tenth of the time.
  void select_quotient(int index, const Value& left, const Value& right) {
    if (!uniform_[index] && node(right).op == Op::Constant) {
      const double value = node(right).value;
      if (std::abs(value) > 0x1p-100 && std::abs(value) < 0x1p100) {
        const Value inverse = Value::number(1.0 / value);
        if (swallows(left, Op::Mul) && !fuses_alone(left)) {
          // The constant first, so that x*6/6 does not overflow on the way.
          return emit(TapeOp::Mul3, index, {operand(left, 0), inverse, operand(left, 1)});
        }
        return emit(TapeOp::Mul, index, {left, inverse});
      }
    }
    emit(TapeOp::Div, index, {left, right});
  }

  void select_bound(Op op, int index, const Value& left, const Value& right) {
    const bool minimum = op == Op::Min;
    for (const auto& [value, bound] : {std::pair{left, right}, std::pair{right, left}}) {
      if (is_bound(bound)) {
        return emit(minimum ? TapeOp::MinBound : TapeOp::MaxBound, index, {value, bound});
      }
    }
    emit(minimum ? TapeOp::Min : TapeOp::Max, index, {left, right});
  }

  void select_clamp(int index, const Value& value, const Value& low, const Value& high) {
    if (is_bound(low) && is_bound(high)) {
      return emit(TapeOp::ClampBound, index, {value, low, high});
    }
    const Value raised{next_temporary_++};
    uniform_.push_back(uniform_[index]);
    emit(TapeOp::Min, index, {raised, high});
    emit(TapeOp::Max, raised.node, {value, low});
  }

  void select_where(int index, const Value& condition, const Value& yes, const Value& no) {
    const Value a = operand(condition, 0), b = operand(condition, 1);
    switch (node(condition).op) {
      case Op::Lt:
        return emit(TapeOp::WhereLt, index, {a, b, yes, no});
      case Op::Le:
        return emit(TapeOp::WhereLe, index, {a, b, yes, no});
      case Op::Gt:
        return emit(TapeOp::WhereLt, index, {b, a, yes, no});
      case Op::Ge:
        return emit(TapeOp::WhereLe, index, {b, a, yes, no});
      case Op::Eq:
        return emit(TapeOp::WhereEq, index, {a, b, yes, no});
      case Op::Ne:
        return emit(TapeOp::WhereNe, index, {a, b, yes, no});
      default:
        throw Error(ErrorCode::InternalError, "where() reads something that is no comparison");
    }
  }

  const Graph& graph_;
  std::vector<int> readers_;
  std::vector<bool> uniform_;
  std::vector<Selected> reversed_;
  int next_temporary_ = 0;
};

// Gives every value a place. Uniform values keep theirs for the whole run; a block's slot is free
// again after its last reader, which may already write into it.
class Allocation {
 public:
  Allocation(const Graph& graph, const Selection& selection, const std::vector<Selected>& selected,
             TapeProgram& program)
      : graph_(graph), program_(program) {
    place_.resize(selection.value_count());
    std::vector<int> last_reader(selection.value_count(), -1);
    for (int i = 0; i < static_cast<int>(selected.size()); ++i) {
      for (const Value& value : selected[i].operands) {
        if (value.node >= 0) last_reader[value.node] = i;
      }
    }
    // Sources first: their uniforms are numbered as the kernels fill them.
    for (const Selected& in : selected) {
      for (const Value& value : in.operands) add_source(value);
    }
    std::size_t uniforms = program.sources.size();
    for (int i = 0; i < static_cast<int>(selected.size()); ++i) {
      const Selected& in = selected[i];
      Instruction out;
      out.op = in.op;
      out.exponent = static_cast<std::int8_t>(in.exponent);
      for (std::size_t k = 0; k < in.operands.size(); ++k) out.operands[k] = place(in.operands[k]);
      for (const Value& value : in.operands) {
        if (value.node >= 0 && last_reader[value.node] == i) release(value);
      }
      const Value result{in.result};
      if (selection.uniform(result)) {
        out.destination = {Place::Uniform, static_cast<std::uint16_t>(uniforms++)};
        program.prologue.push_back(out);
      } else {
        out.destination = i + 1 == static_cast<int>(selected.size()) ? Operand{Place::Output, 0}
                                                                     : Operand{Place::Slot, take()};
        program.body.push_back(out);
      }
      place_[in.result] = out.destination;
    }
    program.uniforms = uniforms;
  }

 private:
  void add_source(const Value& value) {
    UniformSource source;
    if (value.node < 0) {
      source.constant = value.constant;
    } else if (value.node < static_cast<int>(graph_.nodes.size())) {
      const Node& node = graph_.nodes[value.node];
      if (node.op == Op::Constant) {
        source.constant = node.value;
      } else if (node.op == Op::Parameter) {
        source.parameter = node.index;
      } else {
        return;
      }
    } else {
      return;
    }
    for (std::size_t i = 0; i < program_.sources.size(); ++i) {
      const UniformSource& known = program_.sources[i];
      if (known.parameter == source.parameter &&
          std::bit_cast<std::uint64_t>(known.constant) ==
              std::bit_cast<std::uint64_t>(source.constant)) {
        remember(value, i);
        return;
      }
    }
    program_.sources.push_back(source);
    remember(value, program_.sources.size() - 1);
  }

  void remember(const Value& value, std::size_t uniform) {
    const Operand operand{Place::Uniform, static_cast<std::uint16_t>(uniform)};
    if (value.node >= 0) {
      place_[value.node] = operand;
    } else {
      numbers_.push_back({value.constant, operand});
    }
  }

  Operand place(const Value& value) {
    if (value.node < 0) {
      for (const auto& [number, operand] : numbers_) {
        if (number == value.constant) return operand;
      }
    } else if (value.node < static_cast<int>(graph_.nodes.size())) {
      switch (graph_.nodes[value.node].op) {
        case Op::Gate:
        case Op::Input:
          program_.reads_gate = true;
          return {Place::Gate, 0};
        case Op::Up:
          program_.reads_up = true;
          return {Place::Up, 0};
        default:
          break;
      }
    }
    return place_[value.node];
  }

  std::uint16_t take() {
    if (!free_.empty()) {
      const std::uint16_t slot = free_.back();
      free_.pop_back();
      return slot;
    }
    return static_cast<std::uint16_t>(program_.slots++);
  }

  // Once per value: an instruction may read the same one twice.
  void release(const Value& value) {
    Operand& operand = place_[value.node];
    if (operand.place != Place::Slot || released_slot(operand.index)) return;
    free_.push_back(operand.index);
  }

  bool released_slot(std::uint16_t slot) const {
    for (std::uint16_t known : free_) {
      if (known == slot) return true;
    }
    return false;
  }

  const Graph& graph_;
  TapeProgram& program_;
  std::vector<Operand> place_;
  std::vector<std::pair<double, Operand>> numbers_;
  std::vector<std::uint16_t> free_;
};

std::string operand_text(const Operand& operand, const TapeProgram& program) {
  switch (operand.place) {
    case Place::Gate:
      return program.gated ? "g" : "x";
    case Place::Up:
      return "u";
    case Place::Output:
      return "y";
    case Place::Slot:
      return "s" + std::to_string(operand.index);
    case Place::Uniform:
      break;
  }
  if (operand.index < program.sources.size()) {
    const UniformSource& source = program.sources[operand.index];
    return source.parameter < 0 ? std::to_string(source.constant)
                                : "p" + std::to_string(source.parameter);
  }
  return "c" + std::to_string(operand.index);
}

// How many operands a tape instruction reads.
int arity(TapeOp op) noexcept {
  switch (op) {
    case TapeOp::SigmoidProduct:
    case TapeOp::WhereLt:
    case TapeOp::WhereLe:
    case TapeOp::WhereEq:
    case TapeOp::WhereNe:
      return 4;
    case TapeOp::Mul3:
    case TapeOp::Fma:
    case TapeOp::Fms:
    case TapeOp::Fnma:
    case TapeOp::ClampBound:
      return 3;
    case TapeOp::Add:
    case TapeOp::Sub:
    case TapeOp::Mul:
    case TapeOp::Div:
    case TapeOp::GeluProduct:
    case TapeOp::GeluTanhProduct:
    case TapeOp::MishProduct:
    case TapeOp::Min:
    case TapeOp::Max:
    case TapeOp::MinBound:
    case TapeOp::MaxBound:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

const TapeKernels& tape_kernels(Isa isa) {
  if (!is_supported(isa)) {
    throw Error(ErrorCode::Unsupported,
                "this machine has no " + std::string(flexact::cpu::to_string(isa)));
  }
#if defined(__x86_64__)
  if (isa == Isa::Avx512 || isa == Isa::Avx512Bf16) return kTapeKernelsAvx512;
  if (isa == Isa::Avx2) return kTapeKernelsAvx2;
#endif
  return kTapeKernelsScalar;
}

Tape::Tape(const Graph& graph, Isa isa, Arithmetic arithmetic)
    : isa_(isa), arithmetic_(arithmetic) {
  const TapeKernels& kernels = tape_kernels(isa);
  auto program = std::make_shared<TapeProgram>();
  program->run = arithmetic == Arithmetic::Fp32 ? kernels.run : run_tape_fp64;
  program->gated = graph.gated;
  Selection selection(graph);
  const std::vector<Selected> selected = selection.take();
  Allocation(graph, selection, selected, *program);
  // Every slot must hold at least one vector, and Operand counts in 16 bits.
  const std::size_t vectors = program->uniforms + program->slots;
  if (vectors * kernels.width > kTapeScratch) {
    throw Error(ErrorCode::Unsupported, "the function needs more scratch than a CPU tape has", {},
                "write it with fewer live intermediate values");
  }
  program_ = std::move(program);
}

void Tape::run(const float* g, const float* u, float* y, std::size_t n,
               const float* parameters) const noexcept {
  program_->run(program_->view(), g, u, y, n, parameters);
}

bool Tape::gated() const noexcept {
  return program_->gated;
}

int Tape::instruction_count() const noexcept {
  return static_cast<int>(program_->body.size());
}

std::string Tape::to_string() const {
  std::string text;
  const auto list = [&](const std::vector<Instruction>& instructions) {
    for (const Instruction& in : instructions) {
      text += operand_text(in.destination, *program_) + " = " + tape_op_name(in.op);
      for (int k = 0; k < arity(in.op); ++k) {
        text += (k == 0 ? " " : ", ") + operand_text(in.operands[k], *program_);
      }
      if (in.op == TapeOp::Powi) text += ", " + std::to_string(int{in.exponent});
      text += '\n';
    }
  };
  list(program_->prologue);
  list(program_->body);
  return text;
}

}  // namespace flexact::cpu
