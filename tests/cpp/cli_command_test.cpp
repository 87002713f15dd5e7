// The `flexact` command, called in process: values on stdout, one message on stderr, exit status.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cli/commands.hpp"
#include "cli/process.hpp"
#include "flexact/activation.hpp"
#include "flexact/error.hpp"

namespace flexact::cli {
namespace {

using testing::HasSubstr;

struct Result {
  int status;
  std::string out;
  std::string err;
};

Result flexact(const std::vector<std::string>& arguments) {
  std::ostringstream out;
  std::ostringstream err;
  const int status = run(arguments, out, err);
  return {status, out.str(), err.str()};
}

// A refusal: exit 2, nothing on stdout, one line on stderr that names the reason.
void expect_refused(const std::vector<std::string>& arguments, const std::string& reason) {
  const Result result = flexact(arguments);
  SCOPED_TRACE(result.err);
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr(reason));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1);
}

class Folder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("flexact_cli_" + std::to_string(::getpid()) + "_" +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const std::string& text, const std::string& name = "config.json") {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }
  std::filesystem::path folder_;
};
using Config = Folder;
using Matrix = Folder;

TEST(Eval, prints_values_that_read_back_exactly) {
  const Result result = flexact({"eval", "swish", "-p", "beta=1.5", "--x", "0.1,-2,3e10"});
  ASSERT_EQ(result.status, 0) << result.err;
  std::istringstream lines(result.out);
  const Function swish = Function::named("swish");
  for (double x : {0.1, -2.0, 3e10}) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(std::stod(line), swish.reference(x, std::vector<double>{1.5}));
  }
  EXPECT_EQ(result.err, "");
}

TEST(Eval, spells_special_values) {
  EXPECT_EQ(flexact({"eval", "linear", "--x", "-0,nan,inf,-inf,-nan,+1, 2 "}).out,
            "-0\nnan\ninf\n-inf\nnan\n1\n2\n");
}

TEST(Eval, lists_may_begin_with_a_minus) {
  EXPECT_EQ(flexact({"eval", "linear", "--x", "-1,2"}).out, "-1\n2\n");
  EXPECT_EQ(flexact({"eval", "linear", "--x=-1"}).out, "-1\n");
  EXPECT_EQ(flexact({"eval", "linear", "--x", "-inf"}).out, "-inf\n");
  EXPECT_EQ(flexact({"eval", "--expr", "-x^2", "--x", "-3"}).out, "-9\n");
  EXPECT_EQ(flexact({"eval", "bilinear", "--g", "-.5", "--u", "-nan,-2"}).out, "nan\n1\n");
}

TEST(Eval, zips_lists_and_broadcasts_one_value) {
  EXPECT_EQ(flexact({"eval", "bilinear", "--g", "1,2,3", "--u", "4,5,6"}).out, "4\n10\n18\n");
  EXPECT_EQ(flexact({"eval", "bilinear", "--g", "1,2,3", "--u", "2"}).out, "2\n4\n6\n");
  EXPECT_EQ(flexact({"eval", "bilinear", "--g", "3", "--u", "1,2"}).out, "3\n6\n");
  expect_refused({"eval", "bilinear", "--g", "1,2,3", "--u", "1,2"},
                 "--g has 3 values and --u has 2");
}

TEST(Eval, a_unary_function_with_g_and_u_is_lifted) {
  EXPECT_EQ(flexact({"eval", "relu", "--g", "2,-2", "--u", "3"}).out, "6\n0\n");
}

TEST(Eval, expressions_take_parameters) {
  EXPECT_EQ(flexact({"eval", "--expr", "a*x+b", "-p", "a=2", "-p", "b=-1", "--x", "3"}).out, "5\n");
  expect_refused({"eval", "--expr", "a*x", "--x", "3"}, "parameter 'a'");
  expect_refused({"eval", "--expr", "x+*2", "--x", "3"}, "column 3");
}

TEST(Eval, names_of_other_stacks_need_from) {
  expect_refused({"eval", "GELU", "--x", "1"}, "gelu");
  EXPECT_EQ(flexact({"eval", "GELU", "--from", "ggml", "--x", "1"}).out,
            flexact({"eval", "gelu_tanh", "--x", "1"}).out);
  expect_refused({"eval", "GELU", "--from", "nowhere", "--x", "1"}, "unknown stack");
  expect_refused({"eval", "--expr", "x", "--from", "ggml", "--x", "1"}, "--from goes with a NAME");
}

