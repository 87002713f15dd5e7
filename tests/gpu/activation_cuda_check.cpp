// Every catalogue function's CUDA text on a GPU: all 65,536 bf16 inputs against the fp64 reference.
//
//   build:   tests/gpu/build_activation_cuda_check.sh   builds it, where there is nvcc
//   usage:   activation_cuda_check fast|bf16|precise    prints a line a function; status 1 on a
//   miss
//
// One bf16 ulp of the exact value or 2^-14, whichever is larger; special values as they are. bf16,
// the form of what is rounded to bf16 afterwards: half of that. The worst error in fp32 ulp is
// printed beside it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "activation_cuda_table.hpp"
#include "flexact/activation.hpp"

namespace {

using flexact::Arity;
using flexact::Function;

float from_bf16(std::uint32_t bits) {
  const std::uint32_t word = bits << 16;
  float value = 0;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

struct Worst {
  double excess = 0;  // error over what is allowed
  double ulps = 0;    // fp32
  double at_g = 0, at_u = 0, got = 0, want = 0;
};

// What the contract allows around `want`.
double allowed(double want) {
  const double size = std::fmax(std::fabs(want), std::ldexp(1.0, -126));
  return std::fmax(std::ldexp(1.0, std::ilogb(size) - 7), std::ldexp(1.0, -14));
}

void compare(double got, double want, double g, double u, Worst& worst) {
  const double largest = std::numeric_limits<float>::max();
  double excess = 0;
  if (std::isnan(want) || std::isnan(got)) {
    excess = std::isnan(want) && std::isnan(got) ? 0 : 1e9;
  } else if (std::fabs(want) > 0.99 * largest) {
    excess = std::signbit(got) == std::signbit(want) && std::fabs(got) > 0.98 * largest ? 0 : 1e9;
  } else {
    const double error = std::fabs(got - want);
    excess = error / allowed(want);
    if (std::fabs(want) > 1e-37) {
      worst.ulps = std::fmax(worst.ulps, error / std::ldexp(1.0, std::ilogb(want) - 23));
    }
  }
  if (excess > worst.excess) worst = {excess, worst.ulps, g, u, got, want};
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "fast";
  const Form form = name == "precise" ? Form::Precise : name == "bf16" ? Form::Bf16 : Form::Fast;
  const double most = form == Form::Bf16 ? 0.5 : 1;
  const std::vector<double> ups = {1.0, -0.75, 3.0, 0.0, 100.0, NAN};
  int misses = 0;
  for (const CudaFunction& entry : cuda_functions()) {
    Function function = Function::named(entry.name);
    if (entry.lifted) function = function.gated();
    const bool gated = function.arity() == Arity::Gated;
    std::vector<double> parameters;
    std::vector<float> parameters32;
    for (float v : entry.parameters) parameters.push_back(v), parameters32.push_back(v);
    std::vector<float> g;
    std::vector<float> u;
    for (double up : gated ? ups : std::vector<double>{0}) {
      for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        g.push_back(from_bf16(bits));
        // Where a gate's square leaves fp32's range, a small u would bring the exact product back.
        u.push_back(std::fabs(g.back()) > 1e18f && std::fabs(up) < 2 ? 2.0f
                                                                     : static_cast<float>(up));
      }
    }
    std::vector<float> y(g.size(), 12345.0f);
    if (!entry.run(form, g.data(), u.data(), parameters32.data(),
                   static_cast<int>(parameters32.size()), y.data(), static_cast<int>(y.size()))) {
      std::printf("%s: the device did not run it\n", entry.name);
      return 1;
    }
    Worst worst;
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double want =
          gated ? function.reference(g[i], u[i], parameters) : function.reference(g[i], parameters);
      compare(y[i], want, g[i], u[i], worst);
    }
    misses += worst.excess > most;
    std::printf(
        "%-4s %-22s%-6s %.3f of the allowed error, %.3g fp32 ulp; worst at g=%.9g u=%.9g: %.9g, "
        "exact %.9g\n",
        worst.excess > most ? "MISS" : "ok", entry.name, entry.lifted ? "*u" : "", worst.excess,
        worst.ulps, worst.at_g, worst.at_u, worst.got, worst.want);
  }
  return misses != 0;
}
