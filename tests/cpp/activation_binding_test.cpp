// Parameter values, activations as JSON, and the registry.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "activation/binding.hpp"
#include "activation/catalogue.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename F>
std::string error_of(ErrorCode code, F&& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "accepted";
  return {};
}

std::string config_error(const std::function<void()>& action) {
  return error_of(ErrorCode::ConfigError, action);
}

const Parameter& parameter_of(const Function& function, const std::string& name) {
  return *std::find_if(function.parameters().begin(), function.parameters().end(),
                       [&](const Parameter& parameter) { return parameter.name == name; });
}

TEST(Domain, of_xielu_s_eps_ends_at_zero) {
  const Function xielu = Function::named("xielu");
  EXPECT_EQ(parameter_of(xielu, "eps").domain.to_string(), "<= 0");
}

// As gpt-oss has them.
TEST(Binding, swiglu_oai_has_the_defaults_of_its_model) {
  for (const char* name : {"swiglu_oai", "swiglu_oai_symmetric"}) {
    const Function function = Function::named(name);
    EXPECT_EQ(parameter_of(function, "alpha").default_value, 1.702);
    EXPECT_EQ(parameter_of(function, "limit").default_value, 7.0);
  }
  EXPECT_EQ(parameter_of(Function::named("swiglu_oai"), "beta").default_value, 1.0);
}

TEST(Domain, contains_what_it_says) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(Domain{}.contains(-1e308));
  EXPECT_FALSE(Domain{}.contains(infinity));
  EXPECT_FALSE(Domain{}.contains(std::nan("")));
  const Domain positive{0, infinity, false, true};
  EXPECT_FALSE(positive.contains(0));
  EXPECT_TRUE(positive.contains(5e-324));
  EXPECT_FALSE(positive.contains(infinity));
  EXPECT_EQ(Domain{}.to_string(), "any finite number");
  EXPECT_EQ(positive.to_string(), "> 0");
  EXPECT_EQ((Domain{0, 1}.to_string()), "0 to 1");
  EXPECT_EQ((Domain{0, 1, false, true}.to_string()), "> 0 and <= 1");
  EXPECT_EQ((Domain{-infinity, 0}.to_string()), "<= 0");
  EXPECT_EQ((Domain{-infinity, 0, true, false}.to_string()), "< 0");
}

TEST(Activation, takes_defaults_and_refuses_the_rest) {
  EXPECT_EQ(Activation(Function::named("swish")).values(0, {0, 1}).data, std::vector<double>{1});
  EXPECT_EQ(Activation(Function::named("swish"), {{"beta", 1.0}}),
            Activation(Function::named("swish")));
  EXPECT_THAT(config_error([] {
                Activation(Function::named("swish"), {{"gamma", 1.0}});
              }),
              HasSubstr("/gamma"));
  EXPECT_THAT(config_error([] {
                Activation(Function::named("silu"), {{"beta", 1.0}});
              }),
              HasSubstr("it has none"));
  EXPECT_THAT(config_error([] { Activation(Function::named("swiglu_clamp")); }),
              HasSubstr("'limit'"));
  EXPECT_THAT(config_error([] {
                Activation(Function::named("swiglu_clamp"), {{"limit", 0.0}});
              }),
              HasSubstr("> 0"));
  EXPECT_THAT(config_error([] { Activation(Function::named("prelu")); }), HasSubstr("'a'"));
  const Binding twice = {{"L", 1.0}, {"limit", 1.0}};
  EXPECT_THAT(config_error([&] { Activation(Function::named("swiglu_clamp"), twice); }),
              HasSubstr("given twice"));
  for (double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    config_error([&] { Activation(Function::named("swish"), {{"beta", bad}}); });
  }
}

TEST(Activation, aliases_are_their_parameter) {
  EXPECT_EQ(Activation(Function::named("leaky_relu"), {{"negative_slope", 0.2}}),
            Activation(Function::named("leaky_relu"), {{"alpha", 0.2}}));
}

TEST(Activation, lifts_with_its_binding) {
  const Activation lifted = Activation(Function::named("swish"), {{"beta", 2.0}}).gated();
  EXPECT_EQ(lifted.function(), Function::named("swish_glu"));
  EXPECT_EQ(lifted, Activation(Function::named("swish_glu"), {{"beta", 2.0}}));
}

