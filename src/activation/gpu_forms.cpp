// Finds the forms from the result backwards, so that a node goes to the largest of them.
#include "activation/gpu_forms.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace flexact::activation {

GpuForms::GpuForms(const Graph& graph)
    : graph_(graph), readers_(graph.nodes.size(), 0), absorbed_(graph.nodes.size(), false) {
  for (const Node& n : graph.nodes) {
    bool uniform = n.op != Op::Gate && n.op != Op::Up && n.op != Op::Input;
    for (int k = 0; k < operand_count(n.op); ++k) {
      const auto operand = static_cast<std::size_t>(n.operands[k]);
      ++readers_[operand];
      uniform = uniform && uniform_[operand];
    }
    uniform_.push_back(uniform);
  }
  for (int i = graph.result(); i >= 0; --i) {
    if (absorbed(i)) continue;
    if (at(i).op == Op::Mul) find_product(i);
    if (tanh_of_softplus(i) >= 0) absorbed_[static_cast<std::size_t>(at(i).operands[0])] = true;
    if (half_one_plus_erf(i) >= 0) absorbed_[static_cast<std::size_t>(at(i).operands[1])] = true;
  }
  for (int i = graph.result(); i >= 0; --i) {
    if (one_plus_erf(i) >= 0) absorbed_[static_cast<std::size_t>(at(i).operands[0])] = true;
  }
  coarse_ = find_coarse();
}

// True where the node is an `op` on an input that nothing else reads.
bool GpuForms::swallows(int node, Op op) const {
  return at(node).op == op && readers_[static_cast<std::size_t>(node)] == 1 && !uniform(node);
}

int GpuForms::tanh_of_softplus(int node) const {
  const Node& n = at(node);
  if (n.op != Op::Tanh || !swallows(n.operands[0], Op::Softplus)) return -1;
  return at(n.operands[0]).operands[0];
}

int GpuForms::one_plus_erf(int node) const {
  const Node& n = at(node);
  if (n.op != Op::Add || !swallows(n.operands[0], Op::Erf)) return -1;
  const Node& one = at(n.operands[1]);
  return one.op == Op::Constant && one.value == 1 ? at(n.operands[0]).operands[0] : -1;
}

int GpuForms::half_one_plus_erf(int node) const {
  const Node& n = at(node);
  if (n.op != Op::Mul || !swallows(n.operands[1], Op::Add)) return -1;
  const Node& half = at(n.operands[0]);
  return half.op == Op::Constant && half.value == 0.5 ? one_plus_erf(n.operands[1]) : -1;
}

int GpuForms::argument(int node) const {
  const Node& n = at(node);
  if (n.op == Op::Exp || n.op == Op::Sigmoid) return n.operands[0];
  return one_plus_erf(node);
}

GpuForms::Scaled GpuForms::scaled(int node) const {
  // Its seventh power is a number of fp32 as well.
  constexpr double kMost = 0x1p16;
  Scaled found;
  std::vector<int> stack = {node};
  while (!stack.empty()) {
    const int each = stack.back();
    stack.pop_back();
    const Node& n = at(each);
    if (n.op == Op::Constant) {
      found.constant *= n.value;
    } else if (swallows(each, Op::Mul) && product(each) == nullptr && half_one_plus_erf(each) < 0) {
      found.inside.push_back(each);
      stack.insert(stack.end(), {n.operands[1], n.operands[0]});
    } else if (swallows(each, Op::Div) && at(n.operands[1]).op == Op::Constant) {
      found.inside.push_back(each);
      found.constant /= at(n.operands[1]).value;
      stack.push_back(n.operands[0]);
    } else if (swallows(each, Op::Neg)) {
      found.inside.push_back(each);
      found.constant = -found.constant;
      stack.push_back(n.operands[0]);
    } else {
      found.factors.push_back(each);
    }
  }
  const double size = std::fabs(found.constant);
  if (size < 1 / kMost || size > kMost || found.constant == 1 || found.factors.empty()) return {};
  return found;
}

// Nodes that have coarse forms, each with its relative error in units of 2^-12; what they are
// multiplied with and raised to on their way to the result says what becomes of the error.
bool GpuForms::find_coarse() const {
  constexpr int kMost = 4;
  constexpr int kAny = 1000;  // more than any error may be enlarged
  std::vector<int> enlarged(graph_.nodes.size(), 0);
  enlarged.back() = 1;
  int total = 0;
  for (int i = graph_.result(); i >= 0; --i) {
    const Node& n = at(i);
    const int here = std::min(enlarged[static_cast<std::size_t>(i)], kAny);
    const bool normal = n.op == Op::Gelu || one_plus_erf(i) >= 0;
    const bool tanh = n.op == Op::Tanh && tanh_of_softplus(i) < 0;
    if (normal) total += 3 * here;
    if (tanh) total += 2 * here;
    if (n.op == Op::Softplus && !absorbed(i)) total += here;
    total = std::min(total, kAny);
    for (int k = 0; k < operand_count(n.op); ++k) {
      int by = kAny;
      switch (n.op) {
        case Op::Neg:
        case Op::Mul:
        case Op::Div:
        case Op::Abs:
        case Op::Relu:
        case Op::Sqrt:
        case Op::Rsqrt:
        case Op::Min:
        case Op::Max:
        case Op::Clamp:
          by = 1;
          break;
        case Op::Powi:
          by = std::abs(n.index);
          break;
        case Op::Where:
          by = k == 0 ? kAny : 1;
          break;
        default:
          break;
      }
      enlarged[static_cast<std::size_t>(n.operands[k])] += by * here;
    }
  }
  return total > 0 && total <= kMost;
}

const GpuForms::Product* GpuForms::product(int node) const {
  const auto found = products_.find(node);
  return found == products_.end() ? nullptr : &found->second;
}

void GpuForms::find_product(int node) {
  Product product;
  std::vector<int> inside;  // what the product takes the place of
  std::vector<int> stack = {at(node).operands[1], at(node).operands[0]};
  bool sigmoid = false;  // a second one could leave fp32's range
  while (!stack.empty()) {
    const int each = stack.back();
    stack.pop_back();
    const Node& n = at(each);
    if (swallows(each, Op::Mul)) {
      inside.push_back(each);
      stack.insert(stack.end(), {n.operands[1], n.operands[0]});
    } else if (swallows(each, Op::Tanh) && tanh_of_softplus(each) < 0) {
      inside.push_back(each);
      product.gates.push_back({Op::Tanh, n.operands[0]});
    } else if (!sigmoid && (swallows(each, Op::Sigmoid) || swallows(each, Op::Silu))) {
      sigmoid = true;
      inside.push_back(each);
      product.gates.push_back({Op::Sigmoid, n.operands[0]});
      if (n.op == Op::Silu) product.factors.push_back(n.operands[0]);
    } else {
      product.factors.push_back(each);
    }
  }
  if (product.gates.size() < 2) return;
  for (int each : inside) absorbed_[static_cast<std::size_t>(each)] = true;
  products_.emplace(node, std::move(product));
}

}  // namespace flexact::activation
