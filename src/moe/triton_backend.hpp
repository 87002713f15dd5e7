// What the Triton kernels compute. They run from Python (python/flexact/triton); this is their
// entry in the table of backends, which says what is refused and why.
#pragma once

#include "flexact/backend.hpp"

namespace flexact::moe {

const Backend& triton_backend();

}  // namespace flexact::moe
