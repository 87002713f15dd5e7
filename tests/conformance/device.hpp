// A case's tensors in the memory of a GPU.
#pragma once

#include <cstddef>
#include <vector>

#include "flexact/moe.hpp"

namespace flexact::conformance {

// Copies made through it are freed with it. Uses the first GPU.
class Device {
 public:
  Device();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  MoeWeights copy(MoeWeights weights);
  MoeInputs copy(MoeInputs inputs);
  ParameterTable copy(ParameterTable values);
  void* copy(const void* data, std::size_t bytes);
  // Waits for everything launched, then copies. Throws DeviceError where a kernel failed.
  void read(std::byte* to, const void* from, std::size_t bytes) const;

 private:
  TensorView copy(TensorView view);
  std::vector<void*> memory_;
};

}  // namespace flexact::conformance
