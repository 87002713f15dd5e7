// The expression language: what it accepts, what it means, and where it says that a text is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "activation/language.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

using testing::HasSubstr;

double value(const std::string& text, double x, std::vector<double> parameters = {}) {
  return Function::expression(text).reference(x, parameters);
}

void expect_error(const std::string& text, std::size_t column, const std::string& message) {
  SCOPED_TRACE(text);
  try {
    Function::expression(text);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::ExpressionError);
    EXPECT_EQ(e.where(), "column " + std::to_string(column)) << e.what();
    EXPECT_THAT(e.what(), HasSubstr(message));
  }
}

std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(Parser, operators_bind_as_in_mathematics) {
  EXPECT_EQ(value("1+2*x", 3), 7);
  EXPECT_EQ(value("(1+2)*x", 3), 9);
  EXPECT_EQ(value("x-1-2", 10), 7);
  EXPECT_EQ(value("x/2/5", 10), 1);
  EXPECT_EQ(value("-x^2", 3), -9);
  EXPECT_EQ(value("(-x)^2", 3), 9);
  EXPECT_EQ(value("2^-x", 3), 0.125);
  EXPECT_EQ(value("2^3^x", 2), 512);
  EXPECT_EQ(value("x^2^3", 2), 256);
  EXPECT_EQ(value("2*-x", 3), -6);
  EXPECT_EQ(value("--x", 3), 3);
  EXPECT_EQ(value("-x*2", 3), -6);
  EXPECT_EQ(value("2^-x*3", 1), 1.5);
}

TEST(Parser, reads_numbers_as_the_nearest_double) {
  EXPECT_EQ(value("x+0.1", 0), 0.1);
  EXPECT_EQ(value("x+.5", 0), 0.5);
  EXPECT_EQ(value("x+2.", 0), 2);
  EXPECT_EQ(value("x+1e-3", 0), 1e-3);
  EXPECT_EQ(value("x+1E+3", 0), 1e3);
  EXPECT_EQ(value("x+0.1000000000000000055511151231257827", 0), 0.1);
  EXPECT_EQ(value("x+pi", 0), 3.141592653589793);
  EXPECT_EQ(value("x+e", 0), 2.718281828459045);
  EXPECT_EQ(value("min(x,inf)", 5), 5);
}

TEST(Parser, powers_follow_their_rules) {
  EXPECT_EQ(value("x^0", std::nan("")), 1);
  EXPECT_EQ(value("x^1", 7), 7);
  EXPECT_EQ(value("x^-1", 4), 0.25);
  EXPECT_EQ(value("x^16", 2), 65536);
  EXPECT_EQ(value("x^-16", 0.5), 65536);
  EXPECT_EQ(value("x^0.5", 9), 3);
  EXPECT_EQ(value("x^-0.5", 4), 0.5);
  EXPECT_EQ(value("x^(1+1)", 3), 9);
  EXPECT_EQ(value("n = 2; x^n", 3), 9);
  EXPECT_NEAR(value("3^x", 2), 9, 1e-14);
  EXPECT_EQ(value("e^x", 0), 1);
  EXPECT_EQ(value("1^x", 5), 1);
  expect_error("x^17", 2, "this power is not allowed");
  expect_error("x^1.5", 2, "this power is not allowed");
  expect_error("x^a", 2, "this power is not allowed");
  expect_error("(-2)^x", 5, "this power is not allowed");
  expect_error("0^x", 2, "this power is not allowed");
  expect_error("inf^x", 4, "this power is not allowed");
  expect_error("a^x", 2, "this power is not allowed");
}

TEST(Parser, where_selects_and_comparisons_know_nan) {
  const double nan = std::nan("");
  EXPECT_EQ(value("where(x>0,1,2)", 1), 1);
  EXPECT_EQ(value("where((x>0),1,2)", -1), 2);
  for (const char* symbol : {"<", "<=", ">", ">=", "=="}) {
    EXPECT_EQ(value(std::string("where(x") + symbol + "x,1,2)", nan), 2) << symbol;
  }
  EXPECT_EQ(value("where(x!=x,1,2)", nan), 1);
  EXPECT_EQ(value("where(x+1<=2*x-3,1,2)", 4), 1);
  expect_error("x>0", 2, "comparison outside a condition");
  expect_error("where(x>0>1,1,2)", 10, "do not chain");
  expect_error("where(x,1,2)", 7, "first argument of where() is a comparison");
  expect_error("where((x>0)+1,1,2)", 9, "a comparison is not a number");
  expect_error("where((x>0)^2>1,1,2)", 9, "a comparison is not a number");
  expect_error("where(-(x>0),1,2)", 10, "comparison outside");
  expect_error("where(x>(x>0),1,2)", 11, "comparison outside");
  expect_error("where(x>0,x>0,2)", 12, "comparison outside");
  expect_error("c = x>0; where(c,1,2)", 6, "comparison outside");
  expect_error("where(x=0,1,2)", 8, "==");
  expect_error("x = 0", 1, "reserved");
}

