// Memory for packed weights: aligned, and on huge pages where the system has them, because a layer
// is read from end to end at memory speed and small pages would cost a lookup every 4 KiB.
#pragma once

#include <cstddef>
#include <memory>

namespace flexact::cpu {

class WeightMemory {
 public:
  WeightMemory() = default;
  // 64-byte aligned, zero. Throws std::bad_alloc.
  explicit WeightMemory(std::size_t bytes);

  std::byte* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::byte* data) const noexcept;
  };
  std::unique_ptr<std::byte, Unmap> data_{nullptr, Unmap{0}};
  std::size_t size_ = 0;
};

}  // namespace flexact::cpu
