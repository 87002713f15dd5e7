// CUDA's driver at run time: the few calls that are used, declared here, so that flexact is built
// without its headers and runs where there is no driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/jit/shared_library.hpp"

namespace flexact::cuda {

using DevicePointer = unsigned long long;
using Context = void*;
using Module = void*;
using Kernel = void*;
using Stream = void*;

// The driver's CUtensorMap: what the copy engine knows of a tensor. Made on the host, passed by
// value.
struct alignas(64) TensorMap {
  std::uint64_t opaque[16];
};

struct LaunchAttribute {
  std::int32_t id;
  std::int32_t padding;
  union {
    std::uint8_t bytes[64];
    struct {
      unsigned x, y, z;
    } cluster;
    int programmatic;
  } value;
};

// CUDA's numbers of the attributes that are used.
inline constexpr int kClusterDimension = 4;
inline constexpr int kProgrammaticLaunch = 6;  // the kernel may start before its predecessor ends

struct LaunchConfiguration {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

class Driver {
 public:
  // Throws DeviceError where there is no driver or it does not start.
  static const Driver& instance();
  // Null where instance() would throw; `why` says why.
  static const Driver* find(std::string& why);

  // Throws DeviceError with the driver's name of a status other than 0 and what was being done.
  void check(int status, const char* doing) const;

  int (*device_count)(int*);
  int (*device_attribute)(int*, int, int);
  int (*device_name)(char*, int, int);
  int (*pointer_attribute)(void*, int, DevicePointer);
  int (*context_current)(Context*);
  int (*context_push)(Context);
  int (*context_pop)(Context*);
  int (*context_device)(int*);
  int (*module_load)(Module*, const void*);
  int (*module_function)(Kernel*, Module, const char*);
  int (*function_attribute)(Kernel, int, int);
  int (*launch)(const LaunchConfiguration*, Kernel, void**, void**);
  int (*tensor_map)(TensorMap*, int, std::uint32_t, void*, const std::uint64_t*,
                    const std::uint64_t*, const std::uint32_t*, const std::uint32_t*, int, int, int,
                    int);
  int (*allocate)(DevicePointer*, std::size_t);
  int (*release)(DevicePointer);
  int (*copy_to_host)(void*, DevicePointer, std::size_t);
  int (*stream_synchronize)(Stream);

 private:
  Driver();

  SharedLibrary library_;
  int (*error_name_)(int, const char**);
  int (*error_text_)(int, const char**);
};

// Device attributes by CUDA's numbers.
inline constexpr int kMultiprocessors = 16;
inline constexpr int kCapabilityMajor = 75;
inline constexpr int kCapabilityMinor = 76;

// A device pointer's context is current while this lives.
class ContextGuard {
 public:
  ContextGuard(const Driver& driver, Context context);
  ~ContextGuard();
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

 private:
  const Driver& driver_;
  bool pushed_ = false;
};

// The context and the device that hold `data`. Throws InvalidArgument naming `name` where it is no
// device memory.
struct Location {
  Context context = nullptr;
  int device = 0;
};
Location location_of(const Driver& driver, const char* name, const void* data);

}  // namespace flexact::cuda
