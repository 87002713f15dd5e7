// What was claimed and what was proven, as JSON and as a page.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "case.hpp"
#include "runner.hpp"

namespace flexact::conformance {

class Matrix {
 public:
  // Records one outcome.
  void add(const Case& test, const Variant& variant, const Outcome& outcome);

  // Counts of all outcomes so far.
  int passed() const { return passed_; }
  int failed() const { return failed_; }
  int refused() const { return refused_; }

  void write_json(const std::string& path, const std::string& command) const;
  void write_page(const std::string& path, const std::string& json_path,
                  const std::string& command) const;

 private:
  struct Tally {
    int passed = 0, failed = 0;
    int proofs = 0;  // of passed, with an output that is not zero
  };
  struct Cell {
    bool claimed = true;
    std::string reason;  // where it is not claimed
    std::map<std::string, Tally> by_variant;
  };
  struct Key {
    std::string backend, function;
    Pairing pairing;
    Format format;
    auto operator<=>(const Key&) const = default;
  };
  // The variants on which every case of the cell passed.
  std::vector<std::string> proven(const Cell& cell, const std::string& backend) const;

  // True where some function runs in the format.
  bool any_claimed(const std::string& backend, Format format) const;
  // The others, with a reason, by backend.
  std::map<std::string, std::map<Format, std::string>> refused_formats() const;

  std::map<Key, Cell> cells_;
  std::map<std::string, std::vector<std::string>> variants_;     // of each backend, in order
  std::map<std::string, std::map<std::string, Tally>> options_;  // backend → option → runs
  std::vector<std::string> functions_;                           // in order
  int passed_ = 0, failed_ = 0, refused_ = 0;
};

// The processor, GPU or both that the run used, and the commit of the source tree.
std::string device_name();
std::string commit();

}  // namespace flexact::conformance