TEST(Eval, learned_parameters_start_at_their_initial_value_with_a_warning) {
  const Result result = flexact({"eval", "xielu", "--x", "1"});
  EXPECT_EQ(result.status, 0);
  EXPECT_NEAR(std::stod(result.out), 1.3, 1e-12);
  EXPECT_THAT(result.err, HasSubstr("warning: 'alpha_p'"));
  expect_refused({"eval", "prelu", "--x", "1"}, "parameter 'a'");
}

TEST(Eval, refuses_what_does_not_fit_together) {
  expect_refused({"eval", "silu"}, "no inputs");
  expect_refused({"eval", "--x", "1"}, "NAME or --expr");
  expect_refused({"eval", "silu", "--expr", "x", "--x", "1"}, "NAME or --expr");
  expect_refused({"eval", "silu", "--g", "1"}, "--g without --u");
  expect_refused({"eval", "silu", "--u", "1"}, "--u without --g");
  expect_refused({"eval", "silu", "--x", "1", "--g", "1", "--u", "1"}, "--x beside");
  expect_refused({"eval", "swiglu", "--x", "1"}, "gated");
  expect_refused({"eval", "silu", "--x", ""}, "--x");
  expect_refused({"eval", "silu", "--x", "1,,2"}, "not a number");
  expect_refused({"eval", "silu", "--x", "0x10"}, "not a number");
  expect_refused({"eval", "silu", "--x", "+-1"}, "not a number");
  expect_refused({"eval", "silu", "--x", "1e999"}, "does not fit");
  expect_refused({"eval", "swish", "-p", "beta", "--x", "1"}, "name=value");
  expect_refused({"eval", "swish", "-p", "beta=", "--x", "1"}, "not a number");
  expect_refused({"eval", "swish", "-p", "beta=inf", "--x", "1"}, "beta");
  expect_refused({"eval", "swish", "-p", "gamma=1", "--x", "1"}, "gamma");
  expect_refused({"eval", "swish", "-p", "beta=1", "-p", "beta=1", "--x", "1"}, "twice");
  expect_refused({"eval", "leaky_relu", "-p", "alpha=.1", "-p", "negative_slope=.1", "--x", "1"},
                 "twice");
  expect_refused({"eval", "SiLU", "--x", "1"}, "did you mean 'silu'");
  expect_refused({"eval", "silu", "--layer", "1", "--x", "1"}, "go with --config");
  expect_refused({"eval", "silu", "--x", "1", "--nonsense"}, "--nonsense");
}

TEST_F(Config, eval_computes_what_a_layer_runs) {
  write(R"({"model_type": "mixtral", "hidden_act": "swish", "num_hidden_layers": 2,
            "num_local_experts": 2,
            "activation_params": {"beta": {"per_layer": [1.5, {"per_expert": [2.0, 3.0]}]}}})");
  const std::string path = folder_.string();
  const auto layer = [&](const std::string& number, const std::vector<std::string>& more) {
    std::vector<std::string> all = {"eval", "--config", path, "--layer", number};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const auto swish = [](const std::string& beta) {
    return flexact({"eval", "swish", "-p", "beta=" + beta, "--g", "1,-2", "--u", "3"}).out;
  };
  EXPECT_EQ(
      flexact(layer("0", {"--role", "routed", "--expert", "0", "--g", "1,-2", "--u", "3"})).out,
      swish("1.5"));
  EXPECT_EQ(
      flexact(layer("1", {"--role", "routed", "--expert", "1", "--g", "1,-2", "--u", "3"})).out,
      swish("3"));
  EXPECT_EQ(
      flexact(layer("0", {"--role", "routed", "--set", R"({"activation_params": {"beta": 4}})",
                          "--g", "1,-2", "--u", "3"}))
          .out,
      swish("4"));
  expect_refused(layer("1", {"--role", "routed", "--g", "1", "--u", "1"}), "--expert");
  expect_refused(layer("1", {"--role", "routed", "--expert", "2", "--g", "1", "--u", "1"}),
                 "experts 2 to 2");
  expect_refused(layer("1", {"--role", "routed", "--expert", "-1", "--g", "1", "--u", "1"}),
                 "count from 0");
  expect_refused(layer("2", {"--role", "routed", "--g", "1", "--u", "1"}), "layers are 0 to 1");
  expect_refused(layer("-1", {"--role", "routed", "--g", "1", "--u", "1"}), "no layer -1");
  expect_refused(layer("0", {"--role", "dense", "--g", "1", "--u", "1"}), "no dense");
  expect_refused(layer("0", {"--role", "routd", "--g", "1", "--u", "1"}), "routed");
  expect_refused(layer("0", {"--role", "routed", "--expert", "0", "--x", "1"}), "gated");
  expect_refused(layer("0", {"--g", "1", "--u", "1"}), "--role");
  expect_refused(layer("0", {"silu", "--role", "routed", "--g", "1", "--u", "1"}),
                 "do not go with it");
}

