// The lists, and the covering array.
#include "case.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <random>
#include <set>
#include <utility>

#include "cpu/isa.hpp"
#include "cuda/architecture.hpp"
#include "cuda/backend.hpp"
#include "cuda/driver.hpp"
#include "fp4_data.hpp"
#include "fp8_data.hpp"

namespace flexact::conformance {

std::vector<Subject> subjects() {
  std::vector<Subject> list;
  for (const std::string& name : ActivationRegistry::instance().list()) {
    list.push_back({name, Function::named(name)});
  }
  // A user's own: several parameters, nothing that a name stands for.
  list.push_back({"expr1", Function::expression("g*sigmoid(beta*g+shift)*(u+0.5)")});
  list.push_back({"expr2", Function::expression("a*tanh(x/a)+b*log1p(x^2)+0.1*x")});
  return list;
}

namespace {

bool gpu_cases = false;

const std::vector<Size>& gpu_sizes() {
  // Experts with several tiles of 128 rows, short ones, ones with some rows more and none; widths
  // around a tile of columns.
  static const std::vector<Size> list = {
      {"even", 4, 2, 64, 48, 6},    {"tiny", 3, 1, 8, 8, 3},      {"tiles", 3, 2, 200, 136, 225},
      {"decode", 8, 2, 96, 80, 1},  {"wide", 2, 2, 136, 264, 70}, {"k32", 40, 32, 24, 16, 3},
      {"many", 64, 8, 64, 40, 40},  {"empty", 4, 2, 32, 32, 0},   {"dense", 1, 1, 72, 64, 270},
      {"deep", 4, 2, 520, 128, 33},
  };
  return list;
}

}  // namespace

void use_gpu_cases() {
  gpu_cases = true;
}

bool on_gpu() {
  return gpu_cases;
}

const std::vector<Size>& sizes() {
  if (gpu_cases) return gpu_sizes();
  // No size is a multiple of a tile in all dimensions but the first.
  static const std::vector<Size> list = {
      {"even", 4, 2, 64, 48, 6},     {"one", 3, 1, 1, 1, 3},      {"odd", 5, 3, 17, 33, 7},
      {"decode", 8, 2, 96, 80, 1},   {"wide", 2, 2, 40, 131, 20}, {"k32", 40, 32, 24, 17, 3},
      {"primes", 6, 2, 127, 31, 13}, {"empty", 4, 2, 32, 32, 0},  {"dense", 1, 1, 70, 66, 33},
      {"narrow", 7, 4, 257, 5, 9},
  };
  return list;
}

namespace {

// The kinds of choice and how many choices each has, in the order of Options.
constexpr std::array<int, 10> kChoices = {10, 3, 2, 2, 2, 2, 3, 2, 2, 4};

using Row = std::array<int, kChoices.size()>;

Options options_of(const Row& row) {
  Options options;
  options.size = row[0];
  options.io = row[1] == 0 || gpu_cases ? DType::BFloat16
               : row[1] == 1            ? DType::Float32
                                        : DType::Float16;
  options.bias13 = row[2] != 0;
  options.bias2 = row[3] != 0;
  options.router_weight_on_input = row[4] != 0;
  options.combine = row[5] == 0;
  options.ids = static_cast<Ids>(row[6]);
  options.int32_ids = row[7] != 0;
  options.per_expert_values = row[8] != 0;
  options.strided = (row[9] & 1) != 0;
  options.scale = (row[9] & 2) != 0 ? 2.5f : 1.0f;
  return options;
}

// A bias with the router weight on the input has no agreed meaning; every backend refuses it.
bool meaningless(const Row& row) {
  return row[4] != 0 && (row[2] != 0 || row[3] != 0);
}

// Greedy: of many random rows, always the one that brings most new pairs.
std::vector<Options> cover_pairs() {
  using Choice = std::pair<int, int>;
  std::set<std::pair<Choice, Choice>> missing;
  const int kinds = static_cast<int>(kChoices.size());
  const auto pairs_of = [&](const Row& row) {
    std::vector<std::pair<Choice, Choice>> pairs;
    for (int i = 0; i < kinds; ++i) {
      for (int j = i + 1; j < kinds; ++j) pairs.push_back({{i, row[i]}, {j, row[j]}});
    }
    return pairs;
  };
  std::mt19937 random(7);
  const auto random_row = [&] {
    Row row{};
    do {
      for (int i = 0; i < kinds; ++i)
        row[i] = static_cast<int>(random() % static_cast<unsigned>(kChoices[i]));
    } while (meaningless(row));
    return row;
  };
  for (int trial = 0; trial < 20000; ++trial) {
    for (const auto& pair : pairs_of(random_row())) missing.insert(pair);
  }
  std::vector<Options> rows;
  while (!missing.empty()) {
    Row best{};
    std::size_t gain = 0;
    for (int trial = 0; trial < 300; ++trial) {
      const Row row = random_row();
      std::size_t fresh = 0;
      for (const auto& pair : pairs_of(row)) fresh += missing.count(pair);
      if (fresh > gain) {
        gain = fresh;
        best = row;
      }
    }
    if (gain == 0) continue;
    for (const auto& pair : pairs_of(best)) missing.erase(pair);
    rows.push_back(options_of(best));
  }
  return rows;
}

}  // namespace

const std::vector<Options>& covering_options() {
  static const std::vector<Options> rows = cover_pairs();
  return rows;
}

MoeProblem Case::problem() const {
  const Options& o = options();
  const Size& size = sizes()[static_cast<std::size_t>(o.size)];
  MoeProblem p;
  p.experts = size.experts;
  p.top_k = size.top_k;
  // Rows of codes are whole 16-byte pieces too.
  const std::int64_t piece = !gpu_cases ? 1 : is_fp4(format) ? 32 : is_fp8(format) ? 16 : 1;
  p.hidden = (size.hidden + piece - 1) / piece * piece;
  p.intermediate = (size.intermediate + piece - 1) / piece * piece;
  p.format = format;
  p.io_dtype = gpu_cases && format == Format::Fp16 ? DType::Float16 : o.io;
  p.pairing = pairing;
  p.bias13 = o.bias13;
  p.bias2 = o.bias2;
  p.router_weight_on_input = o.router_weight_on_input;
  p.combine = o.combine;
  p.routed_scaling_factor = o.scale;
  return p;
}

Function Case::function() const {
  return pairing == Pairing::None ? subject->function : subject->function.gated();
}

std::string Case::id() const {
  return subject->name + "/" + std::string(to_string(pairing)) + "/" +
         std::string(to_string(format)) + "/" + std::to_string(row);
}

std::string Case::describe() const {
  const Options& o = options();
  const Size& s = sizes()[static_cast<std::size_t>(o.size)];
  std::string text = "E=" + std::to_string(s.experts) + " k=" + std::to_string(s.top_k) +
                     " H=" + std::to_string(s.hidden) + " I=" + std::to_string(s.intermediate) +
                     " M=" + std::to_string(s.tokens) +
                     " io=" + std::string(to_string(problem().io_dtype));
  if (o.bias13) text += " bias13";
  if (o.bias2) text += " bias2";
  if (o.router_weight_on_input) text += " router_weight_on_input";
  if (!o.combine) text += " combine=false";
  if (o.ids == Ids::SomeOutside) text += " some_ids_outside";
  if (o.ids == Ids::TokenOutside) text += " token_without_experts";
  if (o.int32_ids) text += " int32_ids";
  if (o.per_expert_values) text += " per_expert_values";
  if (o.strided) text += " strided";
  if (o.scale != 1.0f) text += " scale=2.5";
  return text;
}

std::vector<Pairing> pairings_of(const Function& function) {
  std::vector<Pairing> list = {Pairing::Concat, Pairing::UpFirst, Pairing::Interleaved};
  if (function.arity() == Arity::Unary) list.push_back(Pairing::None);
  return list;
}

const std::vector<Format>& all_formats() {
  static const std::vector<Format> list = {Format::Bf16,     Format::Fp16,      Format::Fp32,
                                           Format::Fp8Block, Format::Fp8Tensor, Format::Fp8Channel,
                                           Format::Mxfp4,    Format::Nvfp4,     Format::Mxfp4Fp8};
  static const std::vector<Format> on_gpu = {
      Format::Bf16,       Format::Fp16,  Format::Fp8Block, Format::Fp8Tensor,
      Format::Fp8Channel, Format::Mxfp4, Format::Nvfp4,    Format::Mxfp4Fp8};
  return gpu_cases ? on_gpu : list;
}

namespace {

// The default, and paths that it takes for other sizes. Tokens of a block that has too many for the
// stream path are computed as by default.
std::vector<std::pair<std::string, cuda::Wish>> gpu_variants() {
  cuda::Wish tiled, stream, sum, few, routed;
  few.path = routed.path = cuda::Path::Tiled;
  few.counted_rows = few.few_rows = 1;
  routed.counted_rows = routed.few_rows = 0;
  tiled.path = cuda::Path::Tiled;
  tiled.dependent_launches = 0;
  stream.path = sum.path = cuda::Path::Stream;
  stream.dependent_launches = sum.dependent_launches = 1;
  stream.row_warps = 2;
  stream.row_warps2 = 4;
  stream.sum = 0;
  sum.sum = 1;
  // Named after the kernels that this machine's GPU gets.
  std::string why;
  const cuda::Driver* const driver = cuda::Driver::find(why);
  const cuda::Architecture* const machine =
      driver == nullptr ? nullptr : cuda::machine_architecture(*driver);
  const std::string name = machine == nullptr ? "sm_90a" : machine->name;
  return {{name, {}},
          {name + "_tiled", tiled},
          {name + "_stream", stream},
          {name + "_stream_sum", sum},
          {name + "_few", few},
          {name + "_routed", routed}};
}

}  // namespace

std::vector<Variant> variants() {
  std::vector<Variant> list;
  for (const Backend* backend : backends()) {
    if ((backend->device() == "cpu") == gpu_cases) continue;
    // Triton's kernels run from Python; tests/gpu holds them to the same reference.
    if (gpu_cases) {
      if (backend->name() != "cutlass") continue;
      for (const auto& [name, wish] : gpu_variants()) list.push_back({backend, name});
      continue;
    }
    for (cpu::Isa isa : cpu::supported_isas()) {
      list.push_back({backend, std::string(cpu::to_string(isa))});
    }
  }
  return list;
}

void select(const Variant& variant) {
  if (variant.backend->name() == "cpu") setenv("FLEXACT_CPU_ISA", variant.name.c_str(), 1);
  if (variant.backend->name() == "cutlass") {
    for (const auto& [name, wish] : gpu_variants()) {
      if (name == variant.name) cuda::standing_wish() = wish;
    }
  }
}

}  // namespace flexact::conformance
