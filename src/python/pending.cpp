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

PENDING Role parse_role(std::string_view) {
  pending();
}
PENDING Pairing parse_pairing(std::string_view) {
  pending();
}
PENDING Format parse_format(std::string_view) {
  pending();
}
PENDING void act_and_mul(const Function&, const ParameterTable&, Pairing, DType, std::int64_t,
                         std::int64_t, const void*, std::int64_t, void*, std::int64_t) {
  pending();
}
PENDING std::vector<std::string> known_stacks() {
  pending();
}
PENDING ModelActivations resolve_config(const std::filesystem::path&, const ResolveOptions&) {
  pending();
}
PENDING ModelActivations resolve_config_text(std::string_view, const ResolveOptions&) {
  pending();
}
PENDING Function function_from_stack(std::string_view, std::string_view) {
  pending();
}
PENDING const Backend& backend(const std::string&) {
  pending();
}
PENDING const std::vector<const Backend*>& backends() {
  pending();
}
PENDING std::string_view to_string(DType) noexcept {
  return "pending";
}
PENDING std::string_view to_string(Format) noexcept {
  return "pending";
}
PENDING std::string_view to_string(Pairing) noexcept {
  return "pending";
}
PENDING const std::optional<ResolvedActivation>& LayerActivations::role(Role) const noexcept {
  return routed;
}
PENDING std::string ModelActivations::to_json(int) const {
  pending();
}
PENDING std::string Function::emit(Target) const {
  pending();
}
PENDING Function Function::gradient(std::string_view) const {
  pending();
}

}  // namespace flexact
