// Keys, the process's memory of links, and what is printed.
#include "cuda/jit/linker.hpp"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>
#include <map>
#include <mutex>

#include "activation/digest.hpp"
#include "flexact/version.hpp"

namespace flexact::cuda {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Digests of parts, so that no two lists of parts run together to the same text. The images are
// digested once.
std::string image_digest(const KernelImage& image) {
  static std::mutex mutex;
  static std::map<std::pair<const char*, std::size_t>, std::string> digests;
  const std::lock_guard lock(mutex);
  std::string& digest = digests[{image.ir.data(), image.ir.size()}];
  if (digest.empty()) digest = activation::sha256_hex(image.ir);
  return digest;
}

std::string key_of(const KernelImage& image, const std::string& source,
                   const std::string& architecture) {
  const std::string parts = "1\n" + std::string(version()) + "\n" + image_digest(image) + "\n" +
                            activation::sha256_hex(source) + "\n" + architecture + "\n" +
                            toolchain_identity();
  return activation::sha256_hex(parts);
}

// What the cache holds: the log's length as a line, the log, the code.
std::string pack(const Linked& linked) {
  return std::to_string(linked.log.size()) + "\n" + linked.log + linked.cubin;
}

bool unpack(const std::string& payload, Linked& linked) {
  char* end = nullptr;
  const unsigned long long length = std::strtoull(payload.c_str(), &end, 10);
  const auto start = static_cast<std::size_t>(end - payload.c_str()) + 1;
  if (*end != '\n' || length > payload.size() - start) return false;
  linked.log = payload.substr(start, length);
  linked.cubin = payload.substr(start + length);
  return !linked.cubin.empty();
}

int verbosity() {
  const char* text = std::getenv("FLEXACT_VERBOSE");
  return text == nullptr ? 0 : std::atoi(text);
}

void check_versions(const KernelImage& image, const Toolchain& tools) {
  if (tools.linker_version().major == image.toolkit.major &&
      tools.linker_version() >= image.toolkit)
    return;
  throw Error(
      ErrorCode::DeviceError,
      "nvJitLink " + to_string(tools.linker_version()) +
          " cannot link kernels that were built with CUDA " + to_string(image.toolkit),
      tools.linker_path(),
      "nvidia-nvjitlink " + to_string(image.toolkit) + " or newer, of the same major version");
}

void print_link(const LinkedKernel& kernel, const KernelImage& image, const std::string& label,
                const std::string& from, const std::string& note) {
  std::string what = std::string(image.name) + (label.empty() ? "" : " + " + label);
  if (verbosity() > 0) {
    if (kernel.from_disk) {
      std::fprintf(stderr, "flexact: cutlass: %s read in %.1f ms from %s\n", what.c_str(),
                   kernel.link_ms, from.c_str());
    } else {
      std::fprintf(stderr,
                   "flexact: cutlass: %s compiled in %.0f ms, linked in %.0f ms with %s%s\n",
                   what.c_str(), kernel.compile_ms, kernel.link_ms, from.c_str(),
                   note.empty() ? "" : ("; not kept: " + note).c_str());
    }
  }
  for (const std::string& fault : kernel.report.faults()) {
    std::fprintf(stderr, "flexact: warning: %s is slower than it should be: %s\n", what.c_str(),
                 fault.c_str());
  }
}

}  // namespace

const KernelImage& kernel_image(std::string_view name) {
  for (const KernelImage& image : kernel_images()) {
    if (image.name == name) return image;
  }
  throw Error(ErrorCode::Unsupported,
              "this build of flexact has no CUDA kernel " + std::string(name), {},
              "configure with -DFLEXACT_CUDA=ON where nvcc and the headers of nvidia-cutlass are");
}

LinkedKernel link_kernel_with(const DiskCache& cache, const KernelImage& image,
                              const std::string& source, const std::string& architecture,
                              const std::string& label) {
  const auto start = Clock::now();
  LinkedKernel kernel;
  kernel.key = key_of(image, source, architecture);
  std::string note;
  Linked linked;
  if (const auto payload = cache.load(kernel.key, note); payload && unpack(*payload, linked)) {
    kernel.from_disk = true;
    kernel.report = read_link_log(linked.log);
    kernel.cubin = std::move(linked.cubin);
    kernel.link_ms = since(start);
    print_link(kernel, image, label, cache.file(kernel.key), {});
    return kernel;
  }
  if (!note.empty() && verbosity() > 0) {
    std::fprintf(stderr, "flexact: cutlass: %s: %s\n", cache.file(kernel.key).c_str(),
                 note.c_str());
  }

  const Toolchain& tools = Toolchain::instance();
  check_versions(image, tools);
  std::vector<std::string> functions;
  const auto compiling = Clock::now();
  if (!source.empty()) functions.push_back(tools.compile(source, architecture));
  kernel.compile_ms = since(compiling);
  const auto linking = Clock::now();
  linked = tools.link(image.ir, functions, architecture);
  kernel.link_ms = since(linking);
  kernel.report = read_link_log(linked.log);
  cache.store(kernel.key, pack(linked), note);
  kernel.cubin = std::move(linked.cubin);
  print_link(kernel, image, label,
             "nvJitLink " + to_string(tools.linker_version()) + " (" + tools.linker_path() + ")",
             note);
  return kernel;
}

std::shared_ptr<const LinkedKernel> link_kernel(const KernelImage& image, const std::string& source,
                                                const std::string& architecture,
                                                const std::string& label) {
  using Shared = std::shared_ptr<const LinkedKernel>;
  static std::mutex mutex;
  static std::map<std::string, std::shared_future<Shared>> known;
  const std::string key = image_digest(image) + activation::sha256_hex(source) + architecture;
  std::promise<Shared> promise;
  std::shared_future<Shared> result;
  {
    const std::lock_guard lock(mutex);
    if (const auto found = known.find(key); found != known.end()) {
      result = found->second;
    } else {
      known.emplace(key, promise.get_future().share());
    }
  }
  // Whoever asked first links, others wait for it; different pairs are linked at the same time.
  if (result.valid()) return result.get();
  try {
    auto linked = std::make_shared<const LinkedKernel>(
        link_kernel_with(DiskCache::standard(), image, source, architecture, label));
    promise.set_value(linked);
    return linked;
  } catch (...) {
    // A link that throws leaves nothing behind.
    promise.set_exception(std::current_exception());
    const std::lock_guard lock(mutex);
    known.erase(key);
    throw;
  }
}

}  // namespace flexact::cuda
