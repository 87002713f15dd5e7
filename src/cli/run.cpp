// Arguments in, exit status out.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <exception>
#include <ostream>
#include <string>
#include <string_view>

#include "activation/language.hpp"
#include "cli/commands.hpp"
#include "flexact/error.hpp"
#include "flexact/version.hpp"

namespace flexact::cli {

namespace {

// Options whose value may begin with '-': a negative number, -inf, an expression such as -x.
constexpr std::array<std::string_view, 6> kSigned = {"--g",    "--u",     "--x",
                                                     "--expr", "--layer", "--expert"};

// Binds such values to their option, so that they are not taken for options themselves.
std::vector<std::string> join_signed_values(const std::vector<std::string>& arguments) {
  std::vector<std::string> joined;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool takes = std::find(kSigned.begin(), kSigned.end(), arguments[i]) != kSigned.end();
    if (takes && i + 1 < arguments.size()) {
      joined.push_back(arguments[i] + "=" + arguments[i + 1]);
      ++i;
    } else {
      joined.push_back(arguments[i]);
    }
  }
  return joined;
}

void add_function_options(CLI::App& command, FunctionChoice& choice) {
  command.add_option("NAME", choice.name, "A name from 'flexact list', or an alias");
  command.add_option("--expr", choice.expression, "An expression, see docs/expressions.md");
  command.add_option("--from", choice.stack, "The stack whose name NAME is, e.g. vllm or ggml");
}

void add_parameter_option(CLI::App& command, FunctionChoice& choice) {
  // One value an option: names and expressions may follow.
  command.add_option("-p,--param", choice.parameters, "A parameter, name=value")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
}

int parse_and_run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err) {
  CLI::App app{"One definition of an activation, for every MoE kernel.", "flexact"};
  app.set_version_flag("--version", std::string(FLEXACT_VERSION_STRING));
  app.require_subcommand(1);
  app.fallthrough(false);

  bool json = false;
  CLI::App& list_command = *app.add_subcommand("list", "Every known activation");
  list_command.add_flag("--json", json, "As JSON");
  list_command.callback([&] { list(json, out); });

  FunctionChoice shown;
  CLI::App& show_command =
      *app.add_subcommand("show", "One activation: formula, parameters, models, plot");
  add_function_options(show_command, shown);
  add_parameter_option(show_command, shown);
  show_command.add_flag("--json", json, "As JSON, without the plot");
  show_command.callback([&] { show(shown, json, out, err); });

  EvalOptions evaluated;
  CLI::App& eval_command =
      *app.add_subcommand("eval", "Reference values in double precision, one a line");
  add_function_options(eval_command, evaluated.function);
  add_parameter_option(eval_command, evaluated.function);
  eval_command.add_option("--g", evaluated.g, "Gate values, V[,V...]");
  eval_command.add_option("--u", evaluated.u, "Up values, V[,V...]");
  eval_command.add_option("--x", evaluated.x, "Inputs of a unary function, V[,V...]");
  eval_command.add_option("--config", evaluated.config,
                          "A model folder or config file: evaluate what a layer runs");
  eval_command.add_option("--set", evaluated.overrides, "JSON merged over the config");
  eval_command.add_option("--layer", evaluated.layer, "Absolute layer number");
  eval_command.add_option("--role", evaluated.role, "routed, shared or dense");
  eval_command.add_option("--expert", evaluated.expert,
                          "Expert number, where values differ by expert");
  eval_command.callback([&] { eval(evaluated, out, err); });

  FunctionChoice emitted;
  std::string target;
  bool gated = false;
  CLI::App& emit_command =
      *app.add_subcommand("emit", "Source text of an activation for a compiler");
  add_function_options(emit_command, emitted);
  emit_command.add_option("--target", target, "cuda, triton, torch or text")->required();
  emit_command.add_flag("--gated", gated, "A unary function as f(g)*u");
  emit_command.callback([&] { emit(emitted, target, gated, out); });

  ExplainOptions explained;
  CLI::App& explain_command =
      *app.add_subcommand("explain", "What every layer of a model computes, and why");
  explain_command.add_option("PATH", explained.path, "A model folder or config file")->required();
  explain_command.add_option("--set", explained.overrides, "JSON merged over the config");
  explain_command.add_option("--from", explained.stack, "The stack whose names the config uses");
  explain_command.add_flag("--json", explained.json, "As JSON");
  explain_command.callback([&] { explain(explained, out, err); });

  MatrixOptions tabled;
  CLI::App& matrix_command = *app.add_subcommand("matrix", "What is claimed and proven to work");
  matrix_command.add_flag("--json", tabled.json, "As JSON");
  matrix_command.add_option("--file", tabled.file, "A matrix that a conformance run wrote");
  matrix_command.callback([&] { matrix(tabled, out); });

  CLI::App& doctor_command =
      *app.add_subcommand("doctor", "What this machine has, what is missing, what to do");
  doctor_command.callback([&] { doctor(out); });

  // Listed for --help; run() hands it over before anything is parsed.
  app.add_subcommand("serve", "SGLang's server with the plugin required; arguments are SGLang's");
  app.add_subcommand("tune", "Measures tiles of the Triton kernels on this machine's GPU");

  if (!arguments.empty() && !arguments[0].starts_with('-')) {
    std::vector<std::string> known;
    for (const CLI::App* command : app.get_subcommands({})) known.push_back(command->get_name());
    if (std::find(known.begin(), known.end(), arguments[0]) == known.end()) {
      const std::string near = activation::closest(arguments[0], known);
      throw Error(ErrorCode::InvalidArgument, fmt::format("unknown command '{}'", arguments[0]), {},
                  near.empty() ? activation::join(known) : fmt::format("did you mean '{}'?", near));
    }
  }
  std::vector<std::string> reversed = join_signed_values(arguments);
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    const auto& chosen = app.get_subcommands();
    out << (chosen.empty() ? app : *chosen.front()).help();
  } catch (const CLI::CallForVersion&) {
    out << version() << "\n";
  } catch (const CLI::ParseError& e) {
    const auto& chosen = app.get_subcommands();
    throw Error(ErrorCode::InvalidArgument, e.what(), {},
                fmt::format("see 'flexact {}--help'",
                            chosen.empty() ? "" : chosen.front()->get_name() + " "));
  }
  return 0;
}

// One line, whatever was in the input.
std::string one_line(std::string_view text) {
  std::string line;
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      line += c == '\n' || c == '\t' ? std::string(" ") : fmt::format("\\x{:02x}", byte);
    } else {
      line += c;
    }
  }
  return line;
}

}  // namespace

int run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err) {
  try {
    if (!arguments.empty() && arguments[0] == "serve") {
      run_module("flexact.sglang.serve", "serve", {arguments.begin() + 1, arguments.end()});
    }
    if (!arguments.empty() && arguments[0] == "tune")
      run_module("flexact.triton.tune", "tune", {arguments.begin() + 1, arguments.end()});
    return parse_and_run(arguments, out, err);
  } catch (const std::exception& e) {
    err << "flexact: " << one_line(e.what()) << "\n";
  }
  return 2;
}

}  // namespace flexact::cli
