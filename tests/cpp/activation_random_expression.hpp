// Random expressions with an evaluation of their own: intervals in long double that hold every
// value which an honest fp64 evaluation of the text as written can have.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace flexact::testing_support {

using Real = long double;

struct Interval {
  Real low = 0;
  Real high = 0;
  bool unsure = false;  // NaN or an undefined value cannot be excluded

  static Interval exactly(double v) { return {v, v, std::isnan(v)}; }
  bool holds(double v) const { return v >= low && v <= high; }
};

// Room for the rounding of one fp64 operation of a few ulp, and for subnormal results.
inline Interval widen(Interval i, Real relative = 2e-15L) {
  if (std::isnan(i.low) || std::isnan(i.high)) i.unsure = true;
  if (std::isfinite(i.low)) i.low -= std::fabs(i.low) * relative + 1e-307L;
  if (std::isfinite(i.high)) i.high += std::fabs(i.high) * relative + 1e-307L;
  // Values beyond fp64 overflow.
  const Real largest = std::numeric_limits<double>::max();
  if (i.low < -largest) i.low = -std::numeric_limits<Real>::infinity();
  if (i.high > largest) i.high = std::numeric_limits<Real>::infinity();
  if (i.low > largest || i.high < -largest || !std::isfinite(i.low) || !std::isfinite(i.high))
    i.unsure = true;
  return i;
}

inline Interval hull(const std::vector<Real>& values, bool unsure) {
  Interval i{values[0], values[0], unsure};
  for (Real v : values) {
    if (std::isnan(v)) i.unsure = true;
    i.low = std::min(i.low, v);
    i.high = std::max(i.high, v);
  }
  return widen(i);
}

inline Interval join(const Interval& a, const Interval& b) {
  return {std::min(a.low, b.low), std::max(a.high, b.high), a.unsure || b.unsure};
}

inline Interval multiply(const Interval& a, const Interval& b) {
  return hull({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high},
              a.unsure || b.unsure);
}

// A function that rises everywhere.
inline Interval rising(const std::function<Real(Real)>& f, const Interval& a) {
  return hull({f(a.low), f(a.high)}, a.unsure);
}

struct Point {
  double x = 0;
  std::vector<double> parameters;
};

// A text and what it means.
struct Term {
  std::string text;
  std::function<Interval(const Point&)> value;
};

class Generator {
 public:
  // `poles`: also divisions, whose infinities depend on the signs of zeros. `jumps`: also where()
  // and steps.
  explicit Generator(std::uint32_t seed, bool poles = true, bool jumps = true)
      : random_(seed), division_(poles), jumps_(jumps) {}

  Term expression(int depth) {
    if (depth <= 0) return leaf();
    switch (pick(12)) {
      case 0:
      case 1:
        return leaf();
      case 2:
        return sum(expression(depth - 1), expression(depth - 1), pick(2) == 0);
      case 3:
        return product(expression(depth - 1), expression(depth - 1));
      case 4:
        return division_ ? quotient(expression(depth - 1), expression(depth - 1)) : leaf();
      case 5:
        return power(expression(depth - 1));
      case 6:
        return negative(expression(depth - 1));
      case 7:
      case 8:
      case 9:
        return call(expression(depth - 1));
      case 10:
        return extreme(expression(depth - 1), expression(depth - 1));
      default:
        return choice(depth);
    }
  }

 private:
  int pick(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }

  Term leaf() {
    switch (pick(5)) {
      case 0: {
        static const double numbers[] = {0, 0.5, 1, 2, 3, 0.25, 1.5, 0.1, 1e-3, 7};
        const double v = numbers[pick(10)];
        std::string text = std::to_string(v);
        return {text, [v](const Point&) { return Interval::exactly(v); }};
      }
      case 1:
        return {"a", [](const Point& p) { return Interval::exactly(p.parameters[0]); }};
      case 2:
        return {"b", [](const Point& p) { return Interval::exactly(p.parameters[1]); }};
      default:
        return {"x", [](const Point& p) { return Interval::exactly(p.x); }};
    }
  }

