// The two libraries' C interfaces, as far as they are used, and calls of them.
#include "cuda/jit/toolchain.hpp"

#include <cstdint>
#include <fstream>
#include <memory>
#include <utility>

#include "activation/digest.hpp"

namespace flexact::cuda {

namespace {

constexpr const char* kCompilerName = "libnvrtc.so.13";
constexpr const char* kLinkerName = "libnvJitLink.so.13";
constexpr const char* kInstall =
    "pip install nvidia-cuda-nvrtc nvidia-nvjitlink (13.0 or newer), or set FLEXACT_CUDA_PATH to a "
    "folder that holds both";

[[noreturn]] void fail(const std::string& what, const std::string& log, const std::string& where) {
  throw Error(ErrorCode::DeviceError, log.empty() ? what : what + ": " + log, where);
}

// The logs end with a zero or several, and with empty lines.
std::string trimmed(std::string text) {
  text.erase(text.find_last_not_of(std::string("\0 \n", 3)) + 1);
  return text;
}

}  // namespace

std::string to_string(ToolVersion version) {
  return std::to_string(version.major) + "." + std::to_string(version.minor);
}

struct Toolchain::CompilerApi {
  using Program = void*;
  int (*version)(int*, int*);
  const char* (*error)(int);
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*destroy)(Program*);
  int (*compile)(Program, int, const char* const*);
  int (*log_size)(Program, std::size_t*);
  int (*log)(Program, char*);
  int (*ir_size)(Program, std::size_t*);
  int (*ir)(Program, char*);

  explicit CompilerApi(const SharedLibrary& library) {
    library.load("nvrtcVersion", version);
    library.load("nvrtcGetErrorString", error);
    library.load("nvrtcCreateProgram", create);
    library.load("nvrtcDestroyProgram", destroy);
    library.load("nvrtcCompileProgram", compile);
    library.load("nvrtcGetProgramLogSize", log_size);
    library.load("nvrtcGetProgramLog", log);
    library.load("nvrtcGetLTOIRSize", ir_size);
    library.load("nvrtcGetLTOIR", ir);
  }
};

struct Toolchain::LinkerApi {
  using Handle = void*;
  static constexpr int kLtoIr = 3;
  static constexpr int kFatBinary = 4;
  int (*version)(unsigned*, unsigned*);
  int (*create)(Handle*, std::uint32_t, const char**);
  int (*destroy)(Handle*);
  int (*add)(Handle, int, const void*, std::size_t, const char*);
  int (*complete)(Handle);
  int (*cubin_size)(Handle, std::size_t*);
  int (*cubin)(Handle, void*);
  int (*error_size)(Handle, std::size_t*);
  int (*error)(Handle, char*);
  int (*info_size)(Handle, std::size_t*);
  int (*info)(Handle, char*);

  explicit LinkerApi(const SharedLibrary& library) {
    library.load("nvJitLinkVersion", version);
    library.load("nvJitLinkCreate", create);
    library.load("nvJitLinkDestroy", destroy);
    library.load("nvJitLinkAddData", add);
    library.load("nvJitLinkComplete", complete);
    library.load("nvJitLinkGetLinkedCubinSize", cubin_size);
    library.load("nvJitLinkGetLinkedCubin", cubin);
    library.load("nvJitLinkGetErrorLogSize", error_size);
    library.load("nvJitLinkGetErrorLog", error);
    library.load("nvJitLinkGetInfoLogSize", info_size);
    library.load("nvJitLinkGetInfoLog", info);
  }

  std::string everything_said(Handle handle) const {
    std::string text;
    for (const auto& [size_of, read] : {std::pair{error_size, error}, std::pair{info_size, info}}) {
      std::size_t size = 0;
      if (size_of(handle, &size) != 0 || size == 0) continue;
      std::string part(size + 1, '\0');
      if (read(handle, part.data()) == 0) text += trimmed(std::move(part)) + "\n";
    }
    return trimmed(std::move(text));
  }
};

Toolchain::Toolchain()
    : compiler_(load_library(kCompilerName, "libnvrtc-builtins.so.")),
      linker_(load_library(kLinkerName)) {
  if (!compiler_)
    fail("not found", "the run-time compiler NVRTC is needed; " + std::string(kInstall),
         kCompilerName);
  if (!linker_)
    fail("not found", "the run-time linker nvJitLink is needed; " + std::string(kInstall),
         kLinkerName);
  CompilerApi(compiler_).version(&compiler_version_.major, &compiler_version_.minor);
  unsigned major = 0;
  unsigned minor = 0;
  LinkerApi(linker_).version(&major, &minor);
  linker_version_ = {static_cast<int>(major), static_cast<int>(minor)};
  if (linker_version_ < compiler_version_) {
    throw Error(ErrorCode::DeviceError,
                "nvJitLink " + to_string(linker_version_) + " is older than NVRTC " +
                    to_string(compiler_version_) + ", whose output it must link",
                linker_.path(), kInstall);
  }
}

