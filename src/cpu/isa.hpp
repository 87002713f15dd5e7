// Which instruction sets this build and this machine have, and which one to use; how this machine
// likes its weights fetched.
#pragma once

#include <cstdint>
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

// What brings the weights into the caches before they are used. Where the processor's own
// prefetching keeps up with a row of reads, asking for the same lines early takes from it the
// buffers that its reads wait in; see panel.cpp.
enum class Prefetch : std::uint8_t {
  IntoL1,  // instructions, for every tile
  IntoL2,  // the processor for a lone tile; instructions where several tiles share a panel
};
// What was measured to be faster on the machine's kind of processor.
Prefetch preferred_prefetch() noexcept;

}  // namespace flexact::cpu