TEST(Activation, clamps_that_cross_are_refused_for_any_values) {
  const Function f = Function::expression("clamp(x,lo,2*hi)");
  EXPECT_NO_THROW(Activation(f, {{"lo", 1.0}, {"hi", 0.5}}));
  EXPECT_THAT(config_error([&] {
                Activation(f, {{"lo", 1.0}, {"hi", 0.4}});
              }),
              HasSubstr("lower bound 1"));
  const Activation layered(f, {{"lo", ParameterValue::per_layer({0.0, 3.0})}, {"hi", 1.0}});
  EXPECT_NO_THROW(layered.values(0, {0, 1}));
  config_error([&] { layered.values(1, {0, 1}); });
  // Bounds that depend on the input are the caller's business.
  EXPECT_NO_THROW(Activation(Function::expression("clamp(x,x,hi)"), {{"hi", -5.0}}));
  EXPECT_NO_THROW(Activation(Function::expression("clamp(1,lo,3)+x"), {{"lo", 2.0}}));
}

TEST(Values, come_by_layer_and_expert) {
  const Function f = Function::named("swiglu_oai");
  const Activation a(
      f,
      {{"alpha", ParameterValue::per_layer({1.0, ParameterValue::per_expert({2.0, 3.0, 4.0})})},
       {"limit", ParameterValue::per_expert({5.0, ParameterValue::per_layer({6.0, 7.0}), 8.0})}});
  EXPECT_EQ(a.values(0, {0, 1}).data, (std::vector<double>{1, 5, 1}));
  const ValueTable one = a.values(1, {1, 2});
  EXPECT_EQ(one.rows, 1);
  EXPECT_EQ(one.data, (std::vector<double>{3, 7, 1}));
  const ValueTable all = a.values(1, {0, 3});
  EXPECT_EQ(all.rows, 3);
  EXPECT_EQ(all.columns, 3);
  EXPECT_THAT(all.data, ElementsAre(2, 5, 1, 3, 7, 1, 4, 8, 1));
  EXPECT_THAT(all.to_float(), ElementsAre(2.f, 5.f, 1.f, 3.f, 7.f, 1.f, 4.f, 8.f, 1.f));
  EXPECT_EQ(Activation(f).values(9, {0, 100}).rows, 1);
  EXPECT_THAT(config_error([&] { a.values(2, {0, 1}); }), HasSubstr("/alpha/per_layer"));
  EXPECT_THAT(config_error([&] { a.values(-1, {0, 1}); }), HasSubstr("layer -1"));
  EXPECT_THAT(config_error([&] { a.values(1, {0, 4}); }), HasSubstr("experts 0 to 3"));
  error_of(ErrorCode::InvalidArgument, [&] { a.values(0, {1, 1}); });
  error_of(ErrorCode::InvalidArgument, [&] { a.values(0, {-1, 1}); });
}

TEST(Values, come_from_checkpoint_tensors) {
  const Function f = Function::named("swish");
  const Activation a(f, {{"beta", ParameterValue::tensor("model.layers.{layer}.beta")}});
  const TensorReader scalar = [](const std::string& name) {
    EXPECT_EQ(name, "model.layers.3.beta");
    return std::vector<double>{2.5};
  };
  EXPECT_EQ(a.values(3, {0, 4}, scalar).data, std::vector<double>{2.5});
  const TensorReader by_expert = [](const std::string&) { return std::vector<double>{1, 2, 3, 4}; };
  EXPECT_EQ(a.values(3, {1, 3}, by_expert).data, (std::vector<double>{2, 3}));
  EXPECT_THAT(config_error([&] { a.values(3, {0, 5}, by_expert); }), HasSubstr("has 4 values"));
  const TensorReader empty = [](const std::string&) { return std::vector<double>{}; };
  config_error([&] { a.values(3, {0, 1}, empty); });
  const TensorReader infinite = [](const std::string&) { return std::vector<double>{INFINITY}; };
  EXPECT_THAT(config_error([&] {
                a.values(3, {0, 1}, infinite);
              }),
              HasSubstr("model.layers.3.beta"));
  // A tensor for one expert is one value.
  const Activation each(f,
                        {{"beta", ParameterValue::per_expert({1.0, ParameterValue::tensor("t")})}});
  config_error([&] { each.values(0, {0, 2}, by_expert); });
  // Swish's beta has no initial value to stand in.
  EXPECT_THAT(config_error([&] { a.values(3, {0, 1}); }), HasSubstr("needs the checkpoint"));
}

