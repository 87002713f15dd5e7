// The search order for NVIDIA's libraries.
#include "cuda/jit/shared_library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

namespace flexact::cuda {

namespace {

namespace fs = std::filesystem;

// The folders named site-packages above or beside a file of an environment: a module in
// PREFIX/lib/pythonX/site-packages/flexact, or a program in PREFIX/bin.
void add_site_packages(const fs::path& prefix, std::vector<fs::path>& folders) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(prefix / "lib", ignored)) {
    if (entry.path().filename().string().rfind("python3", 0) != 0) continue;
    folders.push_back(entry.path() / "site-packages");
  }
}

std::vector<fs::path> site_packages() {
  std::vector<fs::path> folders;
  Dl_info self{};
  if (::dladdr(reinterpret_cast<const void*>(&find_library_files), &self) != 0 &&
      self.dli_fname != nullptr) {
    fs::path folder = fs::path(self.dli_fname).parent_path();
    for (; folder.has_relative_path(); folder = folder.parent_path()) {
      if (folder.filename() == "site-packages" || folder.filename() == "dist-packages") {
        folders.push_back(folder);
      }
    }
  }
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  if (program.parent_path().filename() == "bin") {
    add_site_packages(program.parent_path().parent_path(), folders);
  }
  if (const char* environment = std::getenv("VIRTUAL_ENV")) {
    add_site_packages(environment, folders);
  }
  return folders;
}

void* open_library(const std::string& path, int flags) {
  return ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
}

// The file that a loaded library came from.
std::string path_of(void* handle, const std::string& fallback, const char* symbol) {
  Dl_info info{};
  void* address = symbol == nullptr ? nullptr : ::dlsym(handle, symbol);
  if (address != nullptr && ::dladdr(address, &info) != 0 && info.dli_fname != nullptr) {
    return info.dli_fname;
  }
  return fallback;
}

const char* known_symbol(const std::string& name) {
  if (name.rfind("libnvrtc.", 0) == 0) return "nvrtcVersion";
  if (name.rfind("libnvJitLink.", 0) == 0) return "nvJitLinkVersion";
  return nullptr;
}

}  // namespace

void* SharedLibrary::find(const char* symbol) const noexcept {
  return handle_ == nullptr ? nullptr : ::dlsym(handle_, symbol);
}

std::vector<std::string> find_library_files(const std::string& name) {
  std::vector<fs::path> folders;
  if (const char* given = std::getenv("FLEXACT_CUDA_PATH"); given != nullptr && *given != 0) {
    for (const char* below : {"", "lib", "lib64"}) folders.push_back(fs::path(given) / below);
  }
  for (const fs::path& packages : site_packages()) {
    // From CUDA 13 on one folder holds all libraries; before, each had its own.
    for (const char* below : {"cu13", "nvjitlink", "cuda_nvrtc"}) {
      folders.push_back(packages / "nvidia" / below / "lib");
    }
  }
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* home = std::getenv(variable); home != nullptr && *home != 0) {
      folders.push_back(fs::path(home) / "lib64");
    }
  }
  folders.emplace_back("/usr/local/cuda/lib64");

  std::vector<std::string> files;
  std::error_code ignored;
  for (const fs::path& folder : folders) {
    const fs::path file = folder / name;
    if (fs::is_regular_file(file, ignored)) files.push_back(file.string());
  }
  return files;
}

namespace {

// The library that the process has already, e.g. because a framework loaded it; FLEXACT_CUDA_PATH
// overrules it.
SharedLibrary already_loaded(const std::string& name) {
  const char* forced = std::getenv("FLEXACT_CUDA_PATH");
  if (forced != nullptr && *forced != 0) return {};
  void* handle = open_library(name, RTLD_NOLOAD);
  if (handle == nullptr) return {};
  return {handle, path_of(handle, name, known_symbol(name))};
}

void open_companions(const fs::path& folder, const std::string& prefix) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().filename().string().rfind(prefix, 0) == 0) open_library(entry.path(), 0);
  }
}

}  // namespace

SharedLibrary load_library(const std::string& name, const std::string& companion) {
  if (SharedLibrary library = already_loaded(name)) return library;
  for (const std::string& file : find_library_files(name)) {
    if (!companion.empty()) open_companions(fs::path(file).parent_path(), companion);
    if (void* handle = open_library(file, 0)) return {handle, file};
  }
  if (void* handle = open_library(name, 0)) {
    return {handle, path_of(handle, name, known_symbol(name))};
  }
  return {};
}

std::string locate_library(const std::string& name) {
  if (const SharedLibrary library = already_loaded(name)) return library.path();
  const std::vector<std::string> files = find_library_files(name);
  return files.empty() ? std::string() : files.front();
}

}  // namespace flexact::cuda
