// Tallies and their two printed forms.
#include "matrix.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "case.hpp"
#include "cuda/architecture.hpp"
#include "cuda/driver.hpp"
#include "flexact/error.hpp"
#include "flexact/version.hpp"

namespace flexact::conformance {

namespace {

using Json = nlohmann::ordered_json;

// What a case exercises, in the words of the options table.
std::vector<std::string> exercised(const Case& test) {
  const Options& o = test.options();
  const Size& s = sizes()[static_cast<std::size_t>(o.size)];
  std::vector<std::string> list = {std::string(to_string(test.problem().io_dtype)) + " in and out"};
  if (o.bias13) list.push_back("bias of gate and up");
  if (o.bias2) list.push_back("bias of down");
  if (o.router_weight_on_input) list.push_back("router weight on the input");
  if (!o.combine) list.push_back("unweighted output of each expert");
  if (o.scale != 1.0f) list.push_back("routed scaling factor");
  if (o.ids != Ids::Valid) list.push_back("ids outside the range");
  list.push_back(o.int32_ids ? "int32 ids" : "int64 ids");
  if (!test.subject->function.parameters().empty()) {
    list.push_back(o.per_expert_values ? "parameters for each expert" : "parameters for the layer");
  }
  if (o.strided) list.push_back("rows with gaps");
  if (s.top_k == 32) list.push_back("32 experts a token");
  if (s.tokens == 0) list.push_back("no tokens");
  if (s.hidden % 2 == 1 || s.intermediate % 2 == 1) list.push_back("odd sizes");
  return list;
}

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

std::string first_line_of(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::array<char, 256> buffer{};
  if (!pipe || std::fgets(buffer.data(), buffer.size(), pipe.get()) == nullptr) return "";
  std::string line = buffer.data();
  while (!line.empty() && line.back() == '\n') line.pop_back();
  return line;
}

void write(const std::string& path, const std::string& text) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder);
  std::ofstream file(path);
  file << text;
  if (!file.good()) throw Error(ErrorCode::IoError, "cannot be written", path);
}

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  std::map<std::string, std::string> facts;
  for (std::string line; std::getline(info, line) && !line.empty();) {
    const std::size_t colon = line.find(':');
    const std::size_t end = line.find_last_not_of("\t ", colon - 1);
    if (colon != std::string::npos && colon + 2 <= line.size()) {
      facts[line.substr(0, end + 1)] = line.substr(colon + 2);
    }
  }
  if (facts["model name"].empty()) return "unknown processor";
  return facts["model name"] + " (family " + facts["cpu family"] + ", model " + facts["model"] +
         ")";
}

// A line for each architecture that the CUDA backend has kernels for of which none has run: no row
// speaks of them.
std::string linked_alone() {
  std::string text;
  for (const cuda::Architecture& architecture : cuda::architectures()) {
    std::vector<std::string> formats;
    for (const Format format : all_formats()) {
      if (!cuda::refuse_format(architecture, format)) formats.emplace_back(to_string(format));
    }
    if (architecture.tried || formats.empty()) continue;
    text += "- Linked, not run, and in no row: cutlass on " + std::string(architecture.name) +
            ", " + joined(formats, ", ") + " ([why](cuda.md#blackwell))\n";
  }
  return text;
}

}  // namespace

std::string device_name() {
  if (!on_gpu()) return processor_name();
  std::array<char, 256> name{};
  const cuda::Driver& driver = cuda::Driver::instance();
  driver.check(driver.device_name(name.data(), name.size(), 0), "asking for the device's name");
  return name.data();
}

std::string commit() {
  // Where the program runs without its sources, who carried it there says what it was made of.
  if (const char* given = std::getenv("FLEXACT_COMMIT")) return given;
  const std::string id =
      first_line_of("git -C '" FLEXACT_SOURCE_DIR "' rev-parse --short=12 HEAD 2>/dev/null");
  return id.empty() ? "unknown" : id;
}

void Matrix::add(const Case& test, const Variant& variant, const Outcome& outcome) {
  const std::string backend = variant.backend->name();
  std::vector<std::string>& known = variants_[backend];
  if (std::find(known.begin(), known.end(), variant.name) == known.end())
    known.push_back(variant.name);
  if (std::find(functions_.begin(), functions_.end(), test.subject->name) == functions_.end()) {
    functions_.push_back(test.subject->name);
  }
  Cell& cell = cells_[{backend, test.subject->name, test.pairing, test.format}];
  if (outcome.kind == Outcome::Kind::Refused) {
    cell.claimed = false;
    cell.reason = outcome.message;
    ++refused_;
    return;
  }
  const bool ok = outcome.kind == Outcome::Kind::Passed;
  ++(ok ? passed_ : failed_);
  const auto count = [ok](Tally& tally) { ++(ok ? tally.passed : tally.failed); };
  count(cell.by_variant[variant.name]);
  if (outcome.proves) ++cell.by_variant[variant.name].proofs;
  for (const std::string& option : exercised(test)) count(options_[backend][option]);
}

std::vector<std::string> Matrix::proven(const Cell& cell, const std::string& backend) const {
  std::vector<std::string> list;
  for (const std::string& variant : variants_.at(backend)) {
    const auto found = cell.by_variant.find(variant);
    if (found != cell.by_variant.end() && found->second.proofs > 0 && found->second.failed == 0) {
      list.push_back(variant);
    }
  }
  return list;
}

