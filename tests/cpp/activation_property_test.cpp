// Properties of the compiler over random expressions.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>

#include "activation/graph.hpp"
#include "activation_random_expression.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

using testing_support::Generator;
using testing_support::Interval;
using testing_support::Point;
using testing_support::Term;

const std::vector<Parameter> kParameters = {{"a"}, {"b"}};

// A random unary function of x, a and b; every name is used.
struct Sample {
  Term term;
  Function function;
};

Sample sample(std::uint32_t seed, bool poles = true, bool jumps = true) {
  // Constants that overflow or are not numbers are refused; another seed has none.
  for (;; seed += 0x9e3779b9u) {
    Generator generator(seed, poles, jumps);
    Term term = generator.expression(5);
    try {
      return {term, Function::expression("(" + term.text + ") + 0*(x + a + b)", kParameters)};
    } catch (const Error& e) {
      if (e.message().find("this constant") == std::string::npos) throw;
    }
  }
}

std::vector<Point> points(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> wide(-8, 8);
  std::uniform_real_distribution<double> narrow(-2, 2);
  std::vector<Point> list;
  for (double x : {0.0, 1.0, -1.0, 0.5, 1e-6, -3e4})
    list.push_back({x, {narrow(random), narrow(random)}});
  for (int i = 0; i < 20; ++i) list.push_back({wide(random), {narrow(random), narrow(random)}});
  return list;
}

RC_GTEST_PROP(Reference, lies_in_the_interval_of_a_second_evaluation, (std::uint32_t seed)) {
  const Sample s = sample(seed);
  for (const Point& p : points(seed)) {
    const Interval want = s.term.value(p);
    const double got = s.function.reference(p.x, p.parameters);
    if (want.unsure) continue;
    if (!want.holds(got)) {
      RC_LOG() << s.term.text << " at x = " << p.x << ": " << got << " not in [" << want.low << ", "
               << want.high << "]\n";
    }
    RC_ASSERT(want.holds(got));
  }
}

RC_GTEST_PROP(Graph, keeps_the_value_of_the_text, (std::uint32_t seed)) {
  const Sample s = sample(seed);
  for (const Point& p : points(seed)) {
    const Interval want = s.term.value(p);
    const double got = activation::evaluate(s.function.graph(), p.x, 0, p.parameters);
    if (want.unsure) continue;
    if (!want.holds(got)) RC_LOG() << s.function.canonical() << " of " << s.term.text << "\n";
    RC_ASSERT(want.holds(got));
  }
}

RC_GTEST_PROP(Graph, agrees_with_the_reference_on_special_values, (std::uint32_t seed)) {
  // Without poles: the signs of zeros decide between their infinities.
  const Sample s = sample(seed, false);
  const double infinity = std::numeric_limits<double>::infinity();
  for (double x : {infinity, -infinity, std::nan(""), 1e300, -1e300, 1e-310}) {
    const std::vector<double> parameters = {1.25, -0.5};
    const double want = s.function.reference(x, parameters);
    const double got = activation::evaluate(s.function.graph(), x, 0, parameters);
    const bool same = std::isnan(want)   ? std::isnan(got)
                      : std::isinf(want) ? want == got
                                         : std::fabs(got - want) <= 1e-9 * std::fabs(want) + 1e-12;
    if (!same) RC_LOG() << s.term.text << " at " << x << ": " << want << " became " << got << "\n";
    RC_ASSERT(same);
  }
}

RC_GTEST_PROP(Canonical, parses_back_to_the_same_function, (std::uint32_t seed)) {
  const Sample s = sample(seed);
  const Function back = Function::from_canonical(s.function.canonical());
  RC_ASSERT(back.canonical() == s.function.canonical());
  RC_ASSERT(back.graph() == s.function.graph());
  RC_ASSERT(back.fingerprint() == s.function.fingerprint());
  const Function lifted = s.function.gated();
  RC_ASSERT(Function::from_canonical(lifted.canonical()).graph() == lifted.graph());
}

