// Every configuration of the zoo resolves to what the model's own code computes (probe values in
// fp64), and every bad input gets its verdict. The data decides; nothing here knows a model.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "config_support.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

using nlohmann::json;

json read_data(const std::string& name) {
  std::ifstream in(std::string(FLEXACT_SOURCE_DIR) + "/tests/data/zoo/" + name);
  return json::parse(in);
}

struct Entry {
  json data;
};

void PrintTo(const Entry& entry, std::ostream* out) {
  *out << entry.data.at("id");
}

std::vector<Entry> entries(const std::string& file) {
  std::vector<Entry> result;
  for (const json& data : read_data(file)) result.push_back({data});
  return result;
}

// "3-44", "1,3,5", "0,2-4".
std::set<std::int64_t> layer_set(const std::string& text) {
  std::set<std::int64_t> layers;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, comma - at);
    const std::size_t dash = part.find('-');
    const std::int64_t first = std::stoll(part);
    const std::int64_t last = dash == std::string::npos ? first : std::stoll(part.substr(dash + 1));
    for (std::int64_t i = first; i <= last; ++i) layers.insert(i);
    at = comma + 1;
  }
  return layers;
}

double evaluate(const ResolvedActivation& role, std::int64_t layer, const json& probe) {
  const ValueTable table = role.activation.values(layer, {0, 1});
  const std::vector<double>& values = table.data;
  const Function& function = role.activation.function();
  return probe.size() == 3 ? function.reference(probe[0], probe[1], values)
                           : function.reference(probe[0].get<double>(), values);
}

void expect_probes(const ResolvedActivation& role, std::int64_t layer, const json& expected,
                   double loose) {
  ASSERT_EQ(role.gated, expected.at("probes")[0].size() == 3);
  for (const json& probe : expected.at("probes")) {
    const double want = probe.back();
    const double got = evaluate(role, layer, probe);
    const double bound =
        loose > 0 ? 1e-12 + loose * std::abs(want) : 1e-12 + 1e-12 * std::abs(want);
    EXPECT_LE(std::abs(got - want), bound)
        << "layer " << layer << " probe " << probe.dump() << " got " << got << " formula "
        << role.activation.function().formula();
  }
}

void expect_layout(const ResolvedActivation& role, const std::string& layout) {
  const bool transposed = layout == "concat_transposed" || layout == "interleaved_transposed";
  const std::string pairing = layout == "non_gated" ? "none"
                              : layout == "separate_w2_transposed"
                                  ? "separate"
                                  : layout.substr(0, layout.find("_transposed"));
  EXPECT_EQ(to_string(role.pairing), pairing);
  EXPECT_EQ(role.transposed, transposed);
}

void expect_role(const ModelActivations& model, Role which, const json& expected) {
  SCOPED_TRACE(std::string(to_string(which)));
  std::set<std::int64_t> found;
  for (const LayerActivations& layer : model.layers) {
    if (layer.role(which)) found.insert(layer.index);
  }
  if (expected.is_null()) {
    EXPECT_TRUE(found.empty()) << "the role stands in " << found.size() << " layers";
    return;
  }
  ASSERT_FALSE(found.empty()) << "the role stands nowhere";
  json per_layer = expected.at("per_layer").is_null() ? json::object() : expected.at("per_layer");
  if (!expected.at("layers").is_null()) {
    std::set<std::int64_t> wanted = layer_set(expected.at("layers"));
    for (const auto& [layer, other] : per_layer.items()) wanted.insert(std::stoll(layer));
    EXPECT_EQ(found, wanted);
  }
  // Entries computed in fp32 inside the module say so by their own error.
  const json& error = expected.value("max_rel_err", json());
  const double loose = error.is_number() && error.get<double>() > 1e-8 ? 2.1e-7 : 0;
  for (std::int64_t index : found) {
    const ResolvedActivation& role = *model.layers.at(static_cast<std::size_t>(index)).role(which);
    EXPECT_EQ(role.gated, expected.at("gated").get<bool>());
    EXPECT_EQ(role.bias, expected.at("bias").get<bool>());
    expect_layout(role, expected.at("layout"));
    EXPECT_FALSE(role.from.empty());
    const std::string key = std::to_string(index);
    expect_probes(role, index, per_layer.contains(key) ? per_layer.at(key) : expected, loose);
    if (::testing::Test::HasFailure()) return;
  }
}

class Zoo : public ::testing::TestWithParam<Entry> {};

TEST_P(Zoo, computes_what_the_model_computes) {
  const json& entry = GetParam().data;
  const std::string status = entry.at("expect_status");
  const std::string text = entry.at("config").dump();
  if (status == "refuse") {
    try {
      const ModelActivations model = resolve_config_text(text);
      FAIL() << "accepted: " << model.to_json();
    } catch (const Error& error) {
      EXPECT_TRUE(config_test::is_refusal(error)) << error.what();
      EXPECT_FALSE(error.where().empty()) << error.what();
    }
    return;
  }
  ModelActivations model;
  ASSERT_NO_THROW(
      try { model = resolve_config_text(text); } catch (const Error& error) {
        ADD_FAILURE() << error.what();
        throw;
      });
  std::string warnings;
  for (const std::string& warning : model.warnings) warnings += warning + '\n';
  EXPECT_EQ(model.warnings.empty(), status == "ok") << warnings;
  for (Role role : {Role::Routed, Role::Shared, Role::Dense}) {
    expect_role(model, role, entry.at("expect").at(std::string(to_string(role))));
  }
}

std::string entry_name(const ::testing::TestParamInfo<Entry>& info) {
  std::string name = info.param.data.at("id");
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, Zoo, ::testing::ValuesIn(entries("models.json")), entry_name);

class Refuse : public ::testing::TestWithParam<Entry> {};

std::string decode_base64(const std::string& text) {
  static const std::string alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  unsigned bits = 0;
  int count = 0;
  for (char c : text) {
    const std::size_t value = alphabet.find(c);
    if (value == std::string::npos) break;
    bits = bits << 6 | static_cast<unsigned>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xFF);
    }
  }
  return out;
}

std::string input_of(const json& entry) {
  if (entry.contains("config")) return entry.at("config").dump();
  if (entry.contains("raw")) return entry.at("raw");
  if (entry.contains("raw_base64")) return decode_base64(entry.at("raw_base64"));
  const json& recipe = entry.at("generate");
  std::string text = recipe.at("prefix");
  for (int i = 0; i < recipe.at("repeat"); ++i) text += recipe.at("open").get<std::string>();
  text += recipe.at("middle").get<std::string>();
  for (int i = 0; i < recipe.at("repeat"); ++i) text += recipe.at("close").get<std::string>();
  return text + recipe.at("suffix").get<std::string>();
}

TEST_P(Refuse, gets_its_verdict) {
  const json& entry = GetParam().data;
  const std::string verdict = entry.at("verdict");
  try {
    const ModelActivations model = resolve_config_text(input_of(entry));
    EXPECT_NE(verdict, "error") << "accepted: " << model.to_json();
    EXPECT_EQ(model.warnings.empty(), verdict == "ok") << model.to_json();
  } catch (const Error& error) {
    EXPECT_EQ(verdict, "error") << error.what();
    EXPECT_TRUE(config_test::is_refusal(error)) << error.what();
    EXPECT_FALSE(error.where().empty()) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(BadInputs, Refuse, ::testing::ValuesIn(entries("refuse.json")),
                         entry_name);

}  // namespace
}  // namespace flexact
