// The CUDA backend's MoE layer on a GPU: checked against fp64 on sampled tokens, then timed as CUDA-graph
// replays with the L2 cache flushed before each, as a whole and by launch.
//
//   cuda_moe OUTPUT.json [--shapes a,b] [--tokens 16,4096] [--function swiglu] [--format bf16] [--seconds S]
//            [--variants stream,rows]
//
// Formats: bf16, fp16, fp8_block, fp8_channel, fp8_tensor (scales of activations from each call),
// fp8_tensor_given, mxfp4, nvfp4 and mxfp4_fp8. Variants are compared with the default in turns: those of
// variants_for() whose names begin so, or with a full stop at the end are so.
// benchmark/moe/build_cuda_moe.sh builds it. Results are JSON lines: one for each shape, M
// and variant.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/backend.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace {

using flexact::Function;
using flexact::Pairing;

#define CHECK(call)                                                                        \
  do {                                                                                     \
    const cudaError_t status_ = (call);                                                    \
    if (status_ != cudaSuccess) {                                                          \
      std::printf("%s: %s at line %d\n", #call, cudaGetErrorString(status_), __LINE__);    \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

struct Shape {
  const char* name;
  int experts, top_k, hidden, intermediate;
};
constexpr Shape kShapes[] = {{"mixtral", 8, 2, 4096, 14336},
                             {"qwen3_30b", 128, 8, 2048, 768},
                             {"qwen3_235b", 128, 8, 4096, 1536},
                             {"dsv3_ep", 32, 8, 7168, 2048},
                             {"gptoss20b", 32, 4, 2880, 2880}};

std::chrono::steady_clock::time_point begin_;
double elapsed() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
}

// Nearly normal numbers of size 1 from a hash of the index.
__device__ float normal_of(std::size_t i, unsigned seed) {
  unsigned long long h = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93ull;
  h ^= h >> 32;
  float sum = 0;
  for (int k = 0; k < 4; ++k) sum += static_cast<float>(h >> (16 * k) & 0xffff) * (1.0f / 65536) - 0.5f;
  return sum * 1.7320508f;
}
template <typename T>
__global__ void fill(T* out, std::size_t count, float scale, unsigned seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    out[i] = T(normal_of(i, seed) * scale);
  }
}
// 16 bits of bf16 or fp16, and what they stand for.
__host__ __device__ std::uint16_t narrow(float value, bool fp16) {
  return fp16 ? __half_as_ushort(__float2half_rn(value)) : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__host__ __device__ float widen(std::uint16_t bits, bool fp16) {
  return fp16 ? __half2float(__ushort_as_half(bits)) : __bfloat162float(__ushort_as_bfloat16(bits));
}
__host__ __device__ float widen(float value, bool) { return value; }
__global__ void fill16(std::uint16_t* out, std::size_t count, float scale, unsigned seed, bool fp16) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    out[i] = narrow(normal_of(i, seed) * scale, fp16);
  }
}
// Scales between half of `size` and one and a half of it.
__global__ void fill_scales(float* out, std::size_t count, float size, unsigned seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    out[i] = size * (1 + fminf(fmaxf(normal_of(i, seed) / 4, -0.5f), 0.5f));
  }
}

// Any codes, and scales of groups: bytes from `low` on, `spread` of them.
__global__ void fill_bytes(std::uint8_t* out, std::size_t count, unsigned low, unsigned spread, unsigned seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * blockDim.x) {
    unsigned long long h = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93ull;
    out[i] = static_cast<std::uint8_t>(low + (h >> 40) % spread);
  }
}

// A weight matrix of each expert as stored, [experts, rows, k].
struct Stored {
  const void* values;  // bf16, fp16, E4M3 codes with scales, or E2M1 codes with scales of groups
  bool fp16;
  const float* scales;
  const std::uint8_t* group_scales;  // [experts, rows, k / group]
  const float* global;               // nvfp4: [experts, rows / half]
  std::int64_t group;
  std::int64_t rows, k;
  std::int64_t expert_step, row_step, group_step;  // of scales
  std::int64_t half, half_blocks, block;           // rows of gate or up; their blocks of rows; rows of one

