// Runs one case on one variant, and decides.
#pragma once

#include <optional>
#include <string>

#include "case.hpp"
#include "data.hpp"

namespace flexact::conformance {

// Deliberate mistakes, to show that the program finds them.
enum class Fault {
  None,
  Zeros,      // the kernel writes zeros
  Function,   // it computes another function
  GateAndUp,  // it confuses gate and up
  Expert,     // it takes the next expert's weights
};

struct Outcome {
  enum class Kind {
    Passed,
    Failed,
    Refused,  // by refuse(), with a reason, and plan() agrees
    Skipped,  // a fault that this case cannot show
  };
  Kind kind = Kind::Passed;
  std::string message;  // why it failed or was refused
  double worst = 0;     // largest difference over its bound
  // The expected output is not empty and not zero: the run proves something about the function.
  bool proves = false;
};

// What all variants of a case share: its data and the value that they must reach.
struct Prepared {
  Case test;
  CaseData data;
  Expected expected;
  explicit Prepared(const Case& c) : test(c), data(c), expected(data.expected(c.function())) {}
};

Outcome run(const Prepared& prepared, const Variant& variant, Fault fault = Fault::None);

// Problems that have no single meaning must be refused by every backend, with a reason, and plan()
// must throw Unsupported. Returns what is wrong, or nothing.
std::optional<std::string> check_refusals(const Backend& backend);

}  // namespace flexact::conformance
