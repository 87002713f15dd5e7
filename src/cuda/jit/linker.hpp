// Late linking: a shipped kernel and a function become machine code, once for each pair.
//
//   kernel (LTO-IR, from the build) ─┐
//                                    ├─ nvJitLink ─→ cubin ─→ disk cache ─→ every layer, every
//                                    process
//   function (text) ─ NVRTC ─ LTO-IR ┘
#pragma once

#include <memory>
#include <string>

#include "cuda/jit/disk_cache.hpp"
#include "cuda/jit/kernel_images.hpp"
#include "cuda/jit/link_log.hpp"

namespace flexact::cuda {

struct LinkedKernel {
  std::string key;  // a digest of everything that the code depends on
  std::string cubin;
  LinkReport report;
  bool from_disk = false;
  double compile_ms = 0;  // NVRTC; 0 from disk
  double link_ms = 0;     // nvJitLink, or reading the cache
};

// Links `source` (empty: a kernel without a function) into the image's kernels. Neither memory nor
// disk is asked twice for the same pair; safe from many threads. Prints what FLEXACT_VERBOSE asks
// for, and a warning where the code has faults (link_log.hpp); `label` names the function there.
// Throws DeviceError.
std::shared_ptr<const LinkedKernel> link_kernel(const KernelImage& image, const std::string& source,
                                                const std::string& architecture,
                                                const std::string& label);

// The same without the memory of this process, with a cache of the caller's.
LinkedKernel link_kernel_with(const DiskCache& cache, const KernelImage& image,
                              const std::string& source, const std::string& architecture,
                              const std::string& label);

}  // namespace flexact::cuda
