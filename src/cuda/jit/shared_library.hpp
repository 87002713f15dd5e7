// NVIDIA's libraries at run time: found through dlopen, so that flexact itself needs none of them.
#pragma once

#include <string>
#include <vector>

#include "flexact/error.hpp"

namespace flexact::cuda {

// A library that was loaded; it stays loaded as long as the process lives.
class SharedLibrary {
 public:
  SharedLibrary() = default;
  SharedLibrary(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}

  explicit operator bool() const noexcept { return handle_ != nullptr; }
  const std::string& path() const noexcept { return path_; }

  // Throws DeviceError naming the symbol and the library.
  template <typename F>
  void load(const char* symbol, F& function) const {
    function = reinterpret_cast<F>(find(symbol));
    if (function == nullptr) {
      throw Error(ErrorCode::DeviceError, std::string("has no ") + symbol, path_,
                  "another version of the library is needed");
    }
  }
  void* find(const char* symbol) const noexcept;

 private:
  void* handle_ = nullptr;
  std::string path_;
};

// Where the file `name` ("libnvrtc.so.13") may be, in order: FLEXACT_CUDA_PATH; NVIDIA's Python
// packages in the site-packages that hold this library, the running program or VIRTUAL_ENV;
// CUDA_HOME, CUDA_PATH and /usr/local/cuda. Files that exist only.
std::vector<std::string> find_library_files(const std::string& name);

// Loads `name` from where the process has it already, from the files above, or from where the
// system's loader finds it. An empty library where there is none. Libraries beside it whose names
// begin with `companion` are loaded first: it would look for them without knowing the folder.
SharedLibrary load_library(const std::string& name, const std::string& companion = {});

// The path of what load_library() would load, without loading it; empty where only the system's
// loader could tell.
std::string locate_library(const std::string& name);

}  // namespace flexact::cuda
