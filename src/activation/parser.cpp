// A Pratt parser for the expression language (docs/expressions.md): one pass, one character of
// lookahead beyond the token, every fault reported at its column. Names are resolved and types
// checked while parsing, so an Ast that exists is well formed.
#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "activation/ast.hpp"
#include "activation/language.hpp"
#include "activation/numerics.hpp"
#include "flexact/error.hpp"

namespace flexact::activation {

namespace {

enum class Token : std::uint8_t { End, Number, Name, Symbol };

// Binding powers, weakest first.
enum Power : int { kComparison = 1, kSum = 2, kProduct = 3, kNegation = 4, kPower = 5 };

struct Limits {
  std::size_t text_bytes = kMaxTextBytes;
  int depth = kMaxDepth;
};

class Parser {
 public:
  Parser(std::string_view text, const ParseOptions& options) : text_(text), options_(options) {
    // What the library prints may nest deeper than what a user may write (gradients do).
    if (options.printed) limits_ = {1 << 20, 1024};
    if (options.parameters != nullptr) ast_.parameters = *options.parameters;
    parameter_used_.assign(ast_.parameters.size(), false);
  }

  Ast run();

 private:
  struct Binding {
    std::int32_t expr;
    std::size_t column;
    bool used;
  };
  // A saved nesting level; leaves it when the scope ends.
  class Nesting {
   public:
    Nesting(Parser& parser, std::size_t column) : parser_(parser) {
      if (++parser.depth_ > parser.limits_.depth) {
        parser.fail(column, "the expression nests deeper than " +
                                std::to_string(parser.limits_.depth) + " levels");
      }
    }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  [[noreturn]] void fail(std::size_t column, const std::string& message,
                         const std::string& hint = {}) const {
    throw Error(ErrorCode::ExpressionError, message, "column " + std::to_string(column), hint);
  }

  // Tokens.
  void advance();
  void read_number();
  bool at(std::string_view symbol) const { return token_ == Token::Symbol && lexeme_ == symbol; }
  void expect(std::string_view symbol, const std::string& where);
  std::string found() const {
    return token_ == Token::End ? "the end" : "'" + std::string(lexeme_) + "'";
  }
  bool definition_follows() const;

  // Expressions.
  std::int32_t parse_expression(int min_power, bool condition_allowed);
  std::int32_t parse_prefix(bool condition_allowed);
  std::int32_t parse_name();
  std::int32_t parse_call(Op op, std::string_view name, std::size_t column);
  std::int32_t parse_comparison(std::int32_t left, bool condition_allowed);
  std::int32_t parse_parameter(std::string_view name, std::size_t column);
  void parse_definition();
  std::int32_t make_power(std::int32_t base, std::int32_t exponent, std::size_t column);
  std::int32_t make_apply(Op op, std::array<std::int32_t, 3> operands, std::size_t column);
  std::int32_t push(Expr expr) {
    ast_.exprs.push_back(expr);
    return static_cast<std::int32_t>(ast_.exprs.size()) - 1;
  }
  const Expr& expr(std::int32_t id) const { return ast_.exprs[static_cast<std::size_t>(id)]; }
  void require_value(std::int32_t id) const {
    if (expr(id).condition) {
      fail(expr(id).column, "a comparison is not a number",
           "comparisons are the first argument of where(condition, a, b)");
    }
  }
  std::optional<std::pair<int, std::size_t>> infix() const;

  // What the whole must satisfy.
  void check_variables();
  void check_all_used() const;

  std::string_view text_;
  const ParseOptions& options_;
  Limits limits_;
  Ast ast_;
  std::map<std::string, Binding, std::less<>> definitions_;
  std::vector<bool> parameter_used_;
  std::size_t gate_column_ = 0;
  std::size_t up_column_ = 0;
  std::size_t input_column_ = 0;
  int depth_ = 0;