// A safetensors file with these entries (dtype, shape) over `data`.
std::string safetensors(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + data;
}

TEST_F(Config, eval_reads_learned_values_from_the_checkpoint) {
  write(R"({"model_type": "mixtral", "hidden_act": "swish", "num_hidden_layers": 1,
            "num_local_experts": 2, "activation_params": {"beta": {"tensor": "m.{layer}.beta"}}})");
  const auto values = [&](const std::string& expert) {
    return flexact({"eval", "--config", folder_.string(), "--layer", "0", "--role", "routed",
                    "--expert", expert, "--g", "1", "--u", "1"});
  };
  const auto swish = [](const std::string& beta) {
    return flexact({"eval", "swish", "-p", "beta=" + beta, "--g", "1", "--u", "1"}).out;
  };
  const auto refused = [&](const std::string& reason) {
    const Result result = values("0");
    EXPECT_EQ(result.status, 2) << reason;
    EXPECT_THAT(result.err, HasSubstr(reason));
  };
  // No checkpoint: swish has no initial value.
  refused("needs the checkpoint");

  const auto entry = [](const char* type, const char* shape, int end) {
    return std::string(R"({"m.0.beta":{"dtype":")") + type + R"(","shape":)" + shape +
           R"(,"data_offsets":[0,)" + std::to_string(end) + "]}}";
  };
  write(safetensors(entry("BF16", "[2]", 4), std::string("\x00\x40\xc0\x3f", 4)),
        "model.safetensors");
  EXPECT_EQ(values("0").out, swish("2"));
  EXPECT_EQ(values("1").out, swish("1.5"));
  write(safetensors(entry("F32", "[]", 4), std::string("\x00\x00\x40\xc0", 4)),
        "model.safetensors");
  EXPECT_EQ(values("0").out, swish("-3"));
  write(safetensors(entry("F64", "[1]", 8), std::string("\x00\x00\x00\x00\x00\x00\xe0\x3f", 8)),
        "model.safetensors");
  EXPECT_EQ(values("0").out, swish("0.5"));
  for (const auto& [bits, text] :
       {std::pair{"\x00\x3c", "1"}, {"\x00\xc2", "-3"}, {"\x01\x00", "5.9604644775390625e-08"}}) {
    write(safetensors(entry("F16", "[1,1]", 2), std::string(bits, 2)), "model.safetensors");
    EXPECT_EQ(values("0").out, swish(text));
  }

  write(safetensors(entry("F16", "[1]", 2), std::string("\x00\x7c", 2)), "model.safetensors");
  refused("cannot be inf");
  write(safetensors(entry("F16", "[1]", 2), std::string("\x01\x7c", 2)), "model.safetensors");
  refused("cannot be nan");
  write(safetensors(entry("I64", "[1]", 8), std::string(8, 'a')), "model.safetensors");
  refused("has type I64");
  write(safetensors(entry("F32", "[2,2]", 16), std::string(16, 'a')), "model.safetensors");
  refused("not a scalar or a vector");
  write(safetensors(entry("F32", "[3]", 4), std::string(4, 'a')), "model.safetensors");
  refused("wrong size");
  write(safetensors(entry("F32", "[1]", 4), "ab"), "model.safetensors");
  refused("lies outside the file");
  write(safetensors(R"({"m.0.beta":{"dtype":"F32"}})", ""), "model.safetensors");
  refused("malformed");
  write(safetensors("[]", ""), "model.safetensors");
  refused("not a JSON object");
  write("short", "model.safetensors");
  refused("ends early");
  write(std::string(8, '\xff') + "x", "model.safetensors");
  refused("header is too long");
  write(safetensors("{}", ""), "model.safetensors");
  refused("no tensor 'm.0.beta'");
  // Offsets that wrap around, and bytes that two tensors claim.
  write(safetensors(R"({"m.0.beta":{"dtype":"F32","shape":[1],"data_offsets":)"
                    R"([9223372036854775800,9223372036854775804]}})",
                    "1234"),
        "model.safetensors");
  refused("lies outside the file");
  write(safetensors(R"({"m.0.beta":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                    R"("a":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
                    "123456"),
        "model.safetensors");
  refused("share bytes");
}

TEST_F(Config, explain_prints_every_layer_once) {
  const std::string path = write(
      R"({"model_type": "mixtral", "hidden_act": "swish", "num_hidden_layers": 4,
          "num_local_experts": 2, "activation_params": {"beta": {"per_layer": [1, 1, 2, 2]}}})");
  const Result text = flexact({"explain", path});
  EXPECT_EQ(text.status, 0);
  EXPECT_THAT(text.out, HasSubstr("mixtral, 4 layers"));
  EXPECT_THAT(text.out, HasSubstr("0-1"));
  EXPECT_THAT(text.out, HasSubstr("2-3"));
  EXPECT_THAT(text.out, HasSubstr("/activation_params/beta"));
  const auto json = nlohmann::json::parse(flexact({"explain", path, "--json"}).out);
  EXPECT_EQ(json.at("layers").size(), 4);
  EXPECT_EQ(json.at("layers")[3].at("routed").at("params").at("beta"), 2.0);
}