TEST(Parser, min_max_relu_and_clamp_pass_nan_on) {
  const double nan = std::nan("");
  for (const char* text :
       {"min(x,1)", "min(1,x)", "max(x,1)", "max(1,x)", "relu(x)", "clamp(x,0,1)"}) {
    EXPECT_TRUE(std::isnan(value(text, nan))) << text;
  }
  EXPECT_TRUE(std::isnan(value("clamp(1+0*x,a,2)", 0, {nan})));
  EXPECT_EQ(value("clamp(x,-1,2)", 5), 2);
  EXPECT_EQ(value("clamp(x,-1,2)", -5), -1);
  expect_error("clamp(x,1,-1)", 1, "lower bound 1 above its upper bound -1");
  expect_error("1+clamp(x,1,0.5+0.25)", 3, "above");
}

TEST(Parser, definitions_name_values) {
  EXPECT_EQ(value("a = x+1; b = a*a; b-a", 2), 6);
  EXPECT_EQ(value("a=2;a*x", 3), 6);
  expect_error("a = 1; x", 1, "'a' is defined but never used");
  expect_error("a = 1; a = 2; a*x", 8, "'a' is defined twice");
  expect_error("y = b*x; b = 2; y*b", 10, "'b' is a parameter");
  expect_error("a = x", 6, "expected ';'");
  expect_error("a = x;", 7, "ends with a definition");
  expect_error("a = ; x", 5, "expected a value");
  expect_error("x; x", 2, "';' after a value");
  expect_error("a == x; a", 3, "comparison outside");
}

TEST(Parser, no_name_shadows_a_word_of_the_language) {
  for (const char* name :
       {"g", "u", "x", "pi", "e", "inf", "exp", "where", "silu", "gelu_tanh", "name", "expr",
        "per_layer", "per_expert", "tensor", "routed", "shared", "dense"}) {
    expect_error(std::string(name) + " = 1; x", 1, "reserved word");
    EXPECT_THROW(Function::expression("x", {Parameter{name}}), Error) << name;
  }
  for (const char* name :
       {"name", "expr", "per_layer", "per_expert", "tensor", "routed", "shared", "dense"}) {
    expect_error(std::string("x*") + name, 3, "reserved word");
  }
  expect_error("x+min", 6, "'min' is a function");
  expect_error("exp*x", 4, "'exp' is a function");
}

TEST(Parser, parameters_come_in_order_of_first_use_or_as_declared) {
  const Function free = Function::expression("b*x+a*b");
  ASSERT_EQ(free.parameters().size(), 2);
  EXPECT_EQ(free.parameters()[0].name, "b");
  EXPECT_EQ(free.parameters()[1].name, "a");
  const Function fixed = Function::expression("b*x+a*b", {{"a"}, {"b", 2.0}});
  EXPECT_EQ(fixed.parameters()[0].name, "a");
  EXPECT_EQ(fixed.canonical(), "unary(a,b): b*x+a*b");
  try {
    Function::expression("a*x", {{"a"}, {"b"}});
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("parameter 'b' is never used"));
  }
  try {
    Function::expression("x*bta", {{"beta"}});
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("column 3: unknown name 'bta' (did you mean 'beta'?)"));
  }
  EXPECT_THROW(Function::expression("x*k", std::vector<Parameter>{}), Error);
}

TEST(Parser, declared_parameters_are_checked) {
  EXPECT_THROW(Function::expression("x*a", {{"a"}, {"a"}}), Error);
  EXPECT_THROW(Function::expression("x*a", {{"1a"}}), Error);
  EXPECT_THROW(Function::expression("x*a", {{"a", std::nan("")}}), Error);
  EXPECT_THROW(Function::expression("x*a", {{"a", 2.0, Domain{0, 1}}}), Error);
  EXPECT_THROW(Function::expression("x*a*b", {{"a", {}, {}, {"b"}}, {"b"}}), Error);
  EXPECT_THROW(Function::expression("x", std::vector<Parameter>(17, Parameter{"a"})), Error);
}

TEST(Parser, arity_is_what_the_variables_say) {
  EXPECT_EQ(Function::expression("x").arity(), Arity::Unary);
  EXPECT_EQ(Function::expression("g*u").arity(), Arity::Gated);
  expect_error("2*g", 3, "g without u");
  expect_error("2*u", 3, "u without g");
  expect_error("x*u", 3, "x beside g or u");
  expect_error("u*x", 3, "x beside g or u");
  expect_error("g*u*x", 5, "x beside g or u");
  expect_error("x*g*u", 3, "x beside g or u");
  expect_error("1+2", 1, "neither x nor g and u");
  expect_error("k", 1, "neither x nor g and u");
}

