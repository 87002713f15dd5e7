// Commands about this machine and this build: doctor, matrix, serve.
#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>
#include <thread>

#include "cli/commands.hpp"
#include "cli/process.hpp"
#include "cli/support_matrix.hpp"
#include "cpu/isa.hpp"
#include "cuda/architecture.hpp"
#include "cuda/jit/disk_cache.hpp"
#include "cuda/jit/kernel_images.hpp"
#include "cuda/jit/toolchain.hpp"
#include "flexact/error.hpp"
#include "flexact/version.hpp"

namespace flexact::cli {

namespace {

using Json = nlohmann::ordered_json;

void line(std::ostream& out, const std::string& what, const std::string& state,
          const std::string& advice = {}) {
  out << fmt::format("  {:<14} {}\n", what, state);
  if (!advice.empty()) out << fmt::format("  {:<14} -> {}\n", "", advice);
}

void doctor_cpu(std::ostream& out) {
  out << "cpu\n";
  std::string isas;
  for (const cpu::Isa isa : cpu::supported_isas()) {
    isas += (isas.empty() ? "" : ", ") + std::string(cpu::to_string(isa));
  }
  line(out, "supported", isas);
  try {
    line(out, "in use", std::string(cpu::to_string(cpu::selected_isa())));
  } catch (const Error& e) {
    line(out, "in use", "none", e.what());
  }
  line(out, "threads", std::to_string(std::thread::hardware_concurrency()));
}

// CUDA's driver interface, as far as it is needed to name a device.
struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*version)(int*) = nullptr;
  int (*count)(int*) = nullptr;
  int (*name)(char*, int, int) = nullptr;
  int (*attribute)(int*, int, int) = nullptr;
};

template <typename F>
bool load(void* library, const char* symbol, F& function) {
  function = reinterpret_cast<F>(::dlsym(library, symbol));
  return function != nullptr;
}

void doctor_gpu(std::ostream& out) {
  out << "gpu\n";
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    line(out, "driver", "not found",
         "none is needed for the CPU; install NVIDIA's driver to use a GPU");
    return;
  }
  Driver driver;
  int version = 0;
  int devices = 0;
  const bool complete = load(library, "cuInit", driver.init) &&
                        load(library, "cuDriverGetVersion", driver.version) &&
                        load(library, "cuDeviceGetCount", driver.count) &&
                        load(library, "cuDeviceGetName", driver.name) &&
                        load(library, "cuDeviceGetAttribute", driver.attribute);
  if (!complete || driver.init(0) != 0 || driver.version(&version) != 0 ||
      driver.count(&devices) != 0) {
    line(out, "driver", "present, but it does not start", "check it with nvidia-smi");
    return;
  }
  line(out, "driver", fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10));
  constexpr int kMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
  for (int i = 0; i < devices; ++i) {
    std::array<char, 128> name{};
    int major = 0;
    int minor = 0;
    driver.name(name.data(), static_cast<int>(name.size()), i);
    driver.attribute(&major, kMajor, i);
    driver.attribute(&minor, kMajor + 1, i);
    line(out, fmt::format("device {}", i), fmt::format("{} (sm_{}{})", name.data(), major, minor));
  }
  if (devices == 0) line(out, "devices", "none");
}

// Package versions as Python's own metadata has them, null where one is missing; and the devices
// whose measurements choose between the GPU backends.
constexpr const char* kVersionsProgram = R"(
import importlib.metadata as m, importlib.util, json, pathlib, platform
found = {"python": platform.python_version()}
for name in ("flexact", "torch", "sglang", "transformers", "triton"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        found[name] = None
found["plugin"] = any(e.name == "flexact" for e in m.entry_points(group="sglang.srt.plugins"))
spec = importlib.util.find_spec("flexact")
folders = spec.submodule_search_locations if spec else []
files = [f for each in folders for f in pathlib.Path(each, "triton", "beside_cutlass").glob("*.json")]
tables = [json.loads(f.read_text()) for f in sorted(files)]
found["measured"] = "; ".join(f"{t['device']}, {len(t['entries'])} cells" for t in tables)
print(json.dumps(found))
)";

// What finishes the CUDA kernels at run time.
void doctor_cuda_link(std::ostream& out) {
  const auto images = cuda::kernel_images();
  if (images.empty()) {
    line(out, "cuda kernels", "none in this build",
         "the cutlass backend needs them: build with nvcc 13 and nvidia-cutlass (docs/cuda.md)");
    return;
  }
  std::string kernels;
  std::size_t own = 0;
  for (const cuda::Architecture& architecture : cuda::architectures()) {
    const auto count = std::count_if(images.begin(), images.end(), [&](const auto& image) {
      return image.name.starts_with(architecture.images);
    });
    kernels += fmt::format("{} for {}{}, ", count, architecture.name,
                           architecture.tried ? "" : " (not run on hardware yet)");
    own += static_cast<std::size_t>(count);
  }
  line(out, "cuda kernels",
       fmt::format("{}{} for each of them, built with CUDA {}", kernels, images.size() - own,
                   to_string(images[0].toolkit)));
  try {
    const cuda::Toolchain& tools = cuda::Toolchain::instance();
    line(out, "nvrtc", to_string(tools.compiler_version()) + "  " + tools.compiler_path());
    line(out, "nvjitlink", to_string(tools.linker_version()) + "  " + tools.linker_path());
  } catch (const Error& e) {
    line(out, "nvrtc, nvjitlink", e.where() + " " + e.message());
  }
  const cuda::DiskCache cache = cuda::DiskCache::standard();
  std::string note;
  if (cache.usable(note)) {
    line(out, "link cache", fmt::format("{}  {} entries", cache.folder(), cache.entries()));
  } else {
    line(out, "link cache", cache.folder().empty() ? "off" : note, "every start links anew");
  }
}

