// The normal form, canonical text, fingerprints, and gradients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "activation/builder.hpp"
#include "activation/catalogue.hpp"
#include "activation/digest.hpp"
#include "activation/graph.hpp"
#include "activation/numerics.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

using testing::HasSubstr;

// The canonical expression of a unary text.
std::string normal(const std::string& text) {
  const std::string canonical = Function::expression(text).canonical();
  return canonical.substr(canonical.find("): ") + 3);
}

TEST(NormalForm, one_function_has_one_spelling) {
  EXPECT_EQ(normal("x*sigmoid(x)"), "silu(x)");
  EXPECT_EQ(normal("sigmoid(x)*x"), "silu(x)");
  EXPECT_EQ(normal("0.5*x*(1+erf(x/sqrt(2)))"), "gelu(x)");
  EXPECT_EQ(normal("x*0.5*(erf(x*0.7071067811865476)+1)"), "gelu(x)");
  EXPECT_EQ(normal("0.5*(1+tanh(0.5*x))*x"), "x*sigmoid(2*(0.5*x))");
  EXPECT_EQ(normal("x*x"), "x^2");
  EXPECT_EQ(normal("relu(x)*relu(x)"), "relu(x)^2");
  EXPECT_EQ(normal("x*1"), "x");
  EXPECT_EQ(normal("x/1"), "x");
  EXPECT_EQ(normal("x-0"), "x");
  EXPECT_EQ(normal("x^1"), "x");
  EXPECT_EQ(normal("--x"), "x");
  EXPECT_EQ(normal("x*-1"), "-x");
  EXPECT_EQ(normal("x/4"), "0.25*x");
  EXPECT_EQ(normal("x/3"), "x/3");
  EXPECT_EQ(normal("x*2*3"), "3*(2*x)");
  EXPECT_EQ(normal("2*3*x"), "6*x");
  EXPECT_EQ(normal("1-x"), "1-x");
  EXPECT_EQ(normal("-x+1"), "1-x");
  EXPECT_EQ(normal("x-3"), "x-3");
  EXPECT_EQ(normal("-3+x"), "x-3");
  EXPECT_EQ(normal("a-(-x)"), "x+a");
  EXPECT_EQ(normal("-(2*x)"), "-2*x");
  EXPECT_EQ(normal("-(2/x)"), "-2/x");
  EXPECT_EQ(normal("x/-a"), "-(x/a)");
  EXPECT_EQ(normal("-x-a"), "-x-a");
  EXPECT_EQ(normal("-a-x"), "-x-a");
  EXPECT_EQ(normal("where(0<x,1,2)"), "where(x>0,1,2)");
  EXPECT_EQ(normal("where(0>=x,1,2)"), "where(x<=0,1,2)");
  EXPECT_EQ(normal("where(0==x,1,2)"), "where(x==0,1,2)");
  EXPECT_EQ(normal("where(1>2,x,a*x)"), "a*x");
  EXPECT_EQ(normal("min(3,x)"), "min(x,3)");
  EXPECT_EQ(normal("x^0.5"), "sqrt(x)");
  EXPECT_EQ(normal("x^-0.5"), "rsqrt(x)");
  EXPECT_EQ(normal("2^x"), "exp2(x)");
  EXPECT_EQ(normal("e^x"), "exp(x)");
  EXPECT_EQ(normal("3^x"), "exp(log(3)*x)");
  EXPECT_EQ(normal("x^-1"), "1/x");
  EXPECT_EQ(normal("x^-3"), "x^-3");
  EXPECT_EQ(normal("(a+x)*(x+a)"), "(x+a)^2");
  EXPECT_EQ(normal("a+-2*x"), "a-2*x");
  EXPECT_EQ(normal("(-x+a)*(a-x)"), "(a-x)^2");
}

TEST(NormalForm, changes_no_value_that_it_must_keep) {
  // Not x: -0 + 0 is 0. Not 0: inf - inf and 0*inf are NaN.
  EXPECT_EQ(normal("x+0"), "x+0");
  EXPECT_EQ(normal("x-x"), "x-x");
  EXPECT_EQ(normal("x*0"), "0*x");
  // Sums and products are not re-associated.
  EXPECT_EQ(normal("x+(a+1)"), "x+(a+1)");
  EXPECT_EQ(normal("x+a+1"), "x+a+1");
  // A signed zero from a difference keeps its sign.
  EXPECT_EQ(normal("-(x-a)"), "-(x-a)");
  // Only an exact power of two is turned into a product.
  EXPECT_EQ(normal("x/0.1"), "x/0.1");
}

