// The table of architectures, and what is refused on them.
#include "cuda/architecture.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "cuda/driver.hpp"
#include "cuda/fp8_layer.hpp"
#include "cuda/jit/kernel_images.hpp"
#include "flexact/error.hpp"
#include "moe/quantised.hpp"

namespace flexact::cuda {

namespace {

constexpr std::array<Architecture, 2> kArchitectures = {{
    {"sm_90a", "sm90_", 9, 0, true, true},
    {"sm_100a", "sm100_", 10, 0, false, false},
}};

bool runs_untried() {
  const char* text = std::getenv("FLEXACT_UNTRIED_KERNELS");
  const std::string word = text == nullptr ? "" : text;
  if (word.empty() || word == "refuse") return false;
  if (word == "run") return true;
  throw Error(ErrorCode::InvalidArgument, "unknown word '" + word + "'", "FLEXACT_UNTRIED_KERNELS",
              "refuse or run");
}

// nullptr where there are no kernels for a device's compute capability.
const Architecture* architecture_of(const Driver& driver, int device) {
  int major = 0;
  int minor = 0;
  driver.device_attribute(&major, kCapabilityMajor, device);
  driver.device_attribute(&minor, kCapabilityMinor, device);
  for (const Architecture& each : kArchitectures) {
    if (each.major == major && each.minor == minor) return &each;
  }
  return nullptr;
}

}  // namespace

std::span<const Architecture> architectures() {
  return kArchitectures;
}

const Architecture* machine_architecture(const Driver& driver) {
  int count = 0;
  if (driver.device_count(&count) != 0) return nullptr;
  const Architecture* found = nullptr;
  for (int device = 0; device < count; ++device) {
    const Architecture* const each = architecture_of(driver, device);
    if (each != nullptr && (found == nullptr || (each->tried && !found->tried))) found = each;
  }
  return found;
}

const Architecture& architecture_for(const Driver& driver, int device, const char* name) {
  const Architecture* const architecture = architecture_of(driver, device);
  if (architecture == nullptr) {
    throw Error(ErrorCode::Unsupported, "lies on a GPU that there are no CUDA kernels for", name,
                wanted_capabilities());
  }
  if (const auto refusal = refuse_untried(*architecture)) {
    throw Error(ErrorCode::Unsupported, refusal->reason, "cutlass", refusal->hint);
  }
  return *architecture;
}

std::string plain_gemm(Format format) {
  if (is_fp8(format)) return format == Format::Fp8Block ? "fp8_block_plain" : "fp8_whole_plain";
  return std::string(to_string(format)) + "_plain";
}

std::optional<Refusal> refuse_untried(const Architecture& architecture) {
  if (architecture.tried || runs_untried()) return std::nullopt;
  return Refusal{"the CUDA kernels for " + std::string(architecture.name) +
                     " are compiled and linked, but have not run on hardware yet",
                 "the backend triton computes it; FLEXACT_UNTRIED_KERNELS=run runs them all the "
                 "same"};
}

std::optional<Refusal> refuse_format(const Architecture& architecture, Format format) {
  const std::string wanted = architecture.images + plain_gemm(format);
  std::string others;
  for (const Format each : {Format::Bf16, Format::Fp16, Format::Fp8Block, Format::Fp8Tensor,
                            Format::Fp8Channel, Format::Mxfp4, Format::Nvfp4, Format::Mxfp4Fp8}) {
    const std::string name = architecture.images + plain_gemm(each);
    const auto images = kernel_images();
    if (std::none_of(images.begin(), images.end(),
                     [&](const KernelImage& image) { return image.name == name; }))
      continue;
    if (name == wanted) return std::nullopt;
    others += (others.empty() ? "" : ", ") + std::string(to_string(each));
  }
  return Refusal{"there are no CUDA kernels for format " + std::string(to_string(format)) + " on " +
                     architecture.name,
                 "the backend triton computes it; this one has " + others + " there"};
}

std::string wanted_capabilities() {
  std::string text;
  for (const Architecture& each : kArchitectures) {
    text += (text.empty() ? "compute capability " : " or ") + std::to_string(each.major) + "." +
            std::to_string(each.minor) + " (" + each.name + ")";
  }
  return text;
}

}  // namespace flexact::cuda
