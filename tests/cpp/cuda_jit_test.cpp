// Late linking as far as it goes without a GPU: NVRTC compiles, nvJitLink links, and the log of the
// result is read. Kernels that the build carries are tested where it carries them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "activation/printers.hpp"
#include "activation_random_expression.hpp"
#include "cuda/jit/function_source.hpp"
#include "cuda/jit/linker.hpp"
#include "flexact/activation.hpp"

namespace {

namespace fs = std::filesystem;
using flexact::Arity;
using flexact::Error;
using flexact::ErrorCode;
using flexact::Function;
using flexact::moe::Numerics;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
namespace cuda = flexact::cuda;

constexpr const char* kArchitecture = "sm_90a";

// A kernel that holds accumulators in registers as a GEMM does, without its headers.
constexpr const char* kKernel = R"(
extern "C" __device__ void flexact_act2(const float a[2], const float b[2], const float* p, float y[2]);
extern "C" __global__ void __launch_bounds__(256, 1)
    gated(const float* in, const float* values, float* out) {
  float acc[64], p[16];
  for (int i = 0; i < 16; ++i) p[i] = values[i];
  #pragma unroll
  for (int i = 0; i < 64; ++i) acc[i] = in[i * 256 + threadIdx.x];
  #pragma unroll
  for (int i = 0; i < 64; i += 4) {
    float y[2];
    flexact_act2(&acc[i], &acc[i + 2], p, y);
    out[i * 256 + threadIdx.x] = y[0];
    out[(i + 1) * 256 + threadIdx.x] = y[1];
  }
}
)";
constexpr const char* kUnaryKernel = R"(
extern "C" __device__ void flexact_act2_unary(const float a[2], const float* p, float y[2]);
extern "C" __global__ void unary(const float* in, const float* values, float* out) {
  float p[16], acc[2] = {in[threadIdx.x], in[threadIdx.x + 32]}, y[2];
  for (int i = 0; i < 16; ++i) p[i] = values[i];
  flexact_act2_unary(acc, p, y);
  out[threadIdx.x] = y[0];
  out[threadIdx.x + 32] = y[1];
}
)";

const cuda::Toolchain* tools() {
  try {
    return &cuda::Toolchain::instance();
  } catch (const Error&) {
    return nullptr;
  }
}

// NVRTC and nvJitLink are packages that set-up installs; only where it could not are tests skipped.
#define NEED_TOOLS() \
  if (tools() == nullptr) GTEST_SKIP() << "NVRTC and nvJitLink are not installed"

cuda::KernelImage image_of(const std::string& ir) {
  return {"test_kernel", tools()->compiler_version(), ir};
}

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "flexact-jit-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Folder() { fs::remove_all(path_); }
  std::string path() const { return path_; }

 private:
  std::string path_;
};

cuda::LinkedKernel link(const cuda::KernelImage& image, const std::string& source,
                        const cuda::DiskCache& cache = cuda::DiskCache("")) {
  return cuda::link_kernel_with(cache, image, source, kArchitecture, "test");
}
cuda::LinkedKernel link(const cuda::KernelImage& image, const std::string& source,
                        const std::string& architecture) {
  return cuda::link_kernel_with(cuda::DiskCache(""), image, source, architecture, "test");
}

TEST(FunctionSource, rounds_or_slows_down_as_asked) {
  const Function f = Function::named("swiglu");
  EXPECT_EQ(cuda::function_source(f, Numerics::Fast, flexact::DType::Float16),
            flexact::activation::print_cuda(f));
  EXPECT_EQ(cuda::function_source(f, Numerics::Fast),
            "#define FLEXACT_BF16\n" + flexact::activation::print_cuda(f));
  EXPECT_THAT(cuda::function_source(f, Numerics::Exact), HasSubstr("cvt.rn.bf16"));
  EXPECT_THAT(cuda::function_source(f, Numerics::Exact, flexact::DType::Float16),
              HasSubstr("cvt.rn.f16"));
  EXPECT_EQ(cuda::function_source(f, Numerics::Exact, flexact::DType::Float32),
            cuda::function_source(f, Numerics::Fast, flexact::DType::Float32));
  EXPECT_THAT(cuda::function_source(f, Numerics::Precise), HasSubstr("#define FLEXACT_PRECISE"));
}

