// What an activation costs inside the MoE block.
#pragma once

#include <string>

namespace flexact::conformance {

struct BenchOptions {
  std::string variant;   // empty: the best one
  std::string function;  // empty: all
  std::int64_t experts = 4, top_k = 2, hidden = 2048, intermediate = 512, tokens = 128;
  int rounds = 7;
  std::string output;  // JSON file; empty: none
};

// Interleaved rounds over all functions; prints processor times and the cost over the cheapest
// function of the same arity (g*u, or x).
int bench(const BenchOptions& options);

}  // namespace flexact::conformance
