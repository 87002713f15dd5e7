// The same function on every instruction set of this machine: a row of the catalogue by the
// numerics contract, or a random graph within the bounds of fp32 arithmetic. Inputs are any bits.
#include <array>
#include <bit>
#include <memory>
#include <random>

#include "cpu/tape.hpp"
#include "flexact/activation.hpp"
#include "flexact/backend.hpp"
#include "fuzz.hpp"
#include "graph_bounds.hpp"
#include "sample_values.hpp"

namespace {

using namespace flexact;
using activation::Graph;
using activation::Node;
using activation::Op;
using fuzz::Bytes;
using fuzz::check;

constexpr float kPoison = -8.5e33f;

// Of fixed size on the heap, so that reading or writing beyond it is seen.
struct Array {
  explicit Array(std::size_t n) : size(n), data(new float[n]) {}
  std::size_t size;
  std::unique_ptr<float[]> data;
  float& operator[](std::size_t i) { return data[i]; }
};

float any_float(Bytes& in, bool bf16) {
  static constexpr std::uint32_t kSpecial[] = {0x00000000, 0x80000000, 0x7f800000, 0xff800000,
                                               0x7fc00000, 0x00000001, 0x807fffff, 0x7f7fffff,
                                               0x3f800000, 0xbf800000, 0x00800000, 0xc2ae0000};
  const std::uint8_t head = in.byte();
  if (head < std::size(kSpecial)) return std::bit_cast<float>(kSpecial[head]);
  // Half of the inputs are of the size that layers see.
  const std::uint32_t bits = in.word();
  float value = std::bit_cast<float>(bits);
  if (head & 1) value = static_cast<float>(static_cast<std::int32_t>(bits)) * 0x1p-28f;
  return bf16 ? std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & 0xffff0000u) : value;
}

Graph random_graph(Bytes& in) {
  Graph graph;
  graph.gated = true;
  graph.parameter_count = 2;
  graph.nodes = {Node{Op::Gate}, Node{Op::Up}, Node{Op::Parameter, {-1, -1, -1}, 0, 0},
                 Node{Op::Parameter, {-1, -1, -1}, 0, 1}};
  for (double value : {1.0, 0.5, -1.702, 6.0})
    graph.nodes.push_back({Op::Constant, {-1, -1, -1}, value});
  std::vector<std::int32_t> conditions;
  std::vector<std::int32_t> numbers{0, 1, 2, 3, 4, 5, 6, 7};
  const std::size_t count = 1 + in.below(48);
  constexpr auto kFirst = static_cast<std::size_t>(Op::Neg);
  constexpr auto kLast = static_cast<std::size_t>(Op::Where);
  for (std::size_t i = 0; i < count && !in.empty(); ++i) {
    Node node{static_cast<Op>(kFirst + in.below(kLast - kFirst + 1))};
    for (int k = 0; k < activation::operand_count(node.op); ++k)
      node.operands[k] = numbers[numbers.size() - 1 - in.below(numbers.size())];
    if (node.op == Op::Where) {
      if (conditions.empty()) continue;
      node.operands[0] = conditions[in.below(conditions.size())];
    }
    if (node.op == Op::Powi) {
      static constexpr std::int32_t kExponents[] = {2, 3, 4, 5, 7, 16, -2, -3, -16};
      node.index = kExponents[in.below(std::size(kExponents))];
    }
    graph.nodes.push_back(node);
    (activation::is_comparison(node.op) ? conditions : numbers).push_back(graph.result());
  }
  if (activation::is_comparison(graph.nodes.back().op))
    graph.nodes.push_back({Op::Where, {graph.result(), 0, 1}});
  return graph;
}

// Only nodes that reach the result, as graphs promise.
Graph pruned(const Graph& graph) {
  std::vector<bool> live(graph.nodes.size(), false);
  live.back() = true;
  for (std::size_t i = graph.nodes.size(); i-- > 0;) {
    for (std::int32_t operand : graph.nodes[i].operands) {
      if (live[i] && operand >= 0) live[static_cast<std::size_t>(operand)] = true;
    }
  }
  Graph result = graph;
  result.nodes.clear();
  std::vector<std::int32_t> renamed(graph.nodes.size(), -1);
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (!live[i]) continue;
    Node node = graph.nodes[i];
    for (std::int32_t& operand : node.operands)
      operand = operand < 0 ? -1 : renamed[static_cast<std::size_t>(operand)];
    renamed[i] = static_cast<std::int32_t>(result.nodes.size());
    result.nodes.push_back(node);
  }
  return result;
}

