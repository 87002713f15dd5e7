// The driver calls that only tests need.
#include "device.hpp"

#include "cuda/driver.hpp"
#include "cuda/jit/shared_library.hpp"

namespace flexact::conformance {

namespace {

using cuda::DevicePointer;

struct Copies {
  int (*retain)(void**, int);
  int (*set)(void*);
  int (*synchronize)();
  int (*upload)(DevicePointer, const void*, std::size_t);
  int (*download)(void*, DevicePointer, std::size_t);

  Copies() {
    const cuda::SharedLibrary library = cuda::load_library("libcuda.so.1");
    library.load("cuDevicePrimaryCtxRetain", retain);
    library.load("cuCtxSetCurrent", set);
    library.load("cuCtxSynchronize", synchronize);
    library.load("cuMemcpyHtoD_v2", upload);
    library.load("cuMemcpyDtoH_v2", download);
    void* context = nullptr;
    cuda::Driver::instance().check(retain(&context, 0), "retaining the context");
    cuda::Driver::instance().check(set(context), "setting the context");
  }
};

const Copies& copies() {
  static const Copies instance;
  return instance;
}

DevicePointer pointer(const void* address) {
  return static_cast<DevicePointer>(reinterpret_cast<std::uintptr_t>(address));
}

}  // namespace

Device::Device() {
  copies();
}

Device::~Device() {
  for (void* each : memory_) cuda::Driver::instance().release(pointer(each));
}

void* Device::copy(const void* data, std::size_t bytes) {
  const cuda::Driver& driver = cuda::Driver::instance();
  DevicePointer made = 0;
  driver.check(driver.allocate(&made, bytes == 0 ? 1 : bytes), "allocating a test's tensor");
  memory_.push_back(reinterpret_cast<void*>(static_cast<std::uintptr_t>(made)));
  if (bytes > 0) driver.check(copies().upload(made, data, bytes), "copying a test's tensor");
  return memory_.back();
}

TensorView Device::copy(TensorView view) {
  if (!view) return view;
  std::int64_t elements = 1;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[static_cast<std::size_t>(i)] == 0) elements = 0;
  }
  for (int i = 0; i < view.rank && elements > 0; ++i) {
    const auto at = static_cast<std::size_t>(i);
    elements += (view.shape[at] - 1) * view.strides[at];
  }
  view.data = copy(view.data, static_cast<std::size_t>(elements * size_of(view.dtype)));
  return view;
}

MoeWeights Device::copy(MoeWeights weights) {
  for (TensorView* view : {&weights.w13, &weights.w2, &weights.w13_bias, &weights.w2_bias,
                           &weights.w13_scale, &weights.w2_scale, &weights.w13_global_scale,
                           &weights.w2_global_scale, &weights.a13_scale, &weights.a2_scale}) {
    *view = copy(*view);
  }
  return weights;
}

MoeInputs Device::copy(MoeInputs inputs) {
  for (TensorView* view : {&inputs.hidden_states, &inputs.topk_weights, &inputs.topk_ids}) {
    *view = copy(*view);
  }
  return inputs;
}

ParameterTable Device::copy(ParameterTable values) {
  if (values.data != nullptr) {
    values.data = static_cast<const float*>(
        copy(values.data, static_cast<std::size_t>(values.rows * values.columns) * sizeof(float)));
  }
  return values;
}

void Device::read(std::byte* to, const void* from, std::size_t bytes) const {
  const cuda::Driver& driver = cuda::Driver::instance();
  driver.check(copies().synchronize(), "running a layer");
  driver.check(copies().download(to, pointer(from), bytes), "copying a result");
}

}  // namespace flexact::conformance