TEST(LateLinking, compiles_every_catalogue_function_in_every_form) {
  NEED_TOOLS();
  const std::string gated = tools()->compile(kKernel, kArchitecture);
  const std::string unary = tools()->compile(kUnaryKernel, kArchitecture);
  int index = 0;
  for (const std::string& name : flexact::ActivationRegistry::instance().list()) {
    const Function f = Function::named(name);
    // The forms take turns; each meets every third function.
    const Numerics numerics[] = {Numerics::Fast, Numerics::Exact, Numerics::Precise};
    const auto io = index % 2 == 0 ? flexact::DType::BFloat16 : flexact::DType::Float16;
    const auto linked =
        link(image_of(gated), cuda::function_source(f.gated(), numerics[index++ % 3], io));
    EXPECT_THAT(linked.report.faults(), IsEmpty()) << name;
    ASSERT_EQ(linked.report.kernels.size(), 1u) << name;
    EXPECT_GT(linked.report.kernels[0].registers, 16);
    EXPECT_EQ(linked.cubin.substr(1, 3), "ELF");
    if (f.arity() == Arity::Unary && index % 4 == 0) {
      EXPECT_THAT(link(image_of(unary), cuda::function_source(f, Numerics::Fast)).report.faults(),
                  IsEmpty())
          << name;
    }
  }
}

TEST(LateLinking, a_function_that_needs_memory_is_a_fault) {
  NEED_TOOLS();
  const std::string ir = tools()->compile(kKernel, kArchitecture);
  const auto linked = link(image_of(ir), R"(
extern "C" __device__ void flexact_act2(const float a[2], const float b[2], const float* p, float y[2]) {
  float table[32];
  for (int i = 0; i < 32; ++i) table[i] = p[i % 16] * a[0];
  y[0] = table[int(b[0]) & 31];
  y[1] = table[int(b[1]) & 31];
}
)");
  EXPECT_THAT(linked.report.faults(), testing::ElementsAre(HasSubstr("stack frame")));
}