TEST(Values, learned_parameters_start_at_their_initial_values) {
  const Function f = Function::named("xielu");
  std::vector<std::string> missing;
  const ValueTable table = Activation(f).values(0, {0, 1}, nullptr, &missing);
  EXPECT_THAT(missing, ElementsAre("alpha_p", "alpha_n"));
  EXPECT_NEAR(table.data[0], std::log(std::expm1(0.8)), 1e-15);
  missing.clear();
  const Activation bound(f, {{"alpha_p", ParameterValue::tensor("l.{layer}.p")}, {"alpha_n", 0.5}});
  bound.values(2, {0, 1}, nullptr, &missing);
  EXPECT_THAT(missing, ElementsAre("l.2.p"));
  // With a checkpoint at hand, an unbound learned parameter is an error.
  const TensorReader reader = [](const std::string&) { return std::vector<double>{1}; };
  config_error([&] { Activation(f).values(0, {0, 1}, reader); });
  EXPECT_EQ(bound.values(2, {0, 1}, reader).data[0], 1);
}

TEST(Values, tensor_names_are_never_paths) {
  const auto bind = [](const std::string& name) {
    Activation(Function::named("swish"), {{"beta", ParameterValue::tensor(name)}});
  };
  for (const char* good : {"beta", "model.layers.{layer}.mlp.act_fn.alpha_p", "a-b_c.0"})
    EXPECT_NO_THROW(bind(good)) << good;
  for (const std::string bad : {"", "/etc/passwd", "a/b", "..", "a..b", ".a", "a.", "a\\b", "a b",
                                "{expert}", "a\n", "\xc3\xa9", "C:x"}) {
    EXPECT_THAT(config_error([&] { bind(bad); }), HasSubstr("/beta/tensor")) << bad;
  }
  config_error([&] { bind(std::string("a\0b", 3)); });
  config_error([&] { bind(std::string(600, 'a')); });
}

TEST(Values, forms_nest_but_not_in_themselves) {
  const auto bind = [](ParameterValue value) {
    Activation(Function::named("swish"), {{"beta", std::move(value)}});
  };
  config_error([&] { bind(ParameterValue::per_layer({ParameterValue::per_layer({1.0})})); });
  config_error([&] { bind(ParameterValue::per_expert({ParameterValue::per_expert({1.0})})); });
  config_error([&] {
    bind(ParameterValue::per_layer(
        {ParameterValue::per_expert({ParameterValue::per_layer({1.0})})}));
  });
  config_error([&] { bind(ParameterValue::per_layer({})); });
  EXPECT_THAT(config_error([&] {
                bind(ParameterValue::per_layer({1.0, std::nan("")}));
              }),
              HasSubstr("/beta/per_layer/1"));
}

TEST(Json, round_trips) {
  for (const char* text : {
           R"({"name":"swish","beta":1.5})",
           R"({"name":"mish","gated":true})",
           R"({"name":"silu","gated":true})",
           R"({"name":"swish","beta":{"per_layer":[1.0,{"per_expert":[2.0,3.0]}]}})",
           R"({"name":"swish","beta":{"tensor":"a.{layer}.b"}})",
           R"({"name":"xielu","beta":0.5,"eps":-1e-06})",
           R"({"canonical":"unary(b,a): x*b+a","b":1.0,"a":2.0})",
       }) {
    const Activation a = Activation::from_json(text);
    EXPECT_EQ(Activation::from_json(a.to_json()), a) << text;
  }
  EXPECT_EQ(Activation::from_json(R"({"name":"swish","beta":1.5})").to_json(),
            R"({"name":"swish","beta":1.5})");
  EXPECT_EQ(Activation::from_json(R"({"name":"mish","gated":true})").to_json(),
            R"({"name":"mish","gated":true})");
  const Activation expression =
      Activation::from_json(R"({"expr":"g*sigmoid(beta*g)*u","beta":1.1})");
  EXPECT_EQ(expression.function(), Function::named("swish_glu"));
  EXPECT_EQ(Activation::from_json(expression.to_json()), expression);
  EXPECT_EQ(Activation::from_json(R"({"name":"swish"})").values(0, {0, 1}).data,
            std::vector<double>{1});
  EXPECT_EQ(Activation::from_json(R"({"name":"situ","beta":4})").function(),
            Function::named("situ_nolinear"));
  EXPECT_EQ(Activation::from_json(R"({"name":"situ","b":4,"bl":25})").function(),
            Function::named("situ"));
}

