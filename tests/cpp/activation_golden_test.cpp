// The catalogue against golden values made with 2300-digit arithmetic
// (tests/data/activations.json).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "activation/catalogue.hpp"
#include "flexact/activation.hpp"

namespace flexact {
namespace {

using Json = nlohmann::json;

Json golden_entries() {
  std::ifstream file(FLEXACT_SOURCE_DIR "/tests/data/activations.json");
  return Json::parse(file);
}

// The data set's names for what the catalogue calls otherwise.
std::string catalogue_name(const std::string& name) {
  if (name == "swish_beta") return "swish";
  if (name == "swiglu_beta") return "swish_glu";
  return name;
}

// xielu's golden slopes are softplus(alpha_p) and beta + softplus(alpha_n).
Binding golden_binding(const Json& entry) {
  Binding binding;
  for (const auto& [key, value] : entry.at("params").items()) {
    const double v = value.get<double>();
    if (key == "ap") {
      binding.emplace("alpha_p", std::log(std::expm1(v)));
    } else if (key == "an") {
      binding.emplace("alpha_n",
                      std::log(std::expm1(v - entry.at("params").at("beta").get<double>())));
    } else {
      binding.emplace(key, v);
    }
  }
  return binding;
}

TEST(Catalogue, matches_every_golden_value) {
  int values = 0;
  for (const Json& entry : golden_entries()) {
    const std::string name = entry.at("name");
    SCOPED_TRACE(name);
    const Activation activation =
        ActivationRegistry::instance().get_activation(catalogue_name(name), golden_binding(entry));
    const Function& function = activation.function();
    ASSERT_EQ(function.arity(), entry.at("gated") ? Arity::Gated : Arity::Unary);
    const std::vector<double> parameters = activation.values(0, {0, 1}).data;
    for (const Json& sample : entry.at("golden")) {
      const std::vector<double> in = sample[0];
      const double want = sample[1];
      const double got = function.arity() == Arity::Gated
                             ? function.reference(in[0], in[1], parameters)
                             : function.reference(in[0], parameters);
      EXPECT_NEAR(got, want, 2e-12 * std::fabs(want)) << "at " << sample[0];
      ++values;
    }
  }
  EXPECT_GE(values, 46 * 20);
}

TEST(Catalogue, knows_every_golden_name_and_alias) {
  for (const Json& entry : golden_entries()) {
    const std::string name = catalogue_name(entry.at("name"));
    const activation::CatalogueEntry* row = activation::find_entry(name);
    ASSERT_NE(row, nullptr) << name;
    if (name == "silu" || name == "swish") continue;  // names of each other at beta = 1
    for (const std::string alias : entry.at("aliases")) {
      EXPECT_EQ(activation::find_entry(alias), row) << alias;
    }
  }
}

}  // namespace
}  // namespace flexact
