// A libcuda.so.1 without a GPU: device memory is the host's, and a launch runs what its kernel is
// specified to do, one thread after the other in plain C++. Tests of the host side run whole layers
// through it: what is checked is every argument, stride, tensor map and size that the host passes.
// The kernels themselves are checked on a GPU.
//
// The activation that would be linked is g·u for gated kernels, 2x for unary ones, plus the first
// parameter where there is one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/kernels/arguments.hpp"
#include "cuda/kernels/fp4_layout.hpp"
#include "moe/small_floats.hpp"

namespace {

using namespace flexact::cuda;

std::map<std::uintptr_t, std::size_t>& allocations() {
  static std::map<std::uintptr_t, std::size_t> list;
  return list;
}
bool is_device(std::uintptr_t address) {
  auto next = allocations().upper_bound(address);
  if (next == allocations().begin()) return false;
  --next;
  return address < next->first + next->second;
}

// What was launched since a test asked last.
std::vector<std::string>& launches() {
  static std::vector<std::string> list;
  return list;
}

// Of the only device: compute capability, as major · 10 + minor.
int capability = 90;

constexpr int kOutOfMemory = 2;
constexpr int kInvalidValue = 1;
constexpr int kNoBinary = 209;
int the_context = 0;
void* current = nullptr;

float from_bf16(std::uint16_t bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
std::uint16_t to_bf16(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return static_cast<std::uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

float from_fp16(std::uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<float>(value);
}
std::uint16_t to_fp16(float value) {
  const auto rounded = static_cast<_Float16>(value);
  std::uint16_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

// What a kernel's elements are, by its name.
struct Elements {
  bool fp16;
  explicit Elements(const std::string& name) : fp16(name.find("fp16") != std::string::npos) {}
  float read(std::uint16_t bits) const { return fp16 ? from_fp16(bits) : from_bf16(bits); }
  std::uint16_t round(float value) const { return fp16 ? to_fp16(value) : to_bf16(value); }
};

// What cuTensorMapEncodeTiled was given.
struct Map {
  const void* data;
  std::uint64_t size[4];
  std::uint64_t stride[3];  // bytes
  std::uint32_t box[4];
  std::int32_t rank;
  std::int32_t bytes;  // of an element: bf16, fp16 or E4M3
  std::int32_t fp16;
};
static_assert(sizeof(Map) <= sizeof(TensorMap));

// 0 outside, as the copy engine fills.
float element(const Map& map, const std::uint64_t (&at)[4]) {
  std::uint64_t offset = at[0] * 2;
  for (int i = 0; i < map.rank; ++i) {
    if (at[i] >= map.size[i]) return 0;
    if (i > 0) offset += at[i] * map.stride[i - 1];
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(map.data)[offset / 2];
  return map.fp16 != 0 ? from_fp16(bits) : from_bf16(bits);
}

// The E4M3 codes of a row that starts at at[0] == 0.
const std::uint8_t* codes_of(const Map& map, const std::uint64_t (&at)[4]) {
  std::uint64_t offset = 0;
  for (int i = 1; i < map.rank; ++i) {
    if (at[i] >= map.size[i]) std::abort();
    offset += at[i] * map.stride[i - 1];
  }
  return static_cast<const std::uint8_t*>(map.data) + offset;
}
double value_of(std::uint8_t code) {
  static const std::vector<double> values = [] {
    std::vector<double> list;
    for (int i = 0; i < 256; ++i)
      list.push_back(flexact::moe::decode_e4m3(static_cast<std::uint8_t>(i)));
    return list;
  }();
  return values[code];
}

std::int64_t id_of(const RouteArguments& r, int slot) {
  const std::int64_t at = slot / r.top_k * r.id_stride + slot % r.top_k * r.id_step;
  return r.wide_ids != 0 ? static_cast<const std::int64_t*>(r.ids)[at]
                         : static_cast<const std::int32_t*>(r.ids)[at];
}

void route(const RouteArguments& r) {
  int row = 0;
  int tiles = 0;
  for (int slot = 0; slot < r.tokens * r.top_k; ++slot) r.slot_row[slot] = -1;
  for (int e = 0; e < r.experts; ++e) {
    const int first = row;
    for (int slot = 0; slot < r.tokens * r.top_k; ++slot) {
      if (id_of(r, slot) == e) r.slot_row[slot] = row++;
    }
    const int before = tiles;
    for (int at = first; at < row;) {
      const int rows = row - at <= r.tile_rows + r.extra_rows ? row - at : r.tile_rows;
      r.tiles[tiles++] = {e, at, rows, 0};
      at += rows;
    }
    for (int i = before; i < tiles; ++i) r.tiles[i].run = tile_run(i - before, tiles - before);
  }
  *r.tile_count = tiles;
  std::fill_n(r.taken, r.counters, 0u);
}

// Blocks of `each` tokens.
bool cover(unsigned blocks, int tokens, int each) {
  return each > 0 && blocks == static_cast<unsigned>((tokens - 1) / each + 1);
}

void gather(const GatherArguments& g) {
  const auto tokens = static_cast<unsigned>(g.tokens);
  for (unsigned m = 0; m < tokens; ++m) {
    for (int slot = 0; slot < g.top_k; ++slot) {
      const std::int64_t row =
          g.slot_row[m * static_cast<unsigned>(g.top_k) + static_cast<unsigned>(slot)];
      if (row < 0) continue;
      std::memcpy(static_cast<std::uint16_t*>(g.rows) + row * g.width,
                  static_cast<const std::uint16_t*>(g.hidden) + m * g.hidden_stride,
                  static_cast<std::size_t>(g.width) * 2);
      if (g.weights != nullptr)
        g.row_scale[row] = g.weights[m * g.weight_stride + slot * g.weight_step];
    }
  }
}

// ---- FP8

std::uint32_t magnitude_of(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return word & 0x7fffffff;
}
float scale_of(std::uint32_t magnitude) {
  float largest;
  std::memcpy(&largest, &magnitude, sizeof largest);
  return (largest < 1e-10f ? 1e-10f : largest) / 448.0f;
}
void to_codes(const float* values, std::int64_t count, float scale, std::uint8_t* codes) {
  const float inverse = 1.0f / scale;
  for (std::int64_t i = 0; i < count; ++i)
    codes[i] = flexact::moe::encode_e4m3(values[i] * inverse);
}
std::uint32_t largest_of(const float* values, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude_of(values[i]));
  return largest;
}

// -1 where the expert is not here.
std::int64_t expert_of(const RoutedIds& r, int slot) {
  const std::int64_t at = slot / r.top_k * r.stride + slot % r.top_k * r.step;
  const std::int64_t id = r.wide != 0 ? static_cast<const std::int64_t*>(r.ids)[at]
                                      : static_cast<const std::int32_t*>(r.ids)[at];
  return id >= 0 && id < r.experts ? id : -1;
}

std::vector<float> row_as_it_is(const GatherArguments& g, unsigned token) {
  std::vector<float> row;
  const auto* from = static_cast<const std::uint16_t*>(g.hidden) + token * g.hidden_stride;
  for (int h = 0; h < g.width; ++h) row.push_back(from_bf16(from[h]));
  return row;
}

// A token's row, where an expert takes it.
std::vector<float> row_of_token(const GatherArguments& g, unsigned token) {
  const std::int32_t* slots = g.slot_row + std::int64_t{token} * g.top_k;
  if (std::all_of(slots, slots + g.top_k, [](std::int32_t row) { return row < 0; })) return {};
  return row_as_it_is(g, token);
}

void find_largest(const Fp8GatherArguments& g, unsigned tokens, unsigned parts) {
  for (unsigned m = 0; m < tokens; ++m) {
    bool ours = false;
    for (int k = 0; k < g.gather.top_k; ++k)
      ours = ours || expert_of(g.routed, static_cast<int>(m) * g.gather.top_k + k) >= 0;
    const std::vector<float> row = ours ? row_as_it_is(g.gather, m) : std::vector<float>{};
    const std::uint32_t largest = largest_of(row.data(), static_cast<std::int64_t>(row.size()));
    if (g.largest_count == 1 && tokens * parts != 1) {
      *g.largest = std::max(*g.largest, largest);
    } else {
      std::fill_n(g.largest + m * parts, parts, largest);
    }
  }
}

void gather_fp8(const Fp8GatherArguments& f, unsigned tokens) {
  const GatherArguments& g = f.gather;
  const std::uint32_t largest = f.scaling == InputScaling::All
                                    ? *std::max_element(f.largest, f.largest + f.largest_count)
                                    : 0;
  for (unsigned m = 0; m < tokens; ++m) {
    const std::vector<float> x = row_of_token(g, m);
    for (int slot = 0; slot < g.top_k; ++slot) {
      const std::int64_t row =
          g.slot_row[m * static_cast<unsigned>(g.top_k) + static_cast<unsigned>(slot)];
      if (row < 0) continue;
      if (g.weights != nullptr)
        g.row_scale[row] = g.weights[m * g.weight_stride + slot * g.weight_step];
      if (f.activated_largest != nullptr) f.activated_largest[row] = 0;
      auto* codes = static_cast<std::uint8_t*>(g.rows) + row * f.row_bytes;
      std::vector<std::uint8_t> plain(static_cast<std::size_t>(f.row_bytes));
      const int group = f.scaling == InputScaling::Groups ? kGroup : g.width;
      for (int from = 0; from < g.width; from += group) {
        const int count = std::min(group, g.width - from);
        const float own = scale_of(largest_of(x.data() + from, count));
        float scale = own;
        if (f.scaling == InputScaling::Groups) f.scales[from / group * f.group_step + row] = own;
        if (f.scaling == InputScaling::Rows) f.scales[row] = own;
        if (f.scaling == InputScaling::All) *f.scales = scale = scale_of(largest);
        if (f.scaling == InputScaling::Given) scale = *f.given;
        to_codes(x.data() + from, count, scale, plain.data() + from);
      }
      for (int i = 0; i < f.row_bytes; ++i) {
        const int column =
            f.ordered == 0 ? i : i / kFp4Block * kFp4Block + mxfp4_fp8_column(i % kFp4Block);
        codes[i] = plain[static_cast<std::size_t>(column)];
      }
    }
  }
}

void round_rows(const Fp8RoundArguments& r, unsigned most_rows) {
  const int tiles = *r.tile_count;
  const int rows = tiles == 0 ? 0 : r.tiles[tiles - 1].first_row + r.tiles[tiles - 1].rows;
  if (static_cast<unsigned>(rows) > most_rows) return;
  for (std::int64_t row = 0; row < rows; ++row) {
    const float scale = scale_of(r.largest[row * r.largest_step]);
    r.scales[row * r.largest_step] = scale;
    std::vector<float> values;
    for (int i = 0; i < r.width; ++i)
      values.push_back(from_bf16(static_cast<const std::uint16_t*>(r.rows)[row * r.width + i]));
    to_codes(values.data(), r.width, scale, static_cast<std::uint8_t*>(r.codes) + row * r.width);
  }
}

// Products with scales, from input row `row` and column `column` of half `up` (0: gate) of an
// expert.
double scaled_product(const Map& a, const Map& b, const Fp8GemmArguments& f, bool blocks,
                      int expert, int row, int column, int up, int pair) {
  const GemmArguments& g = f.gemm;
  const auto scale = [&](int group) {
    const double input = f.input.at[row * f.input.row_step + group * f.input.group_step];
    const int index = !blocks ? column : (g.interleaved != 0 ? 2 * column : column) / kGroup;
    if (blocks && index > f.last_block) return std::nan("");
    return input * f.weights.at[expert * f.expert_step + index * f.weights.row_step +
                                group * f.weights.group_step + up * f.up_step];
  };
  const auto n = static_cast<std::uint64_t>(column);
  const auto second = static_cast<std::uint64_t>(pair);
  const std::uint8_t* left = codes_of(a, {0, static_cast<std::uint64_t>(row), 0, 0});
  const std::uint8_t* right =
      codes_of(b, {0, g.interleaved != 0 ? second : n, g.interleaved != 0 ? n : second,
                   static_cast<std::uint64_t>(expert)});
  double sum = 0;
  for (int from = 0; from < g.depth; from += kGroup) {
    double of_group = 0;
    for (int k = from; k < std::min(g.depth, from + kGroup); ++k) {
      of_group += value_of(left[k]) * value_of(right[k]);
    }
    sum += blocks ? of_group * scale(from / kGroup) : of_group;
  }
  return blocks ? sum : sum * scale(0);
}

void gemm_fp8(const std::string& variant, const Map& a, const Map& b, const Fp8GemmArguments& f) {
  const GemmArguments& g = f.gemm;
  const bool gated = variant.find("gated") != std::string::npos;
  const bool unary = variant.find("unary") != std::string::npos;
  const bool blocks = variant.find("block") == 0;
  std::vector<float> y(static_cast<std::size_t>(g.columns));
  for (int t = 0; t < *g.tile_count; ++t) {
    const RowTile& tile = g.tiles[t];
    for (std::int64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      for (int column = 0; column < g.columns; ++column) {
        const auto half = [&](int up) {
          const int pair = gated ? up ^ g.gate_pair : 0;
          double sum =
              scaled_product(a, b, f, blocks, tile.expert, static_cast<int>(row), column, up, pair);
          if (g.row_scale != nullptr) sum *= g.row_scale[row];
          if (g.bias != nullptr)
            sum += g.bias[(tile.expert * (gated ? 2 : 1) + up) * g.columns + column];
          return static_cast<float>(sum);
        };
        float value = half(0);
        if (gated) value *= half(1);
        if (unary) value *= 2;
        if ((gated || unary) && g.value_columns > 0)
          value += g.values[tile.expert * g.value_stride];
        y[static_cast<std::size_t>(column)] = value;
      }
      auto* codes = static_cast<std::uint8_t*>(g.output) + row * g.columns;
      if ((gated || unary) && blocks) {
        for (int from = 0; from < g.columns; from += kGroup) {
          const int count = std::min(kGroup, g.columns - from);
          const float scale = scale_of(largest_of(y.data() + from, count));
          f.group_scales[from / kGroup * f.group_step + row] = scale;
          to_codes(y.data() + from, count, scale, codes + from);
        }
      } else if (variant.find("given") == 0) {
        to_codes(y.data(), g.columns, *f.given_scale, codes);
      } else {
        for (int column = 0; column < g.columns; ++column) {
          const std::uint16_t bits = to_bf16(y[static_cast<std::size_t>(column)]);
          static_cast<std::uint16_t*>(g.output)[row * g.columns + column] = bits;
          if (!gated && !unary) continue;
          std::uint32_t& largest = f.largest[row * f.largest_step];
          largest = std::max(largest, magnitude_of(from_bf16(bits)));
        }
      }
    }
  }
}

void gemm(const std::string& name, const Map& a, const Map& b, const GemmArguments& g) {
  const bool gated = name.ends_with("_gated");
  const bool unary = name.ends_with("_unary");
  const Elements elements(name);
  auto* output = static_cast<std::uint16_t*>(g.output);
  for (int t = 0; t < *g.tile_count; ++t) {
    const RowTile& tile = g.tiles[t];
    const auto expert = static_cast<std::uint64_t>(tile.expert);
    for (int row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      for (int column = 0; column < g.columns; ++column) {
        const auto product = [&](int pair) {
          double sum = 0;
          for (int k = 0; k < g.depth; ++k) {
            const auto at = static_cast<std::uint64_t>(k);
            const auto n = static_cast<std::uint64_t>(column);
            const auto second = static_cast<std::uint64_t>(pair);
            const std::uint64_t left[4] = {at, static_cast<std::uint64_t>(row), 0, 0};
            const std::uint64_t right[4] = {at, g.interleaved != 0 ? second : n,
                                            g.interleaved != 0 ? n : second, expert};
            sum += element(a, left) * element(b, right);
          }
          return static_cast<float>(sum) * (g.row_scale == nullptr ? 1.0f : g.row_scale[row]);
        };
        const auto bias = [&](int second) {
          if (g.bias == nullptr) return 0.0f;
          return g.bias[(tile.expert * (gated ? 2 : 1) + second) * g.columns + column];
        };
        float y = product(gated ? g.gate_pair : 0) + bias(0);
        if (gated) y *= product(1 - g.gate_pair) + bias(1);
        if (unary) y *= 2;
        if ((gated || unary) && g.value_columns > 0) y += g.values[tile.expert * g.value_stride];
        output[std::int64_t{row} * g.columns + column] = elements.round(y);
      }
    }
  }
}

// ---- FP4

void gather_fp4(const Fp4GatherArguments& f, unsigned tokens) {
  const GatherArguments& g = f.gather;
  for (unsigned m = 0; m < tokens; ++m) {
    for (int slot = 0; slot < g.top_k; ++slot) {
      const std::int64_t row =
          g.slot_row[m * static_cast<unsigned>(g.top_k) + static_cast<unsigned>(slot)];
      if (row < 0) continue;
      const auto* from = static_cast<const std::uint16_t*>(g.hidden) + m * g.hidden_stride;
      auto* to = static_cast<std::uint16_t*>(g.rows) + row * f.width;
      for (int i = 0; i < f.width; ++i) {
        const int column = i / kFp4Block * kFp4Block + fp4_column(i % kFp4Block);
        to[i] = column < g.width ? from[column] : std::uint16_t{0};
      }
      if (g.weights != nullptr)
        g.row_scale[row] = g.weights[m * g.weight_stride + slot * g.weight_step];
    }
  }
}

// What thread `thread` of the GEMM finds for its weight row (part, half) and group j.
std::int64_t scale_at(int of_row, int thread, int part, int half, int j) {
  return thread * 4 * of_row + (part * 2 + half) * of_row + j;
}

int place_of(const Fp4ScaleArguments& s, int thread, int half) {
  return s.e4m3 != 0 ? mxfp4_fp8_row(thread, half, s.permuted != 0)
                     : fp4_row(thread, half, s.permuted != 0, s.gated != 0);
}

void find_largest_scales(const Fp4ScaleArguments& s, unsigned parts) {
  *s.outside = 0;
  for (unsigned i = 0; i < parts; ++i) {
    const unsigned expert = s.gated != 0 ? i / 2 : i;
    const std::uint8_t* scales =
        s.scales + expert * s.expert_step + (s.gated != 0 ? s.offset[i % 2] : 0);
    for (int row = 0; row < s.columns; ++row) {
      std::uint8_t largest = 0;
      for (int group = 0; group < s.groups; ++group) {
        const std::uint8_t scale = scales[row * s.row_step + group * s.group_step];
        if (scale != 255) largest = std::max(largest, scale);
      }
      s.largest[std::int64_t{i} * s.columns + row] = largest;
    }
  }
}

void order_scales(const Fp4ScaleArguments& s, unsigned blocks) {
  for (unsigned block = 0; block < blocks; ++block) {
    const int expert = static_cast<int>(block) / s.column_tiles;
    const int tile = static_cast<int>(block) % s.column_tiles;
    for (int step = 0; step < s.steps; ++step) {
      std::uint8_t* to =
          s.output + (std::int64_t{block} * s.steps + step) * fp4_scale_bytes(s.of_row);
      for (int thread = 0; thread < kFp4ScaleThreads; ++thread) {
        for (int part = 0; part < 2; ++part) {
          for (int half = 0; half < 2; ++half) {
            const int row =
                (s.gated != 0 ? tile * 128 : tile * 256 + part * 128) + place_of(s, thread, half);
            for (int j = 0; j < s.of_row; ++j) {
              const int group = step * 4 * s.of_row + thread % 4 * s.of_row + j;
              std::uint8_t scale = s.of_row == 1 ? 127 : 0x38;
              if (row < s.columns && group < s.groups)
                scale = s.scales[expert * s.expert_step + row * s.row_step + group * s.group_step +
                                 (s.gated != 0 ? s.offset[part] : 0)];
              if (s.e4m3 != 0) {
                const bool inside = row < s.columns && group < s.groups;
                const int of_row = s.gated != 0 ? expert * 2 + part : expert;
                const std::uint8_t largest =
                    inside ? s.largest[std::int64_t{of_row} * s.columns + row] : scale;
                if (inside && scale < largest - kMxfp4Fp8Exact) ++*s.outside;
                to[scale_at(1, thread, part, half, 0)] = mxfp4_fp8_stored(scale, largest);
                continue;
              }
              to[scale_at(s.of_row, thread, part, half, j)] =
                  s.of_row == 1 ? mxfp4_stored(scale) : scale;
            }
          }
        }
      }
    }
  }
}

// A byte of packed codes; 0 outside.
std::uint8_t code_byte(const Map& map, std::int64_t first, std::int64_t second, std::int64_t third,
                       std::int64_t fourth) {
  const std::int64_t at[4] = {first, second, third, fourth};
  std::uint64_t offset = 0;
  for (int i = 0; i < 4; ++i) {
    if (at[i] < 0 || static_cast<std::uint64_t>(at[i]) >= map.size[i]) return 0;
    offset += static_cast<std::uint64_t>(at[i]) * (i == 0 ? 1 : map.stride[i - 1]);
  }
  return static_cast<const std::uint8_t*>(map.data)[offset];
}

double factor_of(std::uint8_t largest) {
  const std::uint32_t bits = mxfp4_fp8_factor(largest);
  float factor;
  std::memcpy(&factor, &bits, sizeof factor);
  return factor;
}

// As wgmma takes them: which thread decodes what into which of its registers, and which columns of
// the inputs those registers stand for, is the PTX manual's layout of m64k16.
void gemm_fp4(const std::string& name, const Map& a, const Map& b, const Fp4GemmArguments& f) {
  const GemmArguments& g = f.gemm;
  const bool gated = name.ends_with("_gated"), unary = name.ends_with("_unary");
  const bool mx = name.find("mxfp4") != std::string::npos, permuted = gated || unary;
  const bool e4m3 = name.find("mxfp4_fp8") != std::string::npos;
  const int of_row = mx ? 1 : 2;
  const int steps = (g.depth + kFp4Block - 1) / kFp4Block;
  const int columns_of_tile = gated ? 128 : 256;
  for (int t = 0; t < *g.tile_count * g.column_tiles; ++t) {
    const RowTile& tile = g.tiles[t / g.column_tiles];
    const int column_tile = t % g.column_tiles, first = column_tile * columns_of_tile;
    const std::uint8_t* scales =
        f.scales + (std::int64_t{tile.expert} * g.column_tiles + column_tile) * steps *
                       fp4_scale_bytes(of_row);
    // [part, position, k]
    std::vector<float> weights(static_cast<std::size_t>(256 * steps * kFp4Block));
    int row_at[128] = {};
    for (int thread = 0; thread < 256; ++thread) {
      for (int i = 0; i < 4 * steps; ++i) {
        const int step = i / 4, part = i / 2 % 2, half = i % 2, lane = thread % 32;
        const int row =
            e4m3 ? mxfp4_fp8_row(thread, half, permuted) : fp4_row(thread, half, permuted, gated);
        // Its place among the results; which row of wgmma it is does not matter here.
        const int position = fp4_place(thread, half, gated && !e4m3);
        row_at[position] = row;
        const int pair = gated ? part ^ g.gate_pair : 0;
        const int output = first + (gated ? 0 : part * 128) + row;
        for (int word = 0; word < 4; ++word) {
          std::uint32_t bits = 0;
          for (int byte = 3; byte >= 0; --byte) {
            const int k = step * kFp4CodeBytes + lane % 4 * 16 + word * 4 + byte;
            bits = bits << 8 | code_byte(b, k, g.interleaved != 0 ? pair : output,
                                         g.interleaved != 0 ? output : pair, tile.expert);
          }
          const std::uint8_t stored =
              scales[std::int64_t{step} * fp4_scale_bytes(of_row) +
                     scale_at(of_row, thread, part, half, mx ? 0 : word / 2)];
          float* const of_step = &weights[static_cast<std::size_t>(
              (part * 128 + position) * steps * kFp4Block + step * kFp4Block)];
          if (e4m3) {
            // A step of m64k32: registers 0 and 2 of the row, four columns each.
            const std::uint64_t table = mxfp4_fp8_magnitudes(stored);
            const Mxfp4Fp8Codes codes = mxfp4_fp8_codes(bits, static_cast<std::uint32_t>(table),
                                                        static_cast<std::uint32_t>(table >> 32));
            for (int byte = 0; byte < 8; ++byte) {
              const std::uint32_t four = byte < 4 ? codes.first : codes.last;
              of_step[word * 32 + byte / 4 * 16 + lane % 4 * 4 + byte % 4] =
                  static_cast<float>(value_of(static_cast<std::uint8_t>(four >> byte % 4 * 8)));
            }
            continue;
          }
          const float factor = mx ? from_bf16(static_cast<std::uint16_t>(mxfp4_factor(stored)))
                                  : flexact::moe::decode_e4m3(stored) * kNvfp4Factor;
          for (int j = 0; j < 4; ++j) {
            // Registers 0 and 1 of the first wgmma are a0 and a2, then come those of the second.
            const std::uint32_t two = fp4_pair(bits, j);
            float* to = of_step + (word * 2 + j / 2) * 16 + j % 2 * 8 + lane % 4 * 2;
            to[0] = from_bf16(to_bf16(from_bf16(static_cast<std::uint16_t>(two)) * factor));
            to[1] = from_bf16(to_bf16(from_bf16(static_cast<std::uint16_t>(two >> 16)) * factor));
          }
        }
      }
    }
    for (std::int64_t row = tile.first_row; row < tile.first_row + tile.rows; ++row) {
      std::vector<float> x;
      for (int k = 0; k < steps * kFp4Block; ++k) {
        if (e4m3) {
          const std::uint8_t* codes = codes_of(a, {0, static_cast<std::uint64_t>(row), 0, 0});
          x.push_back(static_cast<float>(value_of(codes[k])) *
                      f.input_scales[k / kGroup * f.group_step + row]);
        } else {
          x.push_back(
              element(a, {static_cast<std::uint64_t>(k), static_cast<std::uint64_t>(row), 0, 0}));
        }
      }
      const auto sum_of = [&](int part, int position) {
        double sum = 0;
        const float* w =
            &weights[static_cast<std::size_t>((part * 128 + position) * steps * kFp4Block)];
        for (int k = 0; k < steps * kFp4Block; ++k)
          sum += double{x[static_cast<std::size_t>(k)]} * w[k];
        const int column = first + (gated ? 0 : part * 128) + row_at[position];
        const std::int64_t of_rows = tile.expert * (gated ? 2 : 1) + (gated ? part : 0);
        sum *= e4m3 ? factor_of(f.largest[of_rows * g.columns + std::min(column, g.columns - 1)])
               : mx ? 0x1p32
                    : double{256} *
                          f.global[tile.expert * f.global_step + (gated ? part * f.up_step : 0)];
        if (g.row_scale != nullptr) sum *= g.row_scale[row];
        if (g.bias != nullptr && column < g.columns) sum += g.bias[of_rows * g.columns + column];
        return static_cast<float>(sum);
      };
      for (int part = 0; part < (gated ? 1 : 2); ++part) {
        std::vector<float> group(128);
        for (int position = 0; position < 128; ++position) {
          const int to = first + part * 128 + position;
          const int column = first + part * 128 + row_at[position];
          if (to >= f.width) continue;
          float y = sum_of(part, position);
          if (gated) y *= sum_of(1, position);
          if (unary) y *= 2;
          if (permuted && g.value_columns > 0) y += g.values[tile.expert * g.value_stride];
          if (e4m3 && permuted) {
            // Where the epilogue puts it: lanes in pairs, the first halves of both, then the
            // second.
            const int eighth = position % 8;
            group[static_cast<std::size_t>(position / 16 * 16 + eighth / 2 * 4 +
                                           position / 8 % 2 * 2 + eighth % 2)] =
                column < g.columns ? y : 0;
          } else {
            static_cast<std::uint16_t*>(g.output)[row * f.width + to] =
                column < g.columns ? to_bf16(y) : std::uint16_t{0};
          }
        }
        if (e4m3 && permuted && first + part * 128 < f.width) {
          const float scale = scale_of(largest_of(group.data(), 128));
          f.group_scales[(first / 128 + part) * f.group_step + row] = scale;
          to_codes(group.data(), 128, scale,
                   static_cast<std::uint8_t*>(g.output) + row * f.width + first + part * 128);
        }
      }
    }
  }
}

// The sum of a slot's products: weights of an expert's output, `part` 1 is up, with the slot's row.
using StreamSum = std::function<double(const StreamArguments& s, int slot, std::int64_t expert,
                                       int output, int part, bool gated)>;

std::int64_t stream_row(const StreamArguments& s, int slot) {
  return (s.input_of_slots != 0 ? slot : slot / s.routed.top_k) * s.input_stride;
}

double stream_sum_bf16(const StreamArguments& s, int slot, std::int64_t expert, int output,
                       int part, bool) {
  const auto* weights = static_cast<const std::uint16_t*>(s.weights) + expert * s.expert_stride +
                        output * s.row_stride + s.offset[part];
  const auto* input = static_cast<const std::uint16_t*>(s.input) + stream_row(s, slot);
  double sum = 0;
  for (int k = 0; k < s.depth; ++k) sum += from_bf16(weights[k]) * from_bf16(input[k]);
  return sum;
}

// With scales where a thread of the tile kernels, and of these, finds them.
double stream_sum_fp4(const Fp4StreamArguments& f, bool mx, bool first, int slot,
                      std::int64_t expert, int output, int part, bool gated) {
  const StreamArguments& s = f.stream;
  const int of_row = mx ? 1 : 2;
  const auto* codes = static_cast<const std::uint8_t*>(s.weights) + expert * s.expert_stride +
                      output * s.row_stride + s.offset[part];
  const auto* input = static_cast<const std::uint16_t*>(s.input) + stream_row(s, slot);
  const int tile = output / (gated ? 128 : 256);
  const int block = gated ? part : output / 128 % 2;
  const std::uint8_t* scales =
      f.scales + (expert * f.column_tiles + tile) * f.steps * fp4_scale_bytes(of_row);
  double sum = 0;
  for (int thread = 0; thread < kFp4ScaleThreads; ++thread) {
    for (int half = 0; half < 2; ++half) {
      if (fp4_row(thread, half, first, gated) != output % 128) continue;
      for (int k = thread % 4 * 32; k < s.depth; k += k % 32 == 31 ? 97 : 1) {
        const std::uint8_t scale =
            scales[std::int64_t{k / 128} * fp4_scale_bytes(of_row) +
                   scale_at(of_row, thread, block, half, mx ? 0 : k / 16 % 2)];
        const double factor =
            mx ? from_bf16(static_cast<std::uint16_t>(mxfp4_factor(scale))) * 0x1p-94
               : flexact::moe::decode_e4m3(scale);
        const int code = codes[k / 2] >> k % 2 * 4 & 15;
        sum += factor * flexact::moe::decode_e2m1(static_cast<std::uint8_t>(code)) *
               from_bf16(input[k]);
      }
    }
  }
  if (!mx) sum *= f.global[expert * f.global_step + part * f.up_step];
  return sum;
}

// Rows are rounded by the kernels: of one call's the codes times their scales, by slot.
std::vector<std::vector<double>> stream_rows_fp8(const Fp8StreamArguments& f, bool groups,
                                                 bool first) {
  const StreamArguments& s = f.stream;
  std::vector<std::vector<float>> rows(static_cast<std::size_t>(s.routed.slots));
  std::uint32_t of_all = 0;
  for (int slot = 0; slot < s.routed.slots; ++slot) {
    if (expert_of(s.routed, slot) < 0) continue;
    auto& row = rows[static_cast<std::size_t>(slot)];
    for (int k = 0; k < s.depth; ++k) {
      const std::int64_t at = stream_row(s, slot) + k;
      row.push_back(first ? from_bf16(static_cast<const std::uint16_t*>(s.input)[at])
                          : static_cast<const float*>(s.input)[at]);
    }
    of_all = std::max(of_all, largest_of(row.data(), s.depth));
  }
  std::vector<std::vector<double>> result;
  for (const auto& row : rows) {
    std::vector<std::uint8_t> codes(row.size());
    auto& values = result.emplace_back();
    const int group = groups ? kGroup : s.depth;
    for (int from = 0; from < static_cast<int>(row.size()); from += group) {
      const int count = std::min(group, s.depth - from);
      const float scale = f.scaling == InputScaling::Given ? *f.given
                          : f.scaling == InputScaling::All
                              ? scale_of(of_all)
                              : scale_of(largest_of(row.data() + from, count));
      to_codes(row.data() + from, count, scale, codes.data() + from);
      for (int i = from; i < from + count; ++i)
        values.push_back(value_of(codes[static_cast<std::size_t>(i)]) * scale);
    }
  }
  return result;
}

double stream_sum_fp8(const Fp8StreamArguments& f, bool groups,
                      const std::vector<std::vector<double>>& rows, int slot, std::int64_t expert,
                      int output, int part) {
  const StreamArguments& s = f.stream;
  const auto* codes = static_cast<const std::uint8_t*>(s.weights) + expert * s.expert_stride +
                      output * s.row_stride + s.offset[part];
  const int row = groups ? (f.interleaved != 0 ? 2 * output : output) / kGroup : output;
  const float* scales =
      f.weights.at + expert * f.expert_step + row * f.weights.row_step + part * f.up_step;
  double sum = 0;
  for (int k = 0; k < s.depth; ++k) {
    sum += rows[static_cast<std::size_t>(slot)][static_cast<std::size_t>(k)] * value_of(codes[k]) *
           scales[k / kGroup * f.weights.group_step];
  }
  return sum;
}

// What a slot adds at an output, before the activation or the sum.
float stream_product(const StreamArguments& s, const StreamSum& sum_of, int slot,
                     std::int64_t expert, int output, int part, bool gated) {
  const double sum = sum_of(s, slot, expert, output, part, gated);
  return static_cast<float>(sum) * (s.weight == nullptr || s.sum != 0
                                        ? 1.0f
                                        : s.weight[slot / s.routed.top_k * s.weight_stride +
                                                   slot % s.routed.top_k * s.weight_step]) +
         (s.bias == nullptr ? 0.0f
                            : s.bias[(expert * (gated ? 2 : 1) + part) * s.columns + output]);
}

enum class StreamResults { Bf16, Fp32, Bf16InFp32 };

// Blocks of x must cover the outputs, and blocks of y the slots, or the tokens of a sum.
bool stream(const std::string& name, const StreamArguments& s, const StreamSum& sum_of,
            const unsigned (&grid)[3], StreamResults results = StreamResults::Bf16) {
  const bool gated = name.ends_with("_gated");
  const bool down = name.ends_with("_down");
  // Where rows of the first half are in the order of scales, whole tiles of 128.
  const int covered =
      name.find("fp4") != std::string::npos && !down ? (s.columns + 127) / 128 * 128 : s.columns;
  const auto rows =
      static_cast<unsigned>(s.sum != 0 ? s.routed.slots / s.routed.top_k : s.routed.slots);
  const bool divides = s.row_warps == 1 || s.row_warps == 2 || s.row_warps == 4 || s.row_warps == 8;
  if (!divides || grid[1] != rows || s.routed.slots > kStreamMaxSlots || (s.sum != 0 && !down) ||
      grid[0] != static_cast<unsigned>((covered - 1) / (kStreamRows * s.row_warps) + 1) ||
      reinterpret_cast<std::uintptr_t>(s.input) % 16 != 0 || s.input_stride % 8 != 0)
    return false;
  auto* output = static_cast<std::uint16_t*>(s.output);
  for (int o = 0; o < s.columns; ++o) {
    float sum = 0;
    for (int slot = 0; slot < s.routed.slots; ++slot) {
      const std::int64_t expert = expert_of(s.routed, slot);
      if (expert >= 0) {
        float y = stream_product(s, sum_of, slot, expert, o, 0, gated);
        if (gated) y *= stream_product(s, sum_of, slot, expert, o, 1, gated);
        if (!gated && !down) y *= 2;
        if (!down && s.value_columns > 0) y += s.values[expert * s.value_stride];
        const std::int64_t at = std::int64_t{slot} * s.columns + o;
        if (results == StreamResults::Bf16 && s.sum == 0) output[at] = to_bf16(y);
        if (results == StreamResults::Fp32) static_cast<float*>(s.output)[at] = y;
        if (results == StreamResults::Bf16InFp32)
          static_cast<float*>(s.output)[at] = from_bf16(to_bf16(y));
        if (s.weight != nullptr)
          y *= s.weight[slot / s.routed.top_k * s.weight_stride +
                        slot % s.routed.top_k * s.weight_step];
        sum += y;
      }
      if (s.sum != 0 && slot % s.routed.top_k == s.routed.top_k - 1) {
        output[std::int64_t{slot / s.routed.top_k} * s.columns + o] = to_bf16(sum * s.scale);
        sum = 0;
      }
    }
  }
  return true;
}

void combine(const Elements& elements, const CombineArguments& c) {
  auto* output = static_cast<std::uint16_t*>(c.output);
  for (std::int64_t m = 0; m < c.tokens; ++m) {
    for (int h = 0; h < c.width; ++h) {
      float sum = 0;
      for (int slot = 0; slot < c.top_k; ++slot) {
        const std::int64_t at = m * c.top_k + slot;
        const std::int64_t row = c.slot_row != nullptr                            ? c.slot_row[at]
                                 : expert_of(c.routed, static_cast<int>(at)) >= 0 ? at
                                                                                  : -1;
        float value = 0;
        if (row >= 0) {
          value = elements.read(static_cast<const std::uint16_t*>(c.rows)[row * c.width + h]);
          if (c.weights != nullptr) value *= c.weights[m * c.weight_stride + slot * c.weight_step];
        }
        sum += value;
        if (c.combine == 0) output[(m * c.top_k + slot) * c.width + h] = elements.round(value);
      }
      if (c.combine != 0) output[m * c.width + h] = elements.round(sum * c.scale);
    }
  }
}

// act_and_mul: the name says what is written, the image what is read. Every thread's place is
// inside of the launch.
bool act(const std::string& name, const DenseArguments& a,
         const LaunchConfiguration& configuration) {
  const std::int64_t rows = a.pieces / a.row_pieces;
  const bool by_rows = name.ends_with("_rows"), groups = name.ends_with("_groups");
  const bool gated = name.find("gated") != std::string::npos;
  const int piece = name.find("fp32") != std::string::npos ? 4 : 8;
  const std::int64_t threads = configuration.block[0];
  if (a.pieces % a.row_pieces != 0 || a.row_pieces * std::int64_t{piece} < a.width ||
      (groups && a.row_pieces * piece % kGroup != 0) || threads % 32 != 0 ||
      threads > (by_rows ? kDenseRowThreads : kDenseThreads))
    return false;
  if (by_rows ? configuration.grid[0] != rows
              : configuration.grid[0] != (a.pieces - 1) / (threads * a.each) + 1)
    return false;
  const Elements elements(name);
  const auto read = [&](std::int64_t at) {
    if (piece == 4) return static_cast<const float*>(a.x)[at];
    return elements.read(static_cast<const std::uint16_t*>(a.x)[at]);
  };
  const bool aligned = reinterpret_cast<std::uintptr_t>(a.x) % 16 == 0 && a.width % piece == 0;
  if (a.vectors != 0 && !aligned) return false;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::vector<float> y;
    for (int i = 0; i < a.width; ++i) {
      const std::int64_t at = row * a.x_stride + (gated && a.interleaved != 0 ? 2 * i : i);
      float value = read(at + a.first);
      value = !gated ? 2 * value : value * read(at + (a.interleaved != 0 ? 1 : a.second));
      y.push_back(a.value_columns > 0 ? value + a.values[0] : value);
    }
    auto* codes = static_cast<std::uint8_t*>(a.output) + row * a.output_stride;
    for (int i = 0; i < a.width && !groups && !by_rows; ++i) {
      const std::int64_t to = row * a.output_stride + i;
      const float value = y[static_cast<std::size_t>(i)];
      if (piece == 4) static_cast<float*>(a.output)[to] = value;
      if (piece == 8) static_cast<std::uint16_t*>(a.output)[to] = elements.round(value);
    }
    const int group = by_rows ? a.width : kGroup;
    for (int from = 0; from < a.width && (groups || by_rows); from += group) {
      const int count = std::min(group, a.width - from);
      const float scale = scale_of(largest_of(y.data() + from, count));
      a.scales[row * a.scale_row_step + from / group * a.scale_group_step] = scale;
      to_codes(y.data() + from, count, scale, codes + from);
    }
  }
  return true;
}

void order_bias(const BiasArguments& b, unsigned experts) {
  for (std::int64_t e = 0; e < experts; ++e) {
    for (int i = 0; i < b.width; ++i) {
      const std::int64_t at = e * b.stride + i * b.step;
      const auto* half = static_cast<const std::uint16_t*>(b.bias);
      const float value = b.type == 0   ? static_cast<const float*>(b.bias)[at]
                          : b.type == 1 ? from_bf16(half[at])
                                        : from_fp16(half[at]);
      int to = i;
      if (b.interleaved != 0) to = i % 2 * (b.width / 2) + i / 2;
      if (b.up_first != 0) to = (i + b.width / 2) % b.width;
      b.output[e * b.width + to] = value;
    }
  }
}

// Any gather; the counting ones route first, and have a block more, which lists the tiles.
bool launch_gather(std::string name, const unsigned (&grid)[3], unsigned threads,
                   void** parameters) {
  unsigned blocks = grid[0];
  constexpr const char* kCounted = "_counted";
  if (name.ends_with(kCounted)) {
    const auto& arguments = *static_cast<const RouteArguments*>(parameters[1]);
    if (arguments.tokens * arguments.top_k > kCountedSlots || arguments.experts > kCountedExperts)
      return false;
    route(arguments);
    name.resize(name.size() - std::strlen(kCounted));
    --blocks;
  }
  const auto columns = static_cast<int>(grid[1] * threads * 8);
  if (name == "flexact_gather") {
    const auto& arguments = *static_cast<const GatherArguments*>(parameters[0]);
    gather(arguments);
    return cover(blocks, arguments.tokens, arguments.block_tokens) && columns >= arguments.width &&
           arguments.block_tokens * arguments.top_k <= kBlockSlots;
  }
  if (name == "flexact_fp4_gather") {
    const auto& arguments = *static_cast<const Fp4GatherArguments*>(parameters[0]);
    gather_fp4(arguments, blocks);
    return cover(blocks, arguments.gather.tokens, 1) && columns >= arguments.width;
  }
  const auto& arguments = *static_cast<const Fp8GatherArguments*>(parameters[0]);
  gather_fp8(arguments, blocks);
  // A row's scale needs all of the row in one block.
  return name == "flexact_fp8_gather" && cover(blocks, arguments.gather.tokens, 1) &&
         (arguments.scaling == InputScaling::Rows ? grid[1] == 1 : columns >= arguments.row_bytes);
}

}  // namespace

extern "C" {

// For tests: the names of the kernels launched since the last call, one a line.
const char* fake_launches() {
  static std::string text;
  text.clear();
  for (const std::string& each : launches()) text += each + "\n";
  launches().clear();
  return text.c_str();
}

// For tests: from now on the device is another one.
void fake_capability(int major, int minor) {
  capability = major * 10 + minor;
}

int cuInit(unsigned) {
  return 0;
}
int cuGetErrorName(int status, const char** name) {
  *name = status == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "as the test wished";
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == kCapabilityMajor   ? capability / 10
           : attribute == kCapabilityMinor ? capability % 10
           : attribute == kMultiprocessors ? 4
                                           : 0;
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  std::strncpy(name, "a GPU that is none", static_cast<std::size_t>(size));
  return 0;
}
int cuPointerGetAttribute(void* value, int attribute, DevicePointer pointer) {
  if (!is_device(static_cast<std::uintptr_t>(pointer))) return kInvalidValue;
  if (attribute == 1) *static_cast<void**>(value) = &the_context;
  if (attribute == 2) *static_cast<unsigned*>(value) = 2;
  if (attribute == 9) *static_cast<int*>(value) = 0;
  return 0;
}
int cuCtxGetCurrent(Context* context) {
  *context = current;
  return 0;
}
int cuCtxPushCurrent_v2(Context context) {
  current = context;
  return 0;
}
int cuCtxPopCurrent_v2(Context* context) {
  *context = current;
  current = nullptr;
  return 0;
}
int cuCtxSetCurrent(Context) {
  return 0;
}
int cuCtxSynchronize() {
  return 0;
}
int cuDevicePrimaryCtxRetain(Context* context, int) {
  *context = &the_context;
  return 0;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cuModuleLoadData(Module* module, const void* image) {
  *module = const_cast<void*>(image);
  const auto* bytes = static_cast<const unsigned char*>(image);
  if (current != &the_context || std::memcmp(image,
                                             "\x7f"
                                             "ELF",
                                             4) != 0)
    return kInvalidValue;
  // The second byte of the ELF header's flags is the architecture that the code is for.
  return bytes[49] == capability ? 0 : kNoBinary;
}
int cuModuleGetFunction(Kernel* kernel, Module, const char* name) {
  static std::map<std::string, std::string> names;
  *kernel = &(names[name] = name);
  return 0;
}
int cuFuncSetAttribute(Kernel, int, int) {
  return 0;
}
int cuStreamSynchronize(Stream) {
  return 0;
}
int cuMemAlloc_v2(DevicePointer* pointer, std::size_t bytes) {
  if (bytes > (std::size_t{1} << 33)) return kOutOfMemory;
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  allocations()[reinterpret_cast<std::uintptr_t>(memory)] = bytes;
  *pointer = reinterpret_cast<std::uintptr_t>(memory);
  return 0;
}
int cuMemFree_v2(DevicePointer pointer) {
  allocations().erase(static_cast<std::uintptr_t>(pointer));
  std::free(reinterpret_cast<void*>(static_cast<std::uintptr_t>(pointer)));
  return 0;
}
int cuMemcpyHtoD_v2(DevicePointer to, const void* from, std::size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(static_cast<std::uintptr_t>(to)), from, bytes);
  return 0;
}
int cuMemcpyDtoH_v2(void* to, DevicePointer from, std::size_t bytes) {
  std::memcpy(to, reinterpret_cast<void*>(static_cast<std::uintptr_t>(from)), bytes);
  return 0;
}
int cuTensorMapEncodeTiled(TensorMap* map, int type, std::uint32_t rank, void* data,
                           const std::uint64_t* sizes, const std::uint64_t* strides,
                           const std::uint32_t* box, const std::uint32_t*, int, int, int, int) {
  Map made{};
  made.data = data;
  made.bytes = type == 0 ? 1 : 2;
  made.fp16 = type == 6 ? 1 : 0;
  made.rank = static_cast<std::int32_t>(rank);
  if ((type != 9 && type != 6 && type != 0) || rank > 4 ||
      (box[0] * static_cast<std::uint32_t>(made.bytes) != 128 &&
       (type != 0 || box[0] != kFp4CodeBytes)) ||
      reinterpret_cast<std::uintptr_t>(data) % 16 != 0)
    return kInvalidValue;
  for (std::uint32_t i = 0; i < rank; ++i) {
    made.size[i] = sizes[i];
    made.box[i] = box[i];
    if (box[i] > 256 || (i > 0 && strides[i - 1] % 16 != 0)) return kInvalidValue;
    if (i > 0) made.stride[i - 1] = strides[i - 1];
  }
  std::memcpy(map, &made, sizeof made);
  return 0;
}
int cuLaunchKernelEx(const LaunchConfiguration* configuration, Kernel kernel, void** parameters,
                     void**) {
  const std::string& name = *static_cast<const std::string*>(kernel);
  const unsigned blocks = configuration->grid[0];
  bool dependent = false;
  for (unsigned i = 0; i < configuration->attribute_count; ++i) {
    const LaunchAttribute& attribute = configuration->attributes[i];
    if (attribute.id == kProgrammaticLaunch) dependent = attribute.value.programmatic == 1;
    if (attribute.id == kClusterDimension && blocks % attribute.value.cluster.x != 0)
      return kInvalidValue;
  }
  launches().push_back(name + (dependent ? " dependent" : ""));
  if (name.find("_gather") != std::string::npos) {
    if (!launch_gather(name, configuration->grid, configuration->block[0], parameters))
      return kInvalidValue;
  } else if (name == "flexact_route") {
    const auto& arguments = *static_cast<const RouteArguments*>(parameters[0]);
    if (configuration->shared_bytes < static_cast<unsigned>(arguments.experts) * 8)
      return kInvalidValue;
    route(arguments);
  } else if (name.rfind("flexact_combine", 0) == 0) {
    const auto& arguments = *static_cast<const CombineArguments*>(parameters[0]);
    if (!cover(blocks, arguments.tokens, arguments.block_tokens) ||
        arguments.block_tokens * arguments.top_k > kBlockSlots)
      return kInvalidValue;
    combine(Elements(name), arguments);
  } else if (name == "flexact_order_bias") {
    order_bias(*static_cast<const BiasArguments*>(parameters[0]), blocks);
  } else if (name == "flexact_fp4_largest_scales") {
    const auto& arguments = *static_cast<const Fp4ScaleArguments*>(parameters[0]);
    if (static_cast<int>(blocks * configuration->block[0]) < arguments.columns)
      return kInvalidValue;
    find_largest_scales(arguments, configuration->grid[1]);
  } else if (name == "flexact_fp4_order_scales") {
    order_scales(*static_cast<const Fp4ScaleArguments*>(parameters[0]), blocks);
  } else if (name == "flexact_fp8_largest") {
    const auto& arguments = *static_cast<const Fp8GatherArguments*>(parameters[0]);
    const unsigned parts = configuration->grid[1];
    if (arguments.largest_count != 1 &&
        arguments.largest_count != static_cast<std::int32_t>(blocks * parts))
      return kInvalidValue;
    find_largest(arguments, blocks, parts);
  } else if (name == "flexact_fp8_round") {
    round_rows(*static_cast<const Fp8RoundArguments*>(parameters[0]), blocks);
  } else if (name.rfind("flexact_act_", 0) == 0) {
    if (!act(name, *static_cast<const DenseArguments*>(parameters[0]), *configuration))
      return kInvalidValue;
  } else if (name.rfind("flexact_stream", 0) == 0) {
    if (name.find("fp4_") != std::string::npos) {
      const auto& arguments = *static_cast<const Fp4StreamArguments*>(parameters[0]);
      const StreamSum sum_of = [&](const StreamArguments&, int slot, std::int64_t expert,
                                   int output, int part, bool gated) {
        return stream_sum_fp4(arguments, name.find("mxfp4") != std::string::npos,
                              !name.ends_with("_down"), slot, expert, output, part, gated);
      };
      if (!stream(name, arguments.stream, sum_of, configuration->grid)) return kInvalidValue;
    } else if (name.find("fp8_") != std::string::npos) {
      const auto& arguments = *static_cast<const Fp8StreamArguments*>(parameters[0]);
      const bool first = !name.ends_with("_down");
      const bool groups = name.find("block") != std::string::npos;
      const StreamArguments& s = arguments.stream;
      const int columns = std::min(kStreamColumns, s.sum != 0 ? s.routed.top_k : s.routed.slots);
      if (configuration->shared_bytes != columns * fp8_stream_bytes(s.depth) ||
          groups != (arguments.scaling == InputScaling::Groups))
        return kInvalidValue;
      const auto rows = stream_rows_fp8(arguments, groups, first);
      const StreamSum sum_of = [&](const StreamArguments&, int slot, std::int64_t expert,
                                   int output, int part, bool) {
        return stream_sum_fp8(arguments, groups, rows, slot, expert, output, part);
      };
      const StreamResults results = !first                          ? StreamResults::Bf16
                                    : arguments.rounds_results != 0 ? StreamResults::Bf16InFp32
                                                                    : StreamResults::Fp32;
      if (!stream(name, s, sum_of, configuration->grid, results)) return kInvalidValue;
    } else if (!stream(name, *static_cast<const StreamArguments*>(parameters[0]), stream_sum_bf16,
                       configuration->grid)) {
      return kInvalidValue;
    }
  } else {
    Map a, b;
    std::memcpy(&a, parameters[0], sizeof a);
    std::memcpy(&b, parameters[1], sizeof b);
    if (blocks > 4 || configuration->shared_bytes > 232448) return kInvalidValue;
    if (name.find("fp4_") != std::string::npos) {
      const auto& arguments = *static_cast<const Fp4GemmArguments*>(parameters[2]);
      const bool e4m3 = name.find("mxfp4_fp8") != std::string::npos;
      constexpr const char* kFew = "_few";
      const bool few = name.ends_with(kFew);
      const int rows = few ? kFp4FewRows : kTileRows;
      for (int i = 0; i < *arguments.gemm.tile_count; ++i) {
        if (arguments.gemm.tiles[i].rows > rows) return kInvalidValue;
      }
      if (arguments.box_rows > rows ||
          configuration->block[0] != static_cast<unsigned>(few ? kFp4FewThreads : kGemmThreads))
        return kInvalidValue;
      if (a.bytes != (e4m3 ? 1 : 2) || b.bytes != 1 || b.box[0] != kFp4CodeBytes ||
          arguments.box_rows % 8 != 0 ||
          a.box[1] != static_cast<std::uint32_t>(arguments.box_rows) ||
          configuration->shared_bytes != static_cast<unsigned>(e4m3  ? kMxfp4Fp8SharedBytes
                                                               : few ? kFp4FewSharedBytes
                                                                     : kFp4SharedBytes))
        return kInvalidValue;
      gemm_fp4(few ? name.substr(0, name.size() - std::strlen(kFew)) : name, a, b, arguments);
      return 0;
    }
    constexpr const char* kFp8 = "flexact_gemm_fp8_";
    const bool fp8 = name.find(kFp8) == 0;
    if (a.bytes != (fp8 ? 1 : 2) || b.bytes != a.bytes || a.fp16 != b.fp16 ||
        (a.fp16 != 0) != Elements(name).fp16)
      return kInvalidValue;
    const auto& gemm_arguments = fp8 ? static_cast<const Fp8GemmArguments*>(parameters[2])->gemm
                                     : *static_cast<const GemmArguments*>(parameters[2]);
    Map of_extra;
    std::memcpy(&of_extra, parameters[3], sizeof of_extra);
    if (a.box[1] != 64 || of_extra.box[1] != kExtraRows || of_extra.data != a.data)
      return kInvalidValue;
    for (int i = 0; i < *gemm_arguments.tile_count; ++i) {
      if (gemm_arguments.tiles[i].rows > kTileRows + (fp8 ? 0 : kExtraRows)) return kInvalidValue;
    }
    if (fp8) {
      gemm_fp8(name.substr(std::strlen(kFp8)), a, b,
               *static_cast<const Fp8GemmArguments*>(parameters[2]));
    } else {
      gemm(name, a, b, gemm_arguments);
    }
  }
  return 0;
}

}  // extern "C"