TEST(Parser, faults_have_their_column) {
  expect_error("", 1, "empty");
  expect_error("   ", 1, "empty");
  expect_error("x*", 3, "expected a value, found the end");
  expect_error("x x", 3, "expected an operator");
  expect_error("(x", 3, "expected ')'");
  expect_error("x)", 2, "expected an operator or the end, found ')'");
  expect_error("2x", 2, "unexpected 'x' after a number");
  expect_error("x+1.2.3", 6, "unexpected '.'");
  expect_error("x+.", 3, "a digit is missing");
  expect_error("x+1e", 4, "unexpected 'e'");
  expect_error("x**2", 2, "'^'");
  expect_error("x & 1", 3, "not part of the language");
  expect_error("x+\xc3\xa9", 3, "ASCII");
  expect_error(std::string("x\0y", 3), 2, "byte 0");
  expect_error("+x", 1, "'+' needs a value on its left");
  expect_error("foo(x)", 1, "unknown function 'foo'");
  expect_error("tahn(x)", 1, "did you mean 'tanh'");
  expect_error("sigmoid(x,1)", 10, "takes 1 argument");
  expect_error("min(x)", 6, "takes 2 arguments");
  expect_error("clamp(x,1)", 10, "takes 3 arguments");
  expect_error("exp()", 5, "expected a value");
  expect_error("exp(x", 6, "to close exp(");
  expect_error("exp(x=1)", 6, "==");
  expect_error("x+1e400", 3, "does not fit a double");
  expect_error("x+1e-400", 3, "does not fit a double");
  expect_error("x\n+\ny\n@", 7, "not part");
  expect_error("x=", 1, "reserved");
  expect_error("x+k=2", 4, "'=' defines a name");
}

TEST(Parser, constants_that_are_no_numbers_are_refused) {
  expect_error("x+0/0", 4, "not a number");
  expect_error("x*log(-1)", 3, "not a number");
  expect_error("x+(inf-inf)", 7, "not a number");
  expect_error("x+1/0", 4, "overflows");
  expect_error("x*exp(1000)", 3, "overflows");
  expect_error("x+10^16*10^16^16", 11, "overflows");
  expect_error("x+(-1)^0.5", 7, "not a number");
  EXPECT_EQ(value("max(x,-inf)", 3), 3);
}

TEST(Parser, limits_hold_to_the_letter) {
  const std::string open(64, '(');
  const std::string close(64, ')');
  EXPECT_EQ(value(open + "x" + close, 3), 3);
  expect_error("(" + open + "x" + close + ")", 65, "nests deeper than 64");
  EXPECT_EQ(value(repeated("-", 64) + "x", 3), 3);
  expect_error(repeated("-", 65) + "x", 65, "nests deeper");
  expect_error(repeated("exp(", 65) + "x" + repeated(")", 65), 260, "nests deeper");
  expect_error(repeated("2^", 65) + "x", 130, "nests deeper");

  const std::string padded = "x" + std::string(4095, ' ');
  EXPECT_EQ(value(padded, 3), 3);
  expect_error(padded + " ", 4097, "longer than 4096 bytes");

  std::string sum = "x";
  for (int i = 0; i < 16; ++i) sum += "+p" + std::to_string(i);
  EXPECT_EQ(Function::expression(sum).parameters().size(), 16);
  expect_error(sum + "+q", sum.size() + 2, "more than 16 parameters");

  std::string chain = "x";
  for (int i = 1; i <= 127; ++i) chain = chain + "*x+" + std::to_string(i);
  EXPECT_THROW(Function::expression(chain), Error);
  std::string squares = "a = x*x+1; ";
  for (char c = 'b'; c <= 'd'; ++c)
    squares += std::string(1, c) + " = " + std::string(1, static_cast<char>(c - 1)) + "^2+1; ";
  EXPECT_NO_THROW(Function::expression(squares + "d"));

  const std::string long_name(65, 'a');
  expect_error("x*" + long_name, 3, "longer than 64");
  expect_error(long_name + " = 1; x", 1, "longer than 64");
  EXPECT_NO_THROW(Function::expression("x*" + long_name.substr(1)));
}

TEST(Parser, counts_operations_after_sharing) {
  const auto terms = [](int n) {
    std::string text = "x";
    for (int i = 1; i <= n; ++i) text += "+" + std::to_string(i) + "*x";
    return text;
  };
  // Each term but the first needs a constant, a product and a sum.
  const Function most = Function::expression(terms(85));
  EXPECT_LE(most.graph().nodes.size(), 256);
  expect_error(terms(90), 1, "operations");
  // x, exp, 1, +, ^2 however often it is written.
  EXPECT_EQ(Function::expression("(exp(x)+1)*(1+exp(x))").graph().nodes.size(), 5);
}

TEST(Language, suggests_near_names) {
  const std::vector<std::string> known = {"silu", "swish", "gelu"};
  EXPECT_EQ(activation::closest("SiLU", known), "silu");
  EXPECT_EQ(activation::closest("swihs", known), "swish");
  EXPECT_EQ(activation::closest("hardtanh", known), "");
  EXPECT_EQ(activation::closest("", known), "");
  EXPECT_EQ(activation::closest(std::string(1000, 'a'), known), "");
}

TEST(Language, spells_numbers_shortest) {
  EXPECT_EQ(activation::number_text(0.1), "0.1");
  EXPECT_EQ(activation::number_text(-0.0), "-0");
  EXPECT_EQ(activation::number_text(1e300), "1e+300");
  EXPECT_EQ(activation::number_text(std::nan("")), "nan");
  EXPECT_EQ(activation::number_text(-std::numeric_limits<double>::infinity()), "-inf");
}

}  // namespace
}  // namespace flexact
