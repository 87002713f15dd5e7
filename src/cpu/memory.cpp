// Anonymous mappings; huge pages only where they are filled whole, so none of them is wasted.
#include "cpu/memory.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <string>

#include "flexact/error.hpp"

namespace flexact::cpu {

namespace {
constexpr std::size_t kHugePage = std::size_t{2} << 20;
}

WeightMemory::WeightMemory(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  // Room to start the weights on a huge page; pages that nobody touches take no memory.
  const std::size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* mapping =
      mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    throw Error(ErrorCode::DeviceError,
                "no memory for " + std::to_string(bytes) + " bytes of weights");
  }
  auto* begin = static_cast<std::byte*>(mapping);
  if (slack > 0) {
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::size_t lead = (kHugePage - address % kHugePage) % kHugePage;
    if (lead > 0) munmap(begin, lead);
    begin += lead;
    // The rest of the room beyond the last small page goes back as well.
    constexpr std::size_t kPage = 4096;
    const std::size_t used = (bytes + kPage - 1) / kPage * kPage;
    const std::size_t mapped = (bytes + slack - lead + kPage - 1) / kPage * kPage;
    if (mapped > used) munmap(begin + used, mapped - used);
    static_cast<void>(madvise(begin, bytes / kHugePage * kHugePage, MADV_HUGEPAGE));
  }
  data_ = std::unique_ptr<std::byte, Unmap>(begin, Unmap{bytes});
}

void WeightMemory::Unmap::operator()(std::byte* data) const noexcept {
  munmap(data, bytes);
}

}  // namespace flexact::cpu