TEST_F(Config, explain_shows_every_form_of_a_value) {
  const std::string path = write(
      R"({"model_type": "mixtral", "hidden_act": "swiglu_oai", "num_hidden_layers": 1,
          "num_local_experts": 2, "activation_params": {
            "alpha": {"per_expert": [1, 2]}, "limit": {"tensor": "layers.{layer}.limit"}}})");
  const Result text = flexact({"explain", path});
  EXPECT_EQ(text.status, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("one for each of 2 experts"));
  EXPECT_THAT(text.out, HasSubstr("tensor layers.0.limit"));
}

TEST_F(Config, explain_refuses_with_one_message) {
  expect_refused({"explain", (folder_ / "missing").string()}, "missing");
  expect_refused({"explain"}, "PATH");
  const std::string path = write(R"({"model_type": "mixtral", "hidden_act": "no_such_fn"})");
  expect_refused({"explain", path}, "/hidden_act");
  expect_refused({"explain", path, "--json"}, "no_such_fn");
  expect_refused({"explain", path, "--set", "{"}, "");
}

TEST_F(Config, explain_sends_warnings_to_stderr) {
  const Result result = flexact({"explain", write(R"({"hidden_act": "silu"})")});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.err, HasSubstr("warning: "));
  EXPECT_THAT(result.out, HasSubstr("unknown model type"));
  const Result value = flexact({"eval", "--config", folder_.string(), "--layer", "7", "--role",
                                "routed", "--g", "1", "--u", "1"});
  EXPECT_EQ(value.status, 0) << value.err;
  EXPECT_THAT(value.err, HasSubstr("warning: "));
}

TEST(List, names_every_activation_with_its_parameters) {
  const Result result = flexact({"list"});
  EXPECT_THAT(result.out, HasSubstr("swiglu_oai(alpha=1.702, limit=7, beta=1)"));
  const auto json = nlohmann::json::parse(flexact({"list", "--json"}).out);
  const std::vector<std::string> names = ActivationRegistry::instance().list();
  ASSERT_EQ(json.size(), names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(json[i].at("name"), names[i]);
    EXPECT_TRUE(json[i].contains("formula"));
  }
}

