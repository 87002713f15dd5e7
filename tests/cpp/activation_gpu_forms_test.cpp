// Which nodes GPU printers compute together, and what they print of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "activation/catalogue.hpp"
#include "activation/function_access.hpp"
#include "activation/gpu_forms.hpp"
#include "flexact/activation.hpp"

namespace flexact::activation {
namespace {

using testing::HasSubstr;
using testing::Not;

// The last node of an expression, and its forms.
struct Formed {
  explicit Formed(const std::string& text) : function(Function::expression(text)) {}
  const Graph& graph() const { return function.graph(); }
  Function function;
};

int count_absorbed(const GpuForms& forms, const Graph& graph) {
  int count = 0;
  for (int i = 0; i <= graph.result(); ++i) count += forms.absorbed(i) ? 1 : 0;
  return count;
}

TEST(GpuForms, tanh_of_softplus_takes_the_softplus_that_nothing_else_reads) {
  const Formed mish("tanh(softplus(x))");
  const GpuForms forms(mish.graph());
  EXPECT_EQ(forms.tanh_of_softplus(mish.graph().result()), 0);
  EXPECT_EQ(count_absorbed(forms, mish.graph()), 1);

  const Formed shared("s = softplus(x); s+tanh(s)");
  const GpuForms apart(shared.graph());
  EXPECT_EQ(count_absorbed(apart, shared.graph()), 0);
}

TEST(GpuForms, one_plus_erf_is_found_whatever_the_order) {
  for (const char* text : {"1+erf(x)", "erf(x)+1"}) {
    const Formed one(text);
    EXPECT_EQ(GpuForms(one.graph()).one_plus_erf(one.graph().result()), 0) << text;
  }
  const Formed two("2+erf(x)");
  EXPECT_EQ(GpuForms(two.graph()).one_plus_erf(two.graph().result()), -1);
}

TEST(GpuForms, a_product_has_one_sigmoid_and_any_number_of_tanh) {
  const Formed situ("b*tanh(g/b)*sigmoid(g)*(c*tanh(u/c))");
  const GpuForms forms(situ.graph());
  const GpuForms::Product* product = forms.product(situ.graph().result());
  ASSERT_NE(product, nullptr);
  ASSERT_EQ(product->gates.size(), 3u);
  EXPECT_EQ(product->gates[0].op, Op::Tanh);
  EXPECT_EQ(product->gates[1].op, Op::Sigmoid);
  EXPECT_EQ(product->gates[2].op, Op::Tanh);
  EXPECT_EQ(product->factors.size(), 2u);

  const Formed sigmoids("sigmoid(g)*sigmoid(u)");
  EXPECT_EQ(GpuForms(sigmoids.graph()).product(sigmoids.graph().result()), nullptr);
  const Formed alone("x*tanh(x)");
  EXPECT_EQ(GpuForms(alone.graph()).product(alone.graph().result()), nullptr);
}

TEST(GpuForms, silu_in_a_product_leaves_its_factor) {
  const Formed text("silu(g)*tanh(u)");
  const GpuForms forms(text.graph());
  const GpuForms::Product* product = forms.product(text.graph().result());
  ASSERT_NE(product, nullptr);
  EXPECT_EQ(product->gates.size(), 2u);
  EXPECT_EQ(product->factors.size(), 1u);
}

TEST(GpuForms, no_gate_is_taken_from_another_reader) {
  const Formed shared("t = tanh(g); t*sigmoid(u)+t");
  EXPECT_EQ(count_absorbed(GpuForms(shared.graph()), shared.graph()), 0);
}

TEST(GpuForms, half_of_one_plus_erf_is_one_form) {
  const Formed half("x^3+0.5*(1+erf(x))");
  const GpuForms forms(half.graph());
  int found = 0;
  for (int i = 0; i <= half.graph().result(); ++i) found += forms.half_one_plus_erf(i) >= 0 ? 1 : 0;
  EXPECT_EQ(found, 1);
  EXPECT_EQ(count_absorbed(forms, half.graph()), 2);  // the sum and erf

  const Formed shared("t = 1+erf(x); 0.5*t+t*t");
  for (int i = 0; i <= shared.graph().result(); ++i) {
    EXPECT_EQ(GpuForms(shared.graph()).half_one_plus_erf(i), -1);
  }
}

TEST(GpuForms, constants_before_an_exponential_are_one) {
  const Formed text("x*sigmoid(-3*(x*(x+1))/2)");
  const Graph& graph = text.graph();
  const GpuForms forms(graph);
  int argument = -1;
  for (int i = 0; i <= graph.result(); ++i) argument = std::max(argument, forms.argument(i));
  const GpuForms::Scaled scaled = forms.scaled(argument);
  EXPECT_EQ(scaled.constant, -1.5);
  EXPECT_EQ(scaled.factors.size(), 2u);
  EXPECT_THAT(text.function.emit(Target::Cuda), HasSubstr(", -1.5f)"));

  // What something else reads, and constants that fp32 could not hold with their powers, stay.
  for (const char* other : {"t = 3*x; t*exp(t)", "exp(1e-9*x)", "exp(x)", "x*exp(1e30*x)"}) {
    EXPECT_THAT(Formed(other).function.emit(Target::Cuda), Not(HasSubstr("exp_of"))) << other;
  }
}

TEST(GpuForms, factors_of_the_result_may_be_coarse) {
  for (const char* text :
       {"tanh(x)", "x*tanh(x)", "tanh(x)^2", "tanh(x)*tanh(x/2)", "gelu(x)", "clamp(gelu(x),-1,10)",
        "x/(2*softplus(x))", "0.5*(1+erf(x))*x", "relu(4*tanh(x/4))^2", "where(x>0,x,tanh(x))",
        "-abs(sqrt(softplus(x)))"}) {
    EXPECT_TRUE(GpuForms(Formed(text).graph()).coarse()) << text;
  }
  // Terms, arguments and conditions, more than two of them, and where there is nothing of the kind.
  for (const char* text :
       {"tanh(x)+1e-9", "t = tanh(x); t*sigmoid(x)+t", "exp(tanh(x))", "tanh(x)^3",
        "tanh(x)*tanh(x/2)*tanh(x/3)", "gelu(x)^2", "where(tanh(x)>0.5,x,1)", "sign(tanh(x))",
        "x*tanh(softplus(x))", "silu(x)", "erf(x)"}) {
    EXPECT_FALSE(GpuForms(Formed(text).graph()).coarse()) << text;
  }
}

TEST(GpuForms, what_depends_on_parameters_alone_is_uniform) {
  const Formed text("x/softplus(a)");
  const Graph& graph = text.graph();
  const GpuForms forms(graph);
  for (int i = 0; i <= graph.result(); ++i) {
    const Op op = graph.nodes[static_cast<std::size_t>(i)].op;
    EXPECT_EQ(forms.uniform(i), op == Op::Parameter || op == Op::Softplus);
  }
  EXPECT_THAT(text.function.emit(Target::Triton), HasSubstr("_flexact_scale(x, "));
}

TEST(GpuForms, no_function_of_the_catalogue_prints_a_quotient_of_elements_for_triton) {
  // A quotient takes eight instructions; the forms have none.
  for (const CatalogueEntry& entry : catalogue()) {
    const std::string text = function_of(entry).emit(Target::Triton);
    const std::size_t body = text.find("def flexact_act");
    EXPECT_THAT(text.substr(body), Not(HasSubstr(" / "))) << entry.name;
    EXPECT_THAT(text, Not(HasSubstr("tl.exp("))) << entry.name;
  }
}

}  // namespace
}  // namespace flexact::activation
