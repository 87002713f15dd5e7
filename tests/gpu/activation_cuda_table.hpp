// The functions whose CUDA text was compiled into activation_cuda_check.
#pragma once

#include <vector>

enum class Form { Fast, Bf16, Precise };

struct CudaFunction {
  const char* name;  // a catalogue name
  bool lifted;       // as f(g)*u
  std::vector<float> parameters;
  // y[i] = f(g[i], u[i]) or f(g[i]) on the device; false where it fails. n is even.
  bool (*run)(Form form, const float* g, const float* u, const float* parameters,
              int parameter_count, float* y, int n);
};

const std::vector<CudaFunction>& cuda_functions();
