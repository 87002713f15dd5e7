// The support matrix as it was when this command was built.
#pragma once

#include <string_view>

namespace flexact::cli {

// JSON; empty where there was none.
std::string_view built_in_matrix();

}  // namespace flexact::cli
