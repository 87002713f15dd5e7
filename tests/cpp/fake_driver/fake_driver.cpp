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
#include <map>
#include <string>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/kernels/arguments.hpp"

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

constexpr int kOutOfMemory = 2;
constexpr int kInvalidValue = 1;
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

// What cuTensorMapEncodeTiled was given.
struct Map {
  const std::uint16_t* data;
  std::uint64_t size[4];
  std::uint64_t stride[3];  // bytes
  std::uint32_t box[4];
  std::int32_t rank;
};
static_assert(sizeof(Map) <= sizeof(TensorMap));

// 0 outside, as the copy engine fills.
float element(const Map& map, const std::uint64_t (&at)[4]) {
  std::uint64_t offset = at[0] * 2;
  for (int i = 0; i < map.rank; ++i) {
    if (at[i] >= map.size[i]) return 0;
    if (i > 0) offset += at[i] * map.stride[i - 1];
  }
  return from_bf16(map.data[offset / 2]);
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
    for (int at = first; at < row; at += kTileRows) {
      r.tiles[tiles++] = {e, at, std::min(kTileRows, row - at), 0};
    }
  }
  *r.tile_count = tiles;
  std::fill_n(r.taken, 4, 0u);
}

void gather(const GatherArguments& g, unsigned tokens) {
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

void gemm(const std::string& name, const Map& a, const Map& b, const GemmArguments& g) {
  const bool gated = name == "flexact_gemm_gated";
  const bool unary = name == "flexact_gemm_unary";
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
        output[std::int64_t{row} * g.columns + column] = to_bf16(y);
      }
    }
  }
}

void combine(const CombineArguments& c, unsigned tokens) {
  auto* output = static_cast<std::uint16_t*>(c.output);
  for (std::int64_t m = 0; m < tokens; ++m) {
    for (int h = 0; h < c.width; ++h) {
      float sum = 0;
      for (int slot = 0; slot < c.top_k; ++slot) {
        const std::int64_t row = c.slot_row[m * c.top_k + slot];
        float value = 0;
        if (row >= 0) {
          value = from_bf16(static_cast<const std::uint16_t*>(c.rows)[row * c.width + h]);
          if (c.weights != nullptr) value *= c.weights[m * c.weight_stride + slot * c.weight_step];
        }
        sum += value;
        if (c.combine == 0) output[(m * c.top_k + slot) * c.width + h] = to_bf16(value);
      }
      if (c.combine != 0) output[m * c.width + h] = to_bf16(sum * c.scale);
    }
  }
}

void order_bias(const BiasArguments& b, unsigned experts) {
  for (std::int64_t e = 0; e < experts; ++e) {
    for (int i = 0; i < b.width; ++i) {
      const std::int64_t at = e * b.stride + i * b.step;
      const float value = b.type == 0 ? static_cast<const float*>(b.bias)[at]
                                      : from_bf16(static_cast<const std::uint16_t*>(b.bias)[at]);
      int to = i;
      if (b.interleaved != 0) to = i % 2 * (b.width / 2) + i / 2;
      if (b.up_first != 0) to = (i + b.width / 2) % b.width;
      b.output[e * b.width + to] = value;
    }
  }
}

}  // namespace

extern "C" {

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
  *value = attribute == kCapabilityMajor ? 9 : attribute == kMultiprocessors ? 4 : 0;
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
  return current == &the_context && std::memcmp(image,
                                                "\x7f"
                                                "ELF",
                                                4) == 0
             ? 0
             : kInvalidValue;
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
  made.data = static_cast<const std::uint16_t*>(data);
  made.rank = static_cast<std::int32_t>(rank);
  if (type != 9 || rank > 4 || reinterpret_cast<std::uintptr_t>(data) % 16 != 0)
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
  if (name == "flexact_route") {
    const auto& arguments = *static_cast<const RouteArguments*>(parameters[0]);
    if (configuration->shared_bytes < static_cast<unsigned>(arguments.experts) * 8)
      return kInvalidValue;
    route(arguments);
  } else if (name == "flexact_gather") {
    gather(*static_cast<const GatherArguments*>(parameters[0]), blocks);
  } else if (name == "flexact_combine") {
    combine(*static_cast<const CombineArguments*>(parameters[0]), blocks);
  } else if (name == "flexact_order_bias") {
    order_bias(*static_cast<const BiasArguments*>(parameters[0]), blocks);
  } else {
    Map a, b;
    std::memcpy(&a, parameters[0], sizeof a);
    std::memcpy(&b, parameters[1], sizeof b);
    if (blocks > 4 || configuration->shared_bytes > 232448) return kInvalidValue;
    gemm(name, a, b, *static_cast<const GemmArguments*>(parameters[2]));
  }
  return 0;
}

}  // extern "C"
