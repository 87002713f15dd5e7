// The documentation of configs is true: its examples resolve or are refused as they say, and the
// page of families is the code's own table. FLEXACT_UPDATE_DOCS=1 rewrites that page.
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "config/family.hpp"
#include "config_support.hpp"

namespace flexact::config_test {
namespace {

std::string path_of(const std::string& name) {
  return std::string(FLEXACT_SOURCE_DIR) + "/docs/" + name;
}

std::string read_page(const std::string& name) {
  std::ifstream in(path_of(name));
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(Docs, every_example_has_the_verdict_that_the_page_gives) {
  const std::string page = read_page("configuration.md");
  int examples = 0;
  for (std::string_view verdict : {"accepted", "refused"}) {
    const std::string fence = "```json " + std::string(verdict) + "\n";
    for (std::size_t at = page.find(fence); at != std::string::npos;
         at = page.find(fence, at + 1)) {
      const std::size_t begin = at + fence.size();
      const std::string text = page.substr(begin, page.find("\n```", begin) - begin);
      ++examples;
      if (verdict == "accepted") {
        EXPECT_NO_THROW(resolve(text)) << text;
      } else {
        EXPECT_THROW(resolve(text), Error) << text;
      }
    }
  }
  EXPECT_GE(examples, 20);
}

template <typename Words>
std::string words(const Words& list, std::string_view quote = "`") {
  std::string text;
  for (std::string_view word : list) {
    text +=
        (text.empty() ? "" : ", ") + std::string(quote) + std::string(word) + std::string(quote);
  }
  return text;
}

std::string role_cell(const config::RoleRule& rule) {
  if (rule.where == config::Where::Nowhere) return "";
  std::string text = rule.fixed.empty()
                         ? words(rule.keys) + " = " +
                               std::string(rule.default_name.empty() ? "–" : rule.default_name)
                         : "always " + std::string(rule.fixed);
  if (rule.style != config::NameStyle::Plain) {
    text += "; gate by `feed_forward_proj`";
  } else if (!rule.gated) {
    text += "; no gate";
  } else {
    text += "; " + std::string(to_string(rule.pairing));
  }
  if (rule.transposed) text += ", transposed";
  if (rule.bias.value || !rule.bias.keys.empty()) text += "; bias";
  if (!rule.bias.keys.empty()) text += " by " + words(rule.bias.keys);
  if (rule.limit) {
    const bool before = rule.limit->form == config::LimitForm::Before;
    text += "; " + words(rule.limit->value.names) + (before ? " before" : " after");
  }
  if (rule.keyed) {
    text += "; " + std::string(rule.keyed->function) + " with";
    for (const config::ValueKey& key : rule.keyed->values) text += ' ' + words(key.names);
  }
  return text;
}

// A row of the table: families that differ in nothing but their names share it.
std::string row_of(const config::Family& family) {
  if (!family.refusal.empty()) return "| refused: " + std::string(family.refusal) + " | | |";
  if (!family.text.empty()) {
    std::string path;
    for (std::string_view key : family.text) path += (path.empty() ? "" : ".") + std::string(key);
    return "| text model in `" + path + "`" +
           (family.inner.empty() ? "" : ": " + std::string(family.inner)) + " | | |";
  }
  return "| " + role_cell(family.routed) + " | " + role_cell(family.shared) + " | " +
         role_cell(family.dense) + " |";
}

std::string families_page() {
  std::vector<std::pair<std::string, std::set<std::string>>> rows;
  for (const config::Family* family : config::families()) {
    const std::string row = row_of(*family);
    auto same = std::find_if(rows.begin(), rows.end(),
                             [&](const auto& entry) { return entry.first == row; });
    if (same == rows.end()) same = rows.insert(rows.end(), {row, {}});
    for (std::string_view type : family->model_types) same->second.emplace(type);
  }
  std::string text =
      "# Families\n\n"
      "The model types that [configuration](configuration.md) knows, as the code's table has them: "
      "for each role the key that names the\n"
      "activation and its default (or the function that the class fixes), how gate and up lie in "
      "the loaded module, and biases.\n"
      "`FLEXACT_UPDATE_DOCS=1 ctest -R families_page` writes this page.\n\n"
      "| model types | routed | shared | dense |\n|---|---|---|---|\n";
  for (const auto& [row, types] : rows) text += "| " + words(types, "") + ' ' + row + '\n';
  return text;
}

TEST(Docs, the_families_page_is_the_codes_table) {
  const std::string page = families_page();
  if (std::getenv("FLEXACT_UPDATE_DOCS") != nullptr) std::ofstream(path_of("families.md")) << page;
  EXPECT_TRUE(read_page("families.md") == page)
      << "docs/families.md is not the table: run this test with FLEXACT_UPDATE_DOCS=1";
}

}  // namespace
}  // namespace flexact::config_test