  static Term negative(Term a) {
    return {"-(" + a.text + ")", [f = a.value](const Point& p) {
              const Interval i = f(p);
              return Interval{-i.high, -i.low, i.unsure};
            }};
  }

  static Term sum(Term a, Term b, bool minus) {
    return {"(" + a.text + (minus ? " - (" : " + (") + b.text + "))", [=](const Point& p) {
              const Interval i = a.value(p);
              Interval k = b.value(p);
              if (minus) k = {-k.high, -k.low, k.unsure};
              Interval total{i.low + k.low, i.high + k.high, i.unsure || k.unsure};
              // The operands' own rounding does not shrink with the sum.
              return widen(total);
            }};
  }

  static Term product(Term a, Term b) {
    return {"((" + a.text + ") * (" + b.text + "))",
            [=](const Point& p) { return multiply(a.value(p), b.value(p)); }};
  }

  static Term quotient(Term a, Term b) {
    return {"((" + a.text + ") / (" + b.text + "))", [=](const Point& p) {
              const Interval i = a.value(p);
              const Interval k = b.value(p);
              if (k.low <= 0 && k.high >= 0) return Interval{0, 0, true};
              return multiply(i, hull({1 / k.low, 1 / k.high}, k.unsure));
            }};
  }

  Term power(Term a) {
    const int n = pick(5) + 1;
    if (pick(4) == 0) {
      // A constant base.
      static const double bases[] = {2, 3, 0.5};
      const double base = bases[pick(3)];
      return {std::to_string(base) + "^(" + a.text + ")", [=](const Point& p) {
                const Interval i = a.value(p);
                const Real grow = std::log(static_cast<Real>(base));
                Interval r = hull({std::exp(i.low * grow), std::exp(i.high * grow)}, i.unsure);
                return widen(r, 4e-16L * (1 + std::max(std::fabs(i.low), std::fabs(i.high))));
              }};
    }
    return {"(" + a.text + ")^" + std::to_string(n), [=](const Point& p) {
              const Interval i = a.value(p);
              Interval r = i;
              std::vector<Real> ends = {std::pow(i.low, n), std::pow(i.high, n)};
              if (i.low < 0 && i.high > 0) ends.push_back(0);
              r = hull(ends, i.unsure);
              return widen(r, 1e-14L);
            }};
  }