  std::size_t position_ = 0;  // after the current token
  Token token_ = Token::End;
  std::string_view lexeme_;
  std::size_t column_ = 1;
  double number_ = 0;
};

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

void Parser::read_number() {
  const char* begin = text_.data() + position_;
  const char* end = text_.data() + text_.size();
  const auto result = std::from_chars(begin, end, number_, std::chars_format::general);
  lexeme_ = text_.substr(position_, static_cast<std::size_t>(result.ptr - begin));
  if (result.ec == std::errc::result_out_of_range) {
    fail(column_, "the number " + std::string(lexeme_) + " does not fit a double");
  }
  if (result.ec != std::errc()) fail(column_, "a digit is missing after '.'");
  position_ += lexeme_.size();
  if (position_ < text_.size() && (is_letter(text_[position_]) || text_[position_] == '.')) {
    fail(position_ + 1, "unexpected '" + std::string(1, text_[position_]) + "' after a number",
         "write a product with '*'");
  }
}

void Parser::advance() {
  while (position_ < text_.size() && is_space(text_[position_])) ++position_;
  column_ = position_ + 1;
  if (position_ == text_.size()) {
    token_ = Token::End;
    lexeme_ = {};
    return;
  }
  const char c = text_[position_];
  if (is_digit(c) || c == '.') {
    token_ = Token::Number;
    read_number();
    return;
  }
  if (is_letter(c)) {
    const std::size_t begin = position_;
    while (position_ < text_.size() &&
           (is_letter(text_[position_]) || is_digit(text_[position_]))) {
      ++position_;
    }
    token_ = Token::Name;
    lexeme_ = text_.substr(begin, position_ - begin);
    return;
  }
  token_ = Token::Symbol;
  const std::string_view pair = text_.substr(position_, 2);
  if (pair == "<=" || pair == ">=" || pair == "==" || pair == "!=") {
    lexeme_ = pair;
  } else if (pair == "**") {
    fail(column_, "'**' is not an operator", "a power is written with '^'");
  } else if (std::string_view("+-*/^<>(),;=").find(c) != std::string_view::npos) {
    lexeme_ = text_.substr(position_, 1);
  } else {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      fail(column_, "byte " + std::to_string(byte) + " is not part of the language",
           "expressions are plain ASCII");
    }
    fail(column_, "'" + std::string(1, c) + "' is not part of the language");
  }
  position_ += lexeme_.size();
}

void Parser::expect(std::string_view symbol, const std::string& where) {
  if (!at(symbol))
    fail(column_, "expected '" + std::string(symbol) + "' " + where + ", found " + found());
  advance();
}

// True where the current name is followed by a single '='.
bool Parser::definition_follows() const {
  std::size_t next = position_;
  while (next < text_.size() && is_space(text_[next])) ++next;
  return token_ == Token::Name && next < text_.size() && text_[next] == '=' &&
         (next + 1 == text_.size() || text_[next + 1] != '=');
}

Ast Parser::run() {
  if (text_.size() > limits_.text_bytes) {
    fail(limits_.text_bytes + 1,
         "the expression is longer than " + std::to_string(limits_.text_bytes) + " bytes");
  }
  advance();
  if (token_ == Token::End) fail(1, "the expression is empty");
  while (definition_follows()) parse_definition();
  if (token_ == Token::End)
    fail(column_, "the expression ends with a definition", "a value follows the last ';'");
  ast_.result = parse_expression(kComparison, false);
  if (at(";")) {
    fail(column_, "';' after a value", "only definitions 'name = value;' come before the value");
  }
  if (at("=")) fail(column_, "'=' defines a name", "equality is written '=='");
  if (token_ != Token::End) fail(column_, "expected an operator or the end, found " + found());
  check_all_used();
  check_variables();
  return std::move(ast_);
}

void Parser::parse_definition() {
  const std::string name(lexeme_);
  const std::size_t column = column_;
  if (is_reserved(name)) fail(column, "'" + name + "' is a reserved word and cannot be defined");
  if (name.size() > 64) fail(column, "the name is longer than 64 characters");
  if (definitions_.contains(name)) fail(column, "'" + name + "' is defined twice");
  for (const std::string& parameter : ast_.parameters) {
    if (parameter == name) fail(column, "'" + name + "' is a parameter and cannot be defined");
  }
  advance();
  advance();  // the '='
  const std::int32_t value = parse_expression(kComparison, false);
  expect(";", "after the definition of '" + name + "'");
  definitions_.emplace(name, Binding{value, column, false});
  ast_.definitions.push_back({name, value});
}

std::optional<std::pair<int, std::size_t>> Parser::infix() const {
  if (token_ != Token::Symbol) return std::nullopt;
  if (lexeme_ == "+" || lexeme_ == "-") return std::pair{int{kSum}, column_};
  if (lexeme_ == "*" || lexeme_ == "/") return std::pair{int{kProduct}, column_};
  if (lexeme_ == "^") return std::pair{int{kPower}, column_};
  if (lexeme_ == "<" || lexeme_ == "<=" || lexeme_ == ">" || lexeme_ == ">=" || lexeme_ == "==" ||
      lexeme_ == "!=") {
    return std::pair{int{kComparison}, column_};
  }
  return std::nullopt;
}

std::int32_t Parser::parse_expression(int min_power, bool condition_allowed) {
  std::int32_t left = parse_prefix(condition_allowed);
  while (const auto next = infix()) {
    const auto [power, column] = *next;
    if (power < min_power) break;
    if (power == kComparison) {
      left = parse_comparison(left, condition_allowed);
      continue;
    }
    const char symbol = lexeme_[0];
    require_value(left);
    advance();
    if (power == kPower) {
      // Right-associative: the exponent reads further powers, and a sign of its own.
      const Nesting nesting(*this, column);
      const std::int32_t exponent = parse_expression(kPower, false);
      left = make_power(left, exponent, column);
      continue;
    }
    const std::int32_t right = parse_expression(power + 1, false);
    const Op op = symbol == '+'   ? Op::Add
                  : symbol == '-' ? Op::Sub
                  : symbol == '*' ? Op::Mul
                                  : Op::Div;
    left = make_apply(op, {left, right, -1}, column);
  }
  return left;
}

std::int32_t Parser::parse_comparison(std::int32_t left, bool condition_allowed) {
  const std::size_t column = column_;
  if (!condition_allowed) {
    fail(column, "a comparison outside a condition",
         "comparisons are the first argument of where(condition, a, b)");
  }
  if (expr(left).condition) {
    fail(column, "comparisons do not chain", "nest where() instead");
  }
  const Op op = lexeme_ == "<"    ? Op::Lt
                : lexeme_ == "<=" ? Op::Le
                : lexeme_ == ">"  ? Op::Gt
                : lexeme_ == ">=" ? Op::Ge
                : lexeme_ == "==" ? Op::Eq
                                  : Op::Ne;
  advance();
  const std::int32_t right = parse_expression(kSum, false);
  return make_apply(op, {left, right, -1}, column);
}

std::int32_t Parser::parse_prefix(bool condition_allowed) {
  const std::size_t column = column_;
  if (token_ == Token::Number) {
    Expr number;
    number.constant = true;
    number.value = number_;
    number.column = column;
    advance();
    return push(number);
  }
  if (token_ == Token::Name) return parse_name();
  if (at("(")) {
    const Nesting nesting(*this, column);
    advance();
    const std::int32_t inner = parse_expression(kComparison, condition_allowed);
    expect(")", "to close the '(' at column " + std::to_string(column));
    return inner;
  }
  if (at("-")) {
    const Nesting nesting(*this, column);
    advance();
    const std::int32_t operand = parse_expression(kNegation, false);
    return make_apply(Op::Neg, {operand, -1, -1}, column);
  }
  if (at("+")) fail(column, "'+' needs a value on its left");
  fail(column, "expected a value, found " + found());
}

std::int32_t Parser::parse_name() {
  const std::string_view name = lexeme_;
  const std::size_t column = column_;
  advance();
  if (const auto op = find_function(name)) return parse_call(*op, name, column);
  if (at("(")) {
    std::vector<std::string> known;
    for (std::string_view function : function_names()) known.emplace_back(function);
    const std::string near = closest(name, known);
    fail(column, "unknown function '" + std::string(name) + "'",
         near.empty() ? "known are " + join(known) : "did you mean '" + near + "'?");
  }

  Expr leaf;
  leaf.column = column;
  if (name == "g" || name == "u" || name == "x") {
    leaf.form = Form::Variable;
    leaf.op = name == "g" ? Op::Gate : name == "u" ? Op::Up : Op::Input;
    std::size_t& first = name == "g" ? gate_column_ : name == "u" ? up_column_ : input_column_;
    if (first == 0) first = column;
    return push(leaf);
  }
  if (name == "pi" || name == "e" || name == "inf") {
    leaf.constant = true;
    leaf.spelling = name == "pi" ? "pi" : name == "e" ? "e" : "inf";
    leaf.value = name == "pi" ? 3.141592653589793 : name == "e" ? 2.718281828459045 : HUGE_VAL;
    return push(leaf);
  }
  if (const auto found_definition = definitions_.find(name);
      found_definition != definitions_.end()) {
    found_definition->second.used = true;
    const std::int32_t value = found_definition->second.expr;
    leaf.form = Form::Name;
    leaf.operands[0] = value;
    leaf.constant = expr(value).constant;
    leaf.value = expr(value).value;
    return push(leaf);
  }
  return parse_parameter(name, column);
}

std::int32_t Parser::parse_parameter(std::string_view name, std::size_t column) {
  if (is_reserved(name)) {
    fail(column, "'" + std::string(name) + "' is a reserved word and cannot name a parameter");
  }
  if (name.size() > 64) fail(column, "the name is longer than 64 characters");
  std::size_t index = 0;
  while (index < ast_.parameters.size() && ast_.parameters[index] != name) ++index;
  if (index == ast_.parameters.size()) {
    if (options_.parameters != nullptr) {
      const std::string near = closest(name, ast_.parameters);
      fail(column, "unknown name '" + std::string(name) + "'",
           near.empty()
               ? "parameters are " + (ast_.parameters.empty() ? "none" : join(ast_.parameters))
               : "did you mean '" + near + "'?");
    }
    if (index == kMaxParameters) {
      fail(column, "more than " + std::to_string(kMaxParameters) + " parameters");
    }
    ast_.parameters.emplace_back(name);
    parameter_used_.push_back(false);
  }
  parameter_used_[index] = true;
  Expr leaf;
  leaf.form = Form::Parameter;
  leaf.index = static_cast<std::int32_t>(index);
  leaf.column = column;
  return push(leaf);
}

std::int32_t Parser::parse_call(Op op, std::string_view name, std::size_t column) {
  if (!at("(")) {
    fail(column_, "'" + std::string(name) + "' is a function; expected '(', found " + found());
  }
  const Nesting nesting(*this, column_);
  advance();
  const int wanted = operand_count(op);
  const std::string count = "'" + std::string(name) + "' takes " + std::to_string(wanted) +
                            (wanted == 1 ? " argument" : " arguments");
  std::array<std::int32_t, 3> operands{-1, -1, -1};
  for (int i = 0; i < wanted; ++i) {
    if (i > 0) {
      if (!at(",")) fail(column_, count + "; expected ',', found " + found());
      advance();
    }
    const bool condition = op == Op::Where && i == 0;
    operands[i] = parse_expression(kComparison, condition);
    if (at("=")) fail(column_, "'=' defines a name", "equality is written '=='");
    if (condition && !expr(operands[i]).condition) {
      fail(expr(operands[i]).column, "the first argument of where() is a comparison",
           "for example where(x > 0, a, b)");
    }
  }
  if (at(",")) fail(column_, count);
  expect(")", "to close " + std::string(name) + "(");
  return make_apply(op, operands, column);
}

// `column` is the operator's, or the function name's.
std::int32_t Parser::make_apply(Op op, std::array<std::int32_t, 3> operands, std::size_t column) {
  Expr made;
  made.form = Form::Apply;
  made.op = op;
  made.operands = operands;
  made.condition = is_comparison(op);
  made.column = column;
  made.constant = true;
  std::array<double, 3> values{};
  bool finite = true;
  for (int i = 0; i < operand_count(op); ++i) {
    const Expr& operand = expr(operands[i]);
    if (op != Op::Where || i > 0) require_value(operands[i]);
    made.constant = made.constant && operand.constant;
    values[i] = operand.value;
    finite = finite && std::isfinite(operand.value);
  }
  if (op == Op::Clamp && expr(operands[1]).constant && expr(operands[2]).constant &&
      values[1] > values[2]) {
    fail(column, "clamp with a lower bound " + number_text(values[1]) + " above its upper bound " +
                     number_text(values[2]));
  }
  if (made.constant) {
    made.value = apply(op, values[0], values[1], values[2], 0);
    if (!options_.printed && std::isnan(made.value)) fail(column, "this constant is not a number");
    if (!options_.printed && finite && std::isinf(made.value)) {
      fail(column, "this constant overflows");
    }
  }
  return push(made);
}

std::int32_t Parser::make_power(std::int32_t base_id, std::int32_t exponent_id,
                                std::size_t column) {
  require_value(exponent_id);
  const Expr base = expr(base_id);
  const Expr exponent = expr(exponent_id);
  const bool positive_base = base.constant && base.value > 0 && std::isfinite(base.value);
  const double n = exponent.value;
  const bool small_integer =
      exponent.constant && n == std::trunc(n) && std::fabs(n) <= kMaxExponent;
  const bool root = exponent.constant && std::fabs(n) == 0.5;
  if (!small_integer && !root && !positive_base) {
    fail(column, "this power is not allowed",
         "the exponent is an integer of magnitude at most 16, 0.5 or -0.5, or the base is a "
         "positive "
         "constant");
  }
  Expr made;
  made.form = Form::Power;
  made.operands = {base_id, exponent_id, -1};
  made.column = column;
  made.constant = base.constant && exponent.constant;
  if (made.constant) {
    made.value = std::pow(base.value, n);
    if (!options_.printed && std::isnan(made.value)) fail(column, "this constant is not a number");
    if (!options_.printed && std::isinf(made.value) && std::isfinite(base.value)) {
      fail(column, "this constant overflows");
    }
  }
  return push(made);
}

void Parser::check_all_used() const {
  const auto unused = [this](const Binding* definition, const std::string& name) {
    if (definition != nullptr) fail(definition->column, "'" + name + "' is defined but never used");
  };
  for (const Definition& definition : ast_.definitions) {
    const Binding& binding = definitions_.find(definition.name)->second;
    if (!binding.used) unused(&binding, definition.name);
  }
  if (options_.printed) return;
  for (std::size_t i = 0; i < parameter_used_.size(); ++i) {
    if (!parameter_used_[i]) fail(1, "parameter '" + ast_.parameters[i] + "' is never used");
  }
}

void Parser::check_variables() {
  if (input_column_ != 0 && (gate_column_ != 0 || up_column_ != 0)) {
    const std::size_t gated = gate_column_ != 0 && up_column_ != 0
                                  ? std::min(gate_column_, up_column_)
                                  : std::max(gate_column_, up_column_);
    fail(std::max(input_column_, gated), "x beside g or u",
         "a gated expression is written in g and u, a unary one in x");
  }
  if (options_.printed) {
    ast_.arity = options_.arity;
    const std::size_t wrong =
        ast_.arity == Arity::Gated ? input_column_ : std::max(gate_column_, up_column_);
    if (wrong != 0) fail(wrong, "a variable that does not belong to this arity");
    return;
  }
  if (gate_column_ != 0 && up_column_ == 0) {
    fail(gate_column_, "g without u", "a unary expression is written in x");
  }
  if (up_column_ != 0 && gate_column_ == 0) {
    fail(up_column_, "u without g", "a gated expression reads both, a unary one is written in x");
  }
  if (input_column_ == 0 && gate_column_ == 0) {
    fail(1, "the expression reads neither x nor g and u");
  }
  ast_.arity = gate_column_ != 0 ? Arity::Gated : Arity::Unary;
}

}  // namespace

Ast parse(std::string_view text, const ParseOptions& options) {
  return Parser(text, options).run();
}

namespace {

// 1 + f(z) for f erf or tanh, where an operand is written as the number 1.
std::optional<double> cancelling_sum(const Ast& ast, const Expr& sum,
                                     std::span<const double> values) {
  const auto at = [&](int i) -> const Expr& {
    return ast.exprs[static_cast<std::size_t>(sum.operands[i])];
  };
  for (int one = 0; one < 2; ++one) {
    const Expr& f = at(1 - one);
    if (at(one).form != Form::Number || at(one).value != 1 || f.form != Form::Apply) continue;
    if (f.op != Op::Erf && f.op != Op::Tanh) continue;
    if (sum.op == Op::Sub && one == 1) continue;  // f(z) - 1
    const double z = values[static_cast<std::size_t>(f.operands[0])];
    const double signed_z = sum.op == Op::Sub ? -z : z;
    return f.op == Op::Erf ? one_plus_erf(signed_z) : one_plus_tanh(signed_z);
  }
  return std::nullopt;
}

double power(double base, double exponent) {
  if (exponent == 0.5) return std::sqrt(base);
  if (exponent == -0.5) return 1 / std::sqrt(base);
  return std::pow(base, exponent);
}

}  // namespace

double evaluate(const Ast& ast, double first, double u, std::span<const double> parameters) {
  std::vector<double> values(ast.exprs.size());
  for (std::size_t i = 0; i < ast.exprs.size(); ++i) {
    const Expr& expr = ast.exprs[i];
    std::array<double, 3> operand{};
    for (std::size_t k = 0; k < 3 && expr.operands[k] >= 0; ++k) {
      operand[k] = values[static_cast<std::size_t>(expr.operands[k])];
    }
    switch (expr.form) {
      case Form::Number:
        values[i] = expr.value;
        break;
      case Form::Variable:
        values[i] = expr.op == Op::Up ? u : first;
        break;
      case Form::Parameter:
        values[i] = parameters[static_cast<std::size_t>(expr.index)];
        break;
      case Form::Name:
        values[i] = operand[0];
        break;
      case Form::Power:
        values[i] = power(operand[0], operand[1]);
        break;
      case Form::Apply: {
        std::optional<double> sum;
        if (expr.op == Op::Add || expr.op == Op::Sub) sum = cancelling_sum(ast, expr, values);
        values[i] = sum ? *sum : apply(expr.op, operand[0], operand[1], operand[2], 0);
      }
    }
  }
  return values[static_cast<std::size_t>(ast.result)];
}

}  // namespace flexact::activation
