// Ten thousand valid configs: what `explain` prints of each is a config again, and means the same.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "activation/catalogue.hpp"
#include "config/family.hpp"
#include "config_support.hpp"
#include "sample_values.hpp"

namespace flexact::config_test {
namespace {

using nlohmann::json;

constexpr int kConfigs = 10'000;
constexpr Role kRoles[] = {Role::Routed, Role::Shared, Role::Dense};

class Generator {
 public:
  explicit Generator(std::uint32_t seed) : random_(seed) {}

  // {model_type, layers, experts} of one family, and an override that gives it an activation.
  struct Sample {
    json config;
    json params;
  };

  Sample sample() {
    const auto& table = config::families();
    const config::Family* family = table[below(table.size())];
    // Most of the time one whose number of layers can be small.
    while (!counted(*family) && below(8) != 0) family = table[below(table.size())];
    Sample made;
    made.config["model_type"] = family->model_types[below(family->model_types.size())];
    layers_ = 0;
    if (counted(*family)) {
      layers_ = 1 + below(3);
      made.config[std::string(family->layers.names.front())] = layers_;
    }
    json* level = &made.config;
    for (std::string_view key : family->text)
      level = &((*level)[std::string(key)] = json::object());
    if (below(8) != 0) made.params = activation();
    return made;
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }

  static bool counted(const config::Family& family) {
    return family.text.empty() && family.stacks.empty() && family.layers.length_of.empty() &&
           !family.layers.names.empty();
  }

  // A number that text keeps: a few digits, inside the domain.
  double number(const Domain& domain) {
    for (;;) {
      const double value = std::round(test::sample_in(domain, random_) * 1e6) / 1e6;
      if (domain.contains(value)) return value;
    }
  }

  json value(const Domain& domain) {
    if (layers_ == 0 || below(3) != 0) return number(domain);
    json list = json::array();
    for (std::size_t i = 0; i < layers_; ++i) list.push_back(number(domain));
    return {{"per_layer", std::move(list)}};
  }

  json activation() {
    static const char* const kFormulas[] = {
        "x*sigmoid(a*x)", "t = tanh(x*a); t*t+0.25*t", "where(x>a, x, b*expm1(min(x,0)))",
        "clamp(x, -abs(a)-1, 3)^2/(1+b*b)", "0.5*x*(1+erf(x/sqrt(2)))+a"};
    json made;
    if (below(4) == 0) {
      const char* formula = kFormulas[below(std::size(kFormulas))];
      made["expr"] = formula;
      const Function function = Function::expression(formula);
      for (const Parameter& p : function.parameters()) made[p.name] = value({});
      return made;
    }
    const auto& rows = activation::catalogue();
    const auto& row = rows[below(rows.size())];
    made["name"] = row.name;
    for (const Parameter& p : row.parameters) {
      if (!p.default_value || below(2) == 0) made[p.name] = value(p.domain);
    }
    return made;
  }

  std::mt19937 random_;
  std::size_t layers_ = 0;
};

bool accepted(const json& config, const json& params, ModelActivations& model) {
  try {
    model =
        resolve(config.dump(), params.is_null() ? "" : json{{"activation_params", params}}.dump());
    return true;
  } catch (const Error& error) {
    // Understood, but not element-wise: no function of this library.
    if (error.code() != ErrorCode::Unsupported) {
      EXPECT_EQ(error.code(), ErrorCode::ConfigError) << error.what();
    }
    return false;
  }
}

// What `explain` shows of one role in all layers, as activation_params of that role. Nothing where
// layers differ in their formula.
json shown_role(const json& document, const std::string& role) {
  json params;
  for (const json& layer : document.at("layers")) {
    const json& entry = layer.at(role);
    if (entry.is_null()) continue;
    if (params.is_null()) params["expr"] = entry.at("formula");
    if (params["expr"] != entry.at("formula")) return nullptr;
  }
  if (params.is_null()) return nullptr;
  std::map<std::string, json> last;
  std::map<std::string, std::vector<json>> values;
  const std::size_t count = document.at("layers").size();
  for (std::size_t i = 0; i < count; ++i) {
    const json& entry = document["layers"][i].at(role);
    if (entry.is_null()) continue;
    for (const auto& [name, value] : entry.at("params").items()) {
      // Layers before the first with this role need some value.
      auto& list = values[name];
      while (list.size() <= i) list.push_back(value);
    }
  }
  for (auto& [name, list] : values) {
    while (list.size() < count) list.push_back(list.back());
    const bool same =
        std::count(list.begin(), list.end(), list[0]) == static_cast<std::ptrdiff_t>(list.size());
    params[name] = same ? list[0] : json{{"per_layer", list}};
  }
  return params;
}

double value_at(const ResolvedActivation& role, std::int64_t layer, double g, double u) {
  const Function& function = role.activation.function();
  const TensorReader learned = [](const std::string&) { return std::vector<double>{0.625}; };
  const ValueTable table = role.activation.values(layer, {0, 1}, learned);
  return role.gated ? function.reference(g, u, table.data) : function.reference(g, table.data);
}

void expect_same(const ModelActivations& first, const ModelActivations& second) {
  ASSERT_EQ(first.layers.size(), second.layers.size());
  for (std::size_t i = 0; i < first.layers.size(); ++i) {
    for (Role which : kRoles) {
      const auto& a = first.layers[i].role(which);
      const auto& b = second.layers[i].role(which);
      ASSERT_EQ(a.has_value(), b.has_value());
      if (!a) continue;
      EXPECT_EQ(a->gated, b->gated);
      EXPECT_EQ(a->pairing, b->pairing);
      EXPECT_EQ(a->transposed, b->transposed);
      EXPECT_EQ(a->bias, b->bias);
      EXPECT_EQ(Activation::from_json(a->activation.to_json()), a->activation);
      const auto layer = static_cast<std::int64_t>(i);
      for (double g : {-7.5, -0.625, 0.0, 0.375, 4.25}) {
        const double x = value_at(*a, layer, g, -1.75);
        const double y = value_at(*b, layer, g, -1.75);
        if (std::isnan(x) && std::isnan(y)) continue;
        EXPECT_NEAR(x, y, 1e-12 * (1 + std::abs(x))) << a->activation.function().formula();
      }
    }
  }
}

TEST(ConfigRoundTrip, ten_thousand_configs_mean_the_same_after_explain) {
  Generator generator(7);
  int round_trips = 0;
  int refused = 0;
  int attempts = 0;
  while (round_trips < kConfigs && !HasFailure()) {
    ASSERT_LT(++attempts, 4 * kConfigs);
    const Generator::Sample sample = generator.sample();
    ModelActivations model;
    if (!accepted(sample.config, sample.params, model)) {
      ++refused;
      continue;
    }
    SCOPED_TRACE(sample.config.dump() + " " + sample.params.dump());
    const json document = json::parse(model.to_json());
    json again = json::object();
    for (Role which : kRoles) {
      const std::string name(to_string(which));
      bool stands = false;
      for (const LayerActivations& layer : model.layers) stands = stands || layer.role(which);
      if (!stands) continue;
      const json role = shown_role(document, name);
      if (role.is_null()) {
        again = nullptr;
        break;
      }
      again[name] = role;
    }
    if (again.is_null() || again.empty()) continue;
    ModelActivations back;
    ASSERT_TRUE(accepted(sample.config, again, back)) << again.dump();
    expect_same(model, back);
    ++round_trips;
  }
  EXPECT_EQ(round_trips, kConfigs);
  RecordProperty("refused", refused);
}

}  // namespace
}  // namespace flexact::config_test