TEST(LateLinking, what_does_not_compile_or_link_is_a_device_error_with_the_log) {
  NEED_TOOLS();
  const std::string ir = tools()->compile(kKernel, kArchitecture);
  const auto message = [&](const cuda::KernelImage& image, const std::string& source) {
    try {
      link(image, source);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::DeviceError);
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(message(image_of(ir), "this is no CUDA"), HasSubstr("error"));
  EXPECT_THAT(message(image_of(ir), "__device__ int other;"), HasSubstr("flexact_act2"));
  EXPECT_THAT(message(image_of("neither IR nor a fat binary"), ""), HasSubstr("nvJitLink"));
  cuda::KernelImage future = image_of(ir);
  future.toolkit = {tools()->linker_version().major, tools()->linker_version().minor + 1};
  EXPECT_THAT(message(future, "__device__ int other;"), HasSubstr("cannot link kernels"));
}

TEST(LateLinking, the_second_link_comes_from_disk_and_a_damaged_entry_is_rebuilt) {
  NEED_TOOLS();
  const Folder folder;
  const cuda::DiskCache cache(folder.path() + "/cache");
  const std::string ir = tools()->compile(kKernel, kArchitecture);
  const std::string source = cuda::function_source(Function::named("swiglu"), Numerics::Fast);
  const auto first = link(image_of(ir), source, cache);
  EXPECT_FALSE(first.from_disk);
  const auto second = link(image_of(ir), source, cache);
  EXPECT_TRUE(second.from_disk);
  EXPECT_EQ(second.cubin, first.cubin);
  EXPECT_EQ(second.report.kernels.at(0).registers, first.report.kernels.at(0).registers);

  std::string note;
  ASSERT_TRUE(cache.store(first.key, "a payload of another version", note));
  const auto third = link(image_of(ir), source, cache);
  EXPECT_FALSE(third.from_disk);
  EXPECT_EQ(third.cubin, first.cubin);
  EXPECT_TRUE(link(image_of(ir), source, cache).from_disk);
}

TEST(LateLinking, threads_that_ask_for_the_same_pair_share_one_link) {
  NEED_TOOLS();
  const Folder folder;
  ::setenv("FLEXACT_CACHE_DIR", (folder.path() + "/cache").c_str(), 1);
  const std::string ir = tools()->compile(kKernel, kArchitecture);
  const cuda::KernelImage image = image_of(ir);
  std::vector<std::future<std::shared_ptr<const cuda::LinkedKernel>>> links;
  for (int i = 0; i < 8; ++i) {
    links.push_back(std::async(std::launch::async, [&image, i] {
      const Function f = Function::named(i % 2 == 0 ? "swiglu" : "geglu");
      return cuda::link_kernel(image, cuda::function_source(f, Numerics::Fast), kArchitecture,
                               "test");
    }));
  }
  std::set<const cuda::LinkedKernel*> distinct;
  for (auto& each : links) {
    const auto linked = each.get();
    EXPECT_FALSE(linked->from_disk);
    distinct.insert(linked.get());
  }
  EXPECT_EQ(distinct.size(), 2u);
  EXPECT_EQ(cuda::DiskCache::standard().entries(), 2);
  ::unsetenv("FLEXACT_CACHE_DIR");
}

TEST(LateLinking, everything_that_matters_is_in_the_key) {
  NEED_TOOLS();
  const std::string ir = tools()->compile(kKernel, kArchitecture);
  const std::string other_ir =
      tools()->compile(std::string(kKernel) + "__device__ int more;", kArchitecture);
  const Function f = Function::named("swiglu");
  const std::string source = cuda::function_source(f, Numerics::Fast);
  const std::string key = link(image_of(ir), source).key;
  EXPECT_EQ(link(image_of(ir), source).key, key);
  EXPECT_NE(link(image_of(other_ir), source).key, key);
  EXPECT_NE(link(image_of(ir), source + "\n").key, key);
  EXPECT_NE(
      cuda::link_kernel_with(cuda::DiskCache(""), image_of(ir), source, "sm_100a", "test").key,
      key);
}

TEST(LateLinking, missing_libraries_are_an_error_that_says_what_to_install) {
  // In a process of its own: what is loaded stays loaded.
  const Folder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv("FLEXACT_CUDA_PATH", folder.path().c_str(), 1);
    for (const char* name : {"VIRTUAL_ENV", "CUDA_HOME", "CUDA_PATH"}) ::unsetenv(name);
    try {
      const cuda::Toolchain toolchain;
      ::_exit(tools() != nullptr ? 0 : 1);  // installed where the system finds them
    } catch (const Error& error) {
      ::_exit(std::string(error.what()).find("nvidia-nvjitlink") != std::string::npos ? 0 : 2);
    }
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

// ---- the kernels of this build

TEST(ShippedKernels, an_unknown_one_is_refused) {
  try {
    cuda::kernel_image("sm_20_fp64");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
    EXPECT_THAT(error.what(), HasSubstr("FLEXACT_CUDA"));
  }
}

// Links an image for an architecture: nothing in memory, and registers as the kernel was made for.
void expect_clean(const std::string& image, const std::string& source, const char* what,
                  const std::string& architecture = kArchitecture) {
  const auto linked = link(cuda::kernel_image(image), source, architecture);
  EXPECT_THAT(linked.report.faults(), IsEmpty()) << image << " " << what << " " << architecture;
  EXPECT_THAT(linked.report.kernels, Not(IsEmpty())) << image;
  int gemms = 0;
  for (const auto& kernel : linked.report.kernels) {
    if (kernel.name.find("gemm") == std::string::npos) continue;
    ++gemms;
    if (architecture == "sm_100a") {
      EXPECT_LE(kernel.registers, 168) << kernel.name;  // of 384 threads
    } else {
      // 384 threads share 65536 registers until setmaxnreg divides them anew, or 640.
      EXPECT_EQ(kernel.registers, kernel.name.ends_with("_few") ? 96 : 168) << kernel.name;
    }
  }
  // A GEMM is alone in its image, so that a plan's are linked at the same time.
  const bool gemm =
      (image.starts_with("sm90_") || image.starts_with("sm100_")) && !image.ends_with("_rows");
  EXPECT_EQ(gemms, gemm ? 1 : 0) << image;
  EXPECT_TRUE(!gemm || linked.report.kernels.size() == 1) << image;
  std::printf("%s for %s + %s: compiled in %.0f ms, linked in %.0f ms\n", image.c_str(),
              architecture.c_str(), what, linked.compile_ms, linked.link_ms);
}

// What has matrix instructions of one architecture.
constexpr std::pair<const char*, const char*> kOwnImages[] = {{"sm90_", "sm_90a"},
                                                              {"sm100_", "sm_100a"}};

TEST(ShippedKernels, link_without_spills_stack_or_serialised_wgmma) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  for (const auto& [prefix, architecture] : kOwnImages) {
    for (const std::string type : {"bf16", "fp16"}) {
      const std::string image = prefix + type;
      expect_clean(image + "_plain", "", "no function", architecture);
      for (const char* name : {"swiglu", "geglu", "situ"}) {
        expect_clean(image + "_gated", cuda::function_source(Function::named(name), Numerics::Fast),
                     name, architecture);
      }
      expect_clean(image + "_unary",
                   cuda::function_source(Function::named("xielu"), Numerics::Fast), "xielu",
                   architecture);
    }
  }
}

// What has matrix instructions that every architecture has is linked for each.
constexpr const char* kArchitectures[] = {"sm_90a", "sm_100a"};

TEST(ShippedKernels, of_few_tokens_link_as_cleanly) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  const std::string gated = cuda::function_source(Function::named("situ"), Numerics::Fast);
  const std::string unary = cuda::function_source(Function::named("xielu"), Numerics::Fast);
  for (const std::string format : {"bf16", "mxfp4", "nvfp4", "fp8_block", "fp8_whole"}) {
    const std::string image = format + "_stream_";
    for (const std::string architecture : kArchitectures) {
      expect_clean(image + "gated", gated, "situ", architecture);
      expect_clean(image + "unary", unary, "xielu", architecture);
      if (format == "fp8_block" && architecture == "sm_100a") {
        // A register of eight slots' sum is stored and loaded again once: 128 are all that two
        // blocks leave a thread.
        EXPECT_LE(link(cuda::kernel_image(image + "down"), "", architecture)
                      .report.kernels.at(0)
                      .spill_bytes,
                  16);
        continue;
      }
      expect_clean(image + "down", "", "no function", architecture);
    }
  }
}

