// The one exception type of the library: what was wrong, where, and what is allowed.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace flexact {

enum class ErrorCode {
  InvalidArgument,  // a call with a value outside its documented range
  ConfigError,      // config.json or an override cannot be resolved with certainty
  ExpressionError,  // an expression does not parse, type-check or stay within its limits
  Unsupported,      // understood, but no backend here can compute it
  DeviceError,      // a device, driver or run-time tool failed
  IoError,          // a file cannot be read or written
  InternalError,    // a defect of this library
};

// The code's name as it is spelled above, e.g. "ConfigError".
std::string_view to_string(ErrorCode code) noexcept;

// what() reads "WHERE: MESSAGE (HINT)", with the empty parts left out. All parts are UTF-8 whatever
// was quoted in them: other bytes and control characters are written as \xNN, and a part is cut
// after 8 KiB.
class Error : public std::runtime_error {
 public:
  // `where` is a JSON pointer ("/activation_params/beta"), a position in an expression
  // ("column 7") or a path; `hint` says what is allowed or what to do.
  Error(ErrorCode code, std::string message, std::string where = {}, std::string hint = {});

  ErrorCode code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  const std::string& where() const noexcept { return where_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  struct Parts {
    std::string message;
    std::string where;
    std::string hint;
  };
  Error(ErrorCode code, Parts parts);

  ErrorCode code_;
  std::string message_;
  std::string where_;
  std::string hint_;
};

}  // namespace flexact
