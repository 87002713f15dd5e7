// Error text and codes.
#include "flexact/error.hpp"

#include <utility>

namespace flexact {

namespace {

std::string compose(const std::string& message, const std::string& where, const std::string& hint) {
  std::string text = where.empty() ? message : where + ": " + message;
  if (!hint.empty()) text += " (" + hint + ")";
  return text;
}

}  // namespace

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::InvalidArgument:
      return "InvalidArgument";
    case ErrorCode::ConfigError:
      return "ConfigError";
    case ErrorCode::ExpressionError:
      return "ExpressionError";
    case ErrorCode::Unsupported:
      return "Unsupported";
    case ErrorCode::DeviceError:
      return "DeviceError";
    case ErrorCode::IoError:
      return "IoError";
    case ErrorCode::InternalError:
      return "InternalError";
  }
  return "InternalError";
}

Error::Error(ErrorCode code, std::string message, std::string where, std::string hint)
    : std::runtime_error(compose(message, where, hint)),
      code_(code),
      message_(std::move(message)),
      where_(std::move(where)),
      hint_(std::move(hint)) {}

}  // namespace flexact
