// Looking up rows of the family table.
#include <map>

#include "config/family.hpp"

namespace flexact::config {

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> table = [] {
    std::vector<const Family*> all;
    for (const auto* part : {&special_families(), &plain_families()}) {
      for (const Family& family : *part) all.push_back(&family);
    }
    return all;
  }();
  return table;
}

const Family* find_family(std::string_view model_type) {
  static const std::map<std::string_view, const Family*> index = [] {
    std::map<std::string_view, const Family*> map;
    for (const Family* family : families()) {
      for (std::string_view name : family->model_types) map.emplace(name, family);
    }
    return map;
  }();
  const auto found = index.find(model_type);
  return found == index.end() ? nullptr : found->second;
}

const Family* find_family_of_architecture(std::string_view architecture) {
  for (const Family* family : families()) {
    for (std::string_view name : family->architectures) {
      if (name == architecture) return family;
    }
  }
  return nullptr;
}

}  // namespace flexact::config
