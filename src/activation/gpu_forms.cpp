// Finds the forms from the result backwards, so that a node goes to the largest of them.
#include "activation/gpu_forms.hpp"

#include <algorithm>

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
    if (one_plus_erf(i) >= 0) absorbed_[static_cast<std::size_t>(at(i).operands[0])] = true;
  }
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
