// The words of FLEXACT_NUMERICS.
#include "moe/numerics.hpp"

#include <cstdlib>
#include <string>

#include "flexact/error.hpp"

namespace flexact::moe {

Numerics selected_numerics() {
  const char* text = std::getenv("FLEXACT_NUMERICS");
  const std::string word = text == nullptr ? "" : text;
  if (word.empty() || word == "fast") return Numerics::Fast;
  if (word == "precise") return Numerics::Precise;
  if (word == "exact") return Numerics::Exact;
  throw Error(ErrorCode::InvalidArgument, "unknown numerics '" + word + "'", "FLEXACT_NUMERICS",
              "fast, precise or exact");
}

}  // namespace flexact::moe
