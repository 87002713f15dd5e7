// Other programs: finding this one's Python, and running it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace flexact::cli {

// The Python that this command belongs to: the one beside it, else python3 on PATH. Empty: none.
std::string find_python();

// What `arguments` (a program and its arguments, no shell) wrote to stdout; nullopt where it could
// not be started or failed.
std::optional<std::string> output_of(const std::vector<std::string>& arguments);

// Replaces this process. Returns only on failure.
void replace_process(const std::vector<std::string>& arguments);

}  // namespace flexact::cli