  __device__ double at(std::int64_t expert, std::int64_t row, std::int64_t column) const {
    const std::size_t index = static_cast<std::size_t>((expert * rows + row) * k + column);
    if (group_scales != nullptr) {
      constexpr float kMagnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
      const int code = static_cast<const std::uint8_t*>(values)[index / 2] >> index % 2 * 4 & 15;
      const double value = code < 8 ? kMagnitudes[code] : -kMagnitudes[code - 8];
      const std::uint8_t scale = group_scales[index / group];
      if (global == nullptr) return value * exp2(static_cast<double>(scale) - 127);
      __nv_fp8_e4m3 stored;
      stored.__x = scale;
      return value * static_cast<double>(static_cast<float>(stored)) * global[expert * (rows / half) + row / half];
    }
    if (scales == nullptr) return widen(static_cast<const std::uint16_t*>(values)[index], fp16);
    const std::int64_t of_rows = row / half * half_blocks + row % half / block;
    const float scale = scales[expert * expert_step + of_rows * row_step + column / 128 * group_step];
    return static_cast<double>(static_cast<float>(static_cast<const __nv_fp8_e4m3*>(values)[index])) * scale;
  }
};

// out[r, n] = Σ_k a[row of r, k] · b[e of r, n, k] in fp64, a warp for each element.
template <typename A>
__global__ void reference_gemm(const A* a, bool fp16, const int* row, const int* expert, const Stored b,
                               double* out) {
  const int warp = static_cast<int>((blockIdx.x * std::size_t{blockDim.x} + threadIdx.x) / 32);
  const int lane = threadIdx.x % 32;
  const int r = blockIdx.y;
  if (warp >= b.rows) return;
  const A* left = a + static_cast<std::size_t>(row[r]) * b.k;
  double sum = 0;
  for (int k = lane; k < b.k; k += 32) {
    sum += static_cast<double>(widen(left[k], fp16)) * b.at(expert[r], warp, k);
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (lane == 0) out[static_cast<std::size_t>(r) * b.rows + warp] = sum;
}

template <typename T>
class Array {
 public:
  explicit Array(std::size_t count) : count_(count) { CHECK(cudaMalloc(&data_, count * sizeof(T))); }
  explicit Array(const std::vector<T>& values) : Array(std::max<std::size_t>(values.size(), 1)) {
    CHECK(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(data_); }
  T* get() const { return data_; }
  std::size_t size() const { return count_; }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    CHECK(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

flexact::TensorView view(const void* data, flexact::DType dtype, std::vector<std::int64_t> shape) {
  flexact::TensorView v;
  v.data = data;
  v.dtype = dtype;
  v.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    v.shape[i] = shape[i];
    v.strides[i] = stride;
    stride *= shape[i];
  }
  return v;
}

flexact::Format format_of(const std::string& name) {
  return name == "fp8_tensor_given" ? flexact::Format::Fp8Tensor : flexact::parse_format(name);
}

// One projection's weights.
class Weights {
 public:
  // `halves`: 2 where gate and up lie one after the other.
  Weights(flexact::Format format, std::int64_t experts, std::int64_t rows, std::int64_t k, std::int64_t halves,
          float size, unsigned seed)
      : shape_{experts, rows, k},
        mx_(format == flexact::Format::Mxfp4 || format == flexact::Format::Mxfp4Fp8),
        fp4_(mx_ || format == flexact::Format::Nvfp4),
        fp16_(format == flexact::Format::Fp16),
        fp8_(format != flexact::Format::Bf16 && !fp16_ && !fp4_),
        group_(mx_ ? 32 : 16),
        values_(static_cast<std::size_t>(experts * rows * k) * (fp8_ ? 2 : fp4_ ? 1 : 4) / 2),
        scales_(static_cast<std::size_t>(experts * rows)),
        group_scales_(fp4_ ? static_cast<std::size_t>(experts * rows * k / group_) : 1) {
    const auto blocks = [](std::int64_t count) { return (count + 127) / 128; };
    const std::size_t count = static_cast<std::size_t>(experts * rows * k);
    stored_ = {values_.get(), fp16_, nullptr, nullptr, nullptr, group_, rows, k, 0, 0, 0, rows / halves, 1, rows};
    if (fp4_) {
      // Magnitudes of random codes are 2.9 in the mean.
      const float scale = size / 2.93f;
      fill_bytes<<<1024, 256>>>(values_.get(), values_.size(), 0, 256, seed);
      stored_.group_scales = group_scales_.get();
      shape_[2] = k / 2;
      scale_shape_ = {experts, rows, k / group_};
      if (mx_) {
        const int exponent = static_cast<int>(std::floor(std::log2(scale)));
        fill_bytes<<<1024, 256>>>(group_scales_.get(), group_scales_.size(), static_cast<unsigned>(127 + exponent), 2,
                                  seed + 7);
      } else {
        // 0.5 to 1.875.
        fill_bytes<<<1024, 256>>>(group_scales_.get(), group_scales_.size(), 0x30, 16, seed + 7);
        fill_scales<<<64, 256>>>(scales_.get(), static_cast<std::size_t>(experts * halves), scale, seed + 9);
        stored_.global = scales_.get();
        global_shape_ = halves == 2 ? std::vector<std::int64_t>{experts, 2} : std::vector<std::int64_t>{experts};
      }
      return;
    }
    if (!fp8_) {
      fill16<<<1024, 256>>>(reinterpret_cast<std::uint16_t*>(values_.get()), count, size, seed, fp16_);
      return;
    }
    // Codes of size 64: the largest are some 220.
    fill<<<1024, 256>>>(reinterpret_cast<__nv_fp8_e4m3*>(values_.get()), count, 64.0f, seed);
    fill_scales<<<64, 256>>>(scales_.get(), scales_.size(), size / 64, seed + 7);
    stored_.scales = scales_.get();
    if (format == flexact::Format::Fp8Block) {
      stored_.block = 128;
      stored_.half_blocks = blocks(rows / halves);
      stored_.group_step = 1;
      stored_.row_step = blocks(k);
      scale_shape_ = {experts, halves * stored_.half_blocks, blocks(k)};
    } else if (format == flexact::Format::Fp8Channel) {
      stored_.block = stored_.row_step = 1;
      stored_.half_blocks = rows / halves;
      scale_shape_ = {experts, rows};
    } else {
      stored_.row_step = 1;
      scale_shape_ = halves == 2 ? std::vector<std::int64_t>{experts, 2} : std::vector<std::int64_t>{experts};
    }
    stored_.expert_step = 1;
    for (std::size_t i = 1; i < scale_shape_.size(); ++i) stored_.expert_step *= scale_shape_[i];
  }
  const Stored& stored() const { return stored_; }
  flexact::TensorView view_of() const {
    return view(values_.get(),
                fp4_    ? flexact::DType::UInt8
                : fp8_  ? flexact::DType::Float8E4M3
                : fp16_ ? flexact::DType::Float16
                        : flexact::DType::BFloat16,
                shape_);
  }
  flexact::TensorView global_scale() const {
    return global_shape_.empty() ? flexact::TensorView{}
                                 : view(scales_.get(), flexact::DType::Float32, global_shape_);
  }
  flexact::TensorView scale() const {
    if (fp4_) {
      return view(group_scales_.get(),
                  mx_ ? flexact::DType::UInt8 : flexact::DType::Float8E4M3,
                  scale_shape_);
    }
    return fp8_ ? view(scales_.get(), flexact::DType::Float32, scale_shape_) : flexact::TensorView{};
  }

 private:
  std::vector<std::int64_t> shape_, scale_shape_, global_shape_;
  bool mx_, fp4_, fp16_, fp8_;
  std::int64_t group_;
  Array<std::uint8_t> values_;
  Array<float> scales_;  // of rows, which are more than blocks; or global ones
  Array<std::uint8_t> group_scales_;
  Stored stored_;
};

struct Layer {
  Shape shape;
  flexact::Format format;
  bool given;
  Weights w13, w2;
  Array<float> input_scale, activated_scale;
  Layer(const Shape& s, const std::string& name)
      : shape(s),
        format(format_of(name)),
        given(name == "fp8_tensor_given"),
        w13(format, s.experts, 2 * s.intermediate, s.hidden, 2,
            1.5f / std::sqrt(static_cast<float>(s.hidden)), 1),
        w2(format, s.experts, s.hidden, s.intermediate, 1,
           1.0f / std::sqrt(static_cast<float>(s.intermediate)), 2),
        input_scale(std::vector<float>{4.0f / 448}),
        activated_scale(std::vector<float>{32.0f / 448}) {
    CHECK(cudaDeviceSynchronize());
  }
  bool fp16() const { return format == flexact::Format::Fp16; }
  flexact::DType io() const { return fp16() ? flexact::DType::Float16 : flexact::DType::BFloat16; }
  flexact::MoeWeights weights() const {
    flexact::MoeWeights weights;
    weights.w13 = w13.view_of();
    weights.w2 = w2.view_of();
    weights.w13_scale = w13.scale();
    weights.w2_scale = w2.scale();
    weights.w13_global_scale = w13.global_scale();
    weights.w2_global_scale = w2.global_scale();
    if (given) {
      weights.a13_scale = view(input_scale.get(), flexact::DType::Float32, {1});
      weights.a2_scale = view(activated_scale.get(), flexact::DType::Float32, {1});
    }
    return weights;
  }
};

struct Batch {
  int tokens;
  std::vector<int> ids;
  std::vector<float> weights;
  Array<std::uint16_t> hidden;
  Array<int> device_ids;
  Array<float> device_weights;
  Array<std::uint16_t> output;

  static std::vector<int> draw(const Shape& s, int tokens) {
    std::mt19937 random(17);
    std::vector<int> ids, all(s.experts);
    for (int i = 0; i < s.experts; ++i) all[i] = i;
    for (int m = 0; m < tokens; ++m) {
      for (int slot = 0; slot < s.top_k; ++slot) {
        std::swap(all[slot], all[slot + random() % (s.experts - slot)]);
        ids.push_back(all[slot]);
      }
    }
    return ids;
  }
  static std::vector<float> draw_weights(const Shape& s, int tokens) {
    std::mt19937 random(18);
    std::uniform_real_distribution<float> uniform(0.05f, 1.0f);
    std::vector<float> weights(std::size_t(tokens) * s.top_k);
    for (float& w : weights) w = uniform(random) / s.top_k;
    return weights;
  }
  Batch(const Shape& s, int m, bool fp16)
      : tokens(m),
        ids(draw(s, m)),
        weights(draw_weights(s, m)),
        hidden(std::size_t(m) * s.hidden),
        device_ids(ids),
        device_weights(weights),
        output(std::size_t(m) * s.hidden) {
    fill16<<<1024, 256>>>(hidden.get(), hidden.size(), 1.0f, 3, fp16);
    CHECK(cudaDeviceSynchronize());
  }
  flexact::MoeInputs inputs(const Shape& s, flexact::DType io) const {
    flexact::MoeInputs in;
    in.tokens = tokens;
    in.hidden_states = view(hidden.get(), io, {tokens, s.hidden});
    in.topk_weights = view(device_weights.get(), flexact::DType::Float32, {tokens, s.top_k});
    in.topk_ids = view(device_ids.get(), flexact::DType::Int32, {tokens, s.top_k});
    in.output = output.get();
    return in;
  }
};

// Sampled tokens and what their rows must be.
struct Expected {
  std::vector<int> tokens;
  std::vector<double> rows;
};

// Everything in fp64 but one rounding of the activated values to 16 bits.
Expected expected_of(const Layer& layer, const Batch& batch, const Function& function,
                     const std::vector<double>& parameters) {
  const Shape& s = layer.shape;
  const int samples = std::min(batch.tokens, 24);
  std::vector<int> tokens, rows, experts;
  for (int i = 0; i < samples; ++i) {
    tokens.push_back(static_cast<int>(std::int64_t{i} * (batch.tokens - 1) / std::max(1, samples - 1)));
    for (int slot = 0; slot < s.top_k; ++slot) {
      rows.push_back(tokens.back());
      experts.push_back(batch.ids[std::size_t(tokens.back()) * s.top_k + slot]);
    }
  }
  const int pairs = static_cast<int>(rows.size());
  const Array<int> device_rows(rows), device_experts(experts);
  Array<double> product(std::size_t(pairs) * 2 * s.intermediate);
  reference_gemm<<<dim3((2 * s.intermediate + 7) / 8, pairs), 256>>>(
      batch.hidden.get(), layer.fp16(), device_rows.get(), device_experts.get(), layer.w13.stored(), product.get());
  const std::vector<double> values = product.read();
  std::vector<float> activated(std::size_t(pairs) * s.intermediate);
  for (int r = 0; r < pairs; ++r) {
    for (int i = 0; i < s.intermediate; ++i) {
      const double* at = &values[std::size_t(r) * 2 * s.intermediate + i];
      activated[std::size_t(r) * s.intermediate + i] = widen(
          narrow(static_cast<float>(function.reference(at[0], at[s.intermediate], parameters)), layer.fp16()),
          layer.fp16());
    }
  }
  std::vector<int> order(pairs);
  for (int r = 0; r < pairs; ++r) order[r] = r;
  const Array<float> device_activated(activated);
  const Array<int> device_order(order);
  Array<double> down(std::size_t(pairs) * s.hidden);
  reference_gemm<<<dim3((s.hidden + 7) / 8, pairs), 256>>>(device_activated.get(), false, device_order.get(),
                                                          device_experts.get(), layer.w2.stored(), down.get());
  const std::vector<double> partial = down.read();
  Expected expected{tokens, {}};
  for (int i = 0; i < samples; ++i) {
    for (int h = 0; h < s.hidden; ++h) {
      double want = 0;
      for (int slot = 0; slot < s.top_k; ++slot) {
        want += static_cast<double>(batch.weights[std::size_t(tokens[i]) * s.top_k + slot]) *
                partial[(std::size_t(i) * s.top_k + slot) * s.hidden + h];
      }
      expected.rows.push_back(want);
    }
  }
  return expected;
}

// ‖out − ref‖ / ‖ref‖ over the sampled tokens.
double error_of(const Shape& s, const std::vector<std::uint16_t>& output, bool fp16, const Expected& expected) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < expected.rows.size(); ++i) {
    const std::size_t token = expected.tokens[i / s.hidden];
    const double got = widen(output[token * s.hidden + i % s.hidden], fp16);
    difference += (got - expected.rows[i]) * (got - expected.rows[i]);
    size += expected.rows[i] * expected.rows[i];
  }
  return std::sqrt(difference / size);
}

struct Times {
  double median, low, high;
  int count;
};

class Timer {
 public:
  Timer() : flush_(256u << 20) { CHECK(cudaStreamCreate(&stream_)); }
  cudaStream_t stream() const { return stream_; }

  template <typename F>
  cudaGraphExec_t capture(F launch) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    launch();
    CHECK(cudaStreamEndCapture(stream_, &graph));
    CHECK(cudaGraphInstantiate(&replay, graph, 0));
    CHECK(cudaGraphDestroy(graph));
    return replay;
  }

  // Of each graph, replayed in turns, so that what the card does meanwhile is shared by all. Ends them.
  std::vector<Times> time(const std::vector<cudaGraphExec_t>& graphs, double budget) {
    std::vector<Times> times;
    const std::vector<double> first = rounds(graphs, 3)[0];
    const int count = static_cast<int>(std::clamp(budget * 1e6 / (first[1] + 120), 7.0, 40.0));
    for (const std::vector<double>& us : rounds(graphs, count))
      times.push_back({us[us.size() / 2], us[us.size() / 10], us[us.size() * 9 / 10], count});
    for (const cudaGraphExec_t graph : graphs) CHECK(cudaGraphExecDestroy(graph));
    return times;
  }

 private:
  // Sorted times of each graph.
  std::vector<std::vector<double>> rounds(const std::vector<cudaGraphExec_t>& graphs, int count) {
    std::vector<std::vector<double>> us(graphs.size(), std::vector<double>(count));
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    for (int i = 0; i < count; ++i) {
      for (std::size_t each = 0; each < graphs.size(); ++each) {
        CHECK(cudaMemsetAsync(flush_.get(), i, flush_.size(), stream_));
        CHECK(cudaEventRecord(start, stream_));
        CHECK(cudaGraphLaunch(graphs[each], stream_));
        CHECK(cudaEventRecord(stop, stream_));
        CHECK(cudaStreamSynchronize(stream_));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, start, stop));
        us[each][i] = ms * 1e3;
      }
    }
    CHECK(cudaEventDestroy(start));
    CHECK(cudaEventDestroy(stop));
    for (std::vector<double>& each : us) std::sort(each.begin(), each.end());
    return us;
  }

  cudaStream_t stream_;
  Array<char> flush_;
};

