// Error text and codes. Messages quote what was given, so they are made presentable here, once:
// UTF-8 without control characters, of a length that a terminal can take.
#include "flexact/error.hpp"

#include <utility>

#include "activation/utf8.hpp"

namespace flexact {

namespace {

constexpr std::size_t kMaxPart = 8192;

std::string presentable(std::string text) {
  std::string out;
  std::size_t at = 0;
  while (at < text.size() && at < kMaxPart) {
    const auto c = static_cast<unsigned char>(text[at]);
    const std::size_t length = activation::utf8_length(text, at);
    if (length == 0 || (c < 0x20 && c != '\n' && c != '\t') || c == 0x7F) {
      constexpr char kHex[] = "0123456789abcdef";
      out += "\\x";
      out += kHex[c >> 4];
      out += kHex[c & 15];
      ++at;
    } else {
      out.append(text, at, length);
      at += length;
    }
  }
  if (at < text.size()) out += "…";
  return out;
}

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
  return "unknown";
}

Error::Error(ErrorCode code, std::string message, std::string where, std::string hint)
    : Error(code, Parts{presentable(std::move(message)), presentable(std::move(where)),
                        presentable(std::move(hint))}) {}

Error::Error(ErrorCode code, Parts parts)
    : std::runtime_error(compose(parts.message, parts.where, parts.hint)),
      code_(code),
      message_(std::move(parts.message)),
      where_(std::move(parts.where)),
      hint_(std::move(parts.hint)) {}

}  // namespace flexact
