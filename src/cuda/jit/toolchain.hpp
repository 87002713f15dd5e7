// NVRTC and nvJitLink: a function's text to LTO-IR, and LTO-IR to machine code.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/jit/shared_library.hpp"

namespace flexact::cuda {

// The CUDA generation whose libraries are used; LTO-IR may not cross it.
inline constexpr int kCudaMajor = 13;

struct ToolVersion {
  int major = 0;
  int minor = 0;
  auto operator<=>(const ToolVersion&) const = default;
};
std::string to_string(ToolVersion version);

struct Linked {
  std::string cubin;
  std::string log;  // everything the linker said
};

// Thread-safe: each call makes its own program or link.
class Toolchain {
 public:
  // Throws DeviceError saying which library is missing or too old, and what to install.
  Toolchain();
  // The process's own; loads the libraries at the first call that succeeds.
  static const Toolchain& instance();

  ToolVersion compiler_version() const noexcept { return compiler_version_; }
  ToolVersion linker_version() const noexcept { return linker_version_; }
  const std::string& compiler_path() const noexcept { return compiler_.path(); }
  const std::string& linker_path() const noexcept { return linker_.path(); }

  // LTO-IR of `source` for `architecture` ("sm_90a"). Throws DeviceError with the compiler's log.
  std::string compile(const std::string& source, const std::string& architecture) const;

  // Links LTO-IR: what nvcc made (a fat binary) and what compile() made. Throws DeviceError with
  // the linker's log.
  Linked link(std::string_view kernels, std::span<const std::string> functions,
              const std::string& architecture) const;

 private:
  struct CompilerApi;
  struct LinkerApi;

  SharedLibrary compiler_;
  SharedLibrary linker_;
  ToolVersion compiler_version_;
  ToolVersion linker_version_;
};

// What tells one installation of both libraries from another: path, size and time of the files.
// Loads them only where nothing else tells which files they are. Throws DeviceError where they are
// missing.
std::string toolchain_identity();

}  // namespace flexact::cuda