TEST(Json, refuses_with_a_pointer) {
  const auto refused = [](const std::string& text) {
    return config_error([&] { Activation::from_json(text); });
  };
  EXPECT_THAT(refused(""), HasSubstr("not JSON"));
  EXPECT_THAT(refused("[]"), HasSubstr("an activation is a JSON object"));
  EXPECT_THAT(refused("{}"), HasSubstr("neither 'name' nor 'expr'"));
  EXPECT_THAT(refused(R"({"name":"silu"} x)"), HasSubstr("not JSON"));
  EXPECT_THAT(refused(R"({"name":"silu" /* c */})"), HasSubstr("not JSON"));
  EXPECT_THAT(refused(R"({"name":"silu","name":"silu"})"), HasSubstr("appears twice"));
  EXPECT_THAT(refused(R"({"name":"silu","expr":"x"})"), HasSubstr("/expr"));
  EXPECT_THAT(refused(R"({"expr":"x","name":"silu"})"), HasSubstr("/name"));
  EXPECT_THAT(refused(R"({"name":7})"), HasSubstr("/name"));
  EXPECT_THAT(refused(R"({"name":"SiLU"})"), HasSubstr("did you mean 'silu'"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":"1.5"})"),
              HasSubstr("/beta: a string where a number belongs"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":true})"), HasSubstr("/beta"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":null})"), HasSubstr("/beta"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":[1]})"), HasSubstr("/beta"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":1e400})"), HasSubstr("not JSON"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":{"per_layer":[1,"2"]}})"),
              HasSubstr("/beta/per_layer/1"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":{"per_layer":1}})"), HasSubstr("is a list"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":{"tensor":1}})"), HasSubstr("by its name"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":{"routed":1}})"),
              HasSubstr("unknown value form 'routed'"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":{"a/~b":1}})"), HasSubstr("/beta/a~1~0b"));
  EXPECT_THAT(refused(R"({"name":"swish","beta":{}})"), HasSubstr("exactly one key"));
  EXPECT_THAT(refused(R"({"name":"swish","canonical":1,"gated":1})"), HasSubstr("no parameter"));
  EXPECT_THAT(
      refused(R"({"name":"swish","beta":)" + std::string(200, '[') + std::string(200, ']') + "}"),
      HasSubstr("128"));
  EXPECT_THAT(
      error_of(ErrorCode::ExpressionError, [] { Activation::from_json(R"({"expr":"x+"})"); }),
      HasSubstr("/expr, column 3"));
  error_of(ErrorCode::ExpressionError, [] { Activation::from_json(R"({"canonical":"x"})"); });
}

TEST(Json, values_parse_from_either_json_type) {
  EXPECT_EQ(activation::parse_value(nlohmann::json(2), "/p"), ParameterValue(2.0));
  EXPECT_EQ(activation::parse_value(nlohmann::ordered_json::parse(R"({"tensor":"t"})"), "/p"),
            ParameterValue::tensor("t"));
}

TEST(Registry, knows_the_catalogue_by_name_and_alias) {
  const ActivationRegistry& registry = ActivationRegistry::instance();
  for (const activation::CatalogueEntry& row : activation::catalogue()) {
    EXPECT_EQ(registry.get_function(row.name).name(), row.name);
    for (const activation::Alias& alias : row.aliases) {
      if (alias.plain) {
        EXPECT_EQ(registry.get_function(alias.name).name(), row.name) << alias.name;
      }
      EXPECT_EQ(activation::find_entry(alias.name, alias.stack), &row) << alias.name;
    }
  }
  EXPECT_EQ(registry.get_activation("leaky_relu", {{"negative_slope", 0.3}}).values(0, {0, 1}).data,
            std::vector<double>{0.3});
  EXPECT_EQ(registry.get_activation("situ", {{"beta", 2.0}}).function().name(), "situ_nolinear");
}

