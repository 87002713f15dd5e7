// Tile shapes and routes.
#include "moe/launch_policy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "config/json.hpp"
#include "flexact/error.hpp"
#include "moe/problem.hpp"
#include "moe/quantised.hpp"

namespace flexact::moe {

namespace {

namespace json = config::json;

// Bounds of the scratch memory: rows of h in a chunk, and bytes of y in a slab.
constexpr std::int64_t kChunkPairs = std::int64_t{1} << 18;
constexpr std::int64_t kSlabBytes = std::int64_t{2} << 30;
constexpr std::int64_t kColumnStep = 256;  // the widest tile
// Powers of two between a measured token count and one that its launch is taken for: farther away
// the model chose better (FP4 at 128 tokens, with measurements of 16 and 1024).
constexpr double kFarthest = 1;

// Bytes of a weight element as it lies in shared memory.
std::int64_t weight_bits(Format format) {
  switch (format) {
    case Format::Fp8Block:
    case Format::Fp8Tensor:
    case Format::Fp8Channel:
      return 8;
    case Format::Mxfp4:
    case Format::Nvfp4:
    case Format::Mxfp4Fp8:
      return 4;
    case Format::Fp32:
      return 32;
    default:
      return 16;
  }
}

std::int64_t activation_bits(Format format) {
  switch (format) {
    case Format::Fp8Block:
    case Format::Fp8Tensor:
    case Format::Fp8Channel:
    case Format::Mxfp4Fp8:
      return 8;
    case Format::Fp32:
      return 32;
    default:
      return 16;
  }
}

bool gated(const MoeProblem& problem) {
  return problem.pairing != Pairing::None;
}

// Fewer stages until the tile fits; every stage holds one step of both operands.
Tile fitted(Tile tile, const MoeProblem& problem, bool doubled, const GpuLimits& limits) {
  const std::int64_t rows = (doubled ? 2 : 1) * tile.block_n;
  const std::int64_t stage =
      tile.block_k *
      (tile.block_m * activation_bits(problem.format) + rows * weight_bits(problem.format)) / 8;
  const std::int64_t reserve = 4096;  // barriers, and what the compiler keeps for itself
  while (tile.stages > 2 && tile.stages * stage + reserve > limits.shared_bytes) --tile.stages;
  return tile;
}

// Whether a step along K must be the 128 values that share a scale of the activations.
bool scaled_by_group(Format format) {
  return format == Format::Fp8Block || format == Format::Mxfp4Fp8;
}

// What the operand policies of the quantised formats need of a tile, or nullptr.
const char* unfit(Format format, bool doubled, const Tile& tile) {
  if (scaled_by_group(format) && tile.block_k != 128)
    return "block_k is not 128, the values that share a scale";
  if (format == Format::Fp8Block && tile.block_n > (doubled ? 128 : 256))
    return "the columns of a tile lie in more than two blocks of scales";
  if (weight_bits(format) == 4 && tile.block_k < 32) return "block_k is less than a group of FP4";
  if (weight_bits(format) == 4 && tile.block_n < 32)
    return "block_n is less than the 32 columns that lanes hold together";
  return nullptr;
}

// Whether the kernels without tensor cores take the format (python/flexact/triton/vector.py).
bool has_vector(Format format) {
  return format != Format::Mxfp4Fp8 && format != Format::Fp32;
}

// What those kernels need of a tile, or nullptr.
const char* unfit_vector(Format format, const Tile& tile) {
  if (!has_vector(format)) return "the format has no kernels without tensor cores";
  if (format == Format::Fp8Block && tile.block_k % 128 != 0)
    return "block_k is not a multiple of 128, the values that share a scale";
  if (format == Format::Fp8Block && tile.block_n > 64)
    return "the rows of a tile lie in more than one block of scales";
  if (weight_bits(format) == 4 && tile.block_k < 32) return "block_k is less than a group of FP4";
  return nullptr;
}

// The largest power of two that is at most `value`, within [low, high].
int power_of_two(std::int64_t value, int low, int high) {
  int power = low;
  while (power < high && 2 * power <= value) power *= 2;
  return power;
}

// Tiles of the quantised formats: measurements of an H100 and an H200 (docs/triton.md), of FP8 the
// nearest of them where a format has none.
void quantise_tiles(const MoeProblem& problem, std::int64_t tokens, std::int64_t rows,
                    const GpuLimits& limits, Tile& up, Tile& down) {
  const bool doubled = gated(problem);
  const auto set = [](Tile& tile, int n, int k, int warps, int stages) {
    tile.block_n = n;
    tile.block_k = k;
    tile.warps = warps;
    tile.stages = stages;
  };
  // Half as wide a tile of the first GEMM, until every multiprocessor has one.
  const auto one_for_each = [&] {
    const std::int64_t pairs = std::min<std::int64_t>(tokens * problem.top_k, problem.experts);
    while (up.block_n > 32 &&
           pairs * (problem.intermediate + up.block_n - 1) / up.block_n < limits.multiprocessors)
      up.block_n /= 2;
  };
  if (activation_bits(problem.format) == 16) {
    // FP4 beside bf16: what decodes a weight is used for as many rows as a tile has, so a tile
    // holds the rows of an expert with room for an uneven share of them (measured on an H200).
    up.block_m = down.block_m =
        rows >= 128 ? 128 : power_of_two(std::min<std::int64_t>(tokens, 2 * rows), 16, 64);
    if (up.block_m <= 32) {
      // Rows that boxes bring are in order already: then long steps cost less than many. Else steps
      // of 128, which have four bytes of scales a row, the least that is copied ahead of its use.
      const bool boxes = tokens <= 16 || tokens * problem.top_k > kDirectPairs;
      set(up, tokens == 1 ? 32 : 64, boxes ? 256 : 128, 4, boxes && tokens > 1 ? 3 : 4);
      set(down, tokens == 1 || up.block_m == 32 ? 64 : 128, up.block_k, 4, up.stages);
    } else if (up.block_m == 64) {
      set(up, doubled ? 64 : 128, 128, 4, 3);
      set(down, 128, 128, 4, 3);
    } else {
      set(up, doubled ? 128 : 256, 128, 8, 3);
      set(down, 256, 128, 8, 3);
      up.group_m = down.group_m = 4;
    }
  } else if (!scaled_by_group(problem.format)) {
    // Half of bf16's bytes: as long a step along K in bytes.
    if (up.block_m <= 32) {
      set(up, doubled ? 64 : 128, 128, 4, 4);
      one_for_each();
      if (problem.intermediate >= 2048) set(down, 64, 256, 4, 3);
    } else {
      up.block_k = down.block_k = 128;
      if (rows <= 64) down.stages = 3;  // a multiprocessor has the memory of three blocks
      if (rows < 48) {
        set(up, doubled ? 64 : 128, 128, 4, 4);
      } else if (rows <= 64) {
        // Half of the experts have more rows than the mean, and weights that would be read twice.
        up.block_m = 128;
      }
    }
  } else {
    // A tile of whole groups of 128 quantises its result itself. Beside its sums it holds an
    // unscaled product, so it is narrower than bf16's.
    const bool blocks = problem.format == Format::Fp8Block;
    if (up.block_m <= 32) {
      set(up, 128, 128, 4, 3);
      set(down, 64, 128, 4, 4);
      // Narrower ones leave the quantisation to the second GEMM; for few pairs it is worth more
      // that every multiprocessor has a tile.
      one_for_each();
    } else {
      up.block_m = down.block_m = 64;
      // Memory for three blocks on a multiprocessor: one's epilogue beside the others' products. A
      // long sum hides its epilogue, and has more of the third block's memory for its copies.
      set(down, 128, 128, 4, blocks && problem.intermediate < 4096 ? 3 : 4);
      if (!blocks || rows < 1000) {
        set(up, 128, 128, 8, 4);
      } else if (problem.hidden < 4096) {
        set(up, 128, 128, 4, 2);
      } else {
        // Weights are read by half as many tiles, and those of the second GEMM by an expert's at
        // the same time.
        up.block_m = 128;
        set(up, 128, 128, 8, 4);
        down.group_m = 32;
      }
    }
  }
}

[[noreturn]] void invalid(const std::string& message, const std::string& where,
                          std::string hint = {}) {
  throw Error(ErrorCode::ConfigError, message, where, std::move(hint));
}

std::int64_t integer(const json::Value& object, const std::string& where, const char* key,
                     std::int64_t low, std::int64_t high) {
  const json::Value* value = object.find(key);
  const json::Number* number = value == nullptr ? nullptr : value->number();
  if (number == nullptr || !number->fits || number->integer < low || number->integer > high) {
    invalid("not an integer in range", json::join(where, key),
            std::to_string(low) + " to " + std::to_string(high));
  }
  return number->integer;
}

bool boolean(const json::Value& object, const std::string& where, const char* key, bool absent) {
  const json::Value* value = object.find(key);
  if (value == nullptr) return absent;
  if (value->boolean() == nullptr) invalid("not true or false", json::join(where, key));
  return *value->boolean();
}

const json::Value& member(const json::Value& object, const std::string& where, const char* key) {
  const json::Value* value = object.find(key);
  if (value == nullptr) invalid("missing", json::join(where, key));
  return *value;
}

int block(const json::Value& object, const std::string& where, const char* key, std::int64_t low) {
  const std::int64_t value = integer(object, where, key, low, 1024);
  if ((value & (value - 1)) != 0) invalid("not a power of two", json::join(where, key));
  return static_cast<int>(value);
}

Tile read_tile(const json::Value& entry, const std::string& where, const char* key) {
  const json::Value& object = member(entry, where, key);
  const std::string at = json::join(where, key);
  Tile tile;
  tile.block_m = block(object, at, "block_m", 16);
  tile.block_n = block(object, at, "block_n", 1);
  tile.block_k = block(object, at, "block_k", 16);
  tile.group_m = static_cast<int>(integer(object, at, "group_m", 1, 1024));
  tile.warps = block(object, at, "warps", 1);
  tile.stages = static_cast<int>(integer(object, at, "stages", 1, 16));
  if (object.find("persistent") != nullptr)
    tile.persistent = static_cast<int>(integer(object, at, "persistent", 0, 32));
  return tile;
}

}  // namespace

std::int64_t token_bucket(std::int64_t tokens) {
  std::int64_t bucket = 1;
  while (bucket < tokens) bucket *= 2;
  return bucket;
}

Chunking chunking(const MoeProblem& problem, std::int64_t tokens) {
  Chunking result;
  result.tokens = std::max<std::int64_t>(
      1, std::min(tokens, std::max<std::int64_t>(1, kChunkPairs / problem.top_k)));
  const std::int64_t row_bytes = result.tokens * problem.top_k * size_of(problem.io_dtype);
  const std::int64_t widest =
      std::max(kColumnStep, kSlabBytes / row_bytes / kColumnStep * kColumnStep);
  const std::int64_t slabs = (problem.hidden + widest - 1) / widest;
  const std::int64_t even = (problem.hidden + slabs - 1) / slabs;
  result.columns =
      slabs == 1 ? problem.hidden : (even + kColumnStep - 1) / kColumnStep * kColumnStep;
  return result;
}

Launch model(const MoeProblem& problem, std::int64_t tokens, const GpuLimits& limits) {
  tokens = token_bucket(tokens);
  const std::int64_t pairs = tokens * problem.top_k;
  const std::int64_t rows = std::max<std::int64_t>(1, pairs / problem.experts);
  const bool doubled = gated(problem);
  Launch launch;
  launch.source = "model";
  launch.direct = pairs <= kDirectPairs;
  Tile& up = launch.gate_up;
  Tile& down = launch.down;
  // A tile can hold no more rows of an expert than there are tokens, unless a token repeats one.
  const bool fewest = rows <= 16 || (rows <= 32 && tokens <= 16);
  // Tiles of 32 rows of codes are multiplied without a group of warps: each step waits for all
  // copies under way, and experts with more rows have their weights read twice.
  const bool codes = weight_bits(problem.format) == 8;
  if (fewest || (rows <= 32 && !codes)) {
    // Weights are read once and everything waits for them: small tiles, deep steps, many programs.
    up.block_m = down.block_m = fewest ? 16 : 32;
    up.block_n = doubled ? 32 : 64;
    down.block_n = 64;
    up.block_k = down.block_k = 128;
    up.warps = down.warps = 4;
    up.stages = down.stages = 4;
  } else if (rows <= 64) {
    up.block_m = down.block_m = 64;
    up.block_n = doubled ? 128 : 256;
    down.block_n = 128;
    up.block_k = down.block_k = 64;
    up.warps = 8;
    down.warps = 4;
    up.stages = down.stages = 4;
    up.group_m = down.group_m = 4;
  } else {
    // Arithmetic is the limit: the largest accumulator that two warp groups hold in registers.
    up.block_m = down.block_m = 128;
    up.block_n = doubled ? 128 : 256;
    down.block_n = 256;
    up.block_k = down.block_k = 64;
    up.warps = down.warps = 8;
    up.stages = down.stages = 4;
    up.group_m = down.group_m = 8;
  }
  if (is_quantised(problem.format)) quantise_tiles(problem, tokens, rows, limits, up, down);
  // Fewer columns than a tile: less of it is thrown away.
  const int narrowest = weight_bits(problem.format) == 4 ? 32 : 16;
  up.block_n = std::min(up.block_n, power_of_two(2 * problem.intermediate - 1, narrowest, 256));
  down.block_n = std::min(down.block_n, power_of_two(2 * problem.hidden - 1, narrowest, 256));
  down = fitted(down, problem, false, limits);
  up = fitted(up, problem, doubled, limits);
  const bool decoded = weight_bits(problem.format) == 4 && activation_bits(problem.format) == 16;
  // Rows in the tiles' order come by boxes and are put into lane order once, not in every step.
  launch.permute = decoded && !launch.direct;
  if (!launch.direct || !problem.combine || tokens > 2) return launch;
  if (codes) {
    // Many small programs: each has a few rows' copies under way, and the warps that wait for them.
    launch.fuse_combine = launch.vector = true;
    // Rows of the second kernel's tile are at least the slots of a column.
    const int most = power_of_two(8192 / problem.top_k, 128, 1024);
    down = {16, 2, power_of_two(2 * problem.intermediate - 1, 128, most), 1, 2, 2, 0};
    up = {16, 2, power_of_two(2 * problem.hidden - 1, 128, 1024), 1, 2, 2, 0};
    if (!scaled_by_group(problem.format))
      up = {16, 4, power_of_two(2 * problem.hidden - 1, 128, 512), 1, 4, 2, 0};
  } else if (weight_bits(problem.format) == 16) {
    launch.fuse_combine = true;
    down = {16, 8, power_of_two(2 * problem.intermediate - 1, 64, 512), 1, 4, 2, 0};
    // Short experts do not fill the machine with programs of two rows each.
    launch.vector = problem.intermediate >= 1024;
    if (launch.vector) up = {16, 2, power_of_two(2 * problem.hidden - 1, 64, 512), 1, 4, 2, 0};
  } else if (decoded && problem.intermediate >= 2048) {
    // Two rows of w2 for a warp; a tile has at least as many as there are slots.
    launch.fuse_combine = launch.vector = true;
    const int warps = power_of_two(problem.top_k - 1, 1, 4);
    up = {16, 8, power_of_two(2 * problem.hidden - 1, 64, 1024), 1, 4, 2, 0};
    const int most = power_of_two(8192 / problem.top_k, 128, 1024);
    down = {16, 1, power_of_two(2 * problem.intermediate - 1, 64, most), 1, warps, 2, 0};
  }
  return launch;
}

LaunchTable LaunchTable::from_json(std::string_view text) {
  const json::Document document = json::parse(text, "launch table");
  LaunchTable table;
  const json::Value& device = member(document.root, "", "device");
  if (device.string() == nullptr) invalid("not a text", "/device");
  table.device_ = *device.string();
  const json::Value& entries = member(document.root, "", "entries");
  if (entries.array() == nullptr) invalid("not an array", "/entries");
  for (std::size_t i = 0; i < entries.array()->size(); ++i) {
    const json::Value& each = (*entries.array())[i];
    const std::string where = json::join("/entries", i);
    Entry entry;
    const json::Value& format = member(each, where, "format");
    if (format.string() == nullptr) invalid("not a text", json::join(where, "format"));
    entry.format = parse_format(*format.string());
    entry.experts = integer(each, where, "experts", 1, kMaxExperts);
    entry.top_k = integer(each, where, "top_k", 1, kMaxTopK);
    entry.hidden = integer(each, where, "hidden", 1, kMaxWidth);
    entry.intermediate = integer(each, where, "intermediate", 1, kMaxWidth);
    entry.tokens = integer(each, where, "tokens", 1, kMaxTokens);
    entry.gated = boolean(each, where, "gated", true);
    entry.launch.direct = boolean(each, where, "direct", false);
    entry.launch.vector = boolean(each, where, "vector", false);
    entry.launch.fuse_combine = boolean(each, where, "fuse_combine", false);
    entry.launch.permute = boolean(each, where, "permute", false);
    entry.launch.gate_up = read_tile(each, where, "gate_up");
    entry.launch.down = read_tile(each, where, "down");
    entry.launch.source = "measured at " + std::to_string(entry.tokens) + " tokens";
    // Both are powers of two.
    if (!entry.launch.direct && entry.launch.down.block_m > entry.launch.gate_up.block_m)
      invalid("larger than gate_up's", json::join(json::join(where, "down"), "block_m"));
    if (!entry.launch.fuse_combine && entry.launch.vector)
      invalid("only with fuse_combine", json::join(where, "vector"));
    if (!entry.launch.direct && entry.launch.fuse_combine)
      invalid("only with direct", json::join(where, "fuse_combine"));
    if (entry.launch.direct && entry.tokens * entry.top_k > kDirectPairs) {
      invalid("too many pairs for the direct route", json::join(where, "direct"),
              "at most " + std::to_string(kDirectPairs));
    }
    const std::pair<const char*, const Tile*> tiles[] = {{"gate_up", &entry.launch.gate_up},
                                                         {"down", &entry.launch.down}};
    for (const auto& [key, tile] : tiles) {
      const bool first = tile == &entry.launch.gate_up;
      const bool plain = first ? entry.launch.vector : entry.launch.fuse_combine;
      const char* reason = plain ? unfit_vector(entry.format, *tile)
                                 : unfit(entry.format, entry.gated && first, *tile);
      if (reason != nullptr) invalid(reason, json::join(where, key));
    }
    table.entries_.push_back(std::move(entry));
  }
  return table;
}

Launch LaunchTable::choose(const MoeProblem& problem, std::int64_t tokens,
                           const GpuLimits& limits) const {
  tokens = token_bucket(tokens);
  const bool may_be_direct = tokens * problem.top_k <= kDirectPairs;
  const Entry* best = nullptr;
  double best_distance = std::numeric_limits<double>::infinity();
  for (const Entry& entry : entries_) {
    if (entry.format != problem.format || entry.experts != problem.experts ||
        entry.top_k != problem.top_k || entry.hidden != problem.hidden ||
        entry.intermediate != problem.intermediate || entry.gated != gated(problem) ||
        (entry.launch.direct && !may_be_direct))
      continue;
    const double distance = std::abs(std::log2(static_cast<double>(entry.tokens)) -
                                     std::log2(static_cast<double>(tokens)));
    if (distance < best_distance && distance <= kFarthest) {
      best = &entry;
      best_distance = distance;
    }
  }
  if (best == nullptr) return model(problem, tokens, limits);
  // Where nothing is summed, kernels that sum do not serve.
  if (best->launch.fuse_combine && !problem.combine) return model(problem, tokens, limits);
  return best->launch;
}

std::vector<Launch> LaunchTable::all(const MoeProblem& problem, std::int64_t tokens,
                                     const GpuLimits& limits) const {
  std::vector<Launch> launches;
  const std::int64_t last = token_bucket(chunking(problem, tokens).tokens);
  for (std::int64_t bucket = 1; bucket <= last; bucket *= 2) {
    Launch launch = choose(problem, bucket, limits);
    if (std::find(launches.begin(), launches.end(), launch) == launches.end())
      launches.push_back(std::move(launch));
  }
  return launches;
}

}  // namespace flexact::moe