const Toolchain& Toolchain::instance() {
  static const Toolchain toolchain;
  return toolchain;
}

std::string Toolchain::compile(const std::string& source, const std::string& architecture) const {
  const CompilerApi api(compiler_);
  CompilerApi::Program raw = nullptr;
  if (const int status =
          api.create(&raw, source.c_str(), "flexact_function.cu", 0, nullptr, nullptr)) {
    fail("nvrtcCreateProgram fails", api.error(status), compiler_.path());
  }
  const auto destroy = [&api](void* program) { api.destroy(&program); };
  const std::unique_ptr<void, decltype(destroy)> program(raw, destroy);

  const std::string target = "-arch=" + architecture;
  const char* const options[] = {"-dlto", "-rdc=true", "-std=c++17", target.c_str()};
  if (const int status = api.compile(raw, static_cast<int>(std::size(options)), options)) {
    std::size_t size = 0;
    api.log_size(raw, &size);
    std::string log(size + 1, '\0');
    api.log(raw, log.data());
    fail(std::string("NVRTC does not compile the function (") + api.error(status) + ")",
         trimmed(std::move(log)), compiler_.path());
  }
  std::size_t size = 0;
  std::string ir;
  if (api.ir_size(raw, &size) != 0 || size == 0)
    fail("NVRTC gives no LTO-IR", {}, compiler_.path());
  ir.resize(size);
  if (api.ir(raw, ir.data()) != 0) fail("NVRTC gives no LTO-IR", {}, compiler_.path());
  return ir;
}

Linked Toolchain::link(std::string_view kernels, std::span<const std::string> functions,
                       const std::string& architecture) const {
  const LinkerApi api(linker_);
  const std::string target = "-arch=" + architecture;
  const char* options[] = {target.c_str(), "-lto", "-verbose", "-Xptxas=-v"};
  LinkerApi::Handle raw = nullptr;
  if (api.create(&raw, static_cast<std::uint32_t>(std::size(options)), options) != 0) {
    fail("nvJitLinkCreate fails for " + architecture, {}, linker_.path());
  }
  const auto destroy = [&api](void* handle) { api.destroy(&handle); };
  const std::unique_ptr<void, decltype(destroy)> handle(raw, destroy);

  // A fat binary starts with its magic number; what NVRTC made is bare LTO-IR.
  const auto add = [&](std::string_view data, const char* name) {
    const bool fat = data.substr(0, 4) == "\x50\xed\x55\xba";
    const int type = fat ? LinkerApi::kFatBinary : LinkerApi::kLtoIr;
    if (api.add(raw, type, data.data(), data.size(), name) != 0) {
      fail(std::string("nvJitLink does not take the ") + name, api.everything_said(raw),
           linker_.path());
    }
  };
  add(kernels, "kernels");
  for (const std::string& function : functions) add(function, "function");
  if (const int status = api.complete(raw)) {
    fail("nvJitLink does not link (status " + std::to_string(status) + ")",
         api.everything_said(raw), linker_.path());
  }
  std::size_t size = 0;
  Linked linked;
  linked.log = api.everything_said(raw);
  if (api.cubin_size(raw, &size) != 0 || size == 0)
    fail("nvJitLink gives no code", linked.log, linker_.path());
  linked.cubin.resize(size);
  if (api.cubin(raw, linked.cubin.data()) != 0)
    fail("nvJitLink gives no code", linked.log, linker_.path());
  return linked;
}

std::string toolchain_identity() {
  std::string text;
  for (const char* name : {kCompilerName, kLinkerName}) {
    std::string path = locate_library(name);
    if (path.empty()) {
      const Toolchain& tools = Toolchain::instance();
      path = name == kCompilerName ? tools.compiler_path() : tools.linker_path();
    }
    // The head of a library holds the sizes of its parts and the digest that its build left there.
    std::string head(4096, '\0');
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const auto size = static_cast<std::int64_t>(file.tellg());
    file.seekg(0).read(head.data(), static_cast<std::streamsize>(head.size()));
    text +=
        std::string(name) + " " + std::to_string(size) + " " + activation::sha256_hex(head) + "\n";
  }
  return text;
}

}  // namespace flexact::cuda