TEST(Registry, no_two_rows_share_a_name_a_function_or_an_id) {
  std::map<std::string, std::string> owners;
  std::map<std::string, std::string> canonical;
  std::map<int, std::string> ids;
  for (const activation::CatalogueEntry& row : activation::catalogue()) {
    EXPECT_TRUE(owners.emplace(row.name, row.name).second) << row.name;
    EXPECT_TRUE(canonical.emplace(Function::named(row.name).canonical(), row.name).second)
        << row.name;
    if (row.id) {
      EXPECT_TRUE(ids.emplace(*row.id, row.name).second) << row.name;
    }
    for (const activation::Alias& alias : row.aliases) {
      if (alias.plain) {
        EXPECT_TRUE(owners.emplace(alias.name, row.name).second) << alias.name;
      }
    }
    EXPECT_FALSE(row.summary.empty());
    EXPECT_FALSE(row.source.empty());
    if (!row.without_it.empty()) {
      EXPECT_NE(activation::find_entry(row.without_it), nullptr);
    }
  }
}

TEST(Registry, ids_are_frozen) {
  const char* const names[] = {"silu", "swish", "gelu", "relu", "leaky_relu", "swish_glu"};
  for (int id = 0; id < 6; ++id) EXPECT_EQ(activation::find_entry(id)->name, names[id]);
  EXPECT_EQ(activation::find_entry(6), nullptr);
}

TEST(Registry, a_stack_s_names_mean_what_the_stack_computes) {
  const auto meant = [](const char* name, const char* stack) {
    const auto* row = activation::find_entry(name, stack);
    return row == nullptr ? std::string("nothing") : row->name;
  };
  EXPECT_EQ(meant("GELU", "ggml"), "gelu_tanh");
  EXPECT_EQ(meant("GEGLU", "ggml"), "geglu_tanh");
  EXPECT_EQ(meant("GEGLU_ERF", "ggml"), "geglu");
  EXPECT_EQ(meant("silu", "vllm"), "swiglu");
  EXPECT_EQ(meant("silu_no_mul", "vllm"), "silu");
  EXPECT_EQ(meant("relu2", "vllm"), "relu2_glu");
  EXPECT_EQ(meant("swigluoai", "kt-kernel"), "swiglu_oai_symmetric");
  EXPECT_EQ(meant("swigluoai", "vllm"), "swiglu_oai");
  EXPECT_EQ(meant("gelu", "transformers"), "gelu");
  EXPECT_EQ(meant("GELU", "vllm"), "nothing");
  EXPECT_EQ(activation::find_entry("GELU"), nullptr);
  EXPECT_THAT(activation::stacks(), testing::Contains("flashinfer"));
}

TEST(Registry, unknown_names_are_refused_with_a_suggestion) {
  const auto refused = [](const std::string& name) {
    return config_error([&] { Function::named(name); });
  };
  EXPECT_THAT(refused("SiLU"), HasSubstr("did you mean 'silu'"));
  EXPECT_THAT(refused("swihs"), HasSubstr("did you mean 'swish'"));
  EXPECT_THAT(refused("hardshrink_x"), HasSubstr("flexact list"));
  EXPECT_THAT(refused(std::string("silu\0", 5)), HasSubstr("unknown activation 'silu?'"));
  EXPECT_THAT(refused(std::string(10000, 'x')), testing::Not(HasSubstr(std::string(100, 'x'))));
  refused("");
}

TEST(Registry, registers_new_functions_once) {
  ActivationRegistry& registry = ActivationRegistry::instance();
  const Function made = registry.register_function("test_cubic", "x^3*k", {{"k", 2.0}});
  EXPECT_EQ(made.name(), "test_cubic");
  EXPECT_EQ(Function::named("test_cubic"), made);
  EXPECT_EQ(registry.list().back(), "test_cubic");
  EXPECT_EQ(registry.get_activation("test_cubic").values(0, {0, 1}).data, std::vector<double>{2});
  EXPECT_EQ(Activation::from_json(R"({"name":"test_cubic"})").to_json(),
            R"({"name":"test_cubic","k":2.0})");
  EXPECT_EQ(registry.register_function("test_free", "a*x").parameters()[0].name, "a");
  for (const char* taken : {"test_cubic", "silu", "gelu_new", "expr", "name", "", "a b", "1a"}) {
    error_of(ErrorCode::InvalidArgument, [&] { registry.register_function(taken, "x"); });
  }
  error_of(ErrorCode::ExpressionError, [&] { registry.register_function("test_bad", "x+"); });
  error_of(ErrorCode::InvalidArgument,
           [&] { registry.register_function("test_bad", "x*e", {{"e"}}); });
}