RC_GTEST_PROP(Formula, parses_back_to_the_same_function, (std::uint32_t seed)) {
  const Sample s = sample(seed);
  const Function back = Function::expression(s.function.formula(), kParameters);
  if (back != s.function) RC_LOG() << s.function.canonical() << "\n" << back.canonical() << "\n";
  RC_ASSERT(back == s.function);
  RC_ASSERT(back.formula() == s.function.formula());
  const Function lifted = Function::expression(s.function.gated().formula(), kParameters);
  if (lifted != s.function.gated()) {
    RC_LOG() << s.function.gated().formula() << "\n"
             << s.function.gated().canonical() << "\n"
             << lifted.canonical() << "\n";
  }
  RC_ASSERT(lifted == s.function.gated());
}

RC_GTEST_PROP(Graph, is_in_order_without_twins_or_dead_code, (std::uint32_t seed)) {
  const Sample s = sample(seed);
  const auto& nodes = s.function.graph().nodes;
  std::vector<bool> used(nodes.size(), false);
  used.back() = true;
  for (std::size_t i = nodes.size(); i-- > 0;) {
    RC_ASSERT(used[i]);
    for (int k = 0; k < activation::operand_count(nodes[i].op); ++k) {
      RC_ASSERT(nodes[i].operands[k] >= 0 && nodes[i].operands[k] < static_cast<int>(i));
      used[static_cast<std::size_t>(nodes[i].operands[k])] = true;
    }
    for (std::size_t j = 0; j < i; ++j) {
      RC_ASSERT(
          !(nodes[i] == nodes[j] && std::signbit(nodes[i].value) == std::signbit(nodes[j].value)));
    }
  }
}

RC_GTEST_PROP(Gradient, is_the_limit_of_differences, (std::uint32_t seed)) {
  const Sample s = sample(seed, false, false);
  const Function slope = s.function.gradient("x");
  for (const Point& p : points(seed)) {
    if (std::fabs(p.x) > 100) continue;
    // Two step sizes: where they disagree, the function is not smooth here.
    const auto difference = [&](double h) {
      return (s.function.reference(p.x + h, p.parameters) -
              s.function.reference(p.x - h, p.parameters)) /
             (2 * h);
    };
    const double wide = difference(1e-3);
    const double narrow = difference(1e-5);
    const double got = slope.reference(p.x, p.parameters);
    // Infinite slope times zero, as in torch: a root at 0, the tail of an overflowing exponential.
    if (std::isnan(got)) continue;
    const double size = std::fabs(s.function.reference(p.x, p.parameters));
    if (!std::isfinite(wide) || !std::isfinite(narrow) || !(size < 1e6) || std::fabs(narrow) > 1e6)
      continue;
    if (std::fabs(wide - narrow) > 1e-2 * (std::fabs(narrow) + 1e-2)) continue;
    // Kinks stand at round numbers.
    if (std::fabs(p.x) < 1e-2 || p.x == 1 || p.x == -1 || p.x == 0.5) continue;
    const double room = 1e-2 * (std::fabs(narrow) + 1e-2) + 1e-9 * size / 1e-5;
    if (!(std::fabs(got - narrow) <= room)) {
      RC_LOG() << s.term.text << " at " << p.x << ": " << got << ", differences say " << narrow
               << "\n";
    }
    RC_ASSERT(std::fabs(got - narrow) <= room);
  }
}

RC_GTEST_PROP(Parser, never_fails_but_by_an_expression_error,
              (const std::string& noise, std::uint32_t seed)) {
  std::string text = sample(seed).term.text;
  if (text.size() > 200) text.resize(200);
  if (!noise.empty()) text.insert(seed % (text.size() + 1), noise);
  try {
    Function::expression(text);
  } catch (const Error& e) {
    RC_ASSERT(e.code() == ErrorCode::ExpressionError);
    RC_ASSERT(e.where().starts_with("column "));
    const std::size_t column = std::stoul(e.where().substr(7));
    RC_ASSERT(column >= 1 && column <= text.size() + 1);
  }
}

}  // namespace
}  // namespace flexact
