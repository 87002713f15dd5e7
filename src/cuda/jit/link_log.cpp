// The log's lines, as ptxas has written them since CUDA 11.
#include "cuda/jit/link_log.hpp"

#include <charconv>

namespace flexact::cuda {

namespace {

// The number that stands before `word`, or after it: "36 bytes spill stores", "Used 168 registers".
int number_before(std::string_view line, std::string_view word) {
  const std::size_t at = line.find(word);
  if (at == std::string_view::npos) return 0;
  std::size_t end = at;
  while (end > 0 && line[end - 1] == ' ') --end;
  std::size_t begin = end;
  while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
  int value = 0;
  std::from_chars(line.data() + begin, line.data() + end, value);
  return value;
}

std::string_view quoted(std::string_view line) {
  const std::size_t begin = line.find('\'');
  if (begin == std::string_view::npos) return {};
  const std::size_t end = line.find('\'', begin + 1);
  return line.substr(begin + 1, end == std::string_view::npos ? end : end - begin - 1);
}

// "C7510" and its relatives: advisories about wgmma and register reallocation.
bool is_remark(std::string_view line) {
  for (std::size_t at = line.find("C75"); at != std::string_view::npos;
       at = line.find("C75", at + 1)) {
    const auto digit = [&](std::size_t i) {
      return i < line.size() && line[i] >= '0' && line[i] <= '9';
    };
    if (digit(at + 3) && digit(at + 4)) return true;
  }
  return line.find("setmaxnreg") != std::string_view::npos;
}

}  // namespace

LinkReport read_link_log(std::string_view log) {
  LinkReport report;
  while (!log.empty()) {
    const std::size_t end = log.find('\n');
    const std::string_view line = log.substr(0, end);
    log = end == std::string_view::npos ? std::string_view{} : log.substr(end + 1);
    if (line.find("Compiling entry function") != std::string_view::npos) {
      report.kernels.push_back({std::string(quoted(line))});
    } else if (is_remark(line)) {
      report.remarks.emplace_back(line);
    } else if (!report.kernels.empty()) {
      KernelResources& kernel = report.kernels.back();
      kernel.registers += number_before(line, "registers");
      kernel.stack_bytes += number_before(line, "bytes stack frame");
      kernel.spill_bytes +=
          number_before(line, "bytes spill stores") + number_before(line, "bytes spill loads");
    }
  }
  return report;
}

std::vector<std::string> LinkReport::faults() const {
  std::vector<std::string> list = remarks;
  for (const KernelResources& kernel : kernels) {
    if (kernel.spill_bytes > 0) {
      list.push_back(kernel.name + " spills " + std::to_string(kernel.spill_bytes) +
                     " bytes of registers");
    }
    if (kernel.stack_bytes > 0) {
      list.push_back(kernel.name + " has a stack frame of " + std::to_string(kernel.stack_bytes) +
                     " bytes");
    }
  }
  return list;
}

}  // namespace flexact::cuda