TEST(Registry, serves_many_threads) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &good] {
      ActivationRegistry& registry = ActivationRegistry::instance();
      for (int i = 0; i < 50; ++i) {
        registry.register_function("thread_" + std::to_string(t) + "_" + std::to_string(i), "x+1");
        if (registry.get_function("silu").reference(0.0) == 0 && !registry.list().empty()) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 200);
}

TEST(Printers, name_the_entry_points) {
  const Function gated = Function::named("swiglu_oai");
  const std::string cuda = gated.emit(Target::Cuda);
  EXPECT_THAT(cuda, HasSubstr("void flexact_act2(const float g[2], const float u[2], const float* "
                              "parameters, float y[2])"));
  EXPECT_THAT(cuda, HasSubstr("min.NaN.f32"));
  EXPECT_THAT(cuda, testing::Not(HasSubstr("#include")));
  EXPECT_THAT(cuda, testing::Not(HasSubstr("erff")));  // unused helpers are not printed
  EXPECT_THAT(
      Function::named("silu").emit(Target::Cuda),
      HasSubstr("flexact_act2_unary(const float x[2], const float* parameters, float y[2])"));
  EXPECT_THAT(gated.emit(Target::Triton), HasSubstr("def flexact_act(g, u, p0, p1, p2):"));
  EXPECT_THAT(gated.emit(Target::Torch), HasSubstr("def forward(g, u, p0, p1, p2):"));
  EXPECT_THAT(gated.emit(Target::Torch), HasSubstr("def gradient_p2(g, u, p0, p1, p2):"));
  EXPECT_THAT(gated.emit(Target::Text), HasSubstr("%12 = * %6, %11"));
}

TEST(Printers, cover_every_operation) {
  const Function f = Function::expression(
      "exp(x)+exp2(x)+expm1(x)+log(x)+log1p(x)+sqrt(x)+rsqrt(x)+abs(x)+sign(x)+floor(x)+tanh(x)+"
      "sigmoid(x)+erf(x)+"
      "softplus(x)+relu(x)+silu(x)+gelu(x)+gelu_tanh(x)+min(x,a)+max(x,-inf)+clamp(x,-1,a)+x^7+x^-"
      "3+1/x+x/3+x/a-"
      "where(x!=2,-x,where(x==3,x,where(x<=a,inf,1e300)))");
  for (const Target target : {Target::Cuda, Target::Triton, Target::Torch, Target::Text}) {
    EXPECT_FALSE(f.emit(target).empty());
    EXPECT_FALSE(f.gated().emit(target).empty());
  }
  // Values that fold to no number stay in the text that is printed.
  const Function odd = Function::from_canonical("unary(): where(x>0,inf-inf,-inf)");
  EXPECT_THAT(odd.emit(Target::Torch), HasSubstr("float(\"inf\")"));
  EXPECT_THAT(odd.emit(Target::Cuda), HasSubstr("0x7f800000"));
  EXPECT_THAT(odd.emit(Target::Triton), HasSubstr("float(\"-inf\")"));
}

TEST(Printers, no_name_of_a_user_becomes_code) {
  const Function f = Function::expression("x*lambda+import_os*torch");
  for (const Target target : {Target::Cuda, Target::Triton, Target::Torch}) {
    std::istringstream lines(f.emit(target));
    for (std::string line; std::getline(lines, line);) {
      const bool comment = line.find("# ") == 0 || line.find("    # ") == 0 ||
                           line.find("//") == 0 || line.find("    \"\"\"") == 0;
      if (!comment) {
        EXPECT_THAT(line, testing::Not(HasSubstr("lambda"))) << line;
        EXPECT_THAT(line, testing::Not(HasSubstr("import_os"))) << line;
      }
    }
  }
}

}  // namespace
}  // namespace flexact