TEST(Show, describes_every_activation) {
  for (const std::string& name : ActivationRegistry::instance().list()) {
    const Result result = flexact({"show", name});
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_THAT(result.out, HasSubstr(Function::named(name).formula()));
    EXPECT_THAT(result.out, HasSubstr("\u2800"));  // the plot
  }
}

TEST(Show, tells_domains_aliases_and_models) {
  const std::string text = flexact({"show", "leaky_relu"}).out;
  EXPECT_THAT(text, HasSubstr("0 to 1; default 0.01; also called negative_slope"));
  EXPECT_THAT(flexact({"show", "clamped_relu2"}).out, HasSubstr("> 0; must be given"));
  EXPECT_THAT(flexact({"show", "swiglu"}).out, HasSubstr("mixtral"));
  EXPECT_THAT(flexact({"show", "swish", "-p", "beta=2"}).out, HasSubstr("beta = 2"));
  const auto json =
      nlohmann::json::parse(flexact({"show", "SWIGLU", "--from", "ggml", "--json"}).out);
  EXPECT_EQ(json.at("name"), "swiglu");
  EXPECT_FALSE(json.at("models").empty());
  EXPECT_THAT(flexact({"show", "--expr", "x*0"}).out, HasSubstr("unary(): 0*x"));
  expect_refused({"show", "nosuch"}, "nosuch");
  expect_refused({"show", "silu", "-p", "beta=2"}, "no parameter");
  expect_refused({"show", "leaky_relu", "-p", "alpha=2"}, "0 to 1");
}

TEST(Emit, prints_each_target) {
  EXPECT_THAT(flexact({"emit", "swiglu", "--target", "cuda"}).out, HasSubstr("flexact_act2("));
  EXPECT_THAT(flexact({"emit", "silu", "--target", "cuda"}).out, HasSubstr("flexact_act2_unary("));
  EXPECT_THAT(flexact({"emit", "silu", "--gated", "--target", "triton"}).out,
              HasSubstr("flexact_act(g, u)"));
  EXPECT_THAT(flexact({"emit", "--expr", "-x", "--target", "torch"}).out,
              HasSubstr("def forward(x)"));
  EXPECT_THAT(flexact({"emit", "silu", "--target", "text"}).out, HasSubstr("unary(): silu(x)"));
  expect_refused({"emit", "silu", "--target", "cpp"}, "cuda, triton, torch, text");
  expect_refused({"emit", "silu"}, "--target");
}

TEST_F(Matrix, is_printed_as_a_table) {
  const std::string path = write(
      R"({"columns": ["function", "backend", "claimed"], "rows": [["silu", "cpu", true], ["x", null, 1]]})");
  EXPECT_EQ(flexact({"matrix", "--file", path}).out,
            "function  backend  claimed\nsilu      cpu      true\nx         -        1\n");
  EXPECT_EQ(
      nlohmann::json::parse(flexact({"matrix", "--json", "--file", path}).out).at("rows").size(),
      2);
  expect_refused({"matrix", "--file", write("[]")}, "not a support matrix");
  expect_refused({"matrix", "--file", (folder_ / "none").string()}, "cannot be read");
}

TEST(Doctor, tells_what_this_machine_has) {
  const Result result = flexact({"doctor"});
  EXPECT_EQ(result.status, 0);
  for (const char* part : {"flexact ", "scalar", "gpu", "python", "sglang"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
}

TEST(Command, explains_its_use) {
  EXPECT_EQ(flexact({"--version"}).out, "0.1.0\n");
  EXPECT_THAT(flexact({"--help"}).out, HasSubstr("explain"));
  EXPECT_THAT(flexact({"eval", "--help"}).out, HasSubstr("--role"));
  expect_refused({}, "--help");
  expect_refused({"lst"}, "did you mean 'list'");
  expect_refused({"bananas"}, "explain");
  expect_refused({"eval", "a\nb\x01", "--x", "1"}, "unknown activation");
}

TEST(Process, output_is_read_and_failures_are_seen) {
  EXPECT_EQ(output_of({"printf", "a b"}), "a b");
  EXPECT_EQ(output_of({"false"}), std::nullopt);
  EXPECT_EQ(output_of({"/no/such/program"}), std::nullopt);
  replace_process({"/no/such/program"});  // returns
}

}  // namespace
}  // namespace flexact::cli
