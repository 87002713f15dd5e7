// Independent reference formulas for the tests of config resolution.
#include "config_support.hpp"

#include <cmath>

namespace flexact::config_test {

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}
double silu(double x) {
  return x * sigmoid(x);
}
double swish(double x, double beta) {
  return x * sigmoid(beta * x);
}
double gelu(double x) {
  return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
}
double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}
double clamp(double x, double lo, double hi) {
  return std::fmin(std::fmax(x, lo), hi);
}

}  // namespace flexact::config_test