TEST(NormalForm, canonical_text_is_the_same_on_every_machine) {
  // What libm rounds is not folded there, but for the backends it is.
  EXPECT_EQ(normal("x*exp(1.5)"), "exp(1.5)*x");
  EXPECT_EQ(normal("3^-20*x"), "exp(-20*log(3))*x");
  EXPECT_EQ(Function::expression("x*exp(1.5)").graph().nodes.size(), 3);
  EXPECT_EQ(normal("x*sqrt(2)"), "1.4142135623730951*x");
}

TEST(NormalForm, long_parts_that_are_shared_become_definitions) {
  EXPECT_EQ(normal("min(x,a)*sigmoid(min(x,a)*b)"), "min(x,a)*sigmoid(b*min(x,a))");
  EXPECT_EQ(normal("t0*tanh(exp(x)*x+1)/(1+tanh(exp(x)*x+1))"),
            "t1=tanh(x*exp(x)+1); t0*t1/(t1+1)");
}

TEST(NormalForm, a_lift_of_f_is_the_gated_function) {
  const auto lifted = [](const char* name) { return Function::named(name).gated(); };
  EXPECT_EQ(lifted("silu"), Function::named("swiglu"));
  EXPECT_EQ(lifted("swish"), Function::named("swish_glu"));
  EXPECT_EQ(lifted("gelu"), Function::named("geglu"));
  EXPECT_EQ(lifted("gelu_tanh"), Function::named("geglu_tanh"));
  EXPECT_EQ(lifted("quick_gelu"), Function::named("geglu_quick"));
  EXPECT_EQ(lifted("relu"), Function::named("reglu"));
  EXPECT_EQ(lifted("relu2"), Function::named("relu2_glu"));
  EXPECT_EQ(lifted("sigmoid"), Function::named("glu"));
  EXPECT_EQ(lifted("linear"), Function::named("bilinear"));
  EXPECT_EQ(lifted("silu").name(), "silu");
  EXPECT_EQ(lifted("silu").gated(), lifted("silu"));
  EXPECT_EQ(lifted("silu").formula(), "g*sigmoid(g)*u");
  EXPECT_EQ(lifted("silu").reference(2, 3, {}), Function::named("silu").reference(2) * 3);
  EXPECT_EQ(std::hash<Function>{}(lifted("silu")),
            std::hash<Function>{}(Function::named("swiglu")));
}

// The recorded fingerprints: a change of one would orphan every cache, so it must be meant.
TEST(Fingerprint, is_stable) {
  std::ifstream file(FLEXACT_SOURCE_DIR "/tests/data/fingerprints.json");
  const auto recorded = nlohmann::ordered_json::parse(file);
  std::set<std::string> seen;
  for (const activation::CatalogueEntry& row : activation::catalogue()) {
    const std::string& name = row.name;
    const Function function = Function::named(name);
    ASSERT_TRUE(recorded.contains(name))
        << name << " " << function.fingerprint() << " " << function.canonical();
    EXPECT_EQ(recorded[name]["fingerprint"], function.fingerprint()) << name;
    EXPECT_EQ(recorded[name]["canonical"], function.canonical()) << name;
    EXPECT_TRUE(seen.insert(function.fingerprint()).second) << name;
    EXPECT_EQ(Function::from_canonical(function.canonical()), function) << name;
    EXPECT_EQ(Function::from_canonical(function.gated().canonical()), function.gated()) << name;
  }
}

