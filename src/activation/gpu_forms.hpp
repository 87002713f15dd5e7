// What the printers for GPUs compute together instead of node by node.
//
// An exponential, a logarithm or a reciprocal takes a GPU's special function unit as long as eight
// multiplications take, so a form with fewer of them is worth several instructions. The forms, with
// the special functions that each takes:
//   tanh(softplus(z))     n/(n+2), n = e(e+2), e = exp(z): 2
//   1+erf(z), half of it  the normal distribution, as a sigmoid of a polynomial: 2
//   sigmoid(a)*tanh(b)*…  one quotient of products, so one reciprocal: 1 + the number of factors
// Their errors stand beside the helpers that print them.
#pragma once

#include <map>
#include <vector>

#include "activation/graph.hpp"

namespace flexact::activation {

class GpuForms {
 public:
  // A product with a tanh and at least one more gate among its factors. `gates` are operands of
  // Tanh and at most one Sigmoid, all of whose values lie in [-1, 1]; `factors` are the rest.
  struct Gate {
    Op op;
    int operand;
  };
  struct Product {
    std::vector<Gate> gates;
    std::vector<int> factors;
  };

  // Keeps a reference to `graph`.
  explicit GpuForms(const Graph& graph);

  // Depends on parameters alone: computed once, outside of a compiler's loop over elements.
  bool uniform(int node) const { return uniform_[static_cast<std::size_t>(node)]; }
  // Computed within the only node that reads it; it has no value of its own.
  bool absorbed(int node) const { return absorbed_[static_cast<std::size_t>(node)]; }

  // The z where the node is tanh(softplus(z)), or 1+erf(z); -1 where it is not.
  int tanh_of_softplus(int node) const;
  int one_plus_erf(int node) const;
  // The z where the node is 0.5*(1+erf(z)).
  int half_one_plus_erf(int node) const;
  // The node as a product of gates; null where it is none.
  const Product* product(int node) const;

  // The node whose exponential the node begins with, so that constants before it are one with the
  // logarithm's base: of exp, sigmoid and 1+erf. -1 where there is none.
  int argument(int node) const;
  // A node as a constant times factors, where it is a product that nothing else reads: `inside` are
  // the nodes that it takes the place of, none where it is no such product.
  struct Scaled {
    double constant = 1;
    std::vector<int> factors;
    std::vector<int> inside;
  };
  Scaled scaled(int node) const;

  // Whether a result that is rounded to bf16 may have forms of less than fp32's accuracy: where
  // what they compute are factors of the result, so that their relative errors, 2^-11 each and
  // 2^-10 in all, are the result's, an eighth to a quarter of its last bit.
  bool coarse() const { return coarse_; }

 private:
  const Node& at(int node) const { return graph_.nodes[static_cast<std::size_t>(node)]; }
  bool swallows(int node, Op op) const;
  void find_product(int node);
  bool find_coarse() const;

  const Graph& graph_;
  std::vector<int> readers_;
  std::vector<bool> uniform_;
  std::vector<bool> absorbed_;
  std::map<int, Product> products_;
  bool coarse_ = false;
};

}  // namespace flexact::activation