TEST(ShippedKernels, of_act_and_mul_link_without_spills_or_stack) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  for (const std::string type : {"bf16", "fp16", "fp32"}) {
    for (const std::string architecture : kArchitectures) {
      for (const char* name : {"swiglu", "situ"}) {
        expect_clean("dense_" + type + "_gated",
                     cuda::function_source(Function::named(name), Numerics::Fast), name,
                     architecture);
      }
      expect_clean("dense_" + type + "_unary",
                   cuda::function_source(Function::named("xielu"), Numerics::Fast), "xielu",
                   architecture);
    }
  }
}

TEST(ShippedKernels, of_fp8_link_without_spills_stack_or_serialised_wgmma) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  for (const auto& [prefix, architecture] : kOwnImages) {
    const std::string image = std::string(prefix) + "fp8_";
    expect_clean(image + "block_plain", "", "no function", architecture);
    expect_clean(image + "whole_plain", "", "no function", architecture);
    for (const std::string variant : {"block", "given", "whole"}) {
      for (const char* name : {"swiglu", "geglu", "situ"}) {
        expect_clean(image + variant + "_gated",
                     cuda::function_source(Function::named(name), Numerics::Fast), name,
                     architecture);
      }
      expect_clean(image + variant + "_unary",
                   cuda::function_source(Function::named("xielu"), Numerics::Fast), "xielu",
                   architecture);
    }
  }
}

