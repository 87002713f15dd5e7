// What the linker says about the machine code that it made, read for what must not be there.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flexact::cuda {

struct KernelResources {
  std::string name;
  int registers = 0;
  int stack_bytes = 0;
  int spill_bytes = 0;  // stores and loads together
};

struct LinkReport {
  std::vector<KernelResources> kernels;
  std::vector<std::string> remarks;  // the assembler's C75xx advisories, one line each

  // One sentence for everything that makes a kernel slow: a spill, a stack frame, an ignored
  // setmaxnreg, serialised wgmma. Empty: the code is as it should be.
  std::vector<std::string> faults() const;
};

LinkReport read_link_log(std::string_view log);

}  // namespace flexact::cuda
