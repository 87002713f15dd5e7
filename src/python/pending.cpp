// Weak definitions of the parts of the library that are not written yet: the module loads, and a
// call of such a part is refused. A real definition takes a weak one's place by itself.
#include "flexact/backend.hpp"
#include "flexact/config.hpp"
#include "flexact/error.hpp"
#include "flexact/moe.hpp"

#define PENDING __attribute__((weak))

namespace flexact {

namespace {
[[noreturn]] void pending() {
  throw Error(ErrorCode::Unsupported, "not part of this build");
}
}  // namespace

PENDING void act_and_mul(const Function&, const ParameterTable&, Pairing, DType, std::int64_t,
                         std::int64_t, const void*, std::int64_t, void*, std::int64_t) {
  pending();
}

}  // namespace flexact