TEST(ShippedKernels, of_fp4_link_without_spills_stack_or_serialised_wgmma) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  const std::string gated = cuda::function_source(Function::named("situ"), Numerics::Fast);
  const std::string unary = cuda::function_source(Function::named("xielu"), Numerics::Fast);
  for (const std::string image : {"mxfp4", "nvfp4", "mxfp4_fp8"}) {
    for (const std::string few : {"", "_few"}) {
      if (image == "mxfp4_fp8" && !few.empty()) continue;
      expect_clean("sm90_" + image + "_plain" + few, "", "no function");
      expect_clean("sm90_" + image + "_gated" + few, gated, "situ");
      expect_clean("sm90_" + image + "_unary" + few, unary, "xielu");
    }
  }
}

TEST(ShippedKernels, of_rows_link_without_spills_or_stack) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  for (const auto& [prefix, architecture] : kOwnImages) {
    expect_clean(std::string(prefix) + "rows", "", "no function", architecture);
    expect_clean("rows_fp8", "", "no function", architecture);
    expect_clean("rows_fp4", "", "no function", architecture);
  }
}

// Minutes; `make test-cuda-links` runs it. What it links stays in the user's cache.
TEST(ShippedKernels, DISABLED_link_with_every_function_and_random_expressions) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  std::vector<std::pair<std::string, Function>> functions;
  for (const std::string& name : flexact::ActivationRegistry::instance().list()) {
    functions.emplace_back(name, Function::named(name));
  }
  functions.emplace_back("expr1", Function::expression("g*sigmoid(beta*g+shift)*(u+0.5)"));
  functions.emplace_back("expr2", Function::expression("a*tanh(x/a)+b*log1p(x^2)+0.1*x"));
  for (std::uint32_t seed = 0; functions.size() < 66; ++seed) {
    const std::string text = flexact::testing_support::Generator(seed).expression(4).text;
    if (text.find('x') == std::string::npos) continue;
    try {
      functions.emplace_back(text, Function::expression(text));
    } catch (const Error&) {
      // Constant folding found it meaningless.
    }
  }
  const cuda::DiskCache cache = cuda::DiskCache::standard();
  const auto check = [&](const std::string& image, const Function& f, const std::string& name) {
    for (const std::string architecture : kArchitectures) {
      const std::string other = architecture == "sm_90a" ? "sm100_" : "sm90_";
      if (image.starts_with(other)) continue;
      const auto linked =
          cuda::link_kernel_with(cache, cuda::kernel_image(image),
                                 cuda::function_source(f, Numerics::Fast), architecture, name);
      EXPECT_THAT(linked.report.faults(), IsEmpty()) << image << " " << name << " " << architecture;
    }
  };
  for (const auto& image : cuda::kernel_images()) {
    const std::string kernel(image.name);
    const bool unary = kernel.find("_unary") != std::string::npos;
    if (!unary && kernel.find("_gated") == std::string::npos) continue;
    for (const auto& [name, f] : functions) {
      if (!unary) check(kernel, f.gated(), name);
      if (unary && f.arity() == Arity::Unary) check(kernel, f, name);
    }
  }
}

TEST(ShippedKernels, a_call_inside_the_product_is_noticed) {
  NEED_TOOLS();
  if (cuda::kernel_images().empty()) GTEST_SKIP() << "this build carries no kernels";
  const auto linked = link(cuda::kernel_image("sm90_bf16_gated"), R"(
extern "C" __device__ int printf(const char*, ...);
extern "C" __device__ void flexact_act2(const float a[2], const float b[2], const float* p, float y[2]) {
  y[0] = a[0] * b[0];
  y[1] = a[1] * b[1];
  if (y[0] == 1234.5f) printf("!\n");
}
)");
  EXPECT_THAT(linked.report.faults(), Not(IsEmpty()));
  EXPECT_THAT(linked.report.remarks, Not(IsEmpty()));
}

}  // namespace
