// Linked kernels as functions of a GPU: loaded once into each context, whatever the number of
// layers.
#pragma once

#include <string>

#include "cuda/driver.hpp"
#include "cuda/jit/linker.hpp"

namespace flexact::cuda {

// The kernel `name` of a linked module in the current context, with the shared memory that it may
// use. Modules stay loaded as long as the process lives. Throws DeviceError.
Kernel kernel_of(const Driver& driver, Context context, const LinkedKernel& linked,
                 const char* name, int shared_bytes);

}  // namespace flexact::cuda
