// The `flexact` command.
#include <iostream>

#include "cli/commands.hpp"

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  const int status = flexact::cli::run({argv + 1, argv + argc}, std::cout, std::cerr);
  std::cout.flush();
  // A full disk or a closed pipe must not pass for success.
  return std::cout ? status : 2;
}
