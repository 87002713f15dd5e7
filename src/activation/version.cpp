// The version as compiled into the library.
#include "flexact/version.hpp"

namespace flexact {

const char* version() noexcept {
  return FLEXACT_VERSION_STRING;
}

}  // namespace flexact
