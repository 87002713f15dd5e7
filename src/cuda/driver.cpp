// Loading the driver, and what its statuses say.
#include "cuda/driver.hpp"

#include <memory>

namespace flexact::cuda {

Driver::Driver() : library_(load_library("libcuda.so.1")) {
  if (!library_) {
    throw Error(ErrorCode::DeviceError, "there is no NVIDIA driver here", "libcuda.so.1",
                "install NVIDIA's driver");
  }
  int (*start)(unsigned) = nullptr;
  library_.load("cuInit", start);
  library_.load("cuGetErrorName", error_name_);
  library_.load("cuGetErrorString", error_text_);
  library_.load("cuDeviceGetCount", device_count);
  library_.load("cuDeviceGetAttribute", device_attribute);
  library_.load("cuDeviceGetName", device_name);
  library_.load("cuPointerGetAttribute", pointer_attribute);
  library_.load("cuCtxGetCurrent", context_current);
  library_.load("cuCtxPushCurrent_v2", context_push);
  library_.load("cuCtxPopCurrent_v2", context_pop);
  library_.load("cuCtxGetDevice", context_device);
  library_.load("cuModuleLoadData", module_load);
  library_.load("cuModuleGetFunction", module_function);
  library_.load("cuFuncSetAttribute", function_attribute);
  library_.load("cuLaunchKernelEx", launch);
  library_.load("cuTensorMapEncodeTiled", tensor_map);
  library_.load("cuMemAlloc_v2", allocate);
  library_.load("cuMemFree_v2", release);
  library_.load("cuMemcpyDtoH_v2", copy_to_host);
  library_.load("cuStreamSynchronize", stream_synchronize);
  check(start(0), "the driver starts");
}

const Driver& Driver::instance() {
  static const Driver driver;
  return driver;
}

const Driver* Driver::find(std::string& why) {
  try {
    return &instance();
  } catch (const Error& error) {
    why = error.what();
    return nullptr;
  }
}

void Driver::check(int status, const char* doing) const {
  if (status == 0) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (error_name_(status, &name) != 0 || name == nullptr) name = "an unknown error";
  if (error_text_(status, &text) != 0 || text == nullptr) text = "";
  throw Error(ErrorCode::DeviceError,
              std::string(name) + " while " + doing + (*text != 0 ? std::string(": ") + text : ""));
}

ContextGuard::ContextGuard(const Driver& driver, Context context) : driver_(driver) {
  Context current = nullptr;
  driver.check(driver.context_current(&current), "asking for the current context");
  if (current == context) return;
  driver.check(driver.context_push(context), "making a context current");
  pushed_ = true;
}

ContextGuard::~ContextGuard() {
  Context ignored = nullptr;
  if (pushed_) driver_.context_pop(&ignored);
}

Location location_of(const Driver& driver, const char* name, const void* data) {
  constexpr int kContext = 1;
  constexpr int kMemoryType = 2;
  constexpr int kOrdinal = 9;
  constexpr unsigned kDevice = 2;
  const auto pointer = static_cast<DevicePointer>(reinterpret_cast<std::uintptr_t>(data));
  Location location;
  unsigned type = 0;
  if (driver.pointer_attribute(&type, kMemoryType, pointer) != 0 || type != kDevice ||
      driver.pointer_attribute(&location.context, kContext, pointer) != 0 ||
      driver.pointer_attribute(&location.device, kOrdinal, pointer) != 0 ||
      location.context == nullptr) {
    throw Error(ErrorCode::InvalidArgument, "is no device memory", name,
                "a pointer that cudaMalloc gave");
  }
  return location;
}

}  // namespace flexact::cuda