struct Variant {
  std::string name;
  flexact::cuda::Wish wish{};
};

// What is compared with the default: choices for calls of so many tokens.
std::vector<Variant> variants_for(int tokens, const std::vector<std::string>& wanted) {
  std::vector<Variant> list = {{"default", {}}};
  const auto add = [&](const std::string& name, auto change) {
    const auto begins = [&](const std::string& each) {
      return !each.empty() && (name.rfind(each, 0) == 0 || each == name + ".");
    };
    if (std::none_of(wanted.begin(), wanted.end(), begins)) return;
    Variant variant{name, {}};
    change(variant.wish);
    list.push_back(variant);
  };
  using flexact::cuda::Path;
  using flexact::cuda::Wish;
  add("dependent", [](Wish& w) { w.dependent_launches = 1; });
  add("serial", [](Wish& w) { w.dependent_launches = 0; });
  add("whole", [](Wish& w) { w.split_last = 0; });
  add("short", [](Wish& w) { w.extra_rows = 0; });
  add("late", [](Wish& w) { w.early_weights = 0; });
  add("late_short", [](Wish& w) { w.early_weights = w.extra_rows = 0; });
  // The default again: what two variants of the same launches differ by.
  add("again", [](Wish&) {});
  for (const int most : {4, 8, 16}) {
    add("expert" + std::to_string(most), [=](Wish& w) { w.group_rows = w.group_rows2 = -most; });
  }
  if (tokens <= 1024) {
    add("routed", [](Wish& w) { w.counted_rows = 0; });
    add("many", [](Wish& w) { w.few_rows = 0; });
    add("few", [](Wish& w) { w.few_rows = 1; });
    add("old", [](Wish& w) {
      w.path = Path::Tiled;
      w.counted_rows = w.few_rows = 0;
    });
    add("new", [](Wish& w) { w.path = Path::Tiled; });
  }
  if (tokens <= 16) {
    add("tiled", [](Wish& w) { w.path = Path::Tiled; });
    add("stream", [](Wish& w) { w.path = Path::Stream; });
    for (const int sum : {0, 1}) {
      for (const int warps : {1, 2, 4}) {
        add("stream_" + std::string(sum == 1 ? "sum" : "combine") + std::to_string(warps), [=](Wish& w) {
          w.path = Path::Stream;
          w.sum = sum;
          w.row_warps = w.row_warps2 = warps;
        });
      }
    }
  } else if (tokens >= 1024) {
    for (const int each : {1, 2, 4, 8}) {
      add("rows" + std::to_string(each), [=](Wish& w) { w.block_tokens = each; });
    }
    add("g4", [](Wish& w) { w.group_rows = w.group_rows2 = 4; });
    add("g8", [](Wish& w) { w.group_rows = w.group_rows2 = 8; });
    add("g16", [](Wish& w) { w.group_rows = w.group_rows2 = 16; });
  }
  return list;
}

