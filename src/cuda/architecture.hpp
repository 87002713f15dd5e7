// The GPU architectures that there are kernels for.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "flexact/backend.hpp"

namespace flexact::cuda {

class Driver;

// Images whose names begin with `images` are linked for this architecture alone: their matrix
// instructions are its own. All others are linked for any of them.
struct Architecture {
  const char* name;  // as NVRTC and nvJitLink know it
  const char* images;
  int major, minor;     // compute capability
  bool tried;           // its kernels have run on hardware
  bool parts_of_tiles;  // tiles of half the rows, or some more, take as much less or more time
};

std::span<const Architecture> architectures();

// The one that this machine's GPUs have: what has run on hardware before what has not. nullptr:
// none of their compute capabilities has kernels.
const Architecture* machine_architecture(const Driver& driver);

// A format's GEMM without a function; the architecture stands before its image's name.
std::string plain_gemm(Format format);

// A device's, which has the tensor `name`. Throws Unsupported where there are none, or
// refuse_untried() says so.
const Architecture& architecture_for(const Driver& driver, int device, const char* name);

// Why kernels are not linked for an architecture: they have not run on hardware, and
// FLEXACT_UNTRIED_KERNELS is not "run". Throws InvalidArgument where it is no word at all.
std::optional<Refusal> refuse_untried(const Architecture& architecture);
// Why a layer of this format is not: the build has no GEMM of it.
std::optional<Refusal> refuse_format(const Architecture& architecture, Format format);

// "compute capability 9.0 (sm_90a) or 10.0 (sm_100a)"
std::string wanted_capabilities();

}  // namespace flexact::cuda
