// The process's modules, by context and link.
#include "cuda/module_cache.hpp"

#include <map>
#include <mutex>
#include <utility>

namespace flexact::cuda {

Kernel kernel_of(const Driver& driver, Context context, const LinkedKernel& linked,
                 const char* name, int shared_bytes) {
  constexpr int kMaxSharedBytes = 8;
  static std::mutex mutex;
  static std::map<std::pair<Context, std::string>, Module> modules;
  const std::lock_guard lock(mutex);
  Module& module = modules[{context, linked.key}];
  if (module == nullptr) {
    driver.check(driver.module_load(&module, linked.cubin.data()), "loading linked kernels");
  }
  Kernel kernel = nullptr;
  driver.check(driver.module_function(&kernel, module, name), "looking up a linked kernel");
  if (shared_bytes > 48 * 1024) {
    driver.check(driver.function_attribute(kernel, kMaxSharedBytes, shared_bytes),
                 "asking for a kernel's shared memory");
  }
  return kernel;
}

}  // namespace flexact::cuda
