// Which instruction sets this build and this machine have, and which one to use.
#pragma once

#include <string_view>
#include <vector>

namespace flexact::cpu {

// In order of preference, least first; each includes the ones before it.
enum class Isa {
  Scalar,      // portable C++
  Avx2,        // AVX2, FMA, F16C
  Avx512,      // AVX-512 F, BW, DQ, VL
  Avx512Bf16,  // the same and AVX512_BF16 (vdpbf16ps)
};

// "scalar", "avx2", "avx512", "avx512bf16".
std::string_view to_string(Isa isa) noexcept;
// The inverse. Throws InvalidArgument naming the known ones.
Isa parse_isa(std::string_view text);

// True where the processor and the operating system support `isa`.
bool is_supported(Isa isa) noexcept;
// The supported ones in order of preference, least first; never empty.
std::vector<Isa> supported_isas();

// The ISA to use: FLEXACT_CPU_ISA where it is set and not empty, else the best supported one. Reads
// the environment at every call, so decide once per plan. Throws InvalidArgument for a name that is
// unknown, Unsupported for one that this machine lacks: a forced choice never falls back.
Isa selected_isa();

}  // namespace flexact::cpu