void doctor_python(std::ostream& out) {
  out << "python\n";
  const std::string python = find_python();
  if (python.empty()) {
    line(out, "python", "not found",
         "the command works without; serving needs Python 3.11 or newer");
    return;
  }
  const auto text = output_of({python, "-c", kVersionsProgram});
  const Json versions = text ? Json::parse(*text, nullptr, false) : Json();
  if (!versions.is_object()) {
    line(out, "python", python + " does not run");
    return;
  }
  struct Row {
    const char* package;
    const char* advice;
  };
  static constexpr std::array<Row, 5> kRows = {{
      {"flexact", "pip install flexact, into the same environment as SGLang or transformers"},
      {"torch", "needed by everything that computes in Python: pip install torch"},
      {"sglang", "needed by 'flexact serve': pip install 'flexact[sglang]'"},
      {"transformers",
       "needed by the transformers integration: pip install 'flexact[transformers]'"},
      {"triton", "needed by the Triton backend; it comes with torch builds for CUDA"},
  }};
  line(out, "python", versions.value("python", "?") + "  " + python);
  for (const Row& row : kRows) {
    const bool present = versions.contains(row.package) && versions[row.package].is_string();
    if (present) {
      line(out, row.package, versions[row.package].get<std::string>());
    } else {
      line(out, row.package, "not installed", row.advice);
    }
  }
  const std::string measured = versions.value("measured", "");
  line(out, "auto on GPUs",
       measured.empty() ? "nothing measured: by the rule of docs/cuda.md"
                        : "measured on " + measured);
  const bool plugin = versions.value("plugin", false);
  line(out, "sglang plugin", plugin ? "registered" : "not registered",
       plugin ? "" : "SGLang would not load flexact: install flexact with pip beside it");
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorCode::IoError, "cannot be read", path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string cell(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "-";
  return value.dump();
}

}  // namespace

void doctor(std::ostream& out) {
  out << "flexact " << version() << "\n";
  doctor_cpu(out);
  doctor_gpu(out);
  doctor_cuda_link(out);
  doctor_python(out);
}

// A matrix is {"columns": […], "rows": [[…], …]} beside what the run recorded of itself.
void matrix(const MatrixOptions& options, std::ostream& out) {
  const std::string text =
      options.file.empty() ? std::string(built_in_matrix()) : read_file(options.file);
  if (text.empty()) {
    throw Error(ErrorCode::Unsupported, "this build has no support matrix", {},
                "the conformance program writes one; name it with --file");
  }
  const Json parsed = Json::parse(text, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("columns") || !parsed.contains("rows")) {
    throw Error(ErrorCode::IoError, "this is not a support matrix", options.file);
  }
  if (options.json) {
    out << parsed.dump(2) << "\n";
    return;
  }
  for (const char* fact : {"device", "commit", "command", "runs"}) {
    if (parsed.contains(fact)) out << fmt::format("{:<8} {}\n", fact, cell(parsed[fact]));
  }
  std::vector<std::vector<std::string>> table(1);
  for (const Json& column : parsed["columns"]) table[0].push_back(cell(column));
  for (const Json& row : parsed["rows"]) {
    table.emplace_back();
    for (const Json& value : row) table.back().push_back(cell(value));
  }
  std::vector<std::size_t> widths;
  for (const auto& row : table) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : table) {
    std::string text_line;
    for (std::size_t i = 0; i < row.size(); ++i)
      text_line += fmt::format("{:<{}}  ", row[i], widths[i]);
    text_line.erase(text_line.find_last_not_of(' ') + 1);
    out << text_line << "\n";
  }
}

void run_module(const std::string& module, const std::string& purpose,
                const std::vector<std::string>& arguments) {
  const std::string python = find_python();
  if (python.empty()) {
    throw Error(ErrorCode::Unsupported, "no Python was found to " + purpose + " with", {},
                "install flexact into the environment that has SGLang");
  }
  std::vector<std::string> command = {python, "-m", module};
  command.insert(command.end(), arguments.begin(), arguments.end());
  replace_process(command);
  throw Error(ErrorCode::IoError, std::string("cannot be started: ") + std::strerror(errno),
              python);
}

}  // namespace flexact::cli
