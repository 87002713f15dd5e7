// Every text model family resolves to what its own class computes, for thousands of changed
// configurations: other activation names, other layer patterns and counts, missing and null keys.
// The data was made by running the classes (scripts/derive_families.py), so it knows nothing of the
// family table. Where the specification says otherwise than the class, the case is listed below.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <string>

#include "config/family.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

using nlohmann::json;

const json& sweep() {
  static const json data = [] {
    std::ifstream in(std::string(FLEXACT_SOURCE_DIR) + "/tests/data/families_sweep.json");
    return json::parse(in);
  }();
  return data;
}

// What one role of one layer computes: "FORMULA(…) pairing [transposed] [bias] [norm]".
struct Computed {
  std::string formula;
  std::string pairing;
  bool transposed = false;
  bool bias = false;
  bool float32 = false;  // the module computes in fp32 whatever it is given

  explicit Computed(const std::string& text) {
    const std::size_t end = text.rfind(')');
    const bool known = end != std::string::npos;
    formula = known ? text.substr(0, end + 1) : "unknown";
    std::istringstream rest(text.substr(known ? end + 1 : formula.size()));
    rest >> pairing;
    for (std::string flag; rest >> flag;) {
      transposed |= flag == "transposed";
      bias |= flag == "bias";
      float32 |= flag == "float32";
    }
  }
  bool operator==(const Computed&) const = default;
};

using Layers = std::map<std::int64_t, Computed>;

std::map<Role, Layers> expected_of(const json& stack) {
  std::map<Role, Layers> result;
  for (const auto& [role, found] : stack.items()) {
    for (const auto& [text, layers] : found.items()) {
      std::istringstream parts(layers.get<std::string>());
      for (std::string part; std::getline(parts, part, ',');) {
        const std::size_t dash = part.find('-');
        const std::int64_t first = std::stoll(part);
        const std::int64_t last =
            dash == std::string::npos ? first : std::stoll(part.substr(dash + 1));
        for (std::int64_t i = first; i <= last; ++i) {
          result[parse_role(role)].emplace(i, Computed(text));
        }
      }
    }
  }
  return result;
}

// What the resolver must answer: a layer is one layer of all stacks, so they must agree; nothing
// where they do not, or where a module computes what no formula does.
std::optional<std::map<Role, Layers>> expected_answer(const json& stacks) {
  std::map<Role, Layers> all;
  std::int64_t common = -1;
  for (const auto& [name, stack] : stacks.items()) {
    const std::map<Role, Layers> one = expected_of(stack);
    std::int64_t last = -1;
    for (const auto& [role, layers] : one) last = std::max(last, layers.rbegin()->first);
    for (std::int64_t i = 0; i <= std::min(common, last); ++i) {
      for (Role role : {Role::Routed, Role::Shared, Role::Dense}) {
        const auto a = all.find(role);
        const auto b = one.find(role);
        const bool in_a = a != all.end() && a->second.contains(i);
        const bool in_b = b != one.end() && b->second.contains(i);
        if (in_a != in_b || (in_a && !(a->second.at(i) == b->second.at(i)))) return std::nullopt;
      }
    }
    for (const auto& [role, layers] : one) all[role].insert(layers.begin(), layers.end());
    common = common < 0 ? last : std::max(common, last);
  }
  for (const auto& [role, layers] : all) {
    for (const auto& [i, computed] : layers) {
      if (computed.formula == "unknown") return std::nullopt;
      // Its learned slope has no value in a config: refused unless activation_params binds it.
      if (computed.formula.find("prelu") != std::string::npos) return std::nullopt;
    }
  }
  return all;
}

// The first point at which the resolved function differs from the values computed; empty if none.
std::string difference(const ResolvedActivation& role, std::int64_t layer,
                       const Computed& computed) {
  if (to_string(role.pairing) != computed.pairing)
    return "pairing " + std::string(to_string(role.pairing)) + ", not " + computed.pairing;
  if (role.transposed != computed.transposed) return "transposed";
  if (role.bias != computed.bias) return "bias";
  const json& values = sweep().at("formulas").at(computed.formula);
  const ValueTable table = role.activation.values(layer, {0, 1});
  const Function& function = role.activation.function();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double g = sweep().at("g")[i];
    const double u = sweep().at("u")[i];
    const double want = values[i];
    const double got =
        role.gated ? function.reference(g, u, table.data) : function.reference(g, table.data);
    if (!(std::abs(got - want) <= (computed.float32 ? 1e-4 : 1e-9) * (1 + std::abs(want)))) {
      std::ostringstream text;
      text << function.formula() << " gives " << got << " at g " << g << " u " << u << "; "
           << computed.formula << " gives " << want;
      return text.str();
    }
  }
  return {};
}

std::string compare(const ModelActivations& model, const std::map<Role, Layers>& expected) {
  for (Role role : {Role::Routed, Role::Shared, Role::Dense}) {
    const auto found = expected.find(role);
    const Layers none;
    const Layers& wanted = found == expected.end() ? none : found->second;
    std::set<std::int64_t> have;
    for (const LayerActivations& layer : model.layers) {
      const auto& resolved = layer.role(role);
      const auto at = wanted.find(layer.index);
      if (resolved.has_value() != (at != wanted.end())) {
        return std::string(to_string(role)) + " layer " + std::to_string(layer.index) +
               (resolved ? " resolves, but the class has none" : " does not resolve");
      }
      if (!resolved) continue;
      const std::string text = difference(*resolved, layer.index, at->second);
      if (!text.empty())
        return std::string(to_string(role)) + " layer " + std::to_string(layer.index) + ": " + text;
      have.insert(layer.index);
    }
    if (have.size() != wanted.size()) {
      return std::string(to_string(role)) + " resolves in " + std::to_string(have.size()) +
             " layers, the class has it in " + std::to_string(wanted.size());
    }
  }
  return {};
}

