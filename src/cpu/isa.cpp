// Detection of instruction sets and of the processor, and the override by environment.
#include "cpu/isa.hpp"

#include <cstdlib>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "flexact/error.hpp"

namespace flexact::cpu {

namespace {

constexpr Isa kAllIsas[] = {Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16};

std::string list_of(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) {
    if (!text.empty()) text += ", ";
    text += to_string(isa);
  }
  return text;
}

#if defined(__x86_64__)
// Clang does not know the name "f16c" at run time. The operating system's part is that of AVX.
bool has_f16c() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

}  // namespace

std::string_view to_string(Isa isa) noexcept {
  switch (isa) {
    case Isa::Scalar:
      return "scalar";
    case Isa::Avx2:
      return "avx2";
    case Isa::Avx512:
      return "avx512";
    case Isa::Avx512Bf16:
      return "avx512bf16";
  }
  return "unknown";
}

Isa parse_isa(std::string_view text) {
  for (Isa isa : kAllIsas) {
    if (text == to_string(isa)) return isa;
  }
  throw Error(ErrorCode::InvalidArgument, "unknown instruction set '" + std::string(text) + "'", {},
              "known: " + list_of({std::begin(kAllIsas), std::end(kAllIsas)}));
}

bool is_supported(Isa isa) noexcept {
#if defined(__x86_64__)
  // The compiler's run-time support asks the operating system (XCR0) as well as the processor.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::Scalar:
      return true;
    case Isa::Avx2:
      return avx2;
    case Isa::Avx512:
      return avx512;
    case Isa::Avx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::Scalar;
#endif
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (is_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

Isa selected_isa() {
  const char* forced = std::getenv("FLEXACT_CPU_ISA");
  const std::vector<Isa> supported = supported_isas();
  if (forced == nullptr || *forced == '\0') return supported.back();
  Isa isa = Isa::Scalar;
  try {
    isa = parse_isa(forced);
  } catch (const Error& error) {
    throw Error(error.code(), error.message(), "FLEXACT_CPU_ISA", error.hint());
  }
  if (!is_supported(isa)) {
    throw Error(ErrorCode::Unsupported, "this machine has no " + std::string(to_string(isa)),
                "FLEXACT_CPU_ISA", "supported here: " + list_of(supported));
  }
  return isa;
}

Prefetch preferred_prefetch() noexcept {
#if defined(__x86_64__)
  unsigned leaf = 0, b = 0, c = 0, d = 0, version = 0;
  if (__get_cpuid(0, &leaf, &b, &c, &d) != 0 && c == signature_AMD_ecx &&
      __get_cpuid(1, &version, &b, &c, &d) != 0) {
    const unsigned family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    if (family == 0x19) return Prefetch::IntoL2;  // Zen 3 and Zen 4
  }
#endif
  return Prefetch::IntoL1;
}

}  // namespace flexact::cpu
