// Families whose rows need no rule of their own: a gated or plain MLP, routed and shared experts,
// and the layers in which they stand.
#include "config/family.hpp"

namespace flexact::config {
namespace {

std::vector<Family> rows() {
  return {
      {.model_types = {"llama"}, .layers = count(32), .dense = mlp().with_bias("mlp_bias")},
      {.model_types = {"mixtral"},
       .layers = count(32),
       .sparse = every_layer(),
       .routed = experts(),
       .experts = {{"num_local_experts", "num_experts"}, 8}},
  };
}

}  // namespace

const std::vector<Family>& plain_families() {
  static const std::vector<Family> table = rows();
  return table;
}

}  // namespace flexact::config