bool Matrix::any_claimed(const std::string& backend, Format format) const {
  for (const auto& [key, cell] : cells_) {
    if (key.backend == backend && key.format == format && cell.claimed) return true;
  }
  return false;
}

std::map<std::string, std::map<Format, std::string>> Matrix::refused_formats() const {
  std::map<std::string, std::map<Format, std::string>> result;
  for (const auto& [key, cell] : cells_) {
    if (!any_claimed(key.backend, key.format)) result[key.backend][key.format] = cell.reason;
  }
  return result;
}

void Matrix::write_json(const std::string& path, const std::string& command) const {
  Json json;
  json["device"] = device_name();
  json["commit"] = commit();
  json["version"] = version();
  json["command"] = command;
  json["runs"] = {{"passed", passed_}, {"failed", failed_}, {"refused", refused_}};
  json["columns"] = {"backend", "function", "pairing", "format", "claimed", "proven"};
  Json rows = Json::array();
  for (const std::string& function : functions_) {
    for (const auto& [key, cell] : cells_) {
      if (key.function != function || !any_claimed(key.backend, key.format)) continue;
      rows.push_back({key.backend, key.function, to_string(key.pairing), to_string(key.format),
                      cell.claimed ? "yes" : "no: " + cell.reason,
                      joined(proven(cell, key.backend), " ")});
    }
  }
  // A format that is refused whatever the function is one row.
  for (const auto& [backend, reasons] : refused_formats()) {
    for (const auto& [format, reason] : reasons) {
      rows.push_back({backend, "*", "*", to_string(format), "no: " + reason, ""});
    }
  }
  json["rows"] = rows;
  Json options = Json::array();
  for (const auto& [backend, tallies] : options_) {
    for (const auto& [option, tally] : tallies) {
      options.push_back({{"backend", backend},
                         {"option", option},
                         {"passed", tally.passed},
                         {"failed", tally.failed}});
    }
  }
  json["options"] = options;
  // A row a line, so that a change shows as a line.
  std::string text = "{\n";
  for (const auto& [name, value] : json.items()) {
    text += text.size() > 2 ? ",\n" : "";
    text += " " + Json(name).dump() + ": ";
    if (!value.is_array() || name == "columns") {
      text += value.dump();
      continue;
    }
    text += "[";
    for (std::size_t i = 0; i < value.size(); ++i)
      text += (i == 0 ? "\n  " : ",\n  ") + value[i].dump();
    text += "\n ]";
  }
  write(path, text + "\n}\n");
}

void Matrix::write_page(const std::string& path, const std::string& json_path,
                        const std::string& command) const {
  std::string text =
      "# Support matrix\n\n"
      "Generated by the conformance program; do not edit. *Claimed* is what a backend's `refuse()` "
      "says, "
      "*proven* is what agreed with an independent fp64 evaluation on poisoned memory.\n\n"
      "- Device: " +
      device_name() + "\n- Commit: " + commit() + "\n- Runs: " + std::to_string(passed_) +
      " passed, " + std::to_string(failed_) + " failed, " + std::to_string(refused_) +
      " refused\n- Data: [" + json_path + "](" + json_path + ")\n- Command: `" + command + "`\n" +
      linked_alone();
  for (const auto& [backend, variants] : variants_) {
    text += "\n## " + backend + "\n\nVariants run: " + joined(variants, ", ") +
            ". A cell lists the variants that are proven; **all** means every one of them, "
            "*claimed* that "
            "nothing is proven, – that it is refused.\n";
    std::vector<Format> formats;
    for (Format format : all_formats()) {
      if (any_claimed(backend, format)) formats.push_back(format);
    }
    text += "\n| function | pairing |";
    for (Format format : formats) text += " " + std::string(to_string(format)) + " |";
    text += "\n|---|---|";
    for (std::size_t i = 0; i < formats.size(); ++i) text += "---|";
    text += "\n";
    for (const std::string& function : functions_) {
      for (Pairing pairing :
           {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved, Pairing::None}) {
        std::string line;
        for (Format format : formats) {
          const auto found = cells_.find({backend, function, pairing, format});
          if (found == cells_.end()) continue;
          const std::vector<std::string> list = proven(found->second, backend);
          line += !found->second.claimed           ? " – |"
                  : list.size() == variants.size() ? " all |"
                  : list.empty()                   ? " *claimed* |"
                                                   : " " + joined(list, ", ") + " |";
        }
        if (!line.empty())
          text += "| " + function + " | " + std::string(to_string(pairing)) + " |" + line + "\n";
      }
    }
    const auto refused = refused_formats();
    if (const auto found = refused.find(backend); found != refused.end()) {
      text += "\nRefused whatever the function:\n\n";
      for (const auto& [format, reason] : found->second) {
        text += "- `" + std::string(to_string(format)) + "`: " + reason + "\n";
      }
    }
    text += "\n| option | runs passed | failed |\n|---|---|---|\n";
    const auto options = options_.find(backend);
    if (options != options_.end()) {
      for (const auto& [option, tally] : options->second) {
        text += "| " + option + " | " + std::to_string(tally.passed) + " | " +
                std::to_string(tally.failed) + " |\n";
      }
    }
  }
  write(path, text);
}

}  // namespace flexact::conformance