  Term call(Term a) {
    struct Function {
      const char* name;
      Real (*value)(Real);
    };
    static const Function functions[] = {
        {"exp", [](Real v) { return std::exp(v); }},
        {"exp2", [](Real v) { return std::exp2(v); }},
        {"expm1", [](Real v) { return std::expm1(v); }},
        {"tanh", [](Real v) { return std::tanh(v); }},
        {"sigmoid", [](Real v) { return 0.5L + 0.5L * std::tanh(v / 2); }},
        {"erf", [](Real v) { return std::erf(v); }},
        {"softplus", [](Real v) { return v > 40 ? v : std::log1p(std::exp(v)); }},
        {"relu", [](Real v) { return v > 0 ? v : 0; }},
        {"floor", [](Real v) { return std::floor(v); }},
        {"sign", [](Real v) { return v > 0   ? 1.0L
                                     : v < 0 ? -1.0L
                                             : 0.0L; }},
    };
    const int which = pick(15);
    if (which < (jumps_ ? 10 : 8)) {
      const Function f = functions[which];
      return {std::string(f.name) + "(" + a.text + ")", [=](const Point& p) {
                Interval r = rising(f.value, a.value(p));
                // sigmoid from tanh cancels on the left; tiny results need absolute room.
                r.low -= 1e-18L;
                r.high += 1e-18L;
                return r;
              }};
    }
    if (which == 10) {
      return {"abs(" + a.text + ")", [=](const Point& p) {
                const Interval i = a.value(p);
                std::vector<Real> ends = {std::fabs(i.low), std::fabs(i.high)};
                if (i.low < 0 && i.high > 0) ends.push_back(0);
                return hull(ends, i.unsure);
              }};
    }
    if (which == 11 || which == 12) {
      // v * S(v) with S rising.
      const bool silu = which == 11;
      return {(silu ? "silu(" : "gelu(") + a.text + ")", [=](const Point& p) {
                const Interval i = a.value(p);
                Interval s = rising(
                    [silu](Real v) {
                      return silu ? 0.5L + 0.5L * std::tanh(v / 2)
                                  : 0.5L * std::erfc(-v / std::sqrt(2.0L));
                    },
                    i);
                s = widen(s, 1e-13L);  // erfc multiplies its argument's rounding
                s.low -= 1e-18L;
                s.high += 1e-18L;
                return multiply(i, s);
              }};
    }
    if (which == 13) return half_sum(a);
    const char* name = pick(2) == 0 ? "sqrt" : "log1p";
    const bool root = name[0] == 's';
    return {std::string(name) + "(abs(" + a.text + "))", [=](const Point& p) {
              const Interval i = a.value(p);
              const Real far = std::max(std::fabs(i.low), std::fabs(i.high));
              const Real near =
                  i.low < 0 && i.high > 0 ? 0 : std::min(std::fabs(i.low), std::fabs(i.high));
              return rising([root](Real v) { return root ? std::sqrt(v) : std::log1p(v); },
                            {near, far, i.unsure});
            }};
  }

  // 0.5*(1+tanh(v)), which the normal form writes as a sigmoid.
  static Term half_sum(Term a) {
    return {"(0.5*(1+tanh(" + a.text + ")))", [=](const Point& p) {
              Interval r = rising([](Real v) { return 0.5L * (1 + std::tanh(v)); }, a.value(p));
              r.low -= 1e-15L;
              r.high += 1e-15L;
              return r;
            }};
  }

  Term extreme(Term a, Term b) {
    const bool low = pick(2) == 0;
    if (pick(3) == 0) {
      return {"clamp(" + a.text + ", -1.5, 2)", [=](const Point& p) {
                return rising([](Real v) { return std::clamp(v, -1.5L, 2.0L); }, a.value(p));
              }};
    }
    return {(low ? "min(" : "max(") + a.text + ", " + b.text + ")", [=](const Point& p) {
              const Interval i = a.value(p);
              const Interval k = b.value(p);
              const auto f = [low](Real v, Real w) {
                return low ? std::min(v, w) : std::max(v, w);
              };
              return Interval{f(i.low, k.low), f(i.high, k.high), i.unsure || k.unsure};
            }};
  }

  Term choice(int depth) {
    Term left = expression(depth - 2);
    Term right = leaf();
    Term yes = expression(depth - 1);
    Term no = expression(depth - 2);
    const int which = pick(4);
    static const char* const symbols[] = {"<", "<=", ">", ">="};
    return {"where(" + left.text + " " + symbols[which] + " " + right.text + ", " + yes.text +
                ", " + no.text + ")",
            [=](const Point& p) {
              const Interval i = left.value(p);
              const Interval k = right.value(p);
              const Interval y = yes.value(p);
              const Interval n = no.value(p);
              const bool below = which < 2;
              const bool surely_below = i.high < k.low;
              const bool surely_above = i.low > k.high;
              const bool same = i.low == i.high && k.low == k.high && i.low == k.low;
              if (i.unsure || k.unsure) {
                Interval both = join(y, n);
                both.unsure = true;
                return both;
              }
              if (same) return which % 2 == 1 ? y : n;
              if (surely_below) return below ? y : n;
              if (surely_above) return below ? n : y;
              return join(y, n);
            }};
  }

  std::mt19937 random_;
  bool division_;
  bool jumps_;
};

}  // namespace flexact::testing_support