// Where the answer is not the class's. Each reason is a rule of the specification, or a part of the
// module that cannot be run alone.
enum class Verdict {
  Same,       // resolves to what the class computes, or is refused where that is no formula
  Refused,    // an error, although the class runs
  Undecided,  // the same as the class, or an error; never something else
  Apart,      // not compared here
};

Verdict verdict(const json& config) {
  const std::string type = config.at("model_type");
  const json& text = config.contains("text_config") ? config.at("text_config") : config;
  const auto among = [&](std::initializer_list<const char*> types) {
    return std::find(types.begin(), types.end(), type) != types.end();
  };
  const auto is_zero = [&](const char* key) {
    return text.contains(key) && text.at(key).is_number() && text.at(key) == 0;
  };
  // dense_act_fn and is_gated_act must not contradict feed_forward_proj; the classes let them win.
  if (among({"t5", "mt5", "umt5", "longt5", "udop"}) &&
      (text.contains("dense_act_fn") || text.contains("is_gated_act"))) {
    return Verdict::Undecided;
  }
  // A limit of 0 means off in the references; transformers clamps everything to 0.
  if (among({"deepseek_v4", "hy_v4", "glm5_next", "glm5_next_text"}) && is_zero("swiglu_limit"))
    return Verdict::Apart;
  // The routed experts compute silu whatever hidden_act says: another name would be two functions.
  if (among({"hy_v4", "glm5_next", "glm5_next_text"}) && text.contains("hidden_act") &&
      text.at("hidden_act") != "silu" && text.at("hidden_act") != "swish") {
    return Verdict::Refused;
  }
  // Two counts that contradict each other, of which the class derives one from the other.
  if (among({"longcat_flash", "switch_transformers"}) && text.contains("num_hidden_layers") &&
      text.contains("num_layers")) {
    return Verdict::Apart;
  }
  // The text model inside has other defaults than the same type alone.
  if (among({"glmasr", "voxtral", "nemo_speechlm"}) &&
      !(config.contains("text_config") && text.contains("num_hidden_layers"))) {
    return Verdict::Apart;
  }
  // Layers that share their weights; layers in blocks; projections around the MLP; integers only;
  // experts behind a router that mixes tokens.
  if (among({"albert", "funnel", "mobilebert", "ibert"}) ||
      (type == "doge" && text.contains("is_moe")))
    return Verdict::Apart;
  return Verdict::Same;
}

TEST(Families, ResolveToWhatTheirClassesCompute) {
  const char* only = std::getenv("FLEXACT_TEST_FAMILY");
  std::size_t checked = 0;
  std::size_t apart = 0;
  std::map<std::string, std::pair<int, std::string>> failures;
  for (const json& entry : sweep().at("entries")) {
    const json& config = entry.at("config");
    const std::string type = config.at("model_type");
    if (only != nullptr && type != only) continue;
    ++checked;
    const auto expected = expected_answer(entry.at("stacks"));
    const Verdict wanted = verdict(config);
    if (wanted == Verdict::Apart) {
      ++apart;
      continue;
    }
    std::string failure;
    try {
      const ModelActivations model = resolve_config_text(config.dump());
      failure = wanted == Verdict::Refused ? "resolves"
                : expected                 ? compare(model, *expected)
                                           : "resolves, but no one formula is computed";
    } catch (const Error& error) {
      if (expected && wanted == Verdict::Same) failure = std::string("refused: ") + error.what();
    }
    if (failure.empty()) continue;
    auto& [count, text] = failures[type];
    if (count++ < 3) text += "\n    " + config.dump().substr(0, 300) + "\n      " + failure;
  }
  for (const auto& [type, found] : failures) {
    ADD_FAILURE() << type << ": " << found.first << " configurations differ, for example"
                  << found.second;
  }
  EXPECT_GT(checked, 0U);
  EXPECT_LT(apart * 20, checked) << "too many configurations are set apart";
}

// The length of a per_expert list is the number of experts, so its key and default matter.
TEST(Families, CountTheirExpertsAsTheirClassesDo) {
  std::ifstream in(std::string(FLEXACT_SOURCE_DIR) + "/tests/data/families_transformers.json");
  const json facts = json::parse(in);
  // The class has no default; what the facts hold was given to build the model.
  const std::set<std::string> without_default = {"dots1", "diffusion_gemma_text"};
  int checked = 0;
  for (const auto& [type, found] : facts.at("families").items()) {
    if (!found.contains("experts")) continue;
    const config::Family* family = config::find_family(type);
    ASSERT_NE(family, nullptr) << type;
    const config::IntKey& experts = family->experts;
    for (const json& key : found.at("experts").at("keys")) {
      EXPECT_NE(std::find(experts.names.begin(), experts.names.end(), key.get<std::string>()),
                experts.names.end())
          << type << " counts its experts by " << key;
    }
    if (without_default.contains(type)) continue;
    EXPECT_EQ(experts.fallback.value_or(-1), found.at("experts").at("default").at(0)) << type;
    ++checked;
  }
  EXPECT_GT(checked, 50);
}

}  // namespace
}  // namespace flexact
