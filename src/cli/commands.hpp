// The subcommands. Each writes values or JSON to `out`, warnings to `err`, and throws Error for
// everything that ends in exit status 2.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "flexact/activation.hpp"

namespace flexact::cli {

// Which function a command is about.
struct FunctionChoice {
  std::string name;
  std::string expression;
  std::string stack;                    // --from
  std::vector<std::string> parameters;  // "name=value"
};

struct EvalOptions {
  FunctionChoice function;
  std::optional<std::string> g;
  std::optional<std::string> u;
  std::optional<std::string> x;
  // What a layer of a model runs, in place of a named function.
  std::string config;
  std::string overrides;
  std::optional<long long> layer;
  std::string role;
  std::optional<long long> expert;
};

struct ExplainOptions {
  std::string path;
  std::string overrides;
  std::string stack;
  bool json = false;
};

struct MatrixOptions {
  std::string file;  // empty: the one built in
  bool json = false;
};

void list(bool json, std::ostream& out);
void show(const FunctionChoice& choice, bool json, std::ostream& out, std::ostream& err);
void eval(const EvalOptions& options, std::ostream& out, std::ostream& err);
void emit(const FunctionChoice& choice, const std::string& target, bool gated, std::ostream& out);
void explain(const ExplainOptions& options, std::ostream& out, std::ostream& err);
void matrix(const MatrixOptions& options, std::ostream& out);
void doctor(std::ostream& out);
// Replaces this process by a Python module of this package (to `purpose` with); returns only by an
// Error.
[[noreturn]] void run_module(const std::string& module, const std::string& purpose,
                             const std::vector<std::string>& arguments);

// The whole command: parses `arguments` (without the program's name), runs, and returns the exit
// status: 0, or 2 after one message on `err`.
int run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err);

// "1,-inf,nan" as numbers. `option` names the source in messages.
std::vector<double> parse_numbers(const std::string& text, const std::string& option);
double parse_number(const std::string& text, const std::string& option);

// The function that a choice names, and its parameter values ("name=value" parsed and checked).
// `lift`: a unary function is meant as f(g)*u.
Activation choose(const FunctionChoice& choice, bool lift);
Function choose_function(const FunctionChoice& choice);

// A small plot of `function` over [-6, 6]: a gated one over g at u = 1.
std::string plot(const Function& function, const std::vector<double>& parameters);

}  // namespace flexact::cli