struct Options {
  std::string output, shapes, tokens = "1,16,128,1024,4096,16384", function = "swiglu", format = "bf16";
  double seconds = 200;
  std::vector<std::string> variants;  // beginnings of names
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

class Run {
 public:
  explicit Run(const Options& options)
      : options_(options),
        function_(Function::named(options.function).gated()),
        out_(std::fopen(options.output.c_str(), "a")) {
    for (const flexact::Parameter& parameter : function_.parameters()) {
      parameters_.push_back(parameter.default_value.value_or(1.0));
    }
    const std::vector<float> values(parameters_.begin(), parameters_.end());
    values_ = std::make_unique<Array<float>>(values);
  }
  ~Run() { std::fclose(out_); }

  int all() {
    for (const Shape& shape : kShapes) {
      const auto wanted = split(options_.shapes);
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), shape.name) == wanted.end()) continue;
      const Layer layer(shape, options_.format);
      for (const std::string& tokens : split(options_.tokens)) {
        if (elapsed() > options_.seconds) return failures_;
        batch(layer, std::atoi(tokens.c_str()));
      }
    }
    return failures_;
  }

 private:
  std::unique_ptr<flexact::Plan> plan(const Layer& layer, const Variant& variant, unsigned launches) {
    const Shape& s = layer.shape;
    flexact::MoeProblem problem;
    problem.experts = s.experts;
    problem.top_k = s.top_k;
    problem.hidden = s.hidden;
    problem.intermediate = s.intermediate;
    problem.format = layer.format;
    problem.io_dtype = layer.io();
    flexact::cuda::PlanOptions options;
    options.wish = variant.wish;
    options.launches = launches;
    return flexact::cuda::make_moe_plan(problem, function_, layer.weights(), options);
  }

  void batch(const Layer& layer, int tokens) {
    const Shape& s = layer.shape;
    const Batch data(s, tokens, layer.fp16());
    const auto variants = variants_for(tokens, options_.variants);
    const std::size_t bytes = plan(layer, variants[0], flexact::cuda::kAllLaunches)->workspace_bytes(tokens);
    Array<char> workspace(bytes);
    const flexact::ParameterTable values{values_->get(), 1, static_cast<std::int64_t>(parameters_.size())};
    const auto launch = [&](const flexact::Plan& each) {
      each.run(data.inputs(s, layer.io()), values, workspace.get(), bytes, timer_.stream());
    };

    const Expected expected = expected_of(layer, data, function_, parameters_);
    // Each is right before any is timed, and gives the same bits again.
    std::vector<std::unique_ptr<flexact::Plan>> plans;
    std::vector<cudaGraphExec_t> graphs;
    std::vector<double> errors;
    std::vector<std::uint16_t> of_default;
    for (const Variant& variant : variants) {
      plans.push_back(plan(layer, variant, flexact::cuda::kAllLaunches));
      CHECK(cudaMemset(workspace.get(), 0xff, bytes));
      CHECK(cudaMemset(data.output.get(), 0xff, data.output.size() * 2));
      launch(*plans.back());
      CHECK(cudaStreamSynchronize(timer_.stream()));
      const std::vector<std::uint16_t> once = data.output.read();
      errors.push_back(error_of(s, once, layer.fp16(), expected));
      // Some variants only take tiles otherwise, and must agree bit by bit; others add in another order.
      if (of_default.empty()) of_default = once;
      std::size_t others = 0;
      for (std::size_t i = 0; i < once.size(); ++i) others += once[i] != of_default[i] ? 1 : 0;
      if (others != 0) {
        std::printf("%s M=%d %s: %zu of %zu results have other bits than the default's\n", s.name, tokens,
                    variant.name.c_str(), others, once.size());
      }
      // What E4M3 costs: 3 bits of each input and each activated value.
      const bool exact_inputs = layer.format == flexact::Format::Bf16 || layer.fp16() ||
                                layer.format == flexact::Format::Mxfp4 ||
                                layer.format == flexact::Format::Nvfp4;
      const double allowed = exact_inputs ? 0.006 : 0.06;
      if (!(errors.back() < allowed)) {
        std::printf("%s M=%d %s: relative error %.3g\n", s.name, tokens, variant.name.c_str(), errors.back());
        ++failures_;
      }
      graphs.push_back(timer_.capture([&] { launch(*plans.back()); }));
      CHECK(cudaGraphLaunch(graphs.back(), timer_.stream()));
      CHECK(cudaStreamSynchronize(timer_.stream()));
      const std::vector<std::uint16_t> again = data.output.read();
      if (std::memcmp(once.data(), again.data(), once.size() * 2) != 0) {
        std::printf("%s M=%d %s: a replay gives other bits\n", s.name, tokens, variant.name.c_str());
        ++failures_;
      }
    }

    const double flops = static_cast<double>(tokens) * s.top_k * 2.0 * s.hidden * s.intermediate;
    const std::vector<Times> layers = timer_.time(graphs, 0.06);
    for (std::size_t v = 0; v < variants.size(); ++v)
      report(s, tokens, variants[v].name, "layer", layers[v], 3 * flops, errors[v]);

    struct Part {
      const char* name;
      unsigned launches;
      double flops;
    };
    const Part parts[] = {{"gemm1", flexact::cuda::kGemm1, 2 * flops},
                          {"gemm2", flexact::cuda::kGemm2, flops},
                          {"route", flexact::cuda::kRoute, 0},
                          {"sort", flexact::cuda::kSort, 0},
                          {"combine", flexact::cuda::kCombine, 0}};
    for (std::size_t v = 0; v < variants.size(); ++v) {
      for (const Part& part : parts) {
        if (part.launches == flexact::cuda::kGemm1) {
          // The layer's result overwrote the sorted rows.
          launch(*plan(layer, variants[v], flexact::cuda::kSort));
        }
        const auto one = plan(layer, variants[v], part.launches);
        const Times us = timer_.time({timer_.capture([&] { launch(*one); })}, 0.06)[0];
        report(s, tokens, variants[v].name, part.name, us, part.flops, errors[v]);
      }
    }
  }

  void report(const Shape& s, int tokens, const std::string& variant, const char* part, const Times& us,
              double flops, double error) {
    const double tflops = flops / us.median / 1e6;
    std::fprintf(out_,
                 "{\"shape\": \"%s\", \"M\": %d, \"format\": \"%s\", \"variant\": \"%s\", \"function\": \"%s\", "
                 "\"part\": \"%s\", \"us\": %.2f, \"p10\": %.2f, \"p90\": %.2f, \"n\": %d, \"tflops\": %.1f, "
                 "\"relerr\": %.3g}\n",
                 s.name, tokens, options_.format.c_str(), variant.c_str(), options_.function.c_str(), part, us.median,
                 us.low, us.high, us.count, tflops, error);
    std::fflush(out_);
    std::printf("%-11s M=%-6d %-18s %-8s %9.1f us %6.1f TFLOP/s  p10 %.1f p90 %.1f err %.2g\n", s.name, tokens,
                variant.c_str(), part, us.median, tflops, us.low, us.high, error);
    std::fflush(stdout);
  }

  Options options_;
  Function function_;
  std::vector<double> parameters_;
  std::unique_ptr<Array<float>> values_;
  Timer timer_;
  std::FILE* out_;
  int failures_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  begin_ = std::chrono::steady_clock::now();
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto next = [&] { return std::string(i + 1 < count ? arguments[++i] : ""); };
    if (name == "--shapes") {
      options.shapes = next();
    } else if (name == "--tokens") {
      options.tokens = next();
    } else if (name == "--function") {
      options.function = next();
    } else if (name == "--format") {
      options.format = next();
    } else if (name == "--seconds") {
      options.seconds = std::atof(next().c_str());
    } else if (name == "--variants") {
      options.variants = split(next());
    } else {
      options.output = name;
    }
  }
  try {
    CHECK(cudaFree(nullptr));
    return Run(options).all() == 0 ? 0 : 1;
  } catch (const flexact::Error& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
}
