// Runs a fuzz target without a fuzzer: every kept input, then variations of them, the same ones in
// every run.
//   fuzz_NAME FOLDER [VARIATIONS]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

std::mt19937 random_bits(20240229);

std::size_t below(std::size_t n) {
  return n == 0 ? 0 : random_bits() % n;
}

// Cuts, repeats, overwrites, joins with another input.
std::string varied(std::string text, const std::vector<std::string>& inputs) {
  for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
    const std::size_t at = below(text.size() + 1);
    const std::size_t length = below(std::min<std::size_t>(text.size() - at + 1, 32));
    switch (below(5)) {
      case 0:
        text.erase(at, length);
        break;
      case 1:
        text.insert(at, text.substr(below(text.size() + 1), 32));
        break;
      case 2:
        text.insert(at, 1, static_cast<char>(below(256)));
        break;
      case 3:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      default: {
        const std::string& other = inputs[below(inputs.size())];
        const std::size_t from = below(other.size() + 1);
        text = text.substr(0, at) + other.substr(from, 256);
      }
    }
  }
  return text;
}

void run(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1]))
    paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> inputs;
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    run(inputs.back());
  }
  if (inputs.empty()) return 2;
  const int variations = argc > 2 ? std::atoi(argv[2]) : 0;
  for (int i = 0; i < variations; ++i) run(varied(inputs[below(inputs.size())], inputs));
  std::printf("%zu inputs, %d variations\n", inputs.size(), variations);
  return 0;
}