// By the contract, for rows of the catalogue on bf16 inputs. Where the formula passes through
// numbers beyond fp32, no fp32 evaluation can follow it.
bool within_contract(const Function& function, float g, float u, const std::vector<float>& p,
                     float actual) {
  const Graph& graph = function.graph();
  const std::vector<test::Real> steps = test::evaluate(graph, g, u, p);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const test::Real value = steps[i];
    if (std::isfinite(value) && std::abs(value) > 0x1p126L) return true;
    // Beside an infinity it matters whether a number is zero or merely is in fp32. 1 + erf(-14) is
    // zero in these steps already.
    const activation::Op op = graph.nodes[i].op;
    const bool cancels = (op == activation::Op::Add || op == activation::Op::Sub) &&
                         steps[static_cast<std::size_t>(graph.nodes[i].operands[0])] != 0;
    if ((std::isinf(u) || std::isinf(g)) && (value != 0 || cancels) && std::abs(value) < 0x1p-120L)
      return true;
  }
  const std::vector<double> values(p.begin(), p.end());
  const double exact = function.arity() == Arity::Gated ? function.reference(g, u, values)
                                                        : function.reference(g, values);
  if (std::isnan(exact)) return std::isnan(actual);
  if (std::isinf(exact)) return actual == static_cast<float>(exact);
  const double allowed = std::max(test::bf16_ulp(exact), 0x1p-14);
  return std::abs(static_cast<double>(actual) - exact) <= allowed;
}

struct Input {
  Array g;
  Array u;
  std::vector<float> parameters;
};

std::string describe(const cpu::Tape& tape, const Input& input, std::size_t i, float got) {
  char text[256];
  std::snprintf(text, sizeof text, "%s: element %zu of %zu, g = %a, u = %a: %a\n",
                std::string(cpu::to_string(tape.isa())).c_str(), i, input.g.size,
                static_cast<double>(input.g.data[i]), static_cast<double>(input.u.data[i]),
                static_cast<double>(got));
  std::string result = text;
  for (float p : input.parameters) result += "p " + std::to_string(p) + "\n";
  return result + tape.to_string();
}

bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

// Runs on every instruction set; `judge(i, y)` says whether element i may be y.
template <typename Judge>
void run_everywhere(const Graph& graph, Input& input, bool in_place, Judge judge) {
  const std::size_t n = input.g.size;
  for (cpu::Isa isa : cpu::supported_isas()) {
    const cpu::Tape tape(graph, isa);
    Array y(n + 1);
    for (std::size_t i = 0; i <= n; ++i) y[i] = kPoison;
    tape.run(input.g.data.get(), graph.gated ? input.u.data.get() : nullptr, y.data.get(), n,
             input.parameters.data());
    check(y[n] == kPoison, "written beyond the end");
    for (std::size_t i = 0; i < n; ++i)
      check(judge(i, y[i]), "a wrong value", describe(tape, input, i, y[i]));
    // The value depends neither on the position nor on where the result goes.
    const std::size_t one = n / 2;
    float alone = kPoison;
    tape.run(&input.g[one], graph.gated ? &input.u[one] : nullptr, &alone, 1,
             input.parameters.data());
    check(same_bits(alone, y[one]), "the value depends on the position",
          describe(tape, input, one, alone));
    if (!in_place) continue;
    Array over(n);
    std::copy_n(input.g.data.get(), n, over.data.get());
    tape.run(over.data.get(), graph.gated ? input.u.data.get() : nullptr, over.data.get(), n,
             input.parameters.data());
    for (std::size_t i = 0; i < n; ++i)
      check(same_bits(over[i], y[i]), "the value changes in place",
            describe(tape, input, i, over[i]));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes in(data, size);
  static const std::vector<std::string> names = ActivationRegistry::instance().list();
  const std::uint8_t flags = in.byte();
  const bool catalogue = flags & 1;
  const bool in_place = flags & 2;
  const bool lifted = flags & 4;
  const std::size_t n = 1 + in.below(flags & 8 ? 300 : 9);

  Graph graph;
  std::optional<Function> function;
  std::vector<float> parameters;
  if (catalogue) {
    function = ActivationRegistry::instance().get_function(names[in.below(names.size())]);
    if (lifted) function = function->gated();
    std::mt19937 random(in.word());
    for (const Parameter& parameter : function->parameters())
      parameters.push_back(static_cast<float>(test::sample_in(parameter.domain, random)));
    graph = function->graph();
  } else {
    graph = pruned(random_graph(in));
    for (int i = 0; i < 2; ++i)
      parameters.push_back(static_cast<float>(static_cast<std::int8_t>(in.byte())) / 16);
  }
  Input input{Array(n), Array(n), parameters};
  for (std::size_t i = 0; i < n; ++i) {
    // Long arrays repeat what the input has.
    const bool fresh = !in.empty() || i == 0;
    input.g[i] = fresh ? any_float(in, catalogue) : input.g[i / 2];
    input.u[i] = fresh ? any_float(in, catalogue) : input.u[i / 2];
  }

  try {
    if (catalogue) {
      run_everywhere(graph, input, in_place, [&](std::size_t i, float y) {
        return i >= 16 || within_contract(*function, input.g[i], input.u[i], parameters, y);
      });
    } else {
      std::vector<test::Bounded> exact;
      for (std::size_t i = 0; i < std::min<std::size_t>(n, 8); ++i)
        exact.push_back(test::bounded(graph, input.g[i], input.u[i], parameters, test::kFp32));
      run_everywhere(graph, input, in_place, [&](std::size_t i, float y) {
        return i >= exact.size() || test::allows(exact[i], y);
      });
    }
  } catch (const Error& error) {
    fuzz::check_error(error, ErrorCode::Unsupported);  // more live values than a tape has room for
  }
  return 0;
}
