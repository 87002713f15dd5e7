// The library's version, as compiled and as linked.
#pragma once

#define FLEXACT_VERSION_MAJOR 0
#define FLEXACT_VERSION_MINOR 1
#define FLEXACT_VERSION_PATCH 0
#define FLEXACT_VERSION_STRING "0.1.0"

namespace flexact {

// The version of the linked library, "MAJOR.MINOR.PATCH".
const char* version() noexcept;

}  // namespace flexact
