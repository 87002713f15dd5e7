// What is tested: which functions, pairings, formats, sizes and options, and how they are combined.
//
// Function × pairing × format × variant (an instruction set or a device) are crossed in full,
// because each is a cell of the support matrix. Everything else (sizes, types, biases, ids, …) is
// drawn from a covering array: a short list of combinations in which every two choices of different
// kinds meet.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flexact/activation.hpp"
#include "flexact/backend.hpp"
#include "flexact/moe.hpp"

namespace flexact::conformance {

// A function under the name that the matrix shows.
struct Subject {
  std::string name;
  Function function;
};
// The whole registry, and expressions with parameters of their own.
std::vector<Subject> subjects();

struct Size {
  const char* name;
  std::int64_t experts, top_k, hidden, intermediate, tokens;
};

// Which ids a call gets.
enum class Ids {
  Valid,
  SomeOutside,   // -1, E and far beyond, with NaN as their weights
  TokenOutside,  // the first token has no expert here at all
};

// One row of the covering array.
struct Options {
  int size = 0;  // index into sizes()
  DType io = DType::BFloat16;
  bool bias13 = false;
  bool bias2 = false;
  bool router_weight_on_input = false;
  bool combine = true;
  Ids ids = Ids::Valid;
  bool int32_ids = false;
  bool per_expert_values = false;
  bool strided = false;  // hidden states and ids with gaps between rows
  float scale = 1.0f;    // routed scaling factor
};

const std::vector<Size>& sizes();
// From now on: what the kernels of a GPU take. 16-bit hidden states, rows of whole 16-byte pieces,
// sizes around their tiles, and the formats that are still to be proven. To be called first.
void use_gpu_cases();
bool on_gpu();
const std::vector<Options>& covering_options();

// Everything but the variant that runs it.
struct Case {
  const Subject* subject = nullptr;
  Pairing pairing = Pairing::Concat;
  Format format = Format::Bf16;
  int row = 0;  // of covering_options()

  const Options& options() const { return covering_options()[static_cast<std::size_t>(row)]; }
  MoeProblem problem() const;
  // The function as the pairing needs it: lifted to f(g) * u where there is a gate.
  Function function() const;
  // "swiglu/concat/bf16/3": names the case on the command line.
  std::string id() const;
  // The options in words.
  std::string describe() const;
};

// The pairings in which a function means something.
std::vector<Pairing> pairings_of(const Function& function);
const std::vector<Format>& all_formats();

// An instruction set of the CPU, or the one device of another backend.
struct Variant {
  const Backend* backend = nullptr;
  std::string name;  // "avx2", "sm_90a", …
};
std::vector<Variant> variants();
// Makes the next plan of the variant's backend use it.
void select(const Variant& variant);

}  // namespace flexact::conformance