TEST(Fingerprint, is_sha256) {
  EXPECT_EQ(activation::sha256_hex(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(activation::sha256_hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(activation::sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(FromCanonical, reads_what_canonical_prints) {
  const Function f =
      Function::from_canonical("gated(alpha,limit): min(g,limit)*sigmoid(alpha*min(g,limit))*u");
  EXPECT_EQ(f.arity(), Arity::Gated);
  EXPECT_EQ(f.parameters().size(), 2);
  EXPECT_EQ(f.name(), "expr");
  // Parameters may be unused and the value constant: gradients are so.
  EXPECT_EQ(Function::from_canonical("unary(a): 1").reference(3, std::vector<double>{2}), 1);
  EXPECT_EQ(Function::from_canonical("unary(): log(0-1)").canonical(), "unary(): log(-1)");
  for (const char* bad :
       {"", "x", "unary: x", "unary(x): x", "unary(a,a): x", "unary(a,): x", "unary(,a): x",
        "unary(1): x", "binary(): x", "unary(): ", "unary(): u", "gated(): x", "unary(): x x",
        "unary(a) x", "unary(): b", "unary(a,b,c,d,e1,f,h,i,j,k,l,m,n,o,p,q,r): x"}) {
    EXPECT_THROW(Function::from_canonical(bad), Error) << bad;
  }
}

TEST(Reference, refuses_wrong_counts_and_arities) {
  const Function swish = Function::named("swish");
  EXPECT_THROW(swish.reference(1.0), Error);
  EXPECT_THROW(swish.reference(1.0, std::vector<double>{1, 2}), Error);
  EXPECT_THROW(swish.reference(1.0, 2.0, std::vector<double>{1}), Error);
  EXPECT_THROW(Function::named("swiglu").reference(1.0), Error);
}

TEST(Reference, keeps_the_left_tails) {
  // 1+erf and 1+tanh cancel when evaluated naively.
  const auto at = [](const char* text, double x) {
    return Function::expression(text).reference(x);
  };
  EXPECT_NEAR(at("0.5*x*(1+erf(x/sqrt(2)))", -20.5) / -2.206758018052147e-92, 1, 1e-12);
  EXPECT_NEAR(at("0.5*x*(erf(x/sqrt(2))+1)", -20.5) / -2.206758018052147e-92, 1, 1e-12);
  EXPECT_NEAR(at("1-erf(x)", 10) / 2.088487583762545e-45, 1, 1e-12);
  EXPECT_NEAR(at("1-tanh(x)", 30) / (2 * std::exp(-60.0)), 1, 1e-12);
  EXPECT_EQ(at("erf(x)-1", 0), -1);
  EXPECT_EQ(at("1+exp(x)", 0), 2);
}

TEST(Numerics, special_values_are_as_documented) {
  using activation::apply;
  using activation::Op;
  const double infinity = std::numeric_limits<double>::infinity();
  const auto f = [](Op op, double a) { return apply(op, a, 0, 0, 0); };
  EXPECT_EQ(f(Op::Sigmoid, infinity), 1);
  EXPECT_EQ(f(Op::Sigmoid, -infinity), 0);
  EXPECT_EQ(f(Op::Softplus, -infinity), 0);
  EXPECT_EQ(f(Op::Softplus, infinity), infinity);
  EXPECT_TRUE(std::isnan(f(Op::Silu, -infinity)));
  EXPECT_TRUE(std::isnan(f(Op::Gelu, -infinity)));
  EXPECT_TRUE(std::isnan(f(Op::GeluTanh, -infinity)));
  EXPECT_TRUE(std::signbit(f(Op::Sign, -0.0)));
  EXPECT_TRUE(std::isnan(f(Op::Sign, std::nan(""))));
  EXPECT_EQ(f(Op::Rsqrt, 0), infinity);
  EXPECT_EQ(f(Op::Sigmoid, -745), std::exp(-745.0));
  EXPECT_EQ(apply(Op::Powi, 2, 0, 0, -3), 0.125);
  EXPECT_EQ(apply(Op::Clamp, 5, 2, 1, 0), 1);  // min(max(v, lo), hi)
  EXPECT_TRUE(std::isnan(apply(Op::Gate, 1, 1, 1, 0)));
}

TEST(Graph, tells_its_operations) {
  const auto& graph = Function::named("swiglu").graph();
  EXPECT_TRUE(graph.gated);
  EXPECT_TRUE(graph.uses(activation::Op::Gate));
  EXPECT_FALSE(graph.uses(activation::Op::Input));
  EXPECT_EQ(graph.result(), static_cast<int>(graph.nodes.size()) - 1);
  EXPECT_STREQ(activation::op_name(activation::Op::GeluTanh), "gelu_tanh");
  EXPECT_EQ(activation::operand_count(activation::Op::Where), 3);
}

// --- gradients
// ------------------------------------------------------------------------------------

double slope(const std::string& text, double x, const std::string& by = "x",
             std::vector<double> p = {}) {
  return Function::expression(text).gradient(by).reference(x, p);
}

TEST(Gradient, of_every_catalogue_function_is_the_limit_of_differences) {
  const std::vector<double> values = {0.7, 2.5, 1.3, 0.9};
  for (const activation::CatalogueEntry& row : activation::catalogue()) {
    const std::string& name = row.name;
    const Function f = Function::named(name).gated();
    const std::size_t count = f.parameters().size();
    std::vector<double> p(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count));
    if (name == "xielu") p = {0.2, -1.0, 0.5, -0.01};
    std::vector<std::string> variables = {"g", "u"};
    for (const Parameter& parameter : f.parameters()) variables.push_back(parameter.name);
    for (const double g : {-7.3, -2.6, -1.1, -0.3, 0.2, 0.6, 1.7, 4.1, 8.3}) {
      for (const double u : {-1.9, 0.4, 3.3}) {
        for (std::size_t v = 0; v < variables.size(); ++v) {
          const double h = 1e-6;
          const auto shifted = [&](double by) {
            std::vector<double> q = p;
            if (v >= 2) q[v - 2] += by;
            return f.reference(g + (v == 0 ? by : 0), u + (v == 1 ? by : 0), q);
          };
          const double want = (shifted(h) - shifted(-h)) / (2 * h);
          const double got = f.gradient(variables[v]).reference(g, u, p);
          EXPECT_NEAR(got, want, 1e-7 * (1 + std::fabs(want)))
              << name << " by " << variables[v] << " at " << g << " " << u;
        }
      }
    }
  }
}

TEST(Gradient, follows_torch_at_kinks) {
  EXPECT_EQ(slope("relu(x)", 0), 0);
  EXPECT_EQ(slope("abs(x)", 0), 0);
  EXPECT_EQ(slope("clamp(x,-1,2)", 2), 1);
  EXPECT_EQ(slope("clamp(x,-1,2)", -1), 1);
  EXPECT_EQ(slope("clamp(x,-1,2)", 2.5), 0);
  EXPECT_EQ(slope("min(x,2)", 2), 0.5);
  EXPECT_EQ(slope("max(x,2)", 2), 0.5);
  EXPECT_EQ(slope("max(x,2)", 1), 0);
  EXPECT_EQ(slope("sign(x)+floor(x)", 3.5), 0);
  EXPECT_EQ(slope("where(x>0,3*x,x)", 0), 1);
  EXPECT_EQ(slope("clamp(x,-limit,limit)", 5, "limit", {2}), 1);
  EXPECT_EQ(slope("clamp(x,-limit,limit)", -5, "limit", {2}), -1);
  EXPECT_EQ(slope("clamp(x,-limit,limit)", 1, "limit", {2}), 0);
}

TEST(Gradient, where_masks_the_side_not_taken) {
  // The other side's slope is infinite or not a number there.
  EXPECT_EQ(slope("where(x>0,sqrt(x),0*x)", 0), 0);
  EXPECT_EQ(slope("where(x>0,log(x),2*x)", -1), 2);
  EXPECT_EQ(slope("where(x>0,1/x,2)", 0), 0);
}

TEST(Gradient, has_the_arity_and_parameters_of_the_function) {
  const Function f = Function::named("swiglu_oai");
  for (const char* by : {"g", "u", "alpha", "limit", "beta"}) {
    EXPECT_EQ(f.gradient(by).arity(), Arity::Gated);
    EXPECT_EQ(f.gradient(by).parameters(), f.parameters());
  }
  EXPECT_EQ(f.gradient("beta").gradient("beta").reference(1, 2, std::vector<double>{1, 2, 3}), 0);
  EXPECT_EQ(slope("x^-16", 2), -16 * std::pow(2.0, -17));
  try {
    f.gradient("x");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(e.what(), HasSubstr("g, u, alpha, limit, beta"));
  }
  EXPECT_THROW(Function::named("silu").gradient("g"), Error);
}

}  // namespace
}  // namespace flexact
